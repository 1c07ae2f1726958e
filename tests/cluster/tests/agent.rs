//! The agent itself: its restarts, and what it tells about itself.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, pod, service, variants, with_cluster};
use fairlead_harness::{Cluster, Load, wait_for};
use nix::sys::signal::Signal;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_agent_restart_loses_no_connection_and_no_packet() {
    with_cluster(|cluster| restart_loses_nothing(cluster, Signal::SIGTERM));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_agent_killed_loses_no_connection_and_no_packet() {
    with_cluster(|cluster| restart_loses_nothing(cluster, Signal::SIGKILL));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_restarted_agent_follows_what_it_missed() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("old", "solo", "node2") + &service("solo", "solo", "ClusterIP")))?;
        cluster.apply(&pod("client", "client", "node1"))?;
        cluster.pod("old")?;
        let client = cluster.pod("client")?.place;
        let targets = variants(&cluster.cluster_ips("solo")?, SERVICE_PORT);
        for &(protocol, target) in &targets {
            client.request_until_answered(protocol, target)?;
        }
        cluster.node_mut("node1")?.stop_proxy(Signal::SIGTERM)?;
        cluster.apply(&pod("new", "solo", "node2"))?;
        cluster.pod("new")?;
        cluster.kubectl(&["delete", "pod", "old"])?;
        let node = cluster.node_mut("node1")?;
        node.start_proxy()?;
        node.wait_for_proxy()?;
        for &(protocol, target) in &targets {
            let report = client.requests(&Load::new(protocol, target).times(10))?;
            ensure!(report.failures().is_empty(), "{protocol} to {target}: {:?}", report.failures());
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn status_and_services_are_shown_as_text_and_as_json() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("solo", "solo", "node1") + &service("solo", "solo", "NodePort")))?;
        let solo = cluster.pod("solo")?;
        let node = cluster.node("node1")?;
        let address = solo.ips.first().context("an address")?.to_string();
        wait_for("the Service's backend in what the agent tells", Duration::from_secs(10), || {
            let services = node.proxy(&["services"])?;
            Ok((services.contains("solo") && services.contains(&address)).then_some(()))
        })?;
        let services = node.proxy(&["services", "-o", "json"])?;
        let services: serde_json::Value = serde_json::from_str(&services)?;
        let text = services.to_string();
        for ip in cluster.cluster_ips("solo")? {
            ensure!(text.contains(&ip.to_string()), "{ip} is not in {services:#}");
        }
        let status = node.proxy(&["status"])?;
        ensure!(status.contains("node1"), "{status}");
        let status: serde_json::Value = serde_json::from_str(&node.proxy(&["status", "-o", "json"])?)?;
        ensure!(status.is_object(), "{status:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn health_and_metrics_are_served() {
    with_cluster(|cluster| {
        let node = cluster.node("node1")?;
        let (status, body) = node.healthz()?;
        ensure!(status == 200, "{status}: {body}");
        let metrics = node.metrics()?;
        for name in ["kubeproxy_sync_proxy_rules_duration_seconds", "fairlead_"] {
            ensure!(metrics.contains(name), "{name} is not in:\n{metrics}");
        }
        Ok(())
    });
}

/// Restarts both agents while connections and datagrams go through them, to a pod and to a Service.
fn restart_loses_nothing(cluster: &mut Cluster, signal: Signal) -> Result<()> {
    cluster.apply(&(pod("solo", "solo", "node2") + &service("solo", "solo", "NodePort")))?;
    cluster.apply(&pod("client", "client", "node1"))?;
    let solo = cluster.pod("solo")?;
    let client = cluster.pod("client")?.place;
    let mut targets = variants(&cluster.cluster_ips("solo")?, SERVICE_PORT);
    targets.extend(variants(&solo.ips, POD_PORT));
    let mut traffic = Vec::new();
    for (protocol, target) in targets {
        client.request_until_answered(protocol, target)?;
        let load = Load::new(protocol, target).over_one_flow().every(Duration::from_millis(2));
        traffic.push((format!("{protocol} to {target}"), client.traffic(&load)?));
    }
    let outside = cluster.client()?;
    let port = cluster.node_port("solo", "tcp")?;
    let target = (cluster.node("node1")?.layout().ipv4, port).into();
    outside.request_until_answered(fairlead_harness::Protocol::Tcp, target)?;
    let load = Load::new(fairlead_harness::Protocol::Tcp, target).over_one_flow();
    traffic.push((format!("outside to {target}"), outside.traffic(&load)?));
    for name in ["node1", "node2"] {
        let node = cluster.node_mut(name)?;
        node.stop_proxy(signal)?;
        thread::sleep(Duration::from_millis(300));
        node.start_proxy()?;
        node.wait_for_proxy()?;
        thread::sleep(Duration::from_millis(300));
    }
    for (what, traffic) in traffic {
        let report = traffic.stop()?;
        ensure!(report.failures().is_empty(), "{what}: {:?}", report.failures());
        ensure!(report.outcomes.len() > 50, "{what}: only {} requests", report.outcomes.len());
    }
    Ok(())
}
