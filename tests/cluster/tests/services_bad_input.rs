//! Objects that the API admits and no proxy can serve in whole: what makes sense is served, and the agent says what
//! does not, and where it stands.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually};
use fairlead_cluster_tests::metrics::sample;
use fairlead_cluster_tests::objects::{
    at, endpoint, external_ips, patch, service_without_selector, slice, slices, spec,
};
use fairlead_cluster_tests::scene::{EXTERNAL, LOAD_BALANCER, Scene, route_via};
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::Cluster;
use serde_json::{Value, json};

const BOTH: &[&str] = &["near", "far"];

#[test]
#[ignore = "needs root: run make test"]
fn endpoints_that_make_no_sense_are_named_and_the_others_of_their_slice_are_served() {
    with_cluster(|cluster| {
        let services = service_without_selector("mixed", "ClusterIP") + &service("echo", "echo", "ClusterIP");
        let scene = Scene::set(cluster, &services)?;
        let pods = [(&scene.near, ""), (&scene.far, "")];
        let good = slices("mixed", "hand", &pods)?;
        let like = LOAD_BALANCER[0];
        let line = |address: &str| format!("  - {{ addresses: [\"{address}\"], nodeName: node1 }}\n");
        let endpoints = [
            line("10.244.1.300"),
            endpoint(scene.near.address(like)?, "node1", ""),
            line("nonsense"),
            line("127.0.0.1"),
            line("fd00:10:244::7"),
            endpoint(scene.far.address(like)?, "node2", ""),
            line("224.0.0.1"),
        ];
        // A port that is none, and one that is missing.
        let bad = slice("mixed", "hand", "IPv4", &endpoints.concat())
            .replace("endpoints:", "  - { name: huge, port: 70000 }\n  - { name: none }\nendpoints:");
        let names = slice("mixed", "names", "FQDN", &line("pod.example.org"));
        cluster.apply(&(good.clone() + &bad + &names))?;

        let hand = "EndpointSlice default/mixed-hand-ipv4";
        problems_are(
            cluster,
            &[
                (hand, "endpoints[0].addresses[0]"),
                (hand, "endpoints[2].addresses[0]"),
                (hand, "endpoints[3].addresses[0]"),
                (hand, "endpoints[4].addresses[0]"),
                (hand, "endpoints[6].addresses[0]"),
                (hand, "ports[3].port"),
                (hand, "ports[4].port"),
                ("EndpointSlice default/mixed-names-fqdn", "addressType"),
            ],
        )?;
        let client = ("a pod", &scene.client.place);
        answered_by(client, &at(&cluster.cluster_ips("mixed")?), BOTH)?;
        answered_by(client, &at(&cluster.cluster_ips("echo")?), BOTH)?;

        cluster.apply(&good)?;
        cluster.kubectl(&["delete", "endpointslice", "mixed-names-fqdn"])?;
        problems_are(cluster, &[])?;
        answered_by(client, &at(&cluster.cluster_ips("mixed")?), BOTH)
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn addresses_that_no_service_may_have_are_named_and_its_others_are_served() {
    with_cluster(|cluster| {
        let [v4, v6] = EXTERNAL;
        let external = spec(&format!("externalIPs: [169.254.7.7, \"{v4}\", \"fe80::7\", \"{v6}\"]"));
        let exposed = service("exposed", "echo", "LoadBalancer") + &external;
        let scene = Scene::set(cluster, &(exposed + &service("echo", "echo", "ClusterIP")))?;
        let [first, second] = LOAD_BALANCER;
        set_ingress(
            cluster,
            "exposed",
            &json!([{ "ip": "169.254.9.9" }, { "ip": first }, { "ip": second }]),
        )?;
        let served = [LOAD_BALANCER, EXTERNAL].concat();
        route_via(cluster, &served, "node1")?;

        let exposed = "Service default/exposed";
        problems_are(
            cluster,
            &[
                (exposed, "spec.externalIPs[0]"),
                (exposed, "spec.externalIPs[2]"),
                (exposed, "status.loadBalancer.ingress[0].ip"),
            ],
        )?;
        answered_by(("outside", &scene.outside), &at(&served), BOTH)?;
        let client = ("a pod", &scene.client.place);
        answered_by(client, &at(&served), BOTH)?;
        answered_by(client, &at(&cluster.cluster_ips("echo")?), BOTH)?;

        patch(cluster, "service/exposed", &json!({ "spec": { "externalIPs": [v4, v6] } }))?;
        cluster.set_load_balancer("exposed", &LOAD_BALANCER, None)?;
        problems_are(cluster, &[])?;
        answered_by(client, &at(&served), BOTH)
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn an_address_that_two_services_want_is_the_elders_and_the_other_is_told() {
    with_cluster(|cluster| {
        let elder = service("elder", "echo", "ClusterIP") + &external_ips();
        let scene = Scene::set(cluster, &(elder + &pod("solo", "solo", "node2")))?;
        route_via(cluster, &EXTERNAL, "node1")?;
        answered_by(("outside", &scene.outside), &at(&EXTERNAL), BOTH)?;
        // As old as the other, by the second, it comes after it by its name.
        cluster.apply(&(service("younger", "solo", "ClusterIP") + &external_ips()))?;
        cluster.pod("solo")?;

        let younger = "Service default/younger";
        problems_are(cluster, &[(younger, "spec.externalIPs")])?;
        let client = ("a pod", &scene.client.place);
        answered_by(client, &at(&cluster.cluster_ips("younger")?), &["solo"])?;
        answered_by(client, &at(&cluster.cluster_ips("elder")?), BOTH)?;
        answered_by(("outside", &scene.outside), &at(&EXTERNAL), BOTH)?;

        patch(cluster, "service/elder", &json!({ "spec": { "externalIPs": null } }))?;
        problems_are(cluster, &[])?;
        answered_by(("outside", &scene.outside), &at(&EXTERNAL), &["solo"])?;
        answered_by(client, &at(&cluster.cluster_ips("elder")?), BOTH)
    });
}

/// Both agents name these objects and fields, and nothing else; their metrics count what they name.
fn problems_are(cluster: &Cluster, wanted: &[(&str, &str)]) -> Result<()> {
    let wanted: BTreeSet<(String, String)> =
        wanted.iter().map(|(object, field)| ((*object).to_owned(), (*field).to_owned())).collect();
    eventually(|| {
        for node in cluster.nodes() {
            let status: Value = serde_json::from_str(&node.proxy(&["status", "-o", "json"])?)?;
            let problems = status["problems"].as_array().context("a status without problems")?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let named: BTreeSet<(String, String)> =
                problems.iter().map(|problem| (text(&problem["object"]), text(&problem["field"]))).collect();
            ensure!(named == wanted, "{} says {problems:#?}, not {wanted:#?}", node.name());
            let counted = sample(node, "fairlead_object_problems")?;
            ensure!(counted == problems.len() as f64, "{counted} counted of {}", problems.len());
        }
        Ok(())
    })
}

/// Writes a Service's status as a controller might that knows no better.
fn set_ingress(cluster: &Cluster, service: &str, ingress: &Value) -> Result<()> {
    let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } }).to_string();
    let object = format!("service/{service}");
    cluster.kubectl(&["patch", &object, "--subresource=status", "--type=merge", "-p", &status]).map(drop)
}
