//! Maps: what is written of Services, how full they may be, and the sweep of the flow table.

use super::*;

#[test]
#[ignore = "needs root: run make test"]
fn what_is_written_of_services_is_read_back_by_the_next_agent() {
    let room = Room::new();
    let address: IpAddr = "fd00::1".parse().expect("an address");
    let backend = Backend { address: address.into(), port: Port::new(8080), reserved: 0, generation: 3 };
    let frontend = Frontend { service: 1, internal: Region { base: 5, len: 3 }, ..Frontend::default() };
    let mut maps = room.load().maps.services;
    maps.write_backend(63, &backend).expect("written");
    maps.write_slots(5, &[63, 63, 1]).expect("written");
    maps.write_slots(0, &[9]).expect("written");
    maps.write_frontend(&key(80), &frontend).expect("written");
    drop(maps);

    let mut maps = room.load().maps.services;
    assert_eq!(maps.backends().expect("read"), [(63, backend)]);
    assert_eq!(maps.slots(Region { base: 5, len: 3 }).expect("read"), [63, 63, 1]);
    assert_eq!(maps.slots(Region { base: 0, len: 1 }).expect("read"), [9]);
    assert_eq!(maps.slots(Region { base: 63, len: 1 }).expect("read"), [0]);
    assert_eq!(maps.frontends().expect("read"), [(key(80), frontend)]);
    maps.remove_frontend(&key(80)).expect("removed");
    maps.remove_frontend(&key(80)).expect("removed twice");
    assert!(maps.frontends().expect("read").is_empty());
}

#[test]
#[ignore = "needs root: run make test"]
fn a_full_map_says_which_frontend_found_no_room() {
    let room = Room::new();
    let mut maps = room.load().maps.services;
    for port in 1..=4 {
        maps.write_frontend(&key(port), &Frontend::default()).expect("room");
    }
    let error = maps.write_frontend(&key(5), &Frontend::default()).expect_err("no room");
    assert_eq!(error.to_string(), "program frontend 10.96.0.1:5/tcp: map full (4)");
    maps.write_frontend(&key(4), &Frontend::default()).expect("what is there can be replaced");
    let error = maps.write_backend(64, &Backend::default()).expect_err("no room");
    assert!(error.to_string().ends_with("map full (64)"), "{error}");
}

#[test]
#[ignore = "needs root: run make test"]
fn a_map_that_is_there_keeps_its_size_and_its_entries() {
    let room = Room::new();
    let mut maps = room.load().maps.services;
    maps.write_frontend(&key(80), &Frontend { service: 7, ..Frontend::default() }).expect("written");
    drop(maps);
    let larger = Sizes { frontends: 400, ..SIZES };
    let loaded =
        load(fairlead_object::OBJECT, &room.pins(), &larger, &BTreeMap::new(), Offers::ALL).expect("loaded");
    let size = loaded.sizes.iter().find(|size| size.name == "FRONTENDS").expect("known");
    assert_eq!((size.capacity, size.wanted), (4, 400));
    assert_eq!(loaded.maps.services.frontends().expect("read").len(), 1);
}

#[test]
#[ignore = "needs root: run make test"]
fn a_load_that_fails_leaves_no_pin_behind() {
    let room = Room::new();
    let refused = Sizes { backends: u32::MAX, ..SIZES };
    let error = load(fairlead_object::OBJECT, &room.pins(), &refused, &BTreeMap::new(), Offers::ALL)
        .err()
        .expect("refused");
    assert!(error.to_string().contains("BACKENDS"), "{error}");
    assert!(!room.pins().maps().exists(), "what was made for it is there yet");
}

#[test]
#[ignore = "needs root: run make test"]
fn ranges_are_read_back_by_the_next_agent_and_removed_by_their_prefix() {
    let room = Room::new();
    let cidr = |text: &str| RangeKey::from(text.parse::<ipnet::IpNet>().expect("a range"));
    let source = |service, text: &str| SourceRangeKey::new(service, text.parse().expect("a range"));
    let mut maps = room.load().maps.services;
    for (text, flags) in [("10.96.0.0/16", 1), ("10.96.0.0/24", 0), ("fd00:10::/112", 1)] {
        maps.write_service_cidr(&cidr(text), flags).expect("written");
    }
    let ranges = [source(1, "10.0.0.0/8"), source(1, "fd00::/8"), source(2, "10.0.0.0/8")];
    for range in &ranges {
        maps.write_source_range(range, true).expect("written");
        maps.write_source_range(range, true).expect("written twice");
    }
    drop(maps);

    let mut maps = room.load().maps.services;
    let mut found = maps.service_cidrs().expect("read");
    found.sort_by_key(|(key, _)| key.to_string());
    let expected = [("10.96.0.0/16", 1), ("10.96.0.0/24", 0), ("fd00:10::/112", 1)];
    assert_eq!(found, expected.map(|(text, flags)| (cidr(text), flags)));
    let mut found = maps.source_ranges().expect("read");
    found.sort();
    let mut expected = ranges;
    expected.sort();
    assert_eq!(found, expected);

    maps.remove_service_cidr(&cidr("10.96.0.0/16")).expect("removed");
    maps.remove_service_cidr(&cidr("10.96.0.0/16")).expect("removed twice");
    assert_eq!(maps.service_cidrs().expect("read").len(), 2);
    maps.write_source_range(&ranges[0], false).expect("removed");
    maps.write_source_range(&ranges[0], false).expect("removed twice");
    assert_eq!(maps.source_ranges().expect("read").len(), 2);
}

#[test]
#[ignore = "needs root: run make test"]
fn a_full_map_says_which_source_range_found_no_room() {
    let room = Room::new();
    let mut maps = room.load().maps.services;
    let range = |service| SourceRangeKey::new(service, "10.0.0.0/8".parse().expect("a range"));
    for service in 1..=4 {
        maps.write_source_range(&range(service), true).expect("room");
    }
    let error = maps.write_source_range(&range(5), true).expect_err("no room").to_string();
    assert_eq!(error, "program source range 10.0.0.0/8 of Service port 5: map full (4)");
}

#[test]
#[ignore = "needs root: run make test"]
fn a_sweep_counts_what_lives_and_removes_what_is_over() {
    let room = Room::new();
    let mut table = room.load().maps.flows;
    let uptime = fs::read_to_string("/proc/uptime").expect("an uptime");
    let uptime: f64 = uptime.split(' ').next().expect("a number").parse().expect("a number");
    let now = (uptime * 1e9) as u64;
    let mut flows: HashMap<MapData, FlowKey, Flow> = room.map(maps::FLOWS);
    let mut connect = |client: u16, flags: u32, forward_seen: u64, reply_seen: u64| {
        let (from, frontend, backend) = (address("10.0.0.1"), address("10.96.0.1"), address("10.0.0.2"));
        let forward = FlowKey {
            source: from.into(),
            destination: frontend.into(),
            source_port: Port::new(client),
            destination_port: Port::new(80),
            protocol: protocol::TCP,
            reserved: [0; 3],
        };
        let there = Flow {
            last_seen: forward_seen,
            source: from.into(),
            destination: backend.into(),
            source_port: Port::new(client),
            destination_port: Port::new(8080),
            flags,
            ..Flow::default()
        };
        let reply = FlowKey {
            source: backend.into(),
            destination: from.into(),
            source_port: Port::new(8080),
            destination_port: Port::new(client),
            ..forward
        };
        let back = Flow {
            last_seen: reply_seen,
            source: frontend.into(),
            destination: from.into(),
            source_port: Port::new(80),
            destination_port: Port::new(client),
            flags: flags | flow_flags::REPLY,
            ..there
        };
        flows.insert(forward, there, 0).expect("inserted");
        flows.insert(reply, back, 0).expect("inserted");
    };
    connect(1, flow_flags::ANSWERED, now, now);
    connect(2, flow_flags::CLOSED, 1, 1);
    connect(3, flow_flags::CLOSED, 1, now);
    let census = table.sweep().expect("swept");
    assert_eq!((census.entries, census.removed, census.held()), (4, 2, 1), "one has ended: {census:?}");
    assert_eq!(census.connections[&("tcp", "established")], 1);
    assert_eq!(census.connections[&("tcp", "closed")], 1, "its other direction is not over yet");
    assert_eq!(flows.keys().count(), 4);
}
