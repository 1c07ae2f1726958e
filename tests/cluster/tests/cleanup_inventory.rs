//! Cleaning up: what is left on a node is told and taken away, and nothing is left then.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::loaded_programs;
use fairlead_cluster_tests::ask::answered_by;
use fairlead_cluster_tests::maps::attached_programs;
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{POD_PORT, service, variants, with_cluster_of};
use fairlead_harness::{Node, Options, binary, output, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

const RESERVED: &str = "ipv4/ip_local_reserved_ports";
const PATIENCE: Duration = Duration::from_secs(10);

/// What the two commands are told on that node.
fn proxy(node: &Node, arguments: &[&str]) -> Result<Command> {
    let layout = node.layout();
    let mut command = node.place().command(binary("fairlead-proxy")?)?;
    command.args(["cleanup", "-o", "json"]).args(arguments).arg("--bpffs").arg(layout.bpffs());
    command.arg("--state-dir").arg(layout.state_dir()).arg("--socket").arg(layout.socket());
    command.arg("--api-servers-file").arg(layout.state_dir().join("api-servers.json"));
    Ok(command)
}

fn plugin(node: &Node, arguments: &[&str]) -> Result<Command> {
    let layout = node.layout();
    let mut command = node.place().command(binary("fairlead-cni")?)?;
    command.args(["cleanup", "-o", "json"]).args(arguments);
    command.arg("--cni-bin-dir").arg(layout.cni_bin_dir()).arg("--cni-conf-dir").arg(layout.cni_conf_dir());
    command.arg("--node-file").arg(layout.node_file()).arg("--data-dir").arg(layout.cni_data_dir());
    command.arg("--agent-socket").arg(layout.socket());
    Ok(command)
}

fn report(mut command: Command) -> Result<Value> {
    Ok(serde_json::from_str(&output(&mut command)?)?)
}

/// The kinds of what was found, and how many of each.
fn count(report: &Value, kind: &str) -> usize {
    let found = report["found"].as_array().into_iter().flatten();
    found.filter(|entry| entry["kind"] == kind).count()
}

/// What a node's own namespace and directories hold of ours, beside programs and maps.
#[derive(Debug, PartialEq, Eq)]
struct Around {
    queues: Vec<String>,
    routes: String,
    rules: Vec<String>,
    interfaces: Vec<String>,
    reserved: String,
    files: Vec<PathBuf>,
}

impl Around {
    fn look(node: &Node) -> Result<Self> {
        let (place, layout) = (node.place(), node.layout());
        let lines = |text: String, with: &str| -> Vec<String> {
            text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
        };
        let queues = output(place.command("tc")?.args(["qdisc", "show"]))?;
        let routes = place.ip(&["route", "show", "table", "all", "proto", "250"])?
            + &place.ip(&["-6", "route", "show", "table", "all", "proto", "250"])?;
        let rules = place.ip(&["rule"])? + &place.ip(&["-6", "rule"])?;
        let links = place.ip(&["-brief", "link"])?;
        let ours = links.lines().filter_map(|line| line.split_whitespace().next());
        let ours = ours.filter(|name| name.starts_with("fl") || name.starts_with("fairlead"));
        let files = [
            layout.bpffs(),
            layout.state_dir(),
            layout.node_file(),
            layout.cni_data_dir(),
            layout.cni_bin_dir().join("fairlead-cni"),
            layout.cni_conf_dir().join("10-fairlead.conflist"),
        ];
        Ok(Self {
            queues: lines(queues, "clsact"),
            routes: routes.trim().to_owned(),
            rules: lines(rules, "2500:"),
            interfaces: ours.map(str::to_owned).collect(),
            reserved: place.setting(RESERVED)?,
            files: files.into_iter().filter(|path| path.exists()).collect(),
        })
    }
}

/// The programs and maps of an agent, by the kernel's numbers, which are never used twice.
fn objects(node: &Node) -> Result<(BTreeSet<u32>, BTreeSet<u32>)> {
    let programs = attached_programs(node)?.values().map(|program| program.id).collect();
    let pins = node.layout().bpffs().join(format!("v{}", fairlead_abi::LAYOUT_VERSION));
    let files = fs::read_dir(pins)?.flatten().filter(|entry| entry.path().is_file());
    let maps = files.map(|pin| Ok(MapInfo::from_pin(pin.path())?.id())).collect::<Result<_>>()?;
    Ok((programs, maps))
}

fn are_gone((programs, maps): &(BTreeSet<u32>, BTreeSet<u32>)) -> Result<()> {
    // The kernel frees them when no processor can be running them any more.
    wait_for("programs and maps to be gone", PATIENCE, || {
        let left_programs = loaded_programs().flatten().filter(|info| programs.contains(&info.id())).count();
        let left_maps = loaded_maps().flatten().filter(|info| maps.contains(&info.id())).count();
        Ok((left_programs + left_maps == 0).then_some(()))
    })
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn cleaning_up_tells_all_that_there_is_and_leaves_nothing() {
    let options =
        Options::default().with_subnet("node2", 2).with_node_arguments("node2", &["--datapath", "clsact"]);
    with_cluster_of(options, |cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("echo")?), &["near", "far"])?;
        answered_by(("a pod", &scene.client.place), &variants(&scene.far.ips, POD_PORT), &["far"])?;

        for name in ["node1", "node2"] {
            let node = cluster.node_mut(name)?;
            // Somebody else's port, which is to stay.
            let with_ours = node.place().setting(RESERVED)?;
            ensure!(with_ours == "49152-65535", "{with_ours}");
            node.place().set_setting(RESERVED, "8080,49152-65535")?;

            let Err(refused) = report(proxy(node, &[])?) else { bail!("cleaned up under an agent") };
            ensure!(format!("{refused:#}").contains("stop the agent first"), "{refused:#}");
            let before = Around::look(node)?;
            ensure!(
                before.files.len() == 6 && !before.routes.is_empty() && !before.rules.is_empty(),
                "{before:?}"
            );
            let plan = report(proxy(node, &["--dry-run", "--force"])?)?;
            let also = report(plugin(node, &["--dry-run"])?)?;
            ensure!(Around::look(node)? == before, "a dry run changed something: {plan:#} {also:#}");
            let links = if name == "node1" { 10 } else { 0 };
            ensure!(count(&plan, "link") >= links && count(&plan, "map") > 20, "{plan:#}");
            let sockets = plan["found"].as_array().into_iter().flatten();
            let of_connect = sockets.filter(|entry| entry["program"] == "fairlead_conn4").count();
            ensure!(of_connect == 1, "{plan:#}");
            if name == "node2" {
                ensure!(count(&plan, "filter") >= 4 && count(&plan, "queue") >= 2, "{plan:#}");
                ensure!(!before.queues.is_empty(), "{before:?}");
            }
            let left = plan["leftAlone"].to_string();
            ensure!(left.contains("fairlead-cni cleanup"), "{left}");

            let objects = objects(node)?;
            ensure!(objects.0.len() >= 10 && objects.1.len() > 20, "{objects:?}");
            node.stop_proxy(Signal::SIGTERM)?;
            node.stop_daemon(Signal::SIGTERM)?;
            let done = report(proxy(node, &[])?)?;
            let left_over =
                done["found"].as_array().into_iter().flatten().find(|entry| entry["removed"] != true);
            ensure!(left_over.is_none(), "{left_over:?}");
            ensure!(count(&done, "map") == count(&plan, "map"), "{done:#}");
            // Pods keep their interfaces, unless that is asked for.
            report(plugin(node, &[])?)?;
            let between = Around::look(node)?;
            ensure!(!between.interfaces.is_empty() && between.rules.is_empty(), "{between:?}");
            report(plugin(node, &["--pods"])?)?;

            are_gone(&objects).with_context(|| format!("{name}: {done:#}"))?;
            let nothing = Around {
                queues: Vec::new(),
                routes: String::new(),
                rules: Vec::new(),
                interfaces: Vec::new(),
                reserved: "8080".to_owned(),
                files: Vec::new(),
            };
            let after = Around::look(node)?;
            ensure!(after == nothing, "{name}: {after:?}");
            for again in [report(proxy(node, &[])?)?, report(plugin(node, &["--pods"])?)?] {
                ensure!(again["found"].as_array().is_some_and(Vec::is_empty), "{again:#}");
            }
        }
        Ok(())
    });
}
