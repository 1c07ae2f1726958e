//! `--socket-lb=all`: the sockets of pods are led to backends before they send anything, and nobody sees a
//! difference.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{
    Lasting, all, answered, answered_by, answered_seeing, kept_out, of, refused,
};
use fairlead_cluster_tests::objects::{at, external_ips, retire, spec};
use fairlead_cluster_tests::scene::{EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses};
use fairlead_cluster_tests::{SERVICE_PORT, pod, service, variants, with_cluster_of};
use fairlead_harness::{Cluster, Load, Options, Place, Protocol};
use serde_json::Value;

const BOTH: &[&str] = &["near", "far"];

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn by_their_sockets_pods_reach_every_kind_of_address_and_are_seen_by_their_own() {
    in_mode_all(|cluster| {
        let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &external_ips()))?;
        cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
        let mut targets = at(&[LOAD_BALANCER, EXTERNAL].concat());
        targets.extend(at(&cluster.cluster_ips("echo")?));
        for node in ["node1", "node2"] {
            targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, node)?)?);
        }
        let [pod, node] = scene.insiders();
        answered_by(node, &of(&Protocol::SOCKETS, &targets), BOTH)?;
        // node2's own address is not node1's to translate.
        targets.truncate(targets.len() - 2 * Protocol::ALL.len());
        answered_seeing(pod, &targets, BOTH, |like| scene.client.address(like))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_sockets_of_pods_are_translated_but_for_those_that_opt_out() {
    in_mode_all(|cluster| {
        let opted_out = pod("apart", "client", "node1").replace(
            "metadata: { name: apart, ",
            "metadata: { name: apart, annotations: { fairlead.io/socket-lb: \"off\" }, ",
        );
        let scene = Scene::set(cluster, &(opted_out + &service("echo", "echo", "ClusterIP")))?;
        let apart = cluster.pod("apart")?;
        let targets = of(&[Protocol::Tcp], &at(&cluster.cluster_ips("echo")?));
        let translated = |place: &Place| {
            answered(("a pod", place), &targets)?;
            let before = count(cluster)?;
            for report in all(place, &targets, |protocol, target| Load::new(protocol, target).times(20))? {
                report.all_answered()?;
            }
            Ok::<_, anyhow::Error>(count(cluster)? - before)
        };
        let all_of = translated(&scene.client.place)?;
        ensure!(all_of == 40, "of 40 sockets {all_of} were translated");
        let none_of = translated(&apart.place)?;
        ensure!(none_of == 0, "{none_of} sockets of a pod were translated that does not want it");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn by_their_sockets_pods_hear_the_answers_of_whom_they_asked() {
    in_mode_all(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let mut targets = at(&cluster.cluster_ips("echo")?);
        targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
        let targets = of(&[Protocol::Udp], &targets);
        for (who, place) in scene.insiders() {
            answered_by((who, place), &targets, BOTH)?;
            // A socket without a peer sees who answers: it must be whom it asked.
            let load = |protocol, target| Load::new(protocol, target).unconnected().times(20);
            for report in all(place, &targets, load)? {
                report.all_answered()?;
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn by_their_sockets_pods_are_refused_at_once_where_nobody_is() {
    in_mode_all(|cluster| {
        let nobody = service("nobody", "nobody", "NodePort");
        let scene = Scene::set(cluster, &(nobody + &service("echo", "echo", "ClusterIP")))?;
        let mut targets = at(&cluster.cluster_ips("nobody")?);
        targets.extend(at_node_ports(cluster, "nobody", &node_addresses(cluster, "node1")?)?);
        targets.extend(variants(&cluster.cluster_ips("echo")?, SERVICE_PORT + 1));
        refused(("a pod", &scene.client.place), &targets)?;
        refused(("a node", &scene.node1), &of(&Protocol::SOCKETS, &targets))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn by_their_sockets_pods_follow_the_internal_policy() {
    in_mode_all(|cluster| {
        let local = service("echo", "echo", "ClusterIP") + &spec("internalTrafficPolicy: Local");
        let scene = Scene::set(cluster, &local)?;
        let targets = at(&cluster.cluster_ips("echo")?);
        answered_by(scene.insiders()[0], &targets, &["near"])?;
        retire(cluster, "near")?;
        kept_out(scene.insiders()[0], &targets)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn by_its_socket_a_pod_reaches_itself_and_keeps_the_backend_that_affinity_gives_it() {
    in_mode_all(|cluster| {
        let sticky = service("sticky", "echo", "ClusterIP") + &spec("sessionAffinity: ClientIP");
        let scene = Scene::set(cluster, &(sticky + &service("echo", "echo", "ClusterIP")))?;
        answered_by(("a backend", &scene.near.place), &at(&cluster.cluster_ips("echo")?), BOTH)?;
        let targets = at(&cluster.cluster_ips("sticky")?);
        for &(protocol, target) in &targets {
            scene.client.place.request_until_answered(protocol, target)?;
        }
        let load = |protocol, target| Load::new(protocol, target).times(20);
        for report in all(&scene.client.place, &targets, load)? {
            report.all_answered()?;
            ensure!(report.pods().len() == 1, "{:?} answered", report.pods());
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn by_their_sockets_pods_leave_an_endpoint_that_is_gone_and_keep_their_connections() {
    in_mode_all(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        let client = &scene.client.place;
        let targets = at(&cluster.cluster_ips("echo")?);
        answered_by(("a pod", client), &targets, BOTH)?;
        let mut flows = Lasting::default();
        for &(protocol, target) in &targets {
            let load = Load::new(protocol, target).over_one_flow().in_parallel(4);
            let load = load.giving_up_after(Duration::from_millis(200));
            flows.begin(format!("{protocol} to {target}"), client, &load)?;
            if protocol == Protocol::Udp {
                let load = Load::new(protocol, target).over_one_flow().unconnected();
                flows.begin(format!("{protocol}, unconnected, to {target}"), client, &load)?;
            }
        }
        thread::sleep(Duration::from_millis(300));
        retire(cluster, "near")?;
        thread::sleep(Duration::from_millis(600));
        for (what, report) in flows.end()? {
            report.all_answered().with_context(|| what.clone())?;
            let last: Vec<&str> =
                report.replies().rev().take(8).map(|reply| reply.answer.pod.as_str()).collect();
            let moved = last.iter().all(|pod| *pod == "far");
            ensure!(moved || !what.starts_with("udp"), "{what}: in the end answered by {last:?}");
        }
        Ok(())
    });
}

fn in_mode_all(test: impl FnOnce(&mut Cluster) -> Result<()>) {
    with_cluster_of(Options::default().with_arguments(&["--socket-lb", "all"]), test);
}

/// How many sockets node1 has translated.
fn count(cluster: &Cluster) -> Result<u64> {
    let status: Value = serde_json::from_str(&cluster.node("node1")?.proxy(&["status", "-o", "json"])?)?;
    Ok(status["packets"]["socket_translated"].as_u64().unwrap_or_default())
}
