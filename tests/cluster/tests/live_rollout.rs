//! Pods that come and go under load: scaling, a rolling update, and a change of selector.

use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use fairlead_cluster_tests::ask::answered_by;
use fairlead_cluster_tests::crowd::{Crowd, everywhere, lost_nothing, spoken};
use fairlead_cluster_tests::objects::{at, patch};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{pod, service, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Options};
use serde_json::json;

/// How long the crowd is watched after a change.
const AFTERMATH: Duration = Duration::from_millis(600);
/// How long a change may take to reach every node.
const EVERYWHERE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn scaling_up_and_down_loses_no_request() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        cluster.apply(&(pod("third", "echo", "node1") + &pod("fourth", "echo", "node2")))?;
        cluster.pod("third")?;
        cluster.pod("fourth")?;
        let ips = spoken(at(&cluster.cluster_ips("echo")?));
        answered_by(("a node", &scene.node1), &ips, &["near", "far", "third", "fourth"])?;
        cluster.kubectl(&["delete", "pod", "near", "far", "--wait=false"])?;
        cluster.wait_until_gone("near")?;
        cluster.wait_until_gone("far")?;
        let gone = SystemTime::now();
        thread::sleep(AFTERMATH);
        let accounts = crowd.disperse()?;
        lost_nothing(&accounts)?;
        for account in accounts {
            let late: Vec<&str> =
                account.answered_after(gone).map(|reply| reply.answer.pod.as_str()).collect();
            ensure!(!late.is_empty(), "{}: nothing was asked at the end", account.who);
            let survivors = late.iter().all(|pod| ["third", "fourth"].contains(pod));
            ensure!(survivors, "{}: answered by {late:?} after the others were gone", account.who);
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_rolling_update_loses_no_request() {
    with_cluster(a_rolling_update);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_rolling_update_loses_no_request_of_pods_whose_sockets_are_translated() {
    with_cluster_of(Options::default().with_arguments(&["--socket-lb", "all"]), a_rolling_update);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn another_selector_moves_what_begins_and_leaves_open_connections_alone() {
    with_cluster(|cluster| {
        let scene =
            Scene::set(cluster, &(service("echo", "echo", "NodePort") + &pod("green", "green", "node2")))?;
        cluster.pod("green")?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        thread::sleep(EVERYWHERE);
        patch(cluster, "service/echo", &json!({ "spec": { "selector": { "app": "green" } } }))?;
        let changed = SystemTime::now() + EVERYWHERE;
        thread::sleep(EVERYWHERE + AFTERMATH);
        let accounts = crowd.disperse()?;
        lost_nothing(&accounts)?;
        for account in accounts {
            if account.is_one_connection() {
                let pods = account.report.pods();
                ensure!(
                    pods.len() == 1 && !pods.contains_key("green"),
                    "{}: answered by {pods:?}",
                    account.who
                );
            } else {
                account.served_by("green", changed)?;
            }
        }
        Ok(())
    });
}

fn a_rolling_update(cluster: &mut Cluster) -> Result<()> {
    let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
    let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
    // Each is replaced on the other node, as a scheduler may well have it.
    cluster.replace_pod("near", "near-next", &pod("near-next", "echo", "node2"))?;
    cluster.replace_pod("far", "far-next", &pod("far-next", "echo", "node1"))?;
    thread::sleep(AFTERMATH);
    let accounts = crowd.disperse()?;
    lost_nothing(&accounts)?;
    for account in accounts {
        let last = account.report.replies().next_back().map_or("nobody", |reply| reply.answer.pod.as_str());
        ensure!(last.ends_with("next"), "{}: at the end answered by {last}", account.who);
    }
    Ok(())
}
