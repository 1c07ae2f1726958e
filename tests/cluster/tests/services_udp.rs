//! Datagrams of lasting flows, as the pods count them: an endpoint that is gone gets none.
//!
//! Each pod lives on after it has left its Service, and a witness asks it directly how many requests it has had.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::eventually;
use fairlead_cluster_tests::objects::{at, external_ips, retire, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{POD_PORT, service, with_cluster};
use fairlead_harness::{Cluster, Load, Place, Protocol, Report, RunningPod, Traffic};

/// How long a change may take to reach every node.
const EVERYWHERE: Duration = Duration::from_millis(700);
/// How long the pods are watched from then on.
const WATCHED: Duration = Duration::from_millis(500);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_endpoint_that_left_its_service_gets_no_further_datagram_of_any_flow() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "")?;
        let flows = flows(cluster, &scene)?;
        retire(cluster, "near")?;
        gets_nothing_more(&scene, &scene.near)?;
        for (who, report) in end(flows)? {
            let last = report.replies().last().map(|reply| reply.answer.pod.clone());
            ensure!(last.as_deref() == Some("far"), "{who}: at the end answered by {last:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn endpoints_of_a_service_that_lost_them_all_get_no_further_datagram() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "")?;
        let flows = flows(cluster, &scene)?;
        cluster.kubectl(&["label", "pod", "near", "far", "app=retired", "--overwrite"])?;
        gets_nothing_more(&scene, &scene.near)?;
        gets_nothing_more(&scene, &scene.far)?;
        end(flows).map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn endpoints_of_a_service_that_is_deleted_get_no_further_datagram() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "")?;
        let flows = flows(cluster, &scene)?;
        cluster.kubectl(&["delete", "service", "echo"])?;
        gets_nothing_more(&scene, &scene.near)?;
        gets_nothing_more(&scene, &scene.far)?;
        end(flows).map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_whose_endpoint_left_sends_it_no_further_datagram_under_policy_local() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, &spec("externalTrafficPolicy: Local"))?;
        let flows = flows(cluster, &scene)?;
        retire(cluster, "near")?;
        gets_nothing_more(&scene, &scene.near)?;
        end(flows).map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_that_dialled_its_own_node_port_sends_an_endpoint_that_left_no_further_datagram() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "")?;
        let mut flows = Vec::new();
        for (protocol, target) in at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)? {
            if protocol == Protocol::Udp {
                scene.node1.request_until_answered(protocol, target)?;
                let load = Load::new(protocol, target).over_one_flow().in_parallel(4);
                let load = load.giving_up_after(Duration::from_millis(50));
                flows.push((format!("connected to {target}"), scene.node1.traffic(&load)?));
                flows.push((format!("unconnected to {target}"), scene.node1.traffic(&load.unconnected())?));
            }
        }
        thread::sleep(Duration::from_millis(200));
        retire(cluster, "near")?;
        gets_nothing_more(&scene, &scene.near)?;
        end(flows).map(drop)
    });
}

/// A Service with every kind of address; the outside client's traffic to it arrives at node1.
fn exposed(cluster: &Cluster, more: &str) -> Result<Scene> {
    let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &external_ips() + more))?;
    cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
    route_via(cluster, &[LOAD_BALANCER, EXTERNAL].concat(), "node1")?;
    Ok(scene)
}

/// Lasting flows to all addresses, from everywhere; several of each, so that either pod has some.
fn flows(cluster: &Cluster, scene: &Scene) -> Result<Vec<(String, Traffic)>> {
    let mut external = at(&[LOAD_BALANCER, EXTERNAL].concat());
    external.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
    let internal = at(&cluster.cluster_ips("echo")?);
    let [pod, node] = scene.insiders();
    let mut flows = Vec::new();
    let everything = [&internal[..], &external].concat();
    for ((who, place), targets) in
        [(pod, &everything), (node, &internal), (("outside", &scene.outside), &external)]
    {
        for &(_, target) in targets.iter().filter(|(protocol, _)| *protocol == Protocol::Udp) {
            place.request_until_answered(Protocol::Udp, target).with_context(|| format!("from {who}"))?;
            let load = Load::new(Protocol::Udp, target).over_one_flow().in_parallel(4);
            let load = load.giving_up_after(Duration::from_millis(50));
            flows.push((format!("{who} to {target}"), place.traffic(&load)?));
            if who == "a node" {
                flows.push((format!("{who}, unconnected, to {target}"), place.traffic(&load.unconnected())?));
            }
        }
    }
    thread::sleep(Duration::from_millis(200));
    Ok(flows)
}

fn end(flows: Vec<(String, Traffic)>) -> Result<Vec<(String, Report)>> {
    flows.into_iter().map(|(who, traffic)| Ok((who.clone(), traffic.stop().context(who)?))).collect()
}

/// Once the change has reached every node, the pod is asked by nobody but the witness.
fn gets_nothing_more(scene: &Scene, pod: &RunningPod) -> Result<()> {
    thread::sleep(EVERYWHERE);
    let before = served(&scene.node2, pod)?;
    thread::sleep(WATCHED);
    let after = served(&scene.node2, pod)?;
    ensure!(after == before + 1, "{} still got {} requests", pod.name, after - before - 1);
    Ok(())
}

fn served(witness: &Place, pod: &RunningPod) -> Result<u64> {
    let target = (*pod.ips.first().context("a pod without an address")?, POD_PORT).into();
    eventually(|| witness.request_until_answered(Protocol::Udp, target)).map(|reply| reply.answer.served)
}
