//! The dataplane against the real kernel: maps, links and endpoints, each test in a network namespace and on
//! a bpf filesystem of its own.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use aya::maps::{HashMap, Map, MapData};
use fairlead_abi::{
    Address, Backend, Config, Flow, FlowKey, Frontend, FrontendKey, Port, Region, SocketClient, flow_flags,
    frontend_flags, maps, marks, protocol,
};
use fairlead_core::dataplane::{ServiceCidrKey, ServiceMaps, SourceRangeKey};
use fairlead_net::agent::{PodRef, Registration};
use fairlead_net::netns::{NamedNetns, current_cookie};
use fairlead_proxy::dataplane::Pins;
use fairlead_proxy::dataplane::clients::Clients;
use fairlead_proxy::dataplane::endpoints::Endpoints;
use fairlead_proxy::dataplane::links::{Attachment, Datapath, Links, Place, cleanup};
use fairlead_proxy::dataplane::load::{Loaded, load, mount_bpffs};
use fairlead_proxy::dataplane::services::KernelMaps;
use fairlead_proxy::dataplane::sizes::Sizes;
use fairlead_proxy::uplinks::{Fixed, Uplinks};
use nix::mount::{MntFlags, umount2};
use nix::net::if_::if_nametoindex;

const SIZES: Sizes = Sizes {
    frontends: 4,
    slots: 64,
    backends: 64,
    endpoints: 8,
    places: 512,
    affinities: 64,
    source_ranges: 4,
};

/// A bpf filesystem that goes with the test.
struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Self { directory: tempfile::tempdir().expect("a directory") };
        mount_bpffs(&room.bpffs()).expect("a bpf filesystem");
        room
    }

    fn bpffs(&self) -> PathBuf {
        self.directory.path().join("bpf")
    }

    fn pins(&self) -> Pins {
        Pins::new(&self.bpffs())
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("endpoints")
    }

    fn load(&self) -> Loaded {
        load(fairlead_object::OBJECT, &self.pins(), &SIZES).expect("loaded")
    }

    /// Links and endpoints of an agent that has just started.
    fn start(&self, datapath: Datapath) -> (Arc<Mutex<Links>>, Endpoints) {
        let Loaded { maps, programs, .. } = self.load();
        let links = Arc::new(Mutex::new(Links::new(programs, &self.pins(), datapath).expect("links")));
        links.lock().expect("not poisoned").adopt().expect("adopted");
        let clients = Arc::new(Mutex::new(maps.clients));
        let endpoints =
            Endpoints::restore(maps.endpoints, maps.marks, clients, Arc::clone(&links), self.files())
                .expect("restored");
        (links, endpoints)
    }

    /// A map as the next agent, or anybody else, finds it.
    fn map<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        let data = MapData::from_pin(self.pins().map(name)).expect("a pin");
        Map::HashMap(data).try_into().expect("a hash")
    }

    fn client(&self, cookie: u64) -> Option<SocketClient> {
        self.map(maps::CLIENTS).get(&cookie, 0).ok()
    }

    /// The socket hooks at work on sockets of this process, where these are in the namespace of the caller.
    fn hook(&self) -> (KernelMaps, Clients) {
        let Loaded { mut maps, programs, .. } = self.load();
        let host_netns = current_cookie().expect("a cookie");
        let node_v4 = Address::from(address("127.0.0.1"));
        maps.config.set(0, Config { node_v4, host_netns, ..Config::default() }, 0).expect("configured");
        let mut links = Links::new(programs, &self.pins(), Datapath::Auto).expect("links");
        links.attach_sockets(&own_cgroup()).expect("attached");
        (maps.services, maps.clients)
    }

    fn link_pins(&self) -> Vec<String> {
        let entries = fs::read_dir(self.pins().links()).expect("listed");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
    }
}

/// Runs a test in a network namespace of its own, which goes with it.
fn in_netns(test: impl FnOnce() + Send) {
    static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let namespace =
        NamedNetns::create(&format!("flagent-{}-{serial}", std::process::id())).expect("a namespace");
    namespace.netns().run(test).expect("entered");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// A veth pair, of which the one end would be moved into a pod.
fn pod(name: &str, address: &str) -> Registration {
    ip(&format!("link add {name} type veth peer name p{name}"));
    Registration {
        container_id: format!("container-{name}"),
        ifname: "eth0".into(),
        pod: PodRef { namespace: "default".into(), name: name.into(), uid: name.into() },
        host_ifname: name.into(),
        host_ifindex: if_nametoindex(name).expect("an interface"),
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        addresses: vec![self::address(address)],
        netns_cookie: Some(u64::MAX - u64::from(if_nametoindex(name).expect("an interface"))),
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn key(port: u16) -> FrontendKey {
    key_at("10.96.0.1", port)
}

fn key_at(text: &str, port: u16) -> FrontendKey {
    FrontendKey { address: address(text).into(), port: Port::new(port), protocol: protocol::TCP, reserved: 0 }
}

/// The cgroup that this process is in. The hooks let sockets of other namespaces pass.
fn own_cgroup() -> PathBuf {
    let of_process = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    let path = of_process.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup");
    cgroup_root().join(path)
}

fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let root = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup2 hierarchy");
    PathBuf::from(root.split(' ').nth(4).expect("a mount point"))
}

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
    let loaded = load(fairlead_object::OBJECT, &room.pins(), &larger).expect("loaded");
    let size = loaded.sizes.iter().find(|size| size.name == "FRONTENDS").expect("known");
    assert_eq!((size.capacity, size.wanted), (4, 400));
    assert_eq!(loaded.maps.services.frontends().expect("read").len(), 1);
}

#[test]
#[ignore = "needs root: run make test"]
fn a_load_that_fails_leaves_no_pin_behind() {
    let room = Room::new();
    let refused = Sizes { backends: u32::MAX, ..SIZES };
    let error = load(fairlead_object::OBJECT, &room.pins(), &refused).err().expect("refused");
    assert!(error.to_string().contains("BACKENDS"), "{error}");
    let left: Vec<_> = fs::read_dir(room.pins().maps()).expect("listed").flatten().collect();
    assert!(left.iter().all(|entry| entry.file_name() == "links"), "{left:?}");
}

#[test]
#[ignore = "needs root: run make test"]
fn an_endpoint_outlives_the_agent_with_its_index_and_its_marks() {
    let room = Room::new();
    in_netns(|| {
        let (other, web) = (pod("other", "10.0.0.1"), pod("web", "10.0.0.2"));
        let (links, mut endpoints) = room.start(Datapath::Tcx);
        endpoints.add(other).expect("added");
        endpoints.add(web.clone()).expect("added");
        endpoints.add(web.clone()).expect("added again: no change");
        endpoints.check(&web).expect("as registered");
        assert_eq!(room.link_pins().len(), 4, "{:?}", room.link_pins());
        drop((links, endpoints));

        let mut maps = room.load().maps;
        let before = maps.endpoints.get(&Address::from(web.addresses[0]), 0).expect("an entry");
        maps.marks.set(before.index, marks::TRANSLATED, 0).expect("marked");
        drop(maps);

        let (links, mut endpoints) = room.start(Datapath::Tcx);
        assert_eq!(links.lock().expect("not poisoned").attached(Place::Pod).expect("listed").len(), 2);
        assert_eq!(endpoints.len(), 2);
        endpoints.check(&web).expect("as registered");
        let views = endpoints.views();
        let translated: Vec<_> = views.iter().map(|view| (view.pod.as_str(), view.translated)).collect();
        assert_eq!(translated, [("default/other", false), ("default/web", true)]);

        let id = (web.container_id.clone(), web.ifname.clone());
        endpoints.delete(&id).expect("deleted");
        endpoints.delete(&id).expect("deleted twice");
        let error = endpoints.check(&web).expect_err("gone").to_string();
        assert!(error.contains("not registered"), "{error}");
        assert_eq!(room.link_pins().len(), 2, "{:?}", room.link_pins());
        assert!(room.load().maps.endpoints.get(&Address::from(web.addresses[0]), 0).is_err());
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn an_endpoint_whose_interface_is_gone_is_collected_now_or_by_the_next_agent() {
    let room = Room::new();
    in_netns(|| {
        let (first, second) = (pod("first", "10.0.0.1"), pod("second", "10.0.0.2"));
        let (links, mut endpoints) = room.start(Datapath::Tcx);
        endpoints.add(first).expect("added");
        endpoints.add(second).expect("added");
        ip("link del first");
        assert_eq!(endpoints.collect().expect("collected"), 1);
        assert_eq!((endpoints.len(), room.link_pins().len()), (1, 2));
        drop((links, endpoints));

        ip("link del second");
        let (_, endpoints) = room.start(Datapath::Tcx);
        assert!(endpoints.is_empty());
        assert!(room.link_pins().is_empty(), "{:?}", room.link_pins());
        assert_eq!(room.load().maps.endpoints.keys().count(), 0);
        assert_eq!(fs::read_dir(room.files()).expect("listed").count(), 0);
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn an_endpoint_for_which_there_is_no_room_leaves_nothing_behind() {
    let room = Room::new();
    in_netns(|| {
        let (_, mut endpoints) = room.start(Datapath::Tcx);
        for place in 0..8 {
            endpoints.add(pod(&format!("pod{place}"), &format!("10.0.0.{place}"))).expect("room");
        }
        let late = pod("late", "10.0.0.8");
        let error = endpoints.add(late.clone()).expect_err("no room").to_string();
        assert!(error.contains("--max-endpoints"), "{error}");
        let gone = Registration { host_ifname: "nowhere".into(), ..late };
        endpoints.add(gone).expect_err("no such interface");
        assert_eq!((endpoints.len(), room.link_pins().len()), (8, 16));
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn an_address_that_passed_to_another_pod_stays_with_it() {
    let room = Room::new();
    in_netns(|| {
        let (_, mut endpoints) = room.start(Datapath::Tcx);
        let (old, new) = (pod("old", "10.0.0.1"), pod("new", "10.0.0.1"));
        endpoints.add(old.clone()).expect("added");
        endpoints.add(new.clone()).expect("added");
        endpoints.delete(&(old.container_id, old.ifname)).expect("deleted");
        endpoints.check(&new).expect("untouched");
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn clsact_filters_are_attached_once_replaced_and_removed() {
    let room = Room::new();
    in_netns(|| {
        let web = pod("web", "10.0.0.1");
        let filters = |side| {
            let show =
                Command::new("tc").args(["filter", "show", "dev", "web", side]).output().expect("tc runs");
            String::from_utf8(show.stdout).expect("text").matches("handle 0xfa1").count()
        };
        let filters = || (filters("ingress"), filters("egress"));
        let (links, mut endpoints) = room.start(Datapath::Clsact);
        assert_eq!(links.lock().expect("not poisoned").attachment(), Attachment::Clsact);
        endpoints.add(web.clone()).expect("added");
        drop((links, endpoints));
        assert_eq!(filters(), (1, 1), "they outlive the agent");
        let (_, mut endpoints) = room.start(Datapath::Clsact);
        assert_eq!(endpoints.len(), 1);
        assert_eq!(filters(), (1, 1), "replaced, not added");
        endpoints.check(&web).expect("attached");
        endpoints.delete(&(web.container_id, web.ifname)).expect("deleted");
        assert_eq!(filters(), (0, 0));
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn uplinks_follow_the_nodes_addresses() {
    let room = Room::new();
    in_netns(|| {
        for (name, address) in [("up0", "192.0.2.1/24"), ("up1", "198.51.100.1/24")] {
            ip(&format!("link add {name} type veth peer name p{name}"));
            ip(&format!("addr add {address} dev {name}"));
        }
        let Loaded { maps, programs, .. } = room.load();
        let links = Arc::new(Mutex::new(Links::new(programs, &room.pins(), Datapath::Auto).expect("links")));
        let cookie = current_cookie().expect("a cookie");
        let ports = "50000-50015".parse().expect("a range");
        let fixed = Fixed { uplinks: Vec::new(), ports, places: 512, host_netns: cookie };
        let clients = Arc::new(Mutex::new(maps.clients));
        let mut uplinks = Uplinks::new(maps.config, clients, Arc::clone(&links), fixed);
        let view = uplinks.view();
        let names = || view.lock().expect("not poisoned").uplinks.clone();
        let attached = || links.lock().expect("not poisoned").attached(Place::Uplink).expect("listed");
        let index = |name: &str| if_nametoindex(name).expect("an interface");

        uplinks.apply(&["192.0.2.1".parse().expect("an address")]);
        assert_eq!((names(), attached()), (vec!["up0".to_owned()], vec![index("up0")]));
        uplinks.apply(&[]);
        assert_eq!(attached(), [index("up0")], "a Node that is not known changes nothing");
        let moved: IpAddr = "198.51.100.1".parse().expect("an address");
        uplinks.apply(&[moved]);
        assert_eq!((names(), attached()), (vec!["up1".to_owned()], vec![index("up1")]));
        let config = room.load().maps.config.get(&0, 0).expect("read");
        let expected = Config {
            node_v4: moved.into(),
            node_v6: Address::UNSPECIFIED,
            host_netns: cookie,
            snat_first: 50000,
            snat_count: 16,
            places: 512,
        };
        assert_eq!(config, expected);
        let host = SocketClient { v4: moved.into(), v6: Address::UNSPECIFIED };
        assert_eq!(room.client(cookie), Some(host), "the host is a client, by its present address");
        uplinks.apply(&["203.0.113.1".parse().expect("an address")]);
        let errors = view.lock().expect("not poisoned").errors.join("\n");
        assert!(errors.contains("no interface carries"), "{errors}");
        assert_eq!(attached(), [index("up1")]);
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn ranges_are_read_back_by_the_next_agent_and_removed_by_their_prefix() {
    let room = Room::new();
    let cidr = |text: &str| ServiceCidrKey::from(text.parse::<ipnet::IpNet>().expect("a range"));
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
fn a_node_port_is_kept_from_the_nodes_own_processes() {
    let room = Room::new();
    in_netns(|| {
        let (mut services, _) = room.hook();
        let (node_port, other) = (key_at("127.0.0.1", 30080), key_at("127.0.0.1", 80));
        let frontend = |key: &FrontendKey, flags| Frontend {
            service: 1,
            flags,
            check: key.check(),
            ..Frontend::default()
        };
        services
            .write_frontend(&node_port, &frontend(&node_port, frontend_flags::NODE_PORT))
            .expect("written");
        services.write_frontend(&other, &frontend(&other, 0)).expect("written");
        let bind = |address: &str| std::net::TcpListener::bind(address).map(drop).map_err(|e| e.kind());
        let in_use = Err(std::io::ErrorKind::AddrInUse);
        for protected in ["127.0.0.1:30080", "0.0.0.0:30080", "[::]:30080"] {
            assert_eq!(bind(protected), in_use, "{protected}");
        }
        for free in ["127.0.0.1:30081", "127.0.0.2:30080", "127.0.0.1:80", "0.0.0.0:0"] {
            assert_eq!(bind(free), Ok(()), "{free}");
        }
        std::net::UdpSocket::bind("127.0.0.1:30080").expect("the NodePort is TCP's");
        in_netns(|| std::net::TcpListener::bind("0.0.0.0:30080").map(drop).expect("a pod may bind it"));
        services.remove_frontend(&node_port).expect("removed");
        assert_eq!(bind("0.0.0.0:30080"), Ok(()), "no NodePort any more");
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn sockets_of_clients_alone_are_connected_to_a_backend() {
    let room = Room::new();
    in_netns(|| {
        let (mut services, mut clients) = room.hook();
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = server.local_addr().expect("an address").port();
        let backend = Backend {
            address: address("127.0.0.1").into(),
            port: Port::new(port),
            reserved: 0,
            generation: 1,
        };
        let region = Region { base: 3, len: 1 };
        let frontend = Frontend {
            service: 1,
            flags: frontend_flags::HAS_ENDPOINTS,
            internal: region,
            external: region,
            check: key(80).check(),
            ..Frontend::default()
        };
        services.write_backend(1, &backend).expect("written");
        services.write_slots(3, &[1]).expect("written");
        services.write_frontend(&key(80), &frontend).expect("written");
        let connect = || std::net::TcpStream::connect("10.96.0.1:80");
        let cookie = current_cookie().expect("a cookie");

        connect().expect_err("not a client yet, and no route leads there");
        clients.set(cookie, &[address("127.0.0.1")]).expect("set");
        let stream = connect().expect("connected");
        assert_eq!(stream.peer_addr().expect("a peer").to_string(), "10.96.0.1:80");
        clients.remove(cookie).expect("removed");
        clients.remove(cookie).expect("removed twice");
        connect().expect_err("no client any more");
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pods_sockets_are_translated_as_asked_and_until_it_goes() {
    let room = Room::new();
    in_netns(|| {
        let (on, off) = (pod("on", "10.0.0.1"), pod("off", "10.0.0.2"));
        let cookie = |pod: &Registration| pod.netns_cookie.expect("a cookie");
        let (links, mut endpoints) = room.start(Datapath::Tcx);
        endpoints.add(on.clone()).expect("added");
        endpoints.add(off.clone()).expect("added");
        assert_eq!(room.client(cookie(&on)), None, "nobody has asked");
        endpoints.translate_sockets(|pod| Some(pod.name == "on"));
        let expected = SocketClient { v4: on.addresses[0].into(), v6: Address::UNSPECIFIED };
        assert_eq!(room.client(cookie(&on)), Some(expected));
        assert_eq!(room.client(cookie(&off)), None);
        drop((links, endpoints));

        let (_, mut endpoints) = room.start(Datapath::Tcx);
        assert_eq!(endpoints.cookies(), [cookie(&on), cookie(&off)].into());
        assert_eq!(room.client(cookie(&on)), Some(expected), "it outlives the agent");
        endpoints.translate_sockets(|_| None);
        assert_eq!(room.client(cookie(&on)), Some(expected), "not known is not off");
        let shown: Vec<bool> = endpoints.views().iter().map(|view| view.sockets).collect();
        assert_eq!(shown, [false, true]);
        endpoints.translate_sockets(|pod| Some(pod.name == "off"));
        assert_eq!(room.client(cookie(&on)), None);
        assert!(room.client(cookie(&off)).is_some());
        endpoints.delete(&(off.container_id.clone(), off.ifname.clone())).expect("deleted");
        assert_eq!(room.client(cookie(&off)), None);
    });
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
    assert_eq!((census.entries, census.removed, census.total()), (4, 2, 2), "{census:?}");
    assert_eq!(census.connections[&("tcp", "established")], 1);
    assert_eq!(census.connections[&("tcp", "closed")], 1, "its other direction is not over yet");
    assert_eq!(flows.keys().count(), 4);
}

#[test]
#[ignore = "needs root: run make test"]
fn socket_hooks_are_swapped_in_place_and_follow_the_cgroup_they_are_asked_for() {
    let room = Room::new();
    let root = cgroup_root();
    let groups = [Cgroup::new(&root, "a"), Cgroup::new(&root, "b")];
    let attach = |group: &Cgroup| {
        let mut links = Links::new(room.load().programs, &room.pins(), Datapath::Auto).expect("links");
        links.attach_sockets(&group.0).expect("attached");
    };
    let inodes = || -> Vec<u64> {
        let entries = fs::read_dir(room.pins().links()).expect("listed").flatten();
        entries.map(|entry| entry.metadata().expect("metadata").ino()).collect()
    };
    attach(&groups[0]);
    let first = inodes();
    assert_eq!(first.len(), 10);
    attach(&groups[0]);
    assert_eq!(inodes(), first, "the same pins");
    attach(&groups[1]);
    assert_eq!(room.link_pins().len(), 10);
    assert!(inodes().iter().all(|inode| !first.contains(inode)), "new links to another cgroup");
    cleanup(&room.bpffs()).expect("cleaned");
    assert!(!room.pins().maps().exists());
}

/// A cgroup that goes with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(root: &Path, name: &str) -> Self {
        let path = root.join(format!("flagent-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
