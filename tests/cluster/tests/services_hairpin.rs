//! Pods that reach themselves through their own Service.

use anyhow::Result;
use fairlead_cluster_tests::ask::{Target, answered_by, of};
use fairlead_cluster_tests::objects::{at, external_ips};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::{Cluster, Protocol};

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_itself_through_every_address_of_its_service() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("solo", "solo", "node1") + &exposed("solo")))?;
        let solo = cluster.pod("solo")?;
        let mut targets = addresses(cluster, "solo")?;
        // By way of the other node as well, which takes the pod for a client outside.
        targets.extend(at_node_ports(cluster, "solo", &node_addresses(cluster, "node2")?)?);
        answered_by(("the pod itself", &solo.place), &targets, &["solo"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_is_one_of_the_backends_that_it_reaches() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &exposed("echo"))?;
        let targets = addresses(cluster, "echo")?;
        answered_by(("a backend", &scene.near.place), &targets, &["near", "far"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_of_the_hosts_network_reaches_itself_through_its_service() {
    with_cluster(|cluster| {
        let host = pod("solo", "solo", "node1").replace("spec:\n", "spec:\n  hostNetwork: true\n");
        cluster.apply(&(host + &exposed("solo")))?;
        let solo = cluster.pod("solo")?;
        let targets = of(&Protocol::SOCKETS, &addresses(cluster, "solo")?);
        answered_by(("the pod itself", &solo.place), &targets, &["solo"])
    });
}

fn exposed(name: &str) -> String {
    service(name, name, "LoadBalancer") + &external_ips()
}

/// Everything that node1 serves the Service at.
fn addresses(cluster: &Cluster, service: &str) -> Result<Vec<Target>> {
    cluster.set_load_balancer(service, &LOAD_BALANCER, None)?;
    route_via(cluster, &[LOAD_BALANCER, EXTERNAL].concat(), "node1")?;
    let mut targets = at(&[LOAD_BALANCER, EXTERNAL].concat());
    targets.extend(at(&cluster.cluster_ips(service)?));
    targets.extend(at_node_ports(cluster, service, &node_addresses(cluster, "node1")?)?);
    Ok(targets)
}
