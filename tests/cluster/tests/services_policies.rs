//! Traffic policies: who is led to which endpoints, and whose address the pods see.

use anyhow::Result;
use fairlead_cluster_tests::ask::{Target, answered_by, answered_seeing, of, unanswered};
use fairlead_cluster_tests::objects::{at, external_ips, patch, retire, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, outside_address, route_via,
};
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::{Cluster, Protocol};
use serde_json::json;

const BOTH: &[&str] = &["near", "far"];

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn under_external_policy_local_outside_clients_stay_on_the_node_and_keep_their_address_and_insiders_go_anywhere()
 {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "externalTrafficPolicy: Local")?;
        for (node, own) in [("node1", "near"), ("node2", "far")] {
            let targets = from_outside(cluster, node)?;
            let outside = ("outside", &scene.outside);
            answered_seeing(outside, &targets, &[own], |like| outside_address(cluster, like))?;
        }
        let targets = from_inside(cluster)?;
        answered_by(("a pod", &scene.client.place), &targets, BOTH)?;
        answered_by(("a node", &scene.node1), &of(&Protocol::SOCKETS, &targets), BOTH)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn under_external_policy_local_a_node_without_an_endpoint_drops_what_comes_from_outside() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "externalTrafficPolicy: Local")?;
        answered_by(("outside", &scene.outside), &from_outside(cluster, "node2")?, &["far"])?;
        retire(cluster, "far")?;
        unanswered(("outside", &scene.outside), &from_outside(cluster, "node2")?)?;
        answered_by(("outside", &scene.outside), &from_outside(cluster, "node1")?, &["near"])?;
        // Those inside do not care on which node they are.
        let inside = at_node_ports(cluster, "echo", &node_addresses(cluster, "node2")?)?;
        answered_by(("a node", &scene.node2), &of(&Protocol::SOCKETS, &inside), &["near"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn under_external_policy_cluster_outside_clients_are_masqueraded_also_towards_a_local_endpoint_and_pods_are_not()
 {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "externalTrafficPolicy: Cluster")?;
        for name in ["node1", "node2"] {
            let targets = from_outside(cluster, name)?;
            let node = cluster.node(name)?;
            answered_seeing(("outside", &scene.outside), &targets, BOTH, |like| Ok(node.address(like)))?;
        }
        let pod = ("a pod", &scene.client.place);
        answered_seeing(pod, &from_inside(cluster)?, BOTH, |like| scene.client.address(like))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_follows_a_change_of_its_external_policy() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "externalTrafficPolicy: Cluster")?;
        let (outside, node) = (("outside", &scene.outside), cluster.node("node1")?);
        let targets = from_outside(cluster, "node1")?;
        answered_seeing(outside, &targets, BOTH, |like| Ok(node.address(like)))?;
        patch(cluster, "service/echo", &json!({ "spec": { "externalTrafficPolicy": "Local" } }))?;
        answered_seeing(outside, &targets, &["near"], |like| outside_address(cluster, like))?;
        patch(cluster, "service/echo", &json!({ "spec": { "externalTrafficPolicy": "Cluster" } }))?;
        answered_seeing(outside, &targets, BOTH, |like| Ok(node.address(like)))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn under_internal_policy_local_pods_and_nodes_stay_on_their_node() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "internalTrafficPolicy: Local")?;
        let targets = at(&cluster.cluster_ips("echo")?);
        for asker in scene.insiders() {
            answered_by(asker, &targets, &["near"])?;
        }
        answered_by(("a node", &scene.node2), &targets, &["far"])?;
        // What comes from outside is none of this policy's business.
        answered_by(("outside", &scene.outside), &from_outside(cluster, "node1")?, BOTH)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn under_internal_policy_local_a_pod_on_a_node_without_an_endpoint_is_not_answered() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "internalTrafficPolicy: Local")?;
        cluster.apply(&pod("other", "client", "node2"))?;
        let (other, targets) = (cluster.pod("other")?, at(&cluster.cluster_ips("echo")?));
        answered_by(("a pod", &other.place), &targets, &["far"])?;
        retire(cluster, "far")?;
        unanswered(("a pod", &other.place), &targets)?;
        answered_by(("a pod", &scene.client.place), &targets, &["near"])?;
        answered_by(("outside", &scene.outside), &from_outside(cluster, "node2")?, &["near"])
    });
}

/// A Service with every kind of address and one more line in its spec.
fn exposed(cluster: &Cluster, line: &str) -> Result<Scene> {
    let scene =
        Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &external_ips() + &spec(line)))?;
    cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
    Ok(scene)
}

/// What the outside client reaches the Service by when its traffic arrives at that node.
fn from_outside(cluster: &Cluster, node: &str) -> Result<Vec<Target>> {
    let addresses = [LOAD_BALANCER, EXTERNAL].concat();
    route_via(cluster, &addresses, node)?;
    let mut targets = at(&addresses);
    targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, node)?)?);
    Ok(targets)
}

/// What pods and node1 reach the Service by.
fn from_inside(cluster: &Cluster) -> Result<Vec<Target>> {
    let mut targets = at(&[LOAD_BALANCER, EXTERNAL].concat());
    targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
    targets.extend(at(&cluster.cluster_ips("echo")?));
    Ok(targets)
}
