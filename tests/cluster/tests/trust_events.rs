//! Events on objects that can't be programmed: told by one node, or by each that fails, and never in the way.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, within};
use fairlead_cluster_tests::metrics::sample;
use fairlead_cluster_tests::objects::{at, patch, slice};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{manifests, service, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Options};
use serde_json::{Value, json};

/// How long an event may take: it must last for three seconds, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough for an event that must not come.
const QUIET: Duration = Duration::from_secs(8);

/// The events about an object of that name, each with its reason.
fn events(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let text = cluster.kubectl(&["get", "events.events.k8s.io", "-A", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    let items = list["items"].as_array().context("no list")?.clone();
    Ok(items.into_iter().filter(|event| event["regarding"]["name"] == name).collect())
}

/// Waits until there are so many events of that reason about an object, and returns them.
fn told(cluster: &Cluster, name: &str, reason: &str, count: usize) -> Result<Vec<Value>> {
    within(PATIENCE, || {
        let all = events(cluster, name)?;
        let found: Vec<Value> = all.iter().filter(|event| event["reason"] == reason).cloned().collect();
        ensure!(found.len() >= count, "{} {reason} of {name}: {all:#?}", found.len());
        Ok(found)
    })
}

fn bad_slice(name: &str) -> String {
    slice("echo", name, "IPv4", "  - { addresses: [\"10.244.1.300\"], nodeName: node1 }\n")
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn one_node_tells_of_a_field_that_is_left_out_and_that_it_is_mended() {
    with_cluster(|cluster| {
        let echo = service("echo", "echo", "ClusterIP");
        cluster.apply(&(echo + &bad_slice("bad")))?;
        let name = "echo-bad-ipv4";
        let told_of = told(cluster, name, "FieldsLeftOut", 1)?;
        let event = &told_of[0];
        ensure!(event["type"] == "Warning", "{event:#}");
        ensure!(event["reportingController"] == "fairlead.io/fairlead-proxy", "{event:#}");
        let note = event["note"].as_str().unwrap_or_default();
        ensure!(note.contains("endpoints[0].addresses[0]"), "{event:#}");
        let uid = cluster.kubectl(&["get", "endpointslice", name, "-o", "jsonpath={.metadata.uid}"])?;
        ensure!(event["regarding"]["uid"] == uid.trim(), "{event:#}, not {uid}");
        std::thread::sleep(QUIET);
        ensure!(events(cluster, name)?.len() == 1, "told twice: {:#?}", events(cluster, name)?);

        patch(
            cluster,
            &format!("endpointslice/{name}"),
            &json!({ "endpoints": [{ "addresses": ["10.244.1.30"] }] }),
        )?;
        let mended = told(cluster, name, "FieldsMended", 1)?;
        ensure!(mended[0]["type"] == "Normal", "{mended:#?}");

        // Wrong again in the same way, it is one of a series.
        cluster.apply(&bad_slice("bad"))?;
        within(PATIENCE, || {
            let all = events(cluster, name)?;
            let counts: Vec<&Value> = all.iter().map(|event| &event["series"]["count"]).collect();
            ensure!(counts.iter().any(|count| count.as_u64() == Some(2)), "{all:#?}");
            Ok(())
        })?;
        let sent: f64 = cluster
            .nodes()
            .iter()
            .map(|node| sample(node, "fairlead_events_total{result=\"sent\"}"))
            .sum::<Result<f64>>()?;
        ensure!(sent == 3.0, "{sent} events sent by all nodes");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn every_node_tells_of_what_it_could_not_write() {
    let small = Options::default().with_arguments(&["--max-frontends", "16"]);
    with_cluster_of(small, |cluster| {
        for name in ["one", "two", "three"] {
            cluster.apply(&service(name, name, "ClusterIP"))?;
        }
        let reporters = within(PATIENCE, || {
            let mut reporters = BTreeSet::new();
            for event in events(cluster, "three")? {
                ensure!(event["reason"] == "NotProgrammed", "{event:#}");
                let note = event["note"].as_str().unwrap_or_default();
                ensure!(note.contains("map full (16)"), "{event:#}");
                reporters.insert(event["reportingInstance"].as_str().unwrap_or_default().to_owned());
            }
            ensure!(reporters.len() == 2, "told by {reporters:?}");
            Ok(reporters)
        })?;
        ensure!(reporters == BTreeSet::from(["node1".to_owned(), "node2".to_owned()]), "{reporters:?}");
        cluster.kubectl(&["delete", "service", "one", "two"])?;
        told(cluster, "three", "Programmed", 2).map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_api_that_takes_no_events_keeps_nothing_from_being_programmed() {
    with_cluster(|cluster| {
        let Some(faults) = cluster.faults() else {
            println!("left out: a real API server has no faults to order");
            return Ok(());
        };
        let mut roles = manifests::roles("rbac-proxy.yaml")?;
        for role in &mut roles {
            let rules = role["rules"].as_array_mut().context("a role without rules")?;
            rules.retain(|rule| rule["apiGroups"][0] != "events.k8s.io");
        }
        faults.restrict("fairlead-proxy", &roles)?;
        let scene = Scene::set(cluster, &(service("echo", "echo", "ClusterIP") + &bad_slice("bad")))?;
        within(PATIENCE, || {
            let failed: f64 = cluster
                .nodes()
                .iter()
                .map(|node| sample(node, "fairlead_events_total{result=\"failed\"}"))
                .sum::<Result<f64>>()?;
            ensure!(failed > 0.0, "nobody has tried");
            Ok(())
        })?;
        let started = Instant::now();
        cluster.apply(&service("later", "echo", "ClusterIP"))?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("later")?), &["near", "far"])?;
        println!("a Service is served {:?} after it was applied", started.elapsed());
        ensure!(events(cluster, "echo-bad-ipv4")?.is_empty(), "an event came in");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn who_wants_no_events_gets_none() {
    with_cluster_of(Options::default().with_nodes(1).with_arguments(&["--events=off"]), |cluster| {
        cluster.apply(&(service("echo", "echo", "ClusterIP") + &bad_slice("bad")))?;
        within(PATIENCE, || {
            let problems = sample(cluster.node("node1")?, "fairlead_object_problems")?;
            ensure!(problems > 0.0, "not seen yet");
            Ok(())
        })?;
        std::thread::sleep(QUIET);
        ensure!(events(cluster, "echo-bad-ipv4")?.is_empty(), "{:#?}", events(cluster, "echo-bad-ipv4")?);
        Ok(())
    });
}
