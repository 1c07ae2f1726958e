//! Agents on kernels that lack something: they say so, and get on without it, or refuse to run. The kernel here lacks
//! nothing of it; the agents are told to take it for missing.

use anyhow::{Context, Result, bail, ensure};
use fairlead_cluster_tests::ask::{answered, answered_by, of};
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses};
use fairlead_cluster_tests::{POD_PORT, service, variants, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Load, Options, Protocol};
use serde_json::Value;

const BOTH: &[&str] = &["near", "far"];

fn without(features: &[&str]) -> Options {
    let arguments: Vec<&str> =
        features.iter().flat_map(|feature| ["--without-kernel-feature", feature]).collect();
    Options::default().with_arguments(&arguments)
}

fn status(cluster: &Cluster) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.node("node1")?.proxy(&["status", "-o", "json"])?)?)
}

/// The feature in what the agent of node1 tells, and in its metrics.
fn is_said_to_be_missing(cluster: &Cluster, feature: &str) -> Result<()> {
    let status = status(cluster)?;
    let features = status["kernel"]["features"].as_array().context("no features")?;
    let found = features.iter().find(|row| row["name"] == feature).context("no such feature")?;
    ensure!(found["found"] == false, "{found:#}");
    let text = cluster.node("node1")?.proxy(&["status"])?;
    let lacks = text.lines().find(|line| line.trim_start().starts_with("lacks ")).context("nothing lacks")?;
    ensure!(lacks.contains(feature), "{lacks}");
    let sample = format!("fairlead_kernel_feature{{feature=\"{feature}\"}} 0");
    let metrics = cluster.node("node1")?.metrics()?;
    ensure!(metrics.contains(&sample), "{sample} is not in {metrics}");
    ensure!(metrics.contains("fairlead_kernel_feature{feature=\"loops\"} 1"), "{metrics}");
    Ok(())
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn without_tcx_everything_goes_by_clsact() {
    with_cluster_of(without(&["tcx"]), |cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        is_said_to_be_missing(cluster, "tcx")?;
        let status = status(cluster)?;
        ensure!(status["attachment"] == "clsact", "{status:#}");
        for asker in scene.insiders() {
            answered_by(asker, &at(&cluster.cluster_ips("echo")?), BOTH)?;
        }
        let addresses = node_addresses(cluster, "node1")?;
        answered_by(("outside", &scene.outside), &at_node_ports(cluster, "echo", &addresses)?, BOTH)?;
        answered_by(("a pod", &scene.client.place), &variants(&scene.far.ips, POD_PORT), &["far"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn without_a_hook_of_sockets_the_hosts_packets_are_translated_and_nothing_is_attached_to_the_cgroup() {
    with_cluster_of(without(&["getpeername6"]), |cluster| {
        let scene = Scene::set(cluster, &service("echo", "far-only", "NodePort"))?;
        cluster.kubectl(&["label", "pod", "far", "app=far-only", "--overwrite"])?;
        is_said_to_be_missing(cluster, "getpeername6")?;
        let status = status(cluster)?;
        let programs = status["programs"].as_array().context("no programs")?;
        let has_frpod = programs.iter().any(|program| program["name"] == "fairlead_frpod");
        ensure!(programs.len() == 5 && has_frpod, "{programs:?}");
        let links = std::fs::read_dir(
            std::path::Path::new(status["pins"].as_str().context("no pins")?).join("links"),
        )?;
        let names: Vec<String> =
            links.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ensure!(!names.iter().any(|name| name.starts_with("cgroup")), "{names:?}");
        for asker in scene.insiders() {
            answered_by(asker, &at(&cluster.cluster_ips("echo")?), &["far"])?;
        }
        let addresses = node_addresses(cluster, "node1")?;
        answered(("outside", &scene.outside), &at_node_ports(cluster, "echo", &addresses)?)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn without_a_way_to_say_why_a_refused_connection_is_not_permitted() {
    with_cluster_of(without(&["sockets:set_retval"]), |cluster| {
        let scene = Scene::set(cluster, &service("nobody", "nobody", "ClusterIP"))?;
        is_said_to_be_missing(cluster, "sockets:set_retval")?;
        for (_, target) in of(&[Protocol::Tcp], &at(&cluster.cluster_ips("nobody")?)) {
            let report = scene.node1.requests(&Load::new(Protocol::Tcp, target).times(1))?;
            let failures = report.failures();
            let failure = failures.first().context("it was answered")?;
            ensure!(failure.text.contains("Operation not permitted"), "{failure:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_agent_refuses_a_kernel_that_lacks_what_it_needs_and_names_all_of_it() {
    with_cluster(|cluster| {
        let prefix = cluster.layout().dir.clone();
        let node = cluster.node_mut("node1")?;
        let lacking = ["--without-kernel-feature", "loops", "--without-kernel-feature", "tc:redirect_peer"];
        let Err(why) = node.restart_proxy_with(&lacking) else { bail!("the agent runs") };
        let log = std::fs::read_to_string(prefix.join("logs/node1-proxy.log"))?;
        let said = log.lines().rev().find(|line| line.contains("lacks what Fairlead needs"));
        let said = said.with_context(|| format!("it did not say why: {why:#}"))?;
        ensure!(
            said.contains("loops, of Linux 5.3") && said.contains("tc:redirect_peer, of Linux 5.10"),
            "{said}"
        );
        Ok(())
    });
}
