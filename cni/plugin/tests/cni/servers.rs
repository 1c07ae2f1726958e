//! `fairlead-cni node` and the API servers: several, of which some are gone.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use fairlead_net::exec::Wiring;
use fairlead_net::node::enable_forwarding;

use crate::api::{FakeApi, Objects, node, servers};
use crate::host::{Host, Pod};
use crate::sites::{Daemon, eventually_routes, eventually_within, items, wire};

const TO_B: &str = "10.244.2.0/24 via 192.0.2.2 src 192.0.2.1";
const TO_C: &str = "10.244.3.0/24 via 192.0.2.3 src 192.0.2.1";
/// How soon the daemon has to go on at another server.
const PATIENCE: Duration = Duration::from_secs(15);

/// The node under test, a server's place on its subnet, and another's beyond that one. What is wired goes first.
struct Site {
    _beyond: Wiring,
    _uplink: Wiring,
    far: Pod,
    near: Pod,
    host: Host,
}

impl Site {
    fn new() -> Self {
        let host = Host::new(&["10.0.0.0/8"]);
        let (near, far) = (Pod::new(), Pod::new());
        let uplink = [("192.0.2.0/24", "192.0.2.1", "192.0.2.254")];
        let _uplink = wire(&host.netns, &near.netns, "up1", &uplink);
        near.netns.run(enable_forwarding).expect("enter").expect("enable forwarding");
        let beyond = [("198.51.100.0/24", "198.51.100.10", "198.51.100.254")];
        let _beyond = wire(&far.netns, &near.netns, "far", &beyond);
        Self { _beyond, _uplink, far, near, host }
    }
}

/// A cluster of the node under test and another one.
fn objects() -> Objects {
    let objects = Objects::new(&[
        node("a", &["10.244.1.0/24"], &["192.0.2.1"]),
        node("b", &["10.244.2.0/24"], &["192.0.2.2"]),
    ]);
    objects.send("ADDED", &servers(&["192.0.2.254", "198.51.100.10"], 6443));
    objects
}

/// Waits until the daemon has remembered who the servers are.
fn eventually_learned(host: &Host) {
    let file = host.dir.path().join("data/api-servers.json");
    eventually_within(PATIENCE, "the servers", || file.exists());
}

/// A third node joins; the way to the second must not go for a moment.
fn goes_on(host: &Host, objects: &Objects) {
    objects.send("ADDED", &node("c", &["10.244.3.0/24"], &["192.0.2.3"]));
    eventually_within(PATIENCE, "the third node's route", || {
        let items = items(host);
        assert!(items.contains(&format!("route {TO_B}")), "{items:?}");
        items.contains(&format!("route {TO_C}"))
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn when_a_server_dies_the_daemon_goes_on_at_another_and_starts_there_again() {
    let Site { host, near, far, .. } = &Site::new();
    let objects = objects();
    let first = FakeApi::serve_at(&near.netns, "192.0.2.254:6443", objects.clone());
    let _second = FakeApi::serve_at(&far.netns, "198.51.100.10:6443", objects.clone());
    let daemon = Daemon::start(host, &first);
    eventually_routes(host, &[TO_B]);
    eventually_learned(host);

    let kubeconfig = first.kubeconfig();
    drop(first);
    goes_on(host, &objects);
    daemon.stop();

    // The only server that the kubeconfig names is gone.
    objects.send("DELETED", &node("c", &["10.244.3.0/24"], &["192.0.2.3"]));
    let _daemon = Daemon::start_with(host, &kubeconfig);
    eventually_routes(host, &[TO_B]);
}

#[test]
#[ignore = "needs root: run make test"]
fn when_a_server_is_cut_off_the_daemon_goes_on_at_another() {
    let Site { host, near, far, .. } = &Site::new();
    let objects = objects();
    let _other = FakeApi::serve_at(&near.netns, "192.0.2.254:6443", objects.clone());
    let cut_off = FakeApi::serve_at(&far.netns, "198.51.100.10:6443", objects.clone());
    let _daemon = Daemon::start(host, &cut_off);
    eventually_routes(host, &[TO_B]);
    eventually_learned(host);

    // No packet comes from there any more, and nothing says so.
    let stop = || fs::write("/proc/sys/net/ipv4/ip_forward", "0");
    near.netns.run(stop).expect("enter").expect("stop forwarding");
    sleep(Duration::from_millis(200));
    goes_on(host, &objects);
}
