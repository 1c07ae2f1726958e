//! Connections that stay open while the Service is edited around them.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use fairlead_cluster_tests::ask::{Lasting, answered_by, of};
use fairlead_cluster_tests::objects::{at, external_ips, patch, retire};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::{Cluster, Load, Protocol};
use serde_json::json;

/// How long each edit may take to reach every node, and is then in force.
const IN_FORCE: Duration = Duration::from_millis(200);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_open_connection_outlives_every_edit_of_its_service_and_of_the_other_endpoints() {
    with_cluster(|cluster| {
        let connections = connected(cluster)?;
        for change in [
            json!({ "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local" }),
            json!({ "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster" }),
            json!({ "sessionAffinity": "ClientIP" }),
            json!({ "sessionAffinity": "None" }),
            json!({ "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8:1::/64"] }),
            json!({ "externalIPs": null }),
        ] {
            patch(cluster, "service/echo", &json!({ "spec": change }))?;
            thread::sleep(IN_FORCE);
        }
        cluster.set_load_balancer("echo", &[], None)?;
        cluster.apply(&(pod("comes", "echo", "node1") + &pod("comes-too", "echo", "node2")))?;
        cluster.pod("comes")?;
        cluster.pod("comes-too")?;
        cluster.kubectl(&["label", "pod", "comes", "comes-too", "app=retired", "--overwrite"])?;
        thread::sleep(IN_FORCE);
        connections.were_undisturbed(10)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_open_connection_outlives_its_service() {
    with_cluster(|cluster| {
        let connections = connected(cluster)?;
        retire(cluster, "near")?;
        retire(cluster, "far")?;
        thread::sleep(IN_FORCE);
        cluster.kubectl(&["delete", "service", "echo"])?;
        thread::sleep(2 * IN_FORCE);
        connections.were_undisturbed(10)
    });
}

/// Open connections to a Service at all its addresses, from everywhere.
fn connected(cluster: &Cluster) -> Result<Lasting> {
    let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &external_ips()))?;
    cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
    let cluster_ips = cluster.cluster_ips("echo")?;
    let routed = [&LOAD_BALANCER[..], &EXTERNAL, &cluster_ips].concat();
    route_via(cluster, &routed, "node1")?;
    let mut targets = at(&routed);
    targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
    targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node2")?)?);
    let mut connections = Lasting::default();
    for (who, place) in scene.insiders().into_iter().chain([("outside", &scene.outside)]) {
        // Raw packets to a node's own address never come to a hook.
        let with_connections =
            if who == "a node" { &[Protocol::Tcp][..] } else { &[Protocol::Tcp, Protocol::Sctp] };
        let targets = of(with_connections, &targets);
        answered_by((who, place), &targets, &["near", "far"])?;
        for (protocol, target) in targets {
            let load = Load::new(protocol, target).over_one_flow().every(Duration::from_millis(25));
            connections.begin(format!("{protocol} from {who} to {target}"), place, &load)?;
        }
    }
    Ok(connections)
}
