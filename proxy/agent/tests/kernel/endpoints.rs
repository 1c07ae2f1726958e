//! Local pods: their entries, their programs and their sockets, across agents.

use super::*;

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
        assert_eq!(endpoints.collect().expect("collected").len(), 1);
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

/// Whether the programs send what is for the pod through its interface's queue.
fn is_shaped(room: &Room, pod: &Registration) -> bool {
    let entry = room.load().maps.endpoints.get(&Address::from(pod.addresses[0]), 0).expect("an entry");
    entry.flags & endpoint_flags::SHAPED != 0
}

#[test]
#[ignore = "needs root: run make test"]
fn packets_pass_a_pods_queue_while_it_limits_anything_or_the_plugin_says_so() {
    let room = Room::new();
    in_netns(|| {
        let (plain, limited) = (pod("plain", "10.0.0.1"), pod("limited", "10.0.0.2"));
        let limited = Registration { is_shaped: true, ..limited };
        let (links, mut endpoints) = room.start(Datapath::Tcx);
        endpoints.add(plain.clone()).expect("added");
        endpoints.add(limited.clone()).expect("added");
        assert_eq!([is_shaped(&room, &plain), is_shaped(&room, &limited)], [false, true]);

        tc("qdisc add dev plain root tbf rate 1mbit burst 1600 limit 100000");
        endpoints.check(&plain).expect("a queue of somebody's is nothing wrong");
        endpoints.follow_queues().expect("followed");
        assert!(is_shaped(&room, &plain));
        drop((links, endpoints));

        tc("qdisc del dev plain root");
        let (links, endpoints) = room.start(Datapath::Tcx);
        assert_eq!(
            [is_shaped(&room, &plain), is_shaped(&room, &limited)],
            [false, true],
            "the next agent looks"
        );
        tc("qdisc add dev plain root tbf rate 1mbit burst 1600 limit 100000");
        drop((links, endpoints));
        let (_, mut endpoints) = room.start(Datapath::Tcx);
        assert!(is_shaped(&room, &plain));
        endpoints.check(&plain).expect("as registered");
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn a_host_port_that_a_pod_has_is_given_to_no_other_of_the_node() {
    let room = Room::new();
    in_netns(|| {
        let with = |pod: Registration, protocol: &str, host_ip: Option<&str>| {
            let (protocol, host_ip) = (protocol.to_owned(), host_ip.map(address));
            let mapping = PortMapping { host_port: 8080, container_port: 80, protocol, host_ip };
            Registration { port_mappings: vec![mapping], ..pod }
        };
        let (links, mut endpoints) = room.start(Datapath::Tcx);
        let first = with(pod("first", "10.0.0.1"), "tcp", None);
        endpoints.add(first.clone()).expect("added");
        endpoints.add(first).expect("added again: it is its own");
        endpoints
            .add(with(pod("datagrams", "10.0.0.2"), "udp", Some("192.0.2.1")))
            .expect("another protocol");
        drop((links, endpoints));

        let (_, mut endpoints) = room.start(Datapath::Tcx);
        let second = with(pod("second", "10.0.0.3"), "tcp", Some("192.0.2.1"));
        let error = endpoints.add(second.clone()).expect_err("taken").to_string();
        assert!(error.contains("portMappings[0].hostPort"), "{error}");
        assert!(error.contains("192.0.2.1:8080/tcp is already that of Pod default/first"), "{error}");
        assert_eq!(endpoints.len(), 2);
        let elsewhere = with(pod("elsewhere", "10.0.0.4"), "udp", Some("192.0.2.2"));
        endpoints.add(elsewhere).expect("another address");
        ip("link del first");
        endpoints.collect().expect("collected");
        endpoints.add(second).expect("free");
    });
}

fn tc(arguments: &str) {
    let status = Command::new("tc").args(arguments.split(' ')).status().expect("tc runs");
    assert!(status.success(), "tc {arguments}");
}
