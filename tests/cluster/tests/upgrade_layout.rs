//! Upgrades to an agent of another layout, and back, under mixed traffic; agents that are killed in the midst of it; and
//! programs that the kernel refuses.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use fairlead_abi::{LAYOUT_VERSION, maps};
use fairlead_cluster_tests::ask::within;
use fairlead_cluster_tests::crowd::{Crowd, everywhere, lost_nothing};
use fairlead_cluster_tests::inventory::{Inventory, Numbers, until_it_takes_over};
use fairlead_cluster_tests::maps::{attached_programs, dump, same};
use fairlead_cluster_tests::mixed::{Mixed, until_kept_out};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::soak::Dice;
use fairlead_cluster_tests::{service, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Node, Options, binary, upgrade};
use nix::sys::signal::Signal;

/// How long the traffic is watched after each step.
const WHILE: Duration = Duration::from_millis(500);
/// How long the kernel may take to free what is not used any more.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often an agent is killed as it takes over, and within how many milliseconds from when its programs are attached.
const KILLS: usize = 10;
const TAKING_OVER: u64 = 250;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_upgrade_to_another_layout_and_back_and_up_again_loses_nothing() {
    with_cluster(up_down_and_up);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_upgrade_to_another_layout_loses_nothing_where_pods_sockets_are_translated() {
    with_cluster_of(Options::default().with_arguments(&["--socket-lb", "all"]), up_down_and_up);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn agents_that_are_killed_as_they_take_over_lose_nothing() {
    with_cluster(|cluster| {
        let mixed = Mixed::set(cluster)?;
        until_kept_out(cluster)?;
        let before = Inventory::of(cluster.node("node1")?)?;
        let mut seen = Numbers::of(cluster.node("node1")?)?;
        let builds = [binary("fairlead-proxy-next")?, binary("fairlead-proxy")?];
        let (traffic, begun) = (mixed.begin()?, SystemTime::now());
        let mut dice = Dice::of(7);
        let node = cluster.node_mut("node1")?;
        node.stop_proxy(Signal::SIGKILL)?;
        for kill in 0..KILLS {
            // Now the other layout again, now the one that was before.
            node.start_proxy_from(&builds[(kill / 2) % 2])?;
            until_it_takes_over(node)?;
            let after = Duration::from_millis(dice.below(TAKING_OVER));
            thread::sleep(after);
            node.stop_proxy(Signal::SIGKILL)?;
            println!(
                "killed after {after:?}: of {} layouts something is there",
                Inventory::of(node)?.layouts
            );
            seen.add(&Numbers::of(node)?);
        }
        node.start_proxy_from(&builds[1])?;
        node.wait_for_proxy()?;
        thread::sleep(WHILE);
        println!("{:?}", traffic.end(begun)?);
        let node = cluster.node("node1")?;
        within(PATIENCE, || {
            Inventory::of(node)?.is_as(&before)?;
            seen.are_gone_but(&Numbers::of(node)?)
        })
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn programs_that_the_kernel_refuses_leave_the_old_ones_at_work() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        let before = Inventory::of(cluster.node("node1")?)?;
        for build in ["fairlead-proxy", "fairlead-proxy-next"] {
            let refused = cluster.layout().dir.join("refused").join(build);
            upgrade::refused_build(&binary(build)?, &refused)?;
            let node = cluster.node_mut("node1")?;
            let attached = attached_programs(node)?;
            node.stop_proxy(Signal::SIGTERM)?;
            node.start_proxy_from(&refused)?;
            let (status, log) = node.proxy_ends()?;
            ensure!(!status.success(), "{build} ended with {status}");
            let says = log.contains("load program fairlead_") && log.contains("the verifier's last words");
            ensure!(says, "{build}: {log}");
            let now = attached_programs(node)?;
            ensure!(now == attached, "{build}: the programs were {attached:?} and are {now:?}");
            let left = Inventory::of(node)?;
            ensure!((left.layouts, &left.pins) == (1, &before.pins), "{build}: {left:?}, not {before:?}");
            thread::sleep(WHILE);
            node.start_proxy_from(&binary("fairlead-proxy")?)?;
            node.wait_for_proxy()?;
        }
        lost_nothing(&crowd.disperse()?)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_says_nothing_of_its_maps_is_replaced_and_leaves_nothing() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let node = cluster.node_mut("node1")?;
        let before = Inventory::of(node)?;
        node.stop_proxy(Signal::SIGTERM)?;
        fs::remove_file(node.layout().bpffs().join(format!("v{LAYOUT_VERSION}")).join(maps::LAYOUT))?;
        node.start_proxy_from(&binary("fairlead-proxy-next")?)?;
        node.wait_for_proxy()?;
        within(PATIENCE, || Inventory::of(node)?.is_as(&before))?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        thread::sleep(WHILE);
        lost_nothing(&crowd.disperse()?)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_upgrade_by_clsact_keeps_open_connections() {
    with_cluster_of(Options::default().with_arguments(&["--datapath", "clsact"]), |cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let clients = everywhere(cluster, &scene, "echo")?;
        let crowd = Crowd::gather(clients)?;
        for build in [binary("fairlead-proxy-next")?, binary("fairlead-proxy")?] {
            for name in ["node1", "node2"] {
                replace(cluster.node_mut(name)?, &build)?;
                thread::sleep(WHILE);
            }
        }
        for account in crowd.disperse()? {
            if account.is_one_connection() {
                account.lost_nothing(20)?;
                ensure!(account.report.pods().len() == 1, "{}: {:?}", account.who, account.report.pods());
            }
        }
        Ok(())
    });
}

fn replace(node: &mut Node, build: &Path) -> Result<()> {
    node.stop_proxy(Signal::SIGTERM)?;
    node.start_proxy_from(build)?;
    node.wait_for_proxy()
}

fn up_down_and_up(cluster: &mut Cluster) -> Result<()> {
    let mixed = Mixed::set(cluster)?;
    until_kept_out(cluster)?;
    let names = ["node1", "node2"];
    let mut before = Vec::new();
    for name in names {
        let node = cluster.node(name)?;
        before.push((Inventory::of(node)?, Numbers::of(node)?, dump(node)?));
    }
    let (usual, next) = (binary("fairlead-proxy")?, binary("fairlead-proxy-next")?);
    let (traffic, begun) = (mixed.begin()?, SystemTime::now());
    thread::sleep(WHILE);
    for (step, build) in [&next, &usual, &next].into_iter().enumerate() {
        for (name, (inventory, numbers, dumped)) in names.iter().zip(&mut before) {
            let node = cluster.node_mut(name)?;
            replace(node, build)?;
            within(PATIENCE, || {
                Inventory::of(node)?.is_as(inventory)?;
                numbers.are_gone_but(&Numbers::of(node)?)
            })?;
            numbers.add(&Numbers::of(node)?);
            if step == 1 {
                same(&format!("the maps of {name} after up and down"), &dump(node)?, dumped)?;
            }
            thread::sleep(WHILE);
        }
    }
    println!("{:?}", traffic.end(begun)?);
    Ok(())
}
