//! Which endpoints count: ready ones, terminating ones when no other is left, and those that hints prefer.

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{Target, answered_by, of, refused};
use fairlead_cluster_tests::objects::{at, service_without_selector, slices, spec};
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses};
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::{Cluster, Protocol, RunningPod};

/// What EndpointSlices say of an endpoint whose pod is being deleted, and still answers.
const TERMINATING: &str = "conditions: { ready: false, serving: true, terminating: true }";
/// And of one that does not answer any more.
const ENDED: &str = "conditions: { ready: false, serving: false, terminating: true }";
const UNREADY: &str = "conditions: { ready: false, serving: false, terminating: false }";
const READY: &str = "conditions: { ready: true, serving: true, terminating: false }";

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn ready_endpoints_are_used_and_when_there_is_none_terminating_ones_that_still_answer() {
    with_cluster(|cluster| {
        let scene = manual(cluster, "")?;
        for (near, far, answering) in [
            (READY, TERMINATING, &["near"][..]),
            (UNREADY, READY, &["far"]),
            (TERMINATING, TERMINATING, &["near", "far"]),
            (ENDED, TERMINATING, &["far"]),
        ] {
            say(cluster, &[(&scene.near, near), (&scene.far, far)])?;
            everywhere(cluster, &scene, answering).with_context(|| format!("near {near}, far {far}"))?;
        }
        say(cluster, &[(&scene.near, ENDED), (&scene.far, ENDED)])?;
        for asker in scene.insiders() {
            refused(asker, &at(&cluster.cluster_ips("manual")?))?;
        }
        refused(("outside", &scene.outside), &node_ports(cluster, "node1")?)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_falls_back_to_its_terminating_endpoints_for_outside_clients_of_policy_local_alone() {
    with_cluster(|cluster| {
        let scene = manual(cluster, "externalTrafficPolicy: Local")?;
        say(cluster, &[(&scene.near, TERMINATING), (&scene.far, READY)])?;
        let outside = ("outside", &scene.outside);
        answered_by(outside, &node_ports(cluster, "node1")?, &["near"])?;
        answered_by(outside, &node_ports(cluster, "node2")?, &["far"])?;
        for asker in scene.insiders() {
            answered_by(asker, &at(&cluster.cluster_ips("manual")?), &["far"])?;
            answered_by(asker, &of(&Protocol::SOCKETS, &node_ports(cluster, "node1")?), &["far"])?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_falls_back_to_its_terminating_endpoints_for_inside_clients_of_policy_local_alone() {
    with_cluster(|cluster| {
        let scene = manual(cluster, "internalTrafficPolicy: Local")?;
        say(cluster, &[(&scene.near, TERMINATING), (&scene.far, READY)])?;
        for asker in scene.insiders() {
            answered_by(asker, &at(&cluster.cluster_ips("manual")?), &["near"])?;
        }
        answered_by(("outside", &scene.outside), &node_ports(cluster, "node1")?, &["far"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn unready_pods_are_used_by_a_service_that_publishes_them() {
    with_cluster(|cluster| {
        let eager = service("eager", "echo", "ClusterIP") + &spec("publishNotReadyAddresses: true");
        let scene = Scene::set(cluster, &(eager + &service("echo", "echo", "ClusterIP")))?;
        cluster.set_ready("near", false)?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("echo")?), &["far"])?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("eager")?), &["near", "far"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn hints_keep_traffic_in_its_zone_and_rather_yet_on_its_node() {
    with_cluster(|cluster| {
        let scene = manual(cluster, "")?;
        let zone = |zone: &str| format!("forZones: [{{ name: {zone} }}]");
        let node = |node: &str| format!("forNodes: [{{ name: {node} }}]");
        for [near, far] in [
            [zone("zone-1"), zone("zone-2")],
            [node("node1"), node("node2")],
            [zone("zone-1") + ", " + &node("node1"), zone("zone-1") + ", " + &node("node2")],
        ] {
            let [near, far] = [near, far].map(|hint| format!("hints: {{ {hint} }}"));
            // Nothing of the hints before is left.
            say(cluster, &[(&scene.near, ""), (&scene.far, "")])?;
            everywhere(cluster, &scene, &["near", "far"])?;
            say(cluster, &[(&scene.near, &near), (&scene.far, &far)])?;
            stays_apart(cluster, &scene).with_context(|| format!("near {near}, far {far}"))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn hints_that_lead_nowhere_or_not_every_ready_endpoint_has_are_not_followed() {
    with_cluster(|cluster| {
        let scene = manual(cluster, "")?;
        let zone = |zone: &str| format!("hints: {{ forZones: [{{ name: {zone} }}] }}");
        let unready = zone("zone-1") + ", " + UNREADY;
        for (near, far, answering) in [
            (zone("zone-1"), String::new(), &["near", "far"][..]),
            (unready, zone("zone-2"), &["far"]),
            (zone("zone-8"), zone("zone-9"), &["near", "far"]),
        ] {
            say(cluster, &[(&scene.near, &near), (&scene.far, &far)])?;
            everywhere(cluster, &scene, answering).with_context(|| format!("near {near}, far {far}"))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_that_prefers_its_zone_stays_in_it_while_it_can() {
    with_cluster(|cluster| {
        let close = service("close", "echo", "NodePort") + &spec("trafficDistribution: PreferClose");
        let scene = Scene::set(cluster, &(close + &pod("third", "echo", "node2")))?;
        cluster.pod("third")?;
        let targets = at(&cluster.cluster_ips("close")?);
        let hinted = cluster.kubectl(&["get", "endpointslices", "-o", "yaml"])?.contains("forZones");
        ensure!(hinted, "{} gives no hints", cluster.control_plane());
        answered_by(("a pod", &scene.client.place), &targets, &["near"])?;
        answered_by(("a node", &scene.node2), &targets, &["far", "third"])?;
        cluster.set_ready("near", false)?;
        answered_by(("a pod", &scene.client.place), &targets, &["far", "third"])
    });
}

/// A NodePort Service `manual` without endpoints, with one more line in its spec.
fn manual(cluster: &Cluster, line: &str) -> Result<Scene> {
    let more = if line.is_empty() { String::new() } else { spec(line) };
    Scene::set(cluster, &(service_without_selector("manual", "NodePort") + &more))
}

fn say(cluster: &Cluster, pods: &[(&RunningPod, &str)]) -> Result<()> {
    cluster.apply(&slices("manual", "one", pods)?)
}

fn node_ports(cluster: &Cluster, node: &str) -> Result<Vec<Target>> {
    at_node_ports(cluster, "manual", &node_addresses(cluster, node)?)
}

/// Clients inside and outside are answered by these pods, and by nobody else.
fn everywhere(cluster: &Cluster, scene: &Scene, pods: &[&str]) -> Result<()> {
    for asker in scene.insiders() {
        answered_by(asker, &at(&cluster.cluster_ips("manual")?), pods)?;
    }
    answered_by(("outside", &scene.outside), &node_ports(cluster, "node1")?, pods)
}

/// On each node clients are answered by its own pod.
fn stays_apart(cluster: &Cluster, scene: &Scene) -> Result<()> {
    let targets = at(&cluster.cluster_ips("manual")?);
    for asker in scene.insiders() {
        answered_by(asker, &targets, &["near"])?;
    }
    answered_by(("a node", &scene.node2), &targets, &["far"])?;
    answered_by(("outside", &scene.outside), &node_ports(cluster, "node1")?, &["near"])?;
    answered_by(("outside", &scene.outside), &node_ports(cluster, "node2")?, &["far"])
}
