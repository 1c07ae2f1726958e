//! `--backend-choice=maglev`: every node leads a client's flow from outside to the same backend, so that another
//! node can take over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually, reports};
use fairlead_cluster_tests::objects::{at, retire};
use fairlead_cluster_tests::scene::{LOAD_BALANCER, route_via};
use fairlead_cluster_tests::{SERVICE_PORT, pod, service, with_cluster_of};
use fairlead_harness::{Cluster, Load, Options, Place, Protocol};
use nix::sys::signal::Signal;

const PODS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// The first of the source ports that clients have, and how many there are.
const PORTS: std::ops::Range<u16> = 20_000..20_024;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_is_led_to_the_same_pod_by_every_node_and_by_an_agent_that_was_restarted() {
    balanced(|cluster| {
        let outside = cluster.client()?;
        for (protocol, target) in at(&LOAD_BALANCER) {
            let mut led = Vec::new();
            for node in ["node1", "node2"] {
                route_via(cluster, &[target.ip()], node)?;
                led.push(chosen(&outside, protocol, target)?);
            }
            ensure!(led[0] == led[1], "{protocol} to {target}: {led:?}");
            let used: BTreeSet<&String> = led[0].values().collect();
            // That 24 flows miss four of six pods happens once in 10¹⁰ times.
            ensure!(used.len() > 2, "{protocol} to {target}: only {used:?}");
        }
        let (protocol, target) = at(&LOAD_BALANCER)[0];
        let before = chosen(&outside, protocol, target)?;
        let node = cluster.node_mut("node2")?;
        node.stop_proxy(Signal::SIGKILL)?;
        node.start_proxy()?;
        node.wait_for_proxy()?;
        let after = chosen(&outside, protocol, target)?;
        ensure!(before == after, "{before:?}, {after:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn when_a_node_fails_datagrams_of_a_flow_go_on_to_the_same_pod_through_another() {
    balanced(|cluster| {
        let outside = cluster.client()?;
        let mut flows = Vec::new();
        for (protocol, target) in at(&LOAD_BALANCER).into_iter().filter(|(p, _)| *p == Protocol::Udp) {
            let load = Load::new(protocol, target).over_one_flow().in_parallel(8);
            flows.push((target, outside.traffic(&load.giving_up_after(Duration::from_millis(100)))?));
        }
        thread::sleep(Duration::from_millis(300));
        // The node's network goes, and whoever announces the addresses notices.
        cluster.node("node1")?.place().ip(&["link", "set", "eth0", "down"])?;
        route_via(cluster, &LOAD_BALANCER, "node2")?;
        thread::sleep(Duration::from_millis(500));
        for (target, traffic) in flows {
            let report = traffic.stop()?;
            let mut by_flow: BTreeMap<SocketAddr, Vec<String>> = BTreeMap::new();
            for reply in report.replies() {
                by_flow.entry(reply.local).or_default().push(reply.answer.pod.clone());
            }
            ensure!(by_flow.len() == 8, "{target}: {} flows", by_flow.len());
            for (local, pods) in by_flow {
                let same = pods.iter().all(|pod| *pod == pods[0]);
                ensure!(same, "{local} to {target} was answered by {pods:?}");
            }
            let sources = report.sources();
            ensure!(sources.len() == 2, "{target}: only {sources:?} passed the requests on");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_that_goes_moves_hardly_any_flow_of_the_others() {
    balanced(|cluster| {
        let outside = cluster.client()?;
        // A node remembers the flows that it has led, so each time another node is asked.
        let chosen_by = |node: &str, pods: &[&str]| {
            route_via(cluster, &LOAD_BALANCER, node)?;
            answered_by(("outside", &outside), &at(&LOAD_BALANCER), pods)?;
            chosen(&outside, Protocol::Udp, (LOAD_BALANCER[0], SERVICE_PORT).into())
        };
        let before = chosen_by("node1", &PODS)?;
        retire(cluster, "f")?;
        let after = chosen_by("node2", &PODS[..PODS.len() - 1])?;
        let others = before.iter().filter(|(_, pod)| *pod != "f");
        let moved = others.clone().filter(|(port, pod)| after.get(port) != Some(pod)).count();
        let others = others.count();
        println!("{moved} of {others} flows moved whose pod was still there");
        ensure!(moved * 5 <= others, "{moved} of {others} flows moved: {before:?}, {after:?}");
        cluster.kubectl(&["label", "pod", "f", "app=echo", "--overwrite"])?;
        let again = chosen_by("node3", &PODS)?;
        ensure!(again == before, "with the same pods: {before:?}, {again:?}");
        Ok(())
    });
}

/// Six pods on node2 and node3 behind a load balancer's addresses, for which outside clients come to node1.
fn balanced(test: impl FnOnce(&mut Cluster) -> Result<()>) {
    let maglev = Options::default().with_nodes(3).with_arguments(&["--backend-choice", "maglev"]);
    with_cluster_of(maglev, |cluster| {
        let nodes = ["node2", "node3"];
        let pods = PODS.iter().enumerate().map(|(i, name)| pod(name, "echo", nodes[i % 2]));
        cluster.apply(&(pods.collect::<String>() + &service("echo", "echo", "LoadBalancer")))?;
        PODS.into_iter().try_for_each(|name| cluster.pod(name).map(drop))?;
        cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
        // The ports of connections that are over can be used again at once.
        cluster.client()?.set_setting("ipv4/tcp_max_tw_buckets", "0")?;
        for node in ["node2", "node1"] {
            route_via(cluster, &LOAD_BALANCER, node)?;
            answered_by(("outside", &cluster.client()?), &at(&LOAD_BALANCER), &PODS)?;
        }
        test(cluster)
    });
}

/// Which pod answers each of the source ports.
fn chosen(place: &Place, protocol: Protocol, target: SocketAddr) -> Result<BTreeMap<u16, String>> {
    eventually(|| {
        let loads = PORTS.map(|port| Load::new(protocol, target).from_port(port).times(1));
        let mut pods = BTreeMap::new();
        for (port, report) in PORTS.zip(reports(place, loads)?) {
            report.all_answered().with_context(|| format!("{protocol} from port {port} to {target}"))?;
            pods.extend(report.replies().map(|reply| (port, reply.answer.pod.clone())));
        }
        Ok(pods)
    })
}
