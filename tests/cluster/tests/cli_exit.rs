//! The command line: exit codes, and scripts that complete it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::eventually;
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::binary;
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn status_ends_with_what_a_script_wants_to_know() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("solo", "solo", "node1") + &service("solo", "solo", "ClusterIP")))?;
        cluster.pod("solo")?;
        eventually(|| {
            let asked = cluster.node("node1")?.ask_proxy(&["status"])?;
            ensure!(
                asked.code == Some(0) && asked.printed.contains("ready, everything programmed"),
                "{asked:?}"
            );
            Ok(())
        })?;

        let wrong = service("wrong", "solo", "ClusterIP") + "  externalIPs: [169.254.7.7]\n";
        cluster.apply(&wrong)?;
        eventually(|| {
            let asked = cluster.node("node1")?.ask_proxy(&["status"])?;
            ensure!(asked.code == Some(1), "{asked:?}");
            ensure!(asked.printed.contains("ready, but 1 thing is wrong"), "{}", asked.printed);
            ensure!(
                asked.printed.contains("Service default/wrong: spec.externalIPs[0]"),
                "{}",
                asked.printed
            );
            let asked = cluster.node("node1")?.ask_proxy(&["status", "-o", "json"])?;
            let status: Value = serde_json::from_str(&asked.printed)?;
            ensure!(
                asked.code == Some(1) && status["problems"][0]["field"] == "spec.externalIPs[0]",
                "{status:#}"
            );
            Ok(())
        })?;

        let bpffs = cluster.node("node1")?.layout().bpffs().display().to_string();
        cluster.node_mut("node1")?.stop_proxy(Signal::SIGKILL)?;
        let node = cluster.node("node1")?;
        let asked = node.ask_proxy(&["status", "--bpffs", &bpffs])?;
        ensure!(asked.code == Some(2) && asked.printed.is_empty(), "{asked:?}");
        ensure!(asked.complaint.contains("The datapath goes on without it"), "{}", asked.complaint);
        ensure!(asked.complaint.contains("logs ds/fairlead -c proxy --previous"), "{}", asked.complaint);
        for command in [&["services"][..], &["flows"], &["flow-table"], &["endpoints"], &["backends"]] {
            let asked = node.ask_proxy(command)?;
            ensure!(asked.code == Some(2) && asked.complaint.contains("connect to the agent"), "{asked:?}");
        }
        let node = cluster.node_mut("node1")?;
        node.start_proxy()?;
        node.wait_for_proxy()
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn bench_self_measures_packets_connections_and_the_agent_and_leaves_nothing() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("solo", "solo", "node1") + &service("solo", "solo", "ClusterIP")))?;
        cluster.pod("solo")?;
        let node = cluster.node("node1")?;
        let bpffs = node.layout().bpffs();
        let pins = || -> Result<Vec<String>> {
            let names =
                std::fs::read_dir(&bpffs)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names: Vec<String> = names.collect::<Result<_>>()?;
            names.sort();
            Ok(names)
        };
        let drops = || -> Result<Value> {
            Ok(serde_json::from_str::<Value>(&node.proxy(&["status", "-o", "json"])?)?["drops"].clone())
        };
        let before = (pins()?, drops()?);
        let place = bpffs.display().to_string();
        let text = node.proxy(&["bench-self", "--rounds", "50", "--bpffs", &place, "-o", "json"])?;
        let measured: Value = serde_json::from_str(&text)?;
        ensure!(measured["noPackets"].is_null(), "{measured:#}");
        let packets = measured["packets"].as_array().context("no packets")?;
        ensure!(
            packets.len() == 9 && packets.iter().all(|cost| cost["p50"].as_u64() > Some(0)),
            "{measured:#}"
        );
        ensure!(measured["connects"]["loopback"]["times"] == 50, "{measured:#}");
        let hooks = measured["connects"]["programs"].as_array().context("no programs")?;
        ensure!(hooks.iter().any(|run| run["program"] == "fairlead_conn4"), "{measured:#}");
        ensure!(measured["agent"]["reconcile"]["count"].as_u64() > Some(0), "{measured:#}");
        ensure!((pins()?, drops()?) == before, "it left something: {:?}", pins()?);
        let text = node.proxy(&["bench-self", "--rounds", "20", "--bpffs", &place])?;
        ensure!(text.contains("pod → ClusterIP, first packet") && text.contains("AGENT"), "{text}");
        Ok(())
    });
}

/// Runs the shell, which is to read the script and do nothing; false where the shell is not installed.
fn parses(shell: &str, script: &str) -> Result<bool> {
    let Ok(mut child) = Command::new(shell).args(["-n", "/dev/stdin"]).stdin(Stdio::piped()).spawn() else {
        return Ok(false);
    };
    child.stdin.take().context("no input")?.write_all(script.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "{shell} does not understand its script: {status}");
    Ok(true)
}

#[test]
fn the_scripts_that_complete_the_commands_are_understood_by_their_shells() {
    let complete = || -> Result<()> {
        for shell in ["bash", "zsh", "fish"] {
            let output = Command::new(binary("fairlead-proxy")?).args(["completion", shell]).output()?;
            ensure!(output.status.success(), "{shell}: {output:?}");
            let script = String::from_utf8(output.stdout)?;
            for word in ["flow-table", "bench-self", "--drops"] {
                let word = if shell == "fish" { word.trim_start_matches("--") } else { word };
                ensure!(script.contains(word), "{word} is not in the script for {shell}");
            }
            let is_there = parses(shell, &script)?;
            println!("{shell}: {}", if is_there { "understood" } else { "not installed" });
            ensure!(is_there || shell != "bash", "bash is not installed");
        }
        Ok(())
    };
    complete().unwrap_or_else(|error| panic!("{error:#}"));
}
