//! The daemons' logs: an object a line where that is asked for, and no more of them than anybody wants to read.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually};
use fairlead_cluster_tests::objects::{at, slice};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{pod, service, with_cluster_of};
use fairlead_harness::{Cluster, Options};
use serde_json::Value;

/// Long enough for many tries of what fails, and several turns of what comes again and again.
const LONG: Duration = Duration::from_secs(20);

/// All lines of that daemon's log on node1.
fn log(cluster: &Cluster, daemon: &str) -> Result<Vec<String>> {
    let path = cluster.layout().dir.join("logs").join(format!("node1-{daemon}.log"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The same, each an object.
fn objects(cluster: &Cluster, daemon: &str) -> Result<Vec<Value>> {
    let lines = log(cluster, daemon)?;
    lines.iter().map(|line| serde_json::from_str(line).with_context(|| line.clone())).collect()
}

fn json() -> Options {
    let options = Options::default().with_arguments(&["--log-format=json"]);
    options.with_cni_arguments(&["--log-format=json", "--log-level=debug"])
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn each_line_is_an_object_that_says_what_it_is_about() {
    with_cluster_of(json(), |cluster| {
        let bad = slice("echo", "bad", "IPv4", "  - { addresses: [\"10.244.1.300\"], nodeName: node1 }\n");
        Scene::set(cluster, &(service("echo", "echo", "ClusterIP") + &bad))?;
        eventually(|| {
            let lines = objects(cluster, "proxy")?;
            let left_out = lines.iter().find(|line| line["object"] == "EndpointSlice default/echo-bad-ipv4");
            let line = left_out.context("nothing is said of the slice")?;
            ensure!(line["level"] == "WARN" && line["field"] == "endpoints[0].addresses[0]", "{line:#}");
            ensure!(line["target"] == "fairlead_proxy::sync", "{line:#}");
            ensure!(line["message"].as_str().is_some_and(|text| text.starts_with("left out: ")), "{line:#}");
            Ok(())
        })?;
        for daemon in ["proxy", "cni"] {
            let lines = objects(cluster, daemon)?;
            ensure!(!lines.is_empty(), "{daemon} says nothing");
            for line in lines {
                ensure!(line["timestamp"].is_string() && line["message"].is_string(), "{daemon}: {line:#}");
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn traffic_and_unchanged_turns_say_nothing_and_an_outage_little() {
    with_cluster_of(Options::default(), |cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        let targets = at(&cluster.cluster_ips("echo")?);
        answered_by(("a pod", &scene.client.place), &targets, &["near", "far"])?;
        let before = [log(cluster, "proxy")?.len(), log(cluster, "cni")?.len()];
        for _ in 0..3 {
            answered_by(("a pod", &scene.client.place), &targets, &["near", "far"])?;
            thread::sleep(LONG / 10);
        }
        let after = [log(cluster, "proxy")?, log(cluster, "cni")?];
        for (lines, before) in after.iter().zip(before) {
            ensure!(lines.len() == before, "said for no reason: {:#?}", &lines[before..]);
        }
        let Some(faults) = cluster.faults() else {
            println!("left out: a real API server has no outage to order");
            return Ok(());
        };
        let outage = faults.outage()?;
        thread::sleep(LONG);
        drop(outage);
        for (daemon, before) in [("proxy", after[0].len()), ("cni", after[1].len())] {
            let lines = log(cluster, daemon)?;
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for line in &lines[before..] {
                // Behind the time.
                *counts.entry(line.split_once(' ').map_or("", |(_, rest)| rest)).or_default() += 1;
            }
            let most = counts.iter().max_by_key(|(_, count)| **count);
            ensure!(most.is_none_or(|(_, count)| *count <= 1), "{daemon} says again and again: {most:?}");
            // A watch says that it broke and that it is there again, each of nine, and some break in two ways.
            ensure!(lines.len() - before <= 40, "{daemon}: {:#?}", &lines[before..]);
        }
        Ok(())
    });
}

/// Instructions that the verifier walked, of all programs together.
fn walked(cluster: &Cluster) -> Result<u64> {
    let page = cluster.node("node1")?.metrics()?;
    let counts = page.lines().filter_map(|line| line.strip_prefix("fairlead_program_verified_instructions{"));
    let counts = counts.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>());
    counts.sum::<Result<u64, _>>().context("instructions that are no number")
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_programs_say_what_flows_begin_at_debug_and_are_without_a_word_otherwise() {
    with_cluster_of(Options::default().with_nodes(1), |cluster| {
        cluster.apply(&(pod("client", "client", "node1") + &pod("solo", "echo", "node1")))?;
        cluster.apply(&service("echo", "echo", "ClusterIP"))?;
        let (client, address) = (cluster.pod("client")?.place, cluster.cluster_ips("echo")?);
        cluster.pod("solo")?;
        let words = |cluster: &Cluster| -> Result<Vec<String>> {
            Ok(log(cluster, "proxy")?.into_iter().filter(|line| line.contains("fairlead_prog")).collect())
        };
        answered_by(("a pod", &client), &at(&address), &["solo"])?;
        ensure!(words(cluster)?.is_empty(), "{:#?}", words(cluster)?);
        let silent = walked(cluster)?;

        cluster.node_mut("node1")?.restart_proxy_with(&["--log-level=info,fairlead_prog=debug"])?;
        answered_by(("a pod", &client), &at(&address), &["solo"])?;
        eventually(|| {
            let said = words(cluster)?;
            for ip in &address {
                let dialled = format!("dials {ip}");
                let mapped = format!("dials ::ffff:{ip}");
                let is_told = |line: &&String| line.contains(&dialled) || line.contains(&mapped);
                ensure!(said.iter().any(|line| is_told(&line)), "no flow to {ip} in {said:#?}");
            }
            Ok(())
        })?;
        let talking = walked(cluster)?;
        println!("{silent} instructions walked without a word, {talking} with");
        ensure!(talking > silent, "{talking} instructions, as many as before");

        cluster.node_mut("node1")?.restart_proxy_with(&[])?;
        ensure!(walked(cluster)? == silent, "{} instructions, not {silent} again", walked(cluster)?);
        Ok(())
    });
}
