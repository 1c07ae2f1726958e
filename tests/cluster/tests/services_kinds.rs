//! The kinds of Services: what addresses each has, and which Services are none of the proxy's business.

use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_cluster_tests::ask::{all, answered_by, eventually, kept_out, of, unanswered};
use fairlead_cluster_tests::objects::{at, external_ips, patch, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{service, with_cluster};
use fairlead_harness::{Load, Protocol};
use serde_json::json;

const BOTH: &[&str] = &["near", "far"];
const ANOTHER_PROXYS: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

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
        // Some router may notice that packets go in circles, and say so.
        kept_out(("outside", &scene.outside), &at(&addresses))?;
        kept_out(("a pod", &scene.client.place), &at(&addresses))?;
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
fn a_service_labelled_as_another_proxys_or_headless_is_left_alone_also_when_it_was_served() {
    with_cluster(|cluster| {
        let labelled = |name: &str, label: &str| {
            service(name, "echo", "ClusterIP").replace(
                &format!("metadata: {{ name: {name} }}"),
                &format!("metadata: {{ name: {name}, labels: {{ {label}: \"\" }} }}"),
            )
        };
        let others = labelled("one", ANOTHER_PROXYS) + &labelled("two", HEADLESS);
        let served = service("three", "echo", "ClusterIP") + &service("four", "echo", "ClusterIP");
        let scene = Scene::set(cluster, &(others + &served))?;
        let [pod, node] = scene.insiders();
        let ips = |services: [&str; 2]| {
            let ips =
                services.into_iter().map(|name| cluster.cluster_ips(name)).collect::<Result<Vec<_>>>()?;
            Ok::<_, anyhow::Error>(at(&ips.concat()))
        };
        let [others, served] = [ips(["one", "two"])?, ips(["three", "four"])?];
        let label = |service: &str, label: &str, value: serde_json::Value| {
            patch(
                cluster,
                &format!("service/{service}"),
                &json!({ "metadata": { "labels": { label: value } } }),
            )
        };
        answered_by(pod, &served, BOTH)?;
        unanswered(pod, &others)?;
        kept_out(node, &others)?;
        label("one", ANOTHER_PROXYS, json!(null))?;
        label("two", HEADLESS, json!(null))?;
        label("three", ANOTHER_PROXYS, json!("its-name"))?;
        label("four", HEADLESS, json!(""))?;
        answered_by(pod, &others, BOTH)?;
        unanswered(pod, &served)?;
        kept_out(node, &served)
    });
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
