//! A cluster that kube-proxy serves, with pods on a bridge, and the ways from there to Fairlead and back.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_harness::{Cluster, Options, Place, Process, Protocol, binary, output};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bridge::{self, BRIDGE};
use crate::crowd::Account;
use crate::kube_proxy::{self, Mode};
use crate::scene::Scene;
use crate::{service, with_cluster_of};

/// The nodes of the cluster.
pub const NODES: [&str; 2] = ["node1", "node2"];
/// How soon connection tracking forgets datagrams: after half a minute and two minutes by itself, and a test waits for it.
const FORGETS: [(&str, &str); 2] =
    [("netfilter/nf_conntrack_udp_timeout", "5"), ("netfilter/nf_conntrack_udp_timeout_stream", "10")];
/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// Runs a test in a cluster with the usual scene and a Service `echo`, whose pods are on bridges, that kube-proxy's rules
/// of this mode serve: no agent has run.
///
/// # Panics
/// As [`crate::with_cluster`].
pub fn with_kube_proxy(mode: Mode, test: impl FnOnce(&mut Cluster, &Scene) -> Result<()>) {
    with_rules_to_come(mode, |cluster, scene| {
        write_rules(mode, cluster, scene)?;
        test(cluster, scene)
    });
}

/// The same before there are rules.
///
/// # Panics
/// As [`crate::with_cluster`].
pub fn with_rules_to_come(mode: Mode, test: impl FnOnce(&mut Cluster, &Scene) -> Result<()>) {
    if let Some(why) = mode.missing() {
        println!("left out: {why}");
        return;
    }
    if fairlead_harness::cni::reference_plugins().is_none() {
        println!("left out: there are no reference CNI plugins: cargo xtask setup installs them");
        return;
    }
    with_cluster_of(Options::default().with_arguments(&["--pod-interface", BRIDGE]), |cluster| {
        bridge::install(cluster)?;
        for node in NODES {
            cluster.node_mut(node)?.stop_proxy(Signal::SIGTERM)?;
            run(cluster, node, &["cleanup"])?;
        }
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        for place in [&scene.node1, &scene.node2] {
            for (setting, seconds) in FORGETS {
                place.set_setting(setting, seconds)?;
            }
        }
        test(cluster, &scene)
    });
}

/// Writes kube-proxy's rules for the Service `echo` on both nodes.
///
/// # Errors
/// When that fails.
pub fn write_rules(mode: Mode, cluster: &Cluster, scene: &Scene) -> Result<()> {
    let endpoints: Vec<IpAddr> = [&scene.near, &scene.far].iter().flat_map(|pod| pod.ips.clone()).collect();
    let places = [&scene.node1, &scene.node2];
    kube_proxy::program_by(mode, cluster, &places, &[("echo", endpoints.as_slice())])
}

/// Starts the agents, and waits until they are ready.
///
/// # Errors
/// When one is not.
pub fn start_agents(cluster: &mut Cluster) -> Result<()> {
    NODES.iter().try_for_each(|node| cluster.node_mut(node)?.start_proxy())?;
    NODES.iter().try_for_each(|node| cluster.node_mut(node)?.wait_for_proxy())
}

/// Runs the agent's executable on a node with a command that needs no agent.
///
/// # Errors
/// When it fails.
pub fn run(cluster: &Cluster, node: &str, arguments: &[&str]) -> Result<String> {
    let node = cluster.node(node)?;
    let mut command = node.place().command(binary("fairlead-proxy")?)?;
    output(command.args(arguments).arg("--bpffs").arg(node.layout().bpffs()))
}

/// Starts the way back on a node; it waits for kube-proxy's rules.
///
/// # Errors
/// When it can't be started.
pub fn begin_hand_over(cluster: &Cluster, node: &str) -> Result<Process> {
    let log = cluster.layout().log(&format!("{node}-hand-over"));
    let node = cluster.node(node)?;
    let mut command = node.place().command(binary("fairlead-proxy")?)?;
    command.args(["cleanup", "--hand-over", "--wait", "30", "--bpffs"]).arg(node.layout().bpffs());
    command.stdin(Stdio::null());
    Process::spawn("hand-over", &mut command, &log)
}

/// Waits for its end.
///
/// # Errors
/// When it fails.
pub fn end_hand_over(mut process: Process) -> Result<()> {
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "the way back ended with {status}: see {}", process.log().display());
    Ok(())
}

/// What `takeover` reports.
///
/// # Errors
/// When it refuses.
pub fn takeover(cluster: &Cluster, node: &str, arguments: &[&str]) -> Result<Value> {
    let arguments = [&["takeover", "-o", "json"], arguments].concat();
    serde_json::from_str(&cluster.node(node)?.proxy(&arguments)?).context("understand what takeover reports")
}

/// The status's part about connections of before.
///
/// # Errors
/// When the agent does not answer.
pub fn drain(cluster: &Cluster, node: &str) -> Result<Value> {
    let status: Value = serde_json::from_str(&cluster.node(node)?.proxy(&["status", "-o", "json"])?)?;
    Ok(status["drain"].clone())
}

/// The rules of a place, as nft prints them.
///
/// # Errors
/// When it fails.
pub fn rules(place: &Place) -> Result<String> {
    output(place.command("nft")?.args(["--stateless", "list", "ruleset"]))
}

/// The names in these rules that are kube-proxy's or ours: none, when all is taken away.
pub fn traces(rules: &str) -> Vec<&str> {
    let is_trace = |word: &&str| {
        let kept = ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"].contains(word);
        !kept && ["KUBE-", "kube-proxy", "fairlead"].iter().any(|name| word.starts_with(name))
    };
    rules.split_whitespace().filter(is_trace).collect()
}

/// The connections that a place's connection tracking has to any of these addresses.
///
/// # Errors
/// When they can't be read.
pub fn tracked(place: &Place, addresses: &[IpAddr]) -> Result<Vec<String>> {
    let all = output(place.command("cat")?.arg("/proc/net/nf_conntrack"))?;
    let full = |address: &IpAddr| match address {
        IpAddr::V4(v4) => format!("dst={v4} "),
        IpAddr::V6(v6) => {
            let groups = v6.segments().map(|group| format!("{group:04x}"));
            format!("dst={} ", groups.join(":"))
        }
    };
    let addresses: Vec<String> = addresses.iter().map(full).collect();
    let is_to = |line: &&str| addresses.iter().any(|address| line.contains(address));
    Ok(all.lines().filter(is_to).map(str::to_owned).collect())
}

/// How many requests may fail of a client that begins a flow for each: one that begins in the very moment in which rules or
/// programs go may be lost (docs/migrate.md), some of ten thousand.
const LOST_AT_CHANGES: usize = 1;

/// Of each flow that lasted no request failed, and it had one backend; of new flows one was lost at most.
///
/// # Errors
/// When one did, or had not, or more were.
pub fn went_on(accounts: &[Account]) -> Result<()> {
    let mut wrong = Vec::new();
    for account in accounts {
        let lost = account.report.failures();
        if !account.load.one_flow && (1..=LOST_AT_CHANGES).contains(&lost.len()) {
            println!("{}: lost in the moment of a change: {lost:?}", account.who);
            ensure!(account.report.outcomes.len() >= 20, "{}: too few requests", account.who);
        } else if let Err(e) = account.lost_nothing(20) {
            wrong.push(format!("{e:#}"));
        }
        let pods = account.report.pods();
        if account.load.one_flow && pods.len() != 1 {
            wrong.push(format!("{}: one flow was answered by {pods:?}", account.who));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// TCP and UDP.
pub const PROTOCOLS: [Protocol; 2] = Protocol::SOCKETS;
