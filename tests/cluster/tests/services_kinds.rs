//! The kinds of Services: what addresses each has, and which Services are none of the proxy's business.

use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_cluster_tests::ask::{all, answered_by, eventually, kept_out, of, unanswered};
use fairlead_cluster_tests::objects::{at, external_ips, patch, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{service, with_cluster};
use fairlead_harness::{Cluster, Load, Protocol};
use serde_json::json;

const BOTH: &[&str] = &["near", "far"];

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_cluster_ip_leads_pods_and_nodes_to_the_pods_of_its_service() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        let targets = at(&cluster.cluster_ips("echo")?);
        for (who, place) in scene.insiders() {
            answered_by((who, place), &targets, BOTH)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_port_leads_from_every_node_and_from_everywhere_to_the_pods() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let addresses = [node_addresses(cluster, "node1")?, node_addresses(cluster, "node2")?].concat();
        let targets = at_node_ports(cluster, "echo", &addresses)?;
        answered_by(("a pod", &scene.client.place), &targets, BOTH)?;
        answered_by(("outside", &scene.outside), &targets, BOTH)?;
        // A node leads its own sockets, raw packets to its own address never come to a hook.
        answered_by(("a node", &scene.node1), &of(&Protocol::SOCKETS, &targets), BOTH)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_address_of_a_load_balancer_leads_from_everywhere_to_the_pods() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "LoadBalancer"))?;
        cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
        route_via(cluster, &LOAD_BALANCER, "node2")?;
        for (who, place) in scene.insiders().into_iter().chain([("outside", &scene.outside)]) {
            answered_by((who, place), &at(&LOAD_BALANCER), BOTH)?;
        }
        // A load balancer is a NodePort and a ClusterIP as well.
        let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        answered_by(("outside", &scene.outside), &node_ports, BOTH)?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("echo")?), BOTH)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_external_ip_leads_from_everywhere_to_the_pods() {
    with_cluster(|cluster| {
        let external = service("echo", "echo", "ClusterIP") + &external_ips();
        let scene = Scene::set(cluster, &external)?;
        route_via(cluster, &EXTERNAL, "node1")?;
        for (who, place) in scene.insiders().into_iter().chain([("outside", &scene.outside)]) {
            answered_by((who, place), &at(&EXTERNAL), BOTH)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_address_that_a_service_loses_leads_nowhere() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &external_ips()))?;
        cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
        let addresses = [LOAD_BALANCER, EXTERNAL].concat();
        route_via(cluster, &addresses, "node1")?;
        answered_by(("outside", &scene.outside), &at(&addresses), BOTH)?;
        patch(cluster, "service/echo", &json!({ "spec": { "externalIPs": null } }))?;
        cluster.set_load_balancer("echo", &[], None)?;
        unanswered(("outside", &scene.outside), &at(&addresses))?;
        unanswered(("a pod", &scene.client.place), &at(&addresses))?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("echo")?), BOTH)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn headless_and_external_name_services_are_left_to_dns() {
    with_cluster(|cluster| {
        let headless = service("headless", "echo", "ClusterIP") + &spec("clusterIP: None");
        let named = "---\napiVersion: v1\nkind: Service\nmetadata: { name: named }\nspec: { type: ExternalName, \
                     externalName: example.org }\n";
        let scene = Scene::set(cluster, &(headless + named + &service("echo", "echo", "ClusterIP")))?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("echo")?), BOTH)?;
        let shown = cluster.node("node1")?.proxy(&["services"])?;
        ensure!(!shown.contains("headless") && !shown.contains("named"), "{shown}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_of_another_proxy_is_left_alone() {
    with_cluster(|cluster| opted_out(cluster, "service.kubernetes.io/service-proxy-name", "another"));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_labelled_headless_is_left_alone() {
    with_cluster(|cluster| opted_out(cluster, "service.kubernetes.io/headless", ""));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_that_becomes_an_external_name_gives_its_addresses_up() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let mut targets = at(&cluster.cluster_ips("echo")?);
        targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node2")?)?);
        answered_by(("a pod", &scene.client.place), &targets, BOTH)?;
        let change = json!({
            "type": "ExternalName", "externalName": "example.org", "ports": null, "selector": null,
            "clusterIP": null, "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null,
            "internalTrafficPolicy": null, "externalTrafficPolicy": null,
        });
        patch(cluster, "service/echo", &json!({ "spec": change }))?;
        let quick = Duration::from_millis(200);
        let load = |protocol, target| Load::new(protocol, target).times(2).giving_up_after(quick);
        eventually(|| {
            for (report, (protocol, target)) in all(&scene.client.place, &targets, load)?.iter().zip(&targets)
            {
                ensure!(report.replies().next().is_none(), "{protocol} to {target} is still answered");
            }
            Ok(())
        })
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_of_one_family_is_served_in_that_family() {
    with_cluster(|cluster| {
        let single = |name: &str, family: &str| {
            service(name, "echo", "ClusterIP")
                .replace("RequireDualStack", "SingleStack")
                .replace("[IPv4, IPv6]", &format!("[{family}]"))
        };
        let scene = Scene::set(cluster, &(single("four", "IPv4") + &single("six", "IPv6")))?;
        for name in ["four", "six"] {
            let addresses = cluster.cluster_ips(name)?;
            ensure!(addresses.len() == 1, "{name} has {addresses:?}");
            for (who, place) in scene.insiders() {
                answered_by((who, place), &at(&addresses), BOTH)?;
            }
        }
        Ok(())
    });
}

/// With the label a Service is not served, whether it always had it, gets it or loses it.
fn opted_out(cluster: &mut Cluster, label: &str, value: &str) -> Result<()> {
    let labels = format!("labels: {{ \"{label}\": \"{value}\" }}");
    let labelled = service("other", "echo", "ClusterIP")
        .replace("metadata: { name: other }", &format!("metadata: {{ name: other, {labels} }}"));
    let scene = Scene::set(cluster, &(labelled + &service("echo", "echo", "ClusterIP")))?;
    let [other, echo] = [at(&cluster.cluster_ips("other")?), at(&cluster.cluster_ips("echo")?)];
    let client = &scene.client.place;
    answered_by(("a pod", client), &echo, BOTH)?;
    let not_served = |targets: &[_]| {
        unanswered(("a pod", client), targets)?;
        kept_out(("a node", &scene.node1), targets)
    };
    not_served(&other)?;
    patch(cluster, "service/echo", &json!({ "metadata": { "labels": { label: value } } }))?;
    patch(cluster, "service/other", &json!({ "metadata": { "labels": { label: null } } }))?;
    answered_by(("a pod", client), &other, BOTH)?;
    not_served(&echo)
}
