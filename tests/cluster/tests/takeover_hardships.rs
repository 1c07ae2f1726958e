//! A takeover that is refused, interrupted, or meets more than kube-proxy's own rules.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::SERVICE_PORT;
use fairlead_cluster_tests::ask::{Lasting, within};
use fairlead_cluster_tests::crowd::{Crowd, everywhere};
use fairlead_cluster_tests::kube_proxy::Mode;
use fairlead_cluster_tests::takeover::{
    NODES, drain, rules, run, start_agents, takeover, traces, went_on, with_kube_proxy,
};
use fairlead_harness::{Cluster, Load, Place, Process, Protocol, output};
use nix::sys::signal::Signal;

/// How long traffic is watched after a step.
const WHILE: Duration = Duration::from_millis(700);
/// How long it may take until the agent has seen a change of connection tracking's.
const SEEN: Duration = Duration::from_secs(30);

fn iptables(place: &Place, arguments: &[&str]) -> Result<String> {
    output(place.command("iptables")?.arg("-w").args(arguments))
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_takeover_is_refused_while_a_kube_proxy_runs_or_the_agent_is_not_ready() {
    with_kube_proxy(Mode::Iptables, |cluster, scene| {
        let Some(faults) = cluster.faults() else { return Ok(()) };
        let outage = faults.outage()?;
        cluster.node_mut("node1")?.start_proxy()?;
        let refused = within(SEEN, || match takeover(cluster, "node1", &[]) {
            Ok(report) => anyhow::bail!("not refused: {report}"),
            Err(e) if format!("{e:#}").contains("not ready") => Ok(()),
            Err(e) => Err(e),
        });
        // Without any API server the agent does not even begin to listen.
        let listens = cluster.node("node1")?.layout().socket().exists();
        ensure!(refused.is_ok() || !listens, "{refused:?}");
        outage.end()?;
        cluster.node_mut("node1")?.wait_for_proxy()?;

        let executable = cluster.layout().dir.join("kube-proxy");
        let sleep = output(Command::new("which").arg("sleep"))?;
        fs::copy(sleep.trim(), &executable).context("copy sleep")?;
        let mut command = scene.node1.command(&executable)?;
        let mut process =
            Process::spawn("kube-proxy", command.arg("600"), &cluster.layout().log("kube-proxy"))?;
        let before = rules(&scene.node1)?;
        let planned = takeover(cluster, "node1", &["--dry-run"])?;
        let error = format!("{:#}", takeover(cluster, "node1", &[]).err().context("not refused")?);
        ensure!(
            error.contains(&format!("kube-proxy still runs here, as process {}", process.id())),
            "{error}"
        );
        ensure!(planned["obstacles"].as_array().is_some_and(|all| all.len() == 1), "{planned}");
        ensure!(rules(&scene.node1)? == before, "something was changed all the same");
        process.signal(Signal::SIGKILL)?;
        process.wait(SEEN)?;
        takeover(cluster, "node1", &[]).map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_agent_that_is_killed_after_the_rules_are_gone_goes_on_with_their_connections() {
    with_kube_proxy(Mode::Nftables, |cluster, scene| {
        let crowd = Crowd::gather(everywhere(cluster, scene, "echo")?)?;
        thread::sleep(WHILE);
        start_agents(cluster)?;
        for node in NODES {
            cluster.node_mut(node)?.stop_proxy(Signal::SIGKILL)?;
        }
        thread::sleep(WHILE);
        start_agents(cluster)?;
        for node in NODES {
            takeover(cluster, node, &[])?;
            cluster.node_mut(node)?.stop_proxy(Signal::SIGKILL)?;
        }
        thread::sleep(WHILE);
        start_agents(cluster)?;
        for node in NODES {
            let again = takeover(cluster, node, &[])?;
            ensure!(again["removed"] == false, "{again}");
        }
        thread::sleep(WHILE);
        went_on(&crowd.disperse()?)?;
        gone(cluster, &scene.node1, "node1")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_others_use_stays_and_where_forward_drops_old_connections_are_still_accepted() {
    with_kube_proxy(Mode::Iptables, |cluster, scene| {
        for arguments in [
            &["-P", "FORWARD", "DROP"][..],
            &["-t", "nat", "-N", "CNI-HOSTPORT-SETMARK"],
            &["-t", "nat", "-A", "CNI-HOSTPORT-SETMARK", "-j", "KUBE-MARK-MASQ"],
            // What belongs to no Service is accepted by the other CNI's rules.
            &["-A", "FORWARD", "-i", "cni0", "-j", "ACCEPT"],
        ] {
            iptables(&scene.node1, arguments)?;
        }
        let crowd = Crowd::gather(everywhere(cluster, scene, "echo")?)?;
        thread::sleep(WHILE);
        start_agents(cluster)?;
        let report = takeover(cluster, "node1", &[])?;
        let kept: Vec<String> = report["inventory"]["kept"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|kept| format!("{} {}", kept["place"]["family"], kept["place"]["chain"]))
            .collect();
        ensure!(kept.len() == 3, "{kept:?} are kept");
        thread::sleep(WHILE);
        went_on(&crowd.disperse()?)?;
        within(SEEN, || {
            let rules = rules(&scene.node1)?;
            let mut traces = traces(&rules);
            traces.sort_unstable();
            traces.dedup();
            ensure!(traces == ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"], "{traces:?} are left in {rules}");
            Ok(())
        })?;
        for chain in ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "CNI-HOSTPORT-SETMARK"] {
            ensure!(rules(&scene.node1)?.contains(chain), "{chain} is gone");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn datagrams_of_before_leave_a_backend_that_goes() {
    with_kube_proxy(Mode::Nftables, |cluster, scene| {
        let ips = cluster.cluster_ips("echo")?;
        let mut flows = Lasting::default();
        for &ip in &ips {
            for number in 0..4 {
                let load = Load::new(Protocol::Udp, (ip, SERVICE_PORT).into()).over_one_flow();
                let load = load.every(Duration::from_millis(20)).giving_up_after(Duration::from_millis(300));
                flows.begin(format!("flow {number} to {ip}"), &scene.client.place, &load)?;
            }
        }
        thread::sleep(WHILE);
        start_agents(cluster)?;
        for node in NODES {
            takeover(cluster, node, &[])?;
        }
        thread::sleep(WHILE);
        cluster.kubectl(&["delete", "pod", "far", "--wait=false"])?;
        cluster.wait_until_gone("far")?;
        thread::sleep(Duration::from_secs(4));
        for (what, report) in flows.end()? {
            let last = report.replies().next_back().map(|reply| reply.answer.pod.clone());
            ensure!(last.as_deref() == Some("near"), "{what}: at the end answered by {last:?}");
            let failures = report.failures();
            ensure!(failures.len() <= 8, "{what}: {} failed: {failures:?}", failures.len());
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn nothing_is_handed_over_where_nobody_is_to_take_it() {
    with_kube_proxy(Mode::Nftables, |cluster, scene| {
        start_agents(cluster)?;
        for node in NODES {
            takeover(cluster, node, &[])?;
        }
        let crowd = Crowd::gather(everywhere(cluster, scene, "echo")?)?;
        thread::sleep(WHILE);
        cluster.node_mut("node1")?.stop_proxy(Signal::SIGTERM)?;
        let error = run(cluster, "node1", &["cleanup", "--hand-over"]).err().context("not refused")?;
        ensure!(format!("{error:#}").contains("no rules of kube-proxy's"), "{error:#}");
        thread::sleep(WHILE);
        cluster.node_mut("node1")?.start_proxy()?;
        cluster.node_mut("node1")?.wait_for_proxy()?;
        thread::sleep(WHILE);
        went_on(&crowd.disperse()?)?;
        gone(cluster, &scene.node1, "node1")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn rules_of_the_older_iptables_are_told_of_and_their_connections_outlive_them() {
    with_kube_proxy(Mode::Legacy, |cluster, scene| {
        let crowd = Crowd::gather(everywhere(cluster, scene, "echo")?)?;
        thread::sleep(WHILE);
        start_agents(cluster)?;
        for node in NODES {
            let report = takeover(cluster, node, &[])?;
            let advice = report["advice"].to_string();
            ensure!(report["removed"] == false && advice.contains("iptables-legacy-save"), "{report}");
        }
        // As kube-proxy --cleanup does.
        for place in [&scene.node1, &scene.node2] {
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                for table in ["nat", "filter", "mangle"] {
                    for flag in ["-F", "-X"] {
                        output(place.command(program)?.args(["-w", "-t", table, flag]))?;
                    }
                }
            }
        }
        thread::sleep(WHILE);
        went_on(&crowd.disperse()?)?;
        gone(cluster, &scene.node1, "node1")
    });
}

/// Nothing of kube-proxy's is left, nor of the takeover.
fn gone(cluster: &Cluster, place: &Place, node: &str) -> Result<()> {
    within(SEEN, || {
        let (rules, drain) = (rules(place)?, drain(cluster, node)?);
        ensure!(traces(&rules).is_empty() && drain["draining"] == false, "{drain}: {rules}");
        Ok(())
    })
}
