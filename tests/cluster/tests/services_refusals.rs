//! What becomes of traffic for which there is no endpoint, no port or no Service.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually, kept_out, of, refused, unanswered};
use fairlead_cluster_tests::objects::{at, external_ips, patch, retire, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{SERVICE_PORT, service, variants, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Options, Protocol};
use serde_json::{Value, json};

const BOTH: &[&str] = &["near", "far"];

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn every_address_of_a_service_without_endpoints_refuses_at_once_under_any_policy() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &(service("nobody", "nobody", "LoadBalancer") + &external_ips()))?;
        cluster.set_load_balancer("nobody", &LOAD_BALANCER, None)?;
        let addresses = [LOAD_BALANCER, EXTERNAL].concat();
        route_via(cluster, &addresses, "node1")?;
        let mut external = at(&addresses);
        external.extend(at_node_ports(cluster, "nobody", &node_addresses(cluster, "node1")?)?);
        let all = [&external[..], &at(&cluster.cluster_ips("nobody")?)].concat();
        for policy in ["Cluster", "Local"] {
            let policies = json!({ "externalTrafficPolicy": policy, "internalTrafficPolicy": policy });
            patch(cluster, "service/nobody", &json!({ "spec": policies }))?;
            thread::sleep(Duration::from_millis(200));
            refused(("outside", &scene.outside), &external)?;
            refused(("a pod", &scene.client.place), &all)?;
            refused(("a node", &scene.node1), &of(&Protocol::SOCKETS, &all))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_that_loses_its_endpoints_refuses_and_serves_again_when_it_has_one() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let targets = at(&cluster.cluster_ips("echo")?);
        let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node2")?)?;
        answered_by(scene.insiders()[0], &targets, BOTH)?;
        retire(cluster, "near")?;
        retire(cluster, "far")?;
        for asker in scene.insiders() {
            refused(asker, &targets)?;
        }
        refused(("outside", &scene.outside), &node_ports)?;
        cluster.kubectl(&["label", "pod", "far", "app=echo", "--overwrite"])?;
        for asker in scene.insiders() {
            answered_by(asker, &targets, &["far"])?;
        }
        answered_by(("outside", &scene.outside), &node_ports, &["far"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_port_that_a_cluster_ip_does_not_have_refuses_at_once() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        let addresses = cluster.cluster_ips("echo")?;
        route_via(cluster, &addresses, "node1")?;
        let targets = at(&addresses);
        for asker in scene.insiders().into_iter().chain([("outside", &scene.outside)]) {
            answered_by(asker, &targets, BOTH)?;
            refused(asker, &variants(&addresses, SERVICE_PORT + 1))?;
        }
        // A port given up is one it does not have.
        let ports = json!([{ "name": "moved", "port": 81, "targetPort": 8080 }]);
        patch(cluster, "service/echo", &json!({ "spec": { "ports": ports } }))?;
        for asker in scene.insiders() {
            refused(asker, &targets)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_address_of_the_service_network_that_no_service_has_is_a_dead_end() {
    with_cluster(|cluster| {
        let free: [IpAddr; 2] = ["10.96.200.7".parse()?, "fd00:10:96::c807".parse()?];
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        answered_by(scene.insiders()[0], &at(&cluster.cluster_ips("echo")?), BOTH)?;
        dead_end(cluster, &scene, &free)?;
        let taken = spec(&format!("clusterIPs: [\"{}\", \"{}\"]", free[0], free[1]));
        cluster.apply(&(service("taken", "echo", "ClusterIP") + &taken))?;
        for asker in scene.insiders() {
            answered_by(asker, &at(&free), BOTH)?;
        }
        cluster.kubectl(&["delete", "service", "taken"])?;
        dead_end(cluster, &scene, &free)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_network_added_later_is_known_when_it_is_there() {
    with_cluster(|cluster| {
        let added: [IpAddr; 2] = ["10.97.0.9".parse()?, "fd00:10:97::9".parse()?];
        let scene = Scene::set(cluster, "")?;
        cluster.apply(
            "---\napiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: { name: more }\n\
             spec: { cidrs: [10.97.0.0/24, \"fd00:10:97::/112\"] }\n",
        )?;
        eventually(|| dead_end(cluster, &scene, &added))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_service_network_can_be_given_on_the_command_line() {
    let given = Options::default().with_arguments(&["--service-cidr", "10.96.0.0/15,fd00:10:96::/108"]);
    with_cluster_of(given, |cluster| {
        let scene = Scene::set(cluster, "")?;
        dead_end(cluster, &scene, &["10.97.255.7".parse()?, "fd00:10:96::f:c807".parse()?])
    });
}

/// Nobody answers at these addresses, and the node itself makes that sure: the packets don't leave it.
fn dead_end(cluster: &Cluster, scene: &Scene, addresses: &[IpAddr]) -> Result<()> {
    let targets = at(addresses);
    let [pod, node] = scene.insiders();
    for asker in [pod, node] {
        let before = dropped(cluster)?;
        let check = if asker.0 == pod.0 { unanswered } else { kept_out };
        check(asker, &targets)?;
        let dropped = dropped(cluster)? - before;
        let least = targets.len() as u64;
        ensure!(
            dropped >= least,
            "node1 dropped {dropped} packets from {}, which sent {least} or more",
            asker.0
        );
    }
    Ok(())
}

/// How many packets node1 has dropped because no Service has their address.
fn dropped(cluster: &Cluster) -> Result<u64> {
    let status: Value = serde_json::from_str(&cluster.node("node1")?.proxy(&["status", "-o", "json"])?)?;
    status["drops"]["no_service"].as_u64().with_context(|| format!("no such count in {:#}", status["drops"]))
}
