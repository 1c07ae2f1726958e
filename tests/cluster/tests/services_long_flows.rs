//! Connections that stay open while the Service is edited around them.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::objects::{at, external_ips, patch, retire};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::{Cluster, Load, Protocol, Traffic};
use serde_json::json;

/// How long each edit may take to reach every node, and is then in force.
const IN_FORCE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_open_connection_outlives_every_edit_of_its_service() {
    with_cluster(|cluster| {
        let (_, connections) = connected(cluster)?;
        for change in [
            json!({ "externalTrafficPolicy": "Local" }),
            json!({ "internalTrafficPolicy": "Local" }),
            json!({ "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster" }),
            json!({ "sessionAffinity": "ClientIP" }),
            json!({ "sessionAffinity": "None" }),
            json!({ "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8:1::/64"] }),
            json!({ "externalIPs": null }),
            json!({ "publishNotReadyAddresses": true }),
        ] {
            patch(cluster, "service/echo", &json!({ "spec": change }))?;
            thread::sleep(IN_FORCE);
        }
        cluster.set_load_balancer("echo", &[], None)?;
        thread::sleep(IN_FORCE);
        all_went_on(connections)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_open_connection_outlives_the_coming_and_going_of_the_other_endpoints() {
    with_cluster(|cluster| {
        let (_, connections) = connected(cluster)?;
        cluster.apply(&(pod("comes", "echo", "node1") + &pod("comes-too", "echo", "node2")))?;
        cluster.pod("comes")?;
        cluster.pod("comes-too")?;
        cluster.kubectl(&["label", "pod", "far", "app=retired", "--overwrite"])?;
        thread::sleep(IN_FORCE);
        cluster.kubectl(&["delete", "pod", "comes", "comes-too"])?;
        thread::sleep(IN_FORCE);
        // A pod that has left the Service has left its open connections alone.
        all_went_on(connections)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_open_connection_outlives_its_service() {
    with_cluster(|cluster| {
        let (_, connections) = connected(cluster)?;
        retire(cluster, "near")?;
        retire(cluster, "far")?;
        thread::sleep(IN_FORCE);
        cluster.kubectl(&["delete", "service", "echo"])?;
        thread::sleep(2 * IN_FORCE);
        all_went_on(connections)
    });
}

/// Open connections to a Service at all its addresses, from everywhere.
fn connected(cluster: &Cluster) -> Result<(Scene, Vec<(String, Traffic)>)> {
    let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &external_ips()))?;
    cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
    let cluster_ips = cluster.cluster_ips("echo")?;
    let routed = [&LOAD_BALANCER[..], &EXTERNAL, &cluster_ips].concat();
    route_via(cluster, &routed, "node1")?;
    let mut targets = at(&routed);
    targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
    targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node2")?)?);
    let mut connections = Vec::new();
    for (who, place) in scene.insiders().into_iter().chain([("outside", &scene.outside)]) {
        for &(protocol, target) in targets.iter().filter(|(protocol, _)| *protocol != Protocol::Udp) {
            if who == "a node" && protocol == Protocol::Sctp {
                // Raw packets to the node's own address never come to a hook.
                continue;
            }
            let what = format!("{protocol} from {who} to {target}");
            place.request_until_answered(protocol, target).with_context(|| what.clone())?;
            let load = Load::new(protocol, target).over_one_flow().every(Duration::from_millis(25));
            connections.push((what, place.traffic(&load)?));
        }
    }
    Ok((scene, connections))
}

fn all_went_on(connections: Vec<(String, Traffic)>) -> Result<()> {
    for (what, traffic) in connections {
        let report = traffic.stop().with_context(|| what.clone())?;
        report.all_answered().with_context(|| what.clone())?;
        ensure!(report.pods().len() == 1, "{what}: one connection was answered by {:?}", report.pods());
        ensure!(report.outcomes.len() > 10, "{what}: only {} requests", report.outcomes.len());
    }
    Ok(())
}
