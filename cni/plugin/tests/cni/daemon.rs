//! `fairlead-cni node`, from a watch of Nodes to the kernel's routes and the files on the node.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::api::{FakeApi, node};
use crate::host::{Host, Pod};
use crate::sites::{Daemon, eventually, eventually_routes, items, uplink};

#[test]
#[ignore = "needs root: run make test"]
fn routes_follow_the_nodes_and_outlive_the_daemon() {
    let host = Host::new(&["10.0.0.0/8"]);
    let outside = Pod::new();
    let _uplink = uplink(&host, &outside);
    let own = node("a", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]);
    let b = node("b", &["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.2", "2001:db8::2"]);
    let api = FakeApi::serve(&host.netns, &[own.clone(), b]);
    let daemon = Daemon::start(&host, &api);
    let to_b = ["10.244.2.0/24 via 192.0.2.2 src 192.0.2.1", "fd00:2::/64 via 2001:db8::2 src 2001:db8::1"];
    eventually_routes(&host, &to_b);

    let c = node("c", &["10.244.3.0/24", "fd00:3::/64"], &["192.0.2.3", "2001:db8::3"]);
    api.send("ADDED", &c);
    eventually_routes(
        &host,
        &[
            to_b[0],
            to_b[1],
            "10.244.3.0/24 via 192.0.2.3 src 192.0.2.1",
            "fd00:3::/64 via 2001:db8::3 src 2001:db8::1",
        ],
    );
    let moved = node("c", &["10.244.3.0/24", "fd00:3::/64"], &["192.0.2.33", "2001:db8::33"]);
    api.send("MODIFIED", &moved);
    eventually_routes(
        &host,
        &[
            to_b[0],
            to_b[1],
            "10.244.3.0/24 via 192.0.2.33 src 192.0.2.1",
            "fd00:3::/64 via 2001:db8::33 src 2001:db8::1",
        ],
    );
    // A node that can't be reached holds up no other.
    api.send("ADDED", &node("nowhere", &["10.244.9.0/24"], &[]));
    api.send("DELETED", &c);
    eventually_routes(&host, &to_b);

    daemon.stop();
    assert_eq!(items(&host).len(), 2);
    let api = FakeApi::serve(&host.netns, &[own]);
    let daemon = Daemon::start(&host, &api);
    eventually_routes(&host, &[]);
    daemon.stop();
}

#[test]
#[ignore = "needs root: run make test"]
fn the_node_is_ready_for_pods_once_it_has_pod_cidrs() {
    let host = Host::new(&[]);
    fs::remove_file(host.node_file()).expect("as on a new node");
    let outside = Pod::new();
    let _uplink = uplink(&host, &outside);
    let api = FakeApi::serve(&host.netns, &[node("a", &[], &["192.0.2.1"])]);
    let daemon = Daemon::start(&host, &api);
    let conflist = host.dir.path().join("conf/10-fairlead.conflist");
    sleep(Duration::from_millis(300));
    assert!(!conflist.exists() && !host.node_file().exists());

    api.send("MODIFIED", &node("a", &["10.244.1.0/24"], &["192.0.2.1"]));
    eventually("the conflist", || conflist.exists());
    let file: Value = serde_json::from_slice(&fs::read(host.node_file()).expect("read")).expect("JSON");
    assert_eq!(file, serde_json::json!({"podCIDRs": ["10.244.1.0/24"], "mtu": 1400}));

    // As a runtime would: the installed binary with the installed configuration.
    let list: Value = serde_json::from_slice(&fs::read(&conflist).expect("read")).expect("JSON");
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    let pod = Pod::new();
    let installed = host.dir.path().join("bin/fairlead-cni");
    let result = host.run(&mut host.command(&installed, "ADD", &pod), conf.to_string().as_bytes()).result();
    assert_eq!(result["ips"][0]["address"], "10.244.1.1/32");
    daemon.stop();
}
