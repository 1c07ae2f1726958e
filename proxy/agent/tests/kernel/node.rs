//! What follows the node's own addresses and interfaces.

use super::*;

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
        let fixed =
            Fixed { uplinks: Vec::new(), pod_interfaces: Vec::new(), ports, places: 512, host_netns: cookie };
        let clients = Arc::new(Mutex::new(maps.clients));
        let mut uplinks = Uplinks::new(maps.config, clients, Arc::clone(&links), fixed, Arc::default());
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
            ..Config::default()
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
fn a_change_of_the_nodes_addresses_is_told_and_one_of_a_pods_interface_is_not() {
    in_netns(|| {
        ip("link add up0 type veth peer name up1");
        let (sender, told) = std::sync::mpsc::channel();
        interfaces::follow(move |addresses| sender.send(addresses).is_ok()).expect("followed");
        let next = |seconds| told.recv_timeout(Duration::from_secs(seconds)).ok();
        assert_eq!(next(5), Some(Vec::new()));
        ip("addr add 192.0.2.1/24 dev up0");
        assert_eq!(next(5), Some(vec![address("192.0.2.1")]));
        ip("link add pod0 type veth peer name pod1");
        ip("link set pod0 up");
        ip("link set pod1 up");
        assert_eq!(next(1), None);
        ip("addr add 2001:db8::1/64 dev up0 nodad");
        assert_eq!(next(5), Some(vec![address("192.0.2.1"), address("2001:db8::1")]));
        ip("addr del 192.0.2.1/24 dev up0");
        assert_eq!(next(5), Some(vec![address("2001:db8::1")]));
        assert_eq!(interfaces::local_addresses(), [address("2001:db8::1")]);
    });
}
