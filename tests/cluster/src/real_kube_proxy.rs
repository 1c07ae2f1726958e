//! The real kube-proxy, where there is one: on the PATH, or what `FAIRLEAD_KUBE_PROXY` names.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_harness::{Cluster, Process};
use nix::sys::signal::Signal;

use crate::ask::within;
use crate::kube_proxy::{CLUSTER_CIDRS, Mode};
use crate::scene::Scene;
use crate::takeover::rules;

/// How long it may take until it has written its rules, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where it is.
pub fn executable() -> Option<PathBuf> {
    let named = env::var_os("FAIRLEAD_KUBE_PROXY").map(PathBuf::from);
    named.or_else(|| {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|directory| directory.join("kube-proxy")).find(|file| file.is_file())
    })
}

/// Starts it in that mode on every node, and waits until its rules lead to both backends of the Service `echo`.
///
/// # Errors
/// When it does not write them.
pub fn start(mode: Mode, cluster: &Cluster, scene: &Scene) -> Result<Vec<Process>> {
    let executable = executable().context("there is no kube-proxy")?;
    let mut processes = Vec::new();
    for (node, place) in cluster.nodes().iter().zip([&scene.node1, &scene.node2]) {
        let mut command = place.command(&executable)?;
        command.arg("--kubeconfig").arg(cluster.layout().node_kubeconfig());
        command.args(["--hostname-override", node.name(), "--cluster-cidr", &CLUSTER_CIDRS.join(",")]);
        command.args(["--proxy-mode", if mode == Mode::Nftables { "nftables" } else { "iptables" }]);
        // The stand-in speaks JSON, and the machine's own settings are left alone.
        command.args(["--kube-api-content-type", "application/json", "--conntrack-max-per-core", "0"]);
        command.args([
            "--healthz-bind-address",
            "127.0.0.1:10456",
            "--metrics-bind-address",
            "127.0.0.1:10449",
        ]);
        let log = cluster.layout().log(&format!("{}-kube-proxy", node.name()));
        processes.push(Process::spawn("kube-proxy", &mut command, &log)?);
    }
    let backends: Vec<String> =
        [&scene.near, &scene.far].iter().flat_map(|pod| &pod.ips).map(ToString::to_string).collect();
    for place in [&scene.node1, &scene.node2] {
        within(PATIENCE, || {
            let rules = rules(place)?;
            ensure!(backends.iter().all(|backend| rules.contains(backend)), "only {rules}");
            Ok(())
        })?;
    }
    Ok(processes)
}

/// Ends it, as the kubelet does; its rules stay.
///
/// # Errors
/// When it does not end.
pub fn end(processes: Vec<Process>) -> Result<()> {
    for mut process in processes {
        process.signal(Signal::SIGTERM)?;
        process.wait(PATIENCE)?;
    }
    Ok(())
}
