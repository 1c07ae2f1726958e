//! Pods and the outside: with whose address they are seen there, and what lasts.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::eventually;
use fairlead_cluster_tests::scene::{node_addresses, outside_address};
use fairlead_cluster_tests::{POD_PORT, pod, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Load, Options, Place, Protocol, RunningPod};
use nix::sys::signal::Signal;

/// How long a pod waits for a connection; the kernel heeds what it is told when it tries for the second time.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a node is without an agent, and how long traffic is watched afterwards.
const WHILE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn connections_to_the_outside_outlive_the_agent() {
    with_cluster(|cluster| {
        let (pod, targets) = set(cluster)?;
        let mut held = Vec::new();
        for &(protocol, target) in &targets {
            let load = Load::new(protocol, target).over_one_flow().every(Duration::from_millis(5));
            held.push((protocol, target, pod.place.traffic(&load)?));
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let node = cluster.node_mut("node1")?;
            node.stop_proxy(signal)?;
            thread::sleep(WHILE);
            node.start_proxy()?;
            node.wait_for_proxy()?;
            thread::sleep(WHILE);
        }
        for (protocol, target, traffic) in held {
            let report = traffic.stop()?;
            let lost = report.outcomes.iter().filter(|outcome| outcome.is_err()).count();
            ensure!(lost == 0, "{protocol} to {target}: {lost} of {} requests lost", report.outcomes.len());
            ensure!(report.outcomes.len() > 100, "{protocol} to {target}: hardly any requests");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn ranges_that_the_operator_names_see_the_pods_own_address() {
    let outside = ["10.90.0.0/24", "fd00:90::/64"];
    let options = Options::default().with_arguments(&["--non-masquerade-cidr", &outside.join(",")]);
    with_cluster_of(options, |cluster| {
        let (pod, targets) = set(cluster)?;
        // Whoever knows the way to the pods sees them as they are.
        let client = cluster.client()?;
        for (own, gateway) in pod.ips.iter().zip(node_addresses(cluster, "node1")?) {
            client.ip(&["route", "add", &own.to_string(), "via", &gateway.to_string()])?;
        }
        for (protocol, target) in targets {
            let expected = pod.address(target.ip())?;
            seen_as(&pod.place, protocol, target, expected)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_that_knows_the_way_to_a_pod_is_answered_by_it() {
    with_cluster(|cluster| {
        let (pod, targets) = set(cluster)?;
        let client = cluster.client()?;
        for (own, gateway) in pod.ips.iter().zip(node_addresses(cluster, "node1")?) {
            client.ip(&["route", "add", &own.to_string(), "via", &gateway.to_string()])?;
        }
        for own in &pod.ips {
            for protocol in Protocol::ALL {
                let reply = client.request_until_answered(protocol, SocketAddr::new(*own, POD_PORT))?;
                ensure!(reply.answer.pod == "inside", "{} answered", reply.answer.pod);
                let expected = outside_address(cluster, *own)?;
                ensure!(reply.answer.client.ip() == expected, "the pod saw {}", reply.answer.client);
            }
        }
        // What the pod itself begins leaves with the node's address all the same.
        for (protocol, target) in targets {
            let [v4, v6] = node_addresses(cluster, "node1")?;
            let expected = if target.is_ipv4() { v4 } else { v6 };
            seen_as(&pod.place, protocol, target, expected)?;
            let (to, port) = (target.ip().to_string(), format!("{protocol}/{}", target.port()));
            let node = cluster.node("node1")?;
            let text = node.proxy(&["why", "--from", "default/inside", "--to", &to, "--port", &port])?;
            ensure!(text.contains(&format!("leaves with the node's address {expected}")), "{text}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_connection_that_no_route_takes_fails_before_the_pod_gives_up() {
    with_cluster(|cluster| {
        let (pod, _) = set(cluster)?;
        let node = cluster.node("node1")?.place().clone();
        for (range, address) in
            [("198.51.100.0/24", "198.51.100.7"), ("2001:db8:dead::/48", "2001:db8:dead::7")]
        {
            node.ip(&["route", "add", "unreachable", range])?;
            let target = SocketAddr::new(address.parse()?, 9);
            let load = Load::new(Protocol::Tcp, target).times(1).giving_up_after(PATIENCE);
            let failure = pod.place.ask(load)?.err().context("an answer from nowhere")?;
            ensure!(failure.after < PATIENCE, "{address}: {failure}");
        }
        Ok(())
    });
}

/// A pod on node1, and a server outside with what it is to be asked by.
fn set(cluster: &mut Cluster) -> Result<(RunningPod, Vec<(Protocol, SocketAddr)>)> {
    cluster.apply(&pod("inside", "inside", "node1"))?;
    cluster.serve_outside("outside", POD_PORT)?;
    let pod = cluster.pod("inside")?;
    let mut targets = Vec::new();
    for own in pod.ips.clone() {
        let address = SocketAddr::new(outside_address(cluster, own)?, POD_PORT);
        targets.extend(Protocol::ALL.map(|protocol| (protocol, address)));
    }
    Ok((pod, targets))
}

fn seen_as(place: &Place, protocol: Protocol, target: SocketAddr, expected: IpAddr) -> Result<()> {
    eventually(|| {
        let reply = place.request_until_answered(protocol, target)?;
        let seen = reply.answer.client.ip();
        ensure!(seen == expected, "{protocol} to {target}: seen as {seen}, not {expected}");
        Ok(())
    })
}
