//! `fairlead-cni node` while things change: Nodes, modes, the device, the uplink, and all of it while no daemon runs.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fairlead_net::vxlan::{Underlay, mac_of};
use rtnetlink::LinkUnspec;
use serde_json::{Value, json};

use crate::api::{FakeApi, node};
use crate::host::{Host, Pod, kernel_state};
use crate::sites::{Daemon, eventually, eventually_routes, eventually_within, items, log, netlink, uplink};

const TO_NEAR: &str = "route 10.244.2.0/24 via 192.0.2.2 src 192.0.2.1";

/// The node under test, one on its subnet and one elsewhere.
fn nodes() -> [Value; 3] {
    [
        node("a", &["10.244.1.0/24"], &["192.0.2.1"]),
        node("near", &["10.244.2.0/24"], &["192.0.2.2"]),
        node("far", &["10.244.9.0/24"], &["198.51.100.9"]),
    ]
}

/// What the host has for a node elsewhere.
fn tunnel(name: &str, cidr: &str, remote: &str) -> Vec<String> {
    let (mac, device) = (mac_of(name), "dev fairlead-vxlan");
    let gateway = cidr.split('/').next().expect("an address");
    vec![
        format!("forwarding of {mac} to {remote} {device}"),
        format!("neighbour {gateway} at {mac} {device}"),
        format!("route {cidr} via {gateway} {device} src 192.0.2.1"),
        format!("route {remote}/32 via {gateway} {device} for pods"),
    ]
}

/// The device, and the rule that goes with any tunnel.
fn device(vni: u32, port: u16, mtu: u32) -> Vec<String> {
    let mac = mac_of("a");
    vec![
        format!("device fairlead-vxlan vni {vni} port {port} source 192.0.2.1 mac {mac} mtu {mtu}"),
        "rule for packets from 10.244.1.0/24".into(),
    ]
}

fn eventually_items(host: &Host, expected: &[Vec<String>]) {
    let expected: BTreeSet<String> = expected.iter().flatten().cloned().collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    while items(host) != expected {
        assert!(Instant::now() < deadline, "{:#?}\nwanted {expected:#?}\n{}", items(host), log(host));
        sleep(Duration::from_millis(20));
    }
}

fn mtu(host: &Host) -> Value {
    let file = fs::read(host.node_file()).expect("read");
    serde_json::from_slice::<Value>(&file).expect("JSON")["mtu"].clone()
}

struct Scene {
    host: Host,
    api: FakeApi,
    _outside: Pod,
    _uplink: fairlead_net::exec::Wiring,
}

fn scene(nodes: &[Value]) -> Scene {
    let (host, outside) = (Host::new(&["10.0.0.0/8"]), Pod::new());
    let uplink = uplink(&host, &outside);
    let api = FakeApi::serve(&host.netns, nodes);
    Scene { host, api, _outside: outside, _uplink: uplink }
}

#[test]
#[ignore = "needs root: run make test"]
fn the_overlay_comes_and_goes_with_the_nodes_that_need_it_and_so_does_room_for_its_header() {
    let [own, near, far] = nodes();
    let Scene { host, api, .. } = &scene(&[own, near]);
    let _daemon = Daemon::start(host, api);
    let near = vec![TO_NEAR.to_owned()];
    eventually_items(host, std::slice::from_ref(&near));
    eventually("the node file", || mtu(host) == 1400);

    api.send("ADDED", &far);
    let to_far = tunnel("far", "10.244.9.0/24", "198.51.100.9");
    let device = device(4250, 4789, 1350);
    eventually_items(host, &[near.clone(), device.clone(), to_far.clone()]);
    eventually("the node file", || mtu(host) == 1350);

    // A further one, and one that changes its address, leave the others alone.
    let moved = |address: &str| node("further", &["10.244.8.0/24"], &[address]);
    for (kind, address) in [("ADDED", "198.51.100.8"), ("MODIFIED", "203.0.113.8")] {
        api.send(kind, &moved(address));
        let further = tunnel("further", "10.244.8.0/24", address);
        eventually_items(host, &[near.clone(), device.clone(), to_far.clone(), further]);
    }
    // It has moved to our subnet.
    api.send("MODIFIED", &moved("192.0.2.8"));
    let further = vec!["route 10.244.8.0/24 via 192.0.2.8 src 192.0.2.1".to_owned()];
    eventually_items(host, &[near.clone(), device, to_far, further]);

    api.send("DELETED", &moved("192.0.2.8"));
    api.send("DELETED", &far);
    eventually_items(host, &[near]);
    eventually("the node file", || mtu(host) == 1400);
}

#[test]
#[ignore = "needs root: run make test"]
fn another_mode_is_taken_up_by_a_restart_and_nothing_of_the_old_one_stays() {
    let Scene { host, api, .. } = &scene(&nodes());
    let near = vec![TO_NEAR.to_owned()];
    let to_near = tunnel("near", "10.244.2.0/24", "192.0.2.2");
    let to_far = tunnel("far", "10.244.9.0/24", "198.51.100.9");
    let usual = device(4250, 4789, 1350);
    for (arguments, expected) in [
        (&[][..], vec![near.clone(), usual.clone(), to_far.clone()]),
        (&["--routing=vxlan"], vec![usual, to_near.clone(), to_far.clone()]),
        (
            &["--routing=vxlan", "--vxlan-id=9", "--vxlan-port=8472"],
            vec![device(9, 8472, 1350), to_near, to_far],
        ),
        (&["--routing=native"], vec![near]),
    ] {
        let daemon = Daemon::start_as("a", host, api, arguments);
        eventually_items(host, &expected);
        daemon.stop();
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn what_changed_while_no_daemon_ran_is_put_right() {
    let Scene { host, api, .. } = &scene(&nodes());
    let daemon = Daemon::start(host, api);
    let near = vec![TO_NEAR.to_owned()];
    let device = device(4250, 4789, 1350);
    eventually_items(host, &[near.clone(), device.clone(), tunnel("far", "10.244.9.0/24", "198.51.100.9")]);
    // As by SIGKILL.
    drop(daemon);
    api.send("DELETED", &nodes()[2]);
    api.send("ADDED", &node("new", &["10.244.7.0/24"], &["198.51.100.7"]));
    let _daemon = Daemon::start(host, api);
    eventually_items(host, &[near, device, tunnel("new", "10.244.7.0/24", "198.51.100.7")]);
}

#[test]
#[ignore = "needs root: run make test"]
fn a_device_that_is_damaged_or_removed_and_an_uplink_with_another_mtu_are_put_right_at_once() {
    let Scene { host, api, .. } = &scene(&nodes());
    let _daemon = Daemon::start(host, api);
    let near = vec![TO_NEAR.to_owned()];
    let to_far = tunnel("far", "10.244.9.0/24", "198.51.100.9");
    let all = |mtu| [near.clone(), device(4250, 4789, mtu), to_far.clone()];
    eventually_items(host, &all(1350));
    let name = Underlay::V4.ifname();

    netlink(&host.netns, async |handle, index| {
        handle.link().change(LinkUnspec::new_with_index(index(name)).down().build()).execute().await
    });
    eventually_items(host, &all(1350));
    netlink(&host.netns, async |handle, index| handle.link().del(index(name)).execute().await);
    eventually_items(host, &all(1350));
    netlink(&host.netns, async |handle, index| {
        handle.link().change(LinkUnspec::new_with_index(index("up0")).mtu(1300).build()).execute().await
    });
    eventually_items(host, &all(1250));
    eventually("the node file", || mtu(host) == 1250);
}

#[test]
#[ignore = "needs root: run make test"]
fn when_the_node_changes_its_own_address_all_that_names_it_follows() {
    let Scene { host, api, .. } = &scene(&nodes());
    let _daemon = Daemon::start(host, api);
    let to_far = tunnel("far", "10.244.9.0/24", "198.51.100.9");
    eventually_items(host, &[vec![TO_NEAR.to_owned()], device(4250, 4789, 1350), to_far.clone()]);
    netlink(&host.netns, async |handle, index| {
        let address = "192.0.2.11".parse().expect("address");
        handle.address().add(index("up0"), address, 32).execute().await
    });
    api.send("MODIFIED", &node("a", &["10.244.1.0/24"], &["192.0.2.11"]));
    let follows = |item: String| {
        let words = item.split(' ').map(|word| if word == "192.0.2.1" { "192.0.2.11" } else { word });
        words.collect::<Vec<_>>().join(" ")
    };
    let all = [vec![TO_NEAR.to_owned()], device(4250, 4789, 1350), to_far];
    eventually_items(host, &all.map(|items| items.into_iter().map(follows).collect()));
}

#[test]
#[ignore = "needs root: run make test"]
fn the_mtu_may_be_given() {
    let Scene { host, api, .. } = &scene(&nodes());
    let _daemon = Daemon::start_as("a", host, api, &["--mtu=1280"]);
    eventually("the node file", || mtu(host) == 1280);
}

#[test]
#[ignore = "needs root: run make test"]
fn a_node_that_goes_and_comes_back_with_other_ranges_keeps_its_pods_and_its_ways_meanwhile() {
    let [own, near, _] = nodes();
    let Scene { host, api, .. } = &scene(&[own.clone(), near]);
    let _daemon = Daemon::start(host, api);
    eventually_routes(host, &[TO_NEAR.trim_start_matches("route ")]);
    eventually("the node file", || mtu(host) == 1400);
    let pod = Pod::new();
    let address = host.add(&pod)["ips"][0]["address"].clone();
    assert_eq!(address, "10.244.1.1/32");
    let to_pod = || {
        kernel_state(&host.netns)
            .into_iter()
            .find(|line| line.starts_with("route fl") && line.contains("0101F40A"))
    };
    assert!(to_pod().is_some(), "{:#?}", kernel_state(&host.netns));

    api.send("DELETED", &own);
    eventually("the warning", || log(host).contains("there is no Node a"));
    assert_eq!(items(host).len(), 1);
    api.send("ADDED", &node("a", &["10.244.5.0/24"], &["192.0.2.1"]));
    eventually("the node file", || {
        let file = fs::read_to_string(host.node_file()).expect("read");
        serde_json::from_str::<Value>(&file).expect("JSON")["podCIDRs"] == json!(["10.244.5.0/24"])
    });
    assert!(to_pod().is_some(), "the running pod keeps its address");
    let other = Pod::new();
    assert_eq!(host.add(&other)["ips"][0]["address"], "10.244.5.1/32");
}

#[test]
#[ignore = "needs root: run make test"]
fn a_thousand_nodes_are_routed_within_seconds() {
    let mut all = vec![nodes()[0].clone()];
    for number in 0..1000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        // Half of them are near.
        let address = if number % 2 == 0 {
            format!("192.0.2.{}", 3 + number / 4)
        } else {
            format!("198.51.{high}.{low}")
        };
        assert!(address.parse::<IpAddr>().is_ok());
        let cidr = format!("10.{}.{low}.0/24", 100 + high);
        all.push(node(&format!("node-{number}"), &[&cidr], &[&address]));
    }
    let Scene { host, api, .. } = &scene(&all);
    let started = Instant::now();
    let _daemon = Daemon::start(host, api);
    eventually_within(Duration::from_secs(20), "all routes", || items(host).len() == 500 + 2 + 4 * 500);
    println!("a thousand nodes: {:?}", started.elapsed());
}
