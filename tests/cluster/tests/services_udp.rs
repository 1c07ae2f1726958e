//! Datagrams of lasting flows, as the pods count them: an endpoint that is gone gets none.
//!
//! Each pod lives on after it has left its Service, and a witness asks it directly how many requests it has had.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{Lasting, answered, answered_by, eventually, of};
use fairlead_cluster_tests::objects::{at, external_ips, retire, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{POD_PORT, service, with_cluster};
use fairlead_harness::{Cluster, Load, Place, Protocol, RunningPod};

/// How long a change may take to reach every node.
const EVERYWHERE: Duration = Duration::from_millis(500);
/// How long the pods are watched from then on.
const WATCHED: Duration = Duration::from_millis(400);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn endpoints_that_left_a_service_that_lost_them_all_or_is_deleted_get_no_further_datagram() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "")?;
        let flows = flows(cluster, &scene)?;
        retire(cluster, "near")?;
        get_nothing_more(&scene, &[&scene.near]).context("near has left")?;
        retire(cluster, "far")?;
        get_nothing_more(&scene, &[&scene.near, &scene.far]).context("both have left")?;
        cluster.kubectl(&["label", "pod", "near", "app=echo", "--overwrite"])?;
        let cluster_ips = of(&[Protocol::Udp], &at(&cluster.cluster_ips("echo")?));
        answered_by(("a node", &scene.node2), &cluster_ips, &["near"])?;
        cluster.kubectl(&["delete", "service", "echo"])?;
        get_nothing_more(&scene, &[&scene.near, &scene.far]).context("the Service is gone")?;
        flows.end().map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_whose_endpoint_left_sends_it_no_further_datagram_under_policy_local() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, &spec("externalTrafficPolicy: Local"))?;
        let flows = flows(cluster, &scene)?;
        retire(cluster, "near")?;
        get_nothing_more(&scene, &[&scene.near])?;
        flows.end().map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_that_dialled_its_own_node_port_sends_an_endpoint_that_left_no_further_datagram() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "")?;
        let mut flows = Lasting::default();
        let targets =
            of(&[Protocol::Udp], &at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
        answered(("a node", &scene.node1), &targets)?;
        for (protocol, target) in targets {
            let load = Load::new(protocol, target).over_one_flow().in_parallel(4);
            let load = load.giving_up_after(Duration::from_millis(50));
            flows.begin(format!("connected to {target}"), &scene.node1, &load)?;
            flows.begin(format!("unconnected to {target}"), &scene.node1, &load.unconnected())?;
        }
        thread::sleep(Duration::from_millis(200));
        retire(cluster, "near")?;
        get_nothing_more(&scene, &[&scene.near])?;
        flows.end().map(drop)
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
fn flows(cluster: &Cluster, scene: &Scene) -> Result<Lasting> {
    let mut external = at(&[LOAD_BALANCER, EXTERNAL].concat());
    external.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
    let internal = at(&cluster.cluster_ips("echo")?);
    let [pod, node] = scene.insiders();
    let mut flows = Lasting::default();
    let everything = [&internal[..], &external].concat();
    for ((who, place), targets) in
        [(pod, &everything), (node, &internal), (("outside", &scene.outside), &external)]
    {
        let targets = of(&[Protocol::Udp], targets);
        answered((who, place), &targets)?;
        for (protocol, target) in targets {
            let load = Load::new(protocol, target).over_one_flow().in_parallel(4);
            let load = load.giving_up_after(Duration::from_millis(50));
            flows.begin(format!("{who} to {target}"), place, &load)?;
            if who == "a node" {
                flows.begin(format!("{who}, unconnected, to {target}"), place, &load.unconnected())?;
            }
        }
    }
    thread::sleep(Duration::from_millis(200));
    Ok(flows)
}

/// Once the change has reached every node, the pods are asked by nobody but the witness.
fn get_nothing_more(scene: &Scene, pods: &[&RunningPod]) -> Result<()> {
    let served = || pods.iter().map(|pod| served(&scene.node2, pod)).collect::<Result<Vec<u64>>>();
    thread::sleep(EVERYWHERE);
    let before = served()?;
    thread::sleep(WATCHED);
    for ((pod, before), after) in pods.iter().zip(before).zip(served()?) {
        ensure!(after == before + 1, "{} still got {} requests", pod.name, after - before - 1);
    }
    Ok(())
}

fn served(witness: &Place, pod: &RunningPod) -> Result<u64> {
    let target = (*pod.ips.first().context("a pod without an address")?, POD_PORT).into();
    eventually(|| witness.request_until_answered(Protocol::Udp, target)).map(|reply| reply.answer.served)
}
