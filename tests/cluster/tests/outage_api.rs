//! An API server that is away, breaks watches, forgets history, and tells twice or late: traffic goes on, nothing is
//! deleted, and in the end the maps are those of an agent that has seen nothing of it.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_cluster_tests::ask::answered_by;
use fairlead_cluster_tests::crowd::{Crowd, everywhere, lost_nothing, spoken};
use fairlead_cluster_tests::maps::{dump, dump_of_fresh_agent, same};
use fairlead_cluster_tests::objects::{at, service_without_selector, slices};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::{Cluster, Faults};
use nix::sys::signal::Signal;

/// How late changes are told of.
const LATE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn while_the_api_is_away_everything_stays_even_when_agents_restart() {
    with_faults(|cluster, faults| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        let nodes = ["node1", "node2"];
        let before = nodes.map(|name| cluster.node(name).and_then(dump));
        let [before1, before2] = before;
        let before = [before1?, before2?];
        let outage = faults.outage()?;
        thread::sleep(Duration::from_millis(700));
        for (name, signal) in [("node1", Signal::SIGTERM), ("node2", Signal::SIGKILL)] {
            let node = cluster.node_mut(name)?;
            node.stop_proxy(signal)?;
            node.start_proxy()?;
        }
        thread::sleep(Duration::from_millis(1300));
        for (name, before) in nodes.iter().zip(&before) {
            let node = cluster.node(name)?;
            same(&format!("{name} without the API"), &dump(node)?, before)?;
            let health = node.healthz()?;
            ensure!(health.0 != 200, "{name} calls itself healthy with nothing listed: {health:?}");
        }
        outage.end()?;
        for (name, before) in nodes.iter().zip(&before) {
            let node = cluster.node_mut(name)?;
            node.wait_for_proxy()?;
            same(&format!("{name} after the outage"), &dump(node)?, before)?;
        }
        cluster.replace_pod("near", "next", &pod("next", "echo", "node2"))?;
        answered_everywhere(&scene, &cluster.cluster_ips("echo")?, &["far", "next"])?;
        lost_nothing(&crowd.disperse()?)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_changes_while_the_api_is_away_from_a_running_agent_is_caught_up() {
    with_faults(|cluster, faults| {
        let scene = Scene::set(
            cluster,
            &(service("echo", "echo", "NodePort") + &service("other", "echo", "ClusterIP")),
        )?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        let outage = faults.outage()?;
        thread::sleep(Duration::from_millis(1500));
        outage.end()?;
        // The agents try again later and later; these come before they do.
        cluster.kubectl(&["delete", "service", "other"])?;
        cluster.apply(&(pod("third", "echo", "node1") + &service("late", "echo", "ClusterIP")))?;
        cluster.pod("third")?;
        answered_everywhere(&scene, &cluster.cluster_ips("late")?, &["near", "far", "third"])?;
        lost_nothing(&crowd.disperse()?)?;
        as_if_nothing_had_happened(cluster)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn watches_that_break_or_must_list_again_miss_nothing() {
    with_faults(|cluster, faults| {
        let scene = Scene::set(cluster, &(service("echo", "echo", "NodePort") + &by_hand()))?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        let ips = cluster.cluster_ips("hand")?;
        let lead_to = |cluster: &Cluster, pods: &[&str]| {
            let all = [&scene.near, &scene.far].into_iter().filter(|pod| pods.contains(&pod.name.as_str()));
            let all: Vec<_> = all.map(|pod| (pod, "")).collect();
            cluster.apply(&slices("hand", "only", &all)?)?;
            answered_everywhere(&scene, &ips, pods)
        };
        lead_to(cluster, &["near"])?;
        faults.break_watches()?;
        lead_to(cluster, &["far"])?;
        faults.compact()?;
        lead_to(cluster, &["near", "far"])?;
        // Broken, and where the watches left off is forgotten before they are back.
        faults.break_watches()?;
        faults.compact()?;
        lead_to(cluster, &["near"])?;
        lost_nothing(&crowd.disperse()?)?;
        as_if_nothing_had_happened(cluster)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn events_that_come_twice_late_and_in_another_order_end_in_the_same_maps() {
    with_faults(|cluster, faults| {
        let scene = Scene::set(cluster, &(service("echo", "echo", "NodePort") + &by_hand()))?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        let (near, far) = ([(&scene.near, "")], [(&scene.far, "")]);
        faults.duplicate(true)?;
        // First slices are told of before their Services, then Services before their slices.
        for late in ["services", "endpointslices"] {
            faults.delay_kind(late, LATE)?;
            cluster.apply(&slices("hand", "only", &near)?)?;
            cluster.apply(&slices("hand", "only", &far)?)?;
            cluster.apply(&slices("hand", "more", &near)?)?;
            cluster.kubectl(&["delete", "service", "hand"])?;
            cluster.apply(&by_hand())?;
            cluster.kubectl(&["delete", "endpointslice", "hand-only-ipv4", "hand-more-ipv6"])?;
            let ips = cluster.cluster_ips("hand")?;
            answered_everywhere(&scene, &ips[..1], &["near"])?;
            answered_everywhere(&scene, &ips[1..], &["far"])?;
            faults.delay_kind(late, Duration::ZERO)?;
        }
        faults.duplicate(false)?;
        lost_nothing(&crowd.disperse()?)?;
        as_if_nothing_had_happened(cluster)
    });
}

/// A test in a cluster whose API server can be made to fail; a real one can't be.
fn with_faults(test: impl FnOnce(&mut Cluster, Faults) -> Result<()>) {
    with_cluster(|cluster| match cluster.faults() {
        Some(faults) => test(cluster, faults),
        None => {
            println!("not run: faults are made by the stand-in API server alone");
            Ok(())
        }
    });
}

/// Requests from both nodes to the Service at these addresses are answered by these pods: both agents know.
fn answered_everywhere(scene: &Scene, ips: &[IpAddr], pods: &[&str]) -> Result<()> {
    for from in [("a pod", &scene.client.place), ("the other node", &scene.node2)] {
        answered_by(from, &spoken(at(ips)), pods)?;
    }
    Ok(())
}

/// Each node's maps are those that an agent makes who has seen nothing but the objects there are.
fn as_if_nothing_had_happened(cluster: &mut Cluster) -> Result<()> {
    for name in ["node1", "node2"] {
        let settled = dump(cluster.node(name)?)?;
        let fresh = dump_of_fresh_agent(cluster, name)?;
        same(&format!("{name} beside a fresh agent"), &settled, &fresh)?;
    }
    Ok(())
}

fn by_hand() -> String {
    service_without_selector("hand", "ClusterIP")
}
