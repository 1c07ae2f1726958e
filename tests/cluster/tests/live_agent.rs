//! Agents that restart, are killed, and are replaced by another build, under load.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_cluster_tests::crowd::{Crowd, everywhere, lost_nothing};
use fairlead_cluster_tests::maps::{Program, attached_programs, dump, same};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{service, with_cluster};
use fairlead_harness::{Cluster, binary};
use nix::sys::signal::Signal;

/// How long a node is without an agent, and how long the crowd is watched afterwards.
const WHILE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn agents_that_restart_interrupt_nobody() {
    with_cluster(|cluster| interrupts_nobody(cluster, Signal::SIGTERM));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn agents_that_are_killed_interrupt_nobody() {
    with_cluster(|cluster| interrupts_nobody(cluster, Signal::SIGKILL));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_upgrade_to_other_programs_and_back_interrupts_nobody() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        let original = attached_programs(cluster.node("node1")?)?;
        for build in [cluster.another_build()?, binary("fairlead-proxy")?] {
            for name in ["node1", "node2"] {
                let node = cluster.node_mut(name)?;
                let before = attached_programs(node)?;
                node.stop_proxy(Signal::SIGTERM)?;
                node.start_proxy_from(&build)?;
                node.wait_for_proxy()?;
                all_replaced(&before, &attached_programs(node)?)?;
                thread::sleep(WHILE);
            }
        }
        let back = attached_programs(cluster.node("node1")?)?;
        let same = original.iter().all(|(link, program)| back[link].tag == program.tag);
        ensure!(same, "the first build's programs were {original:?} and are {back:?}");
        lost_nothing(&crowd.disperse()?)
    });
}

fn interrupts_nobody(cluster: &mut Cluster, signal: Signal) -> Result<()> {
    let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
    let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
    for name in ["node1", "node2"] {
        let node = cluster.node_mut(name)?;
        let before = dump(node)?;
        node.stop_proxy(signal)?;
        thread::sleep(WHILE);
        node.start_proxy()?;
        node.wait_for_proxy()?;
        same(&format!("the maps of {name} after the restart"), &dump(node)?, &before)?;
        thread::sleep(WHILE);
    }
    lost_nothing(&crowd.disperse()?)
}

/// Every link is still there and leads to another program, most of them to other instructions: a short program may
/// be the same in both builds.
fn all_replaced(before: &BTreeMap<String, Program>, after: &BTreeMap<String, Program>) -> Result<()> {
    ensure!(before.keys().eq(after.keys()), "the links were {before:?} and are {after:?}");
    let differing = |differ: fn(&Program, &Program) -> bool| {
        before.values().zip(after.values()).filter(|(before, after)| differ(before, after)).count()
    };
    let (others, new) = (differing(|a, b| a.id != b.id), differing(|a, b| a.tag != b.tag));
    let right = others == before.len() && new > before.len() / 2;
    ensure!(right, "of {} links {others} lead to other programs, {new} to new ones", before.len());
    Ok(())
}
