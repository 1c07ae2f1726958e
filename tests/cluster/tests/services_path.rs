//! The way packets go: small links, fragments, errors that routers and hosts report.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{Asker, Target, all, answered_by, of, refused};
use fairlead_cluster_tests::objects::{at, external_ips, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{POD_PORT, pod, service, with_cluster};
use fairlead_harness::{Cluster, Load, Protocol};

const BOTH: &[&str] = &["near", "far"];
const SMALL: u32 = 1300;
/// Many packets' worth.
const BULK: usize = 200_000;
/// More than a small link takes, and less than an Ethernet.
const TOO_MUCH: usize = 1400;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_masqueraded_client_behind_a_small_link_asks_for_arrives() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "")?;
        let far = cluster.far_client()?;
        let targets = from_outside(cluster)?;
        answered_by(("far away", &far), &targets, BOTH)?;
        cluster.set_far_mtu(SMALL)?;
        transfers(("far away", &far), &targets)?;
        drop(scene);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_client_behind_a_small_link_asks_for_arrives_under_policy_local_too() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, &spec("externalTrafficPolicy: Local"))?;
        let far = cluster.far_client()?;
        let targets = from_outside(cluster)?;
        answered_by(("far away", &far), &targets, &["near"])?;
        cluster.set_far_mtu(SMALL)?;
        transfers(("far away", &far), &targets)?;
        // The router told the pod that answered, which had sent from the Service's address.
        for like in LOAD_BALANCER {
            let learned = scene.near.place.path_mtu(cluster.far_address(like))?;
            ensure!(learned == Some(SMALL), "the pod thinks that {learned:?} bytes fit, not {SMALL}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn pods_are_told_what_fits_through_the_uplinks_of_their_nodes() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("client", "client", "node1") + &pod("far", "echo", "node2")))?;
        cluster.apply(&service("echo", "echo", "ClusterIP"))?;
        let (client, targets) = (cluster.pod("client")?, at(&cluster.cluster_ips("echo")?));
        answered_by(("a pod", &client.place), &targets, &["far"])?;
        cluster.nodes().iter().try_for_each(|node| node.set_mtu(SMALL))?;
        transfers(("a pod", &client.place), &targets)?;
        for ip in cluster.cluster_ips("echo")? {
            let learned = client.place.path_mtu(ip)?;
            ensure!(learned == Some(SMALL), "the pod thinks that {learned:?} bytes to {ip} fit, not {SMALL}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_sends_as_much_as_fits_through_its_uplink() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("far", "echo", "node2") + &service("echo", "echo", "ClusterIP")))?;
        cluster.pod("far")?;
        let node = cluster.node("node1")?;
        let targets = at(&cluster.cluster_ips("echo")?);
        answered_by(("a node", node.place()), &targets, &["far"])?;
        cluster.nodes().iter().try_for_each(|node| node.set_mtu(SMALL))?;
        transfers(("a node", node.place()), &targets)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn datagrams_that_come_in_fragments_arrive_whole_and_so_do_their_answers() {
    with_cluster(|cluster| {
        let scene = exposed(cluster, "")?;
        let internal = at(&cluster.cluster_ips("echo")?);
        let external = from_outside(cluster)?;
        let [pod, node] = scene.insiders();
        for (asker, targets) in
            [(pod, &internal), (node, &internal), (("outside", &scene.outside), &external)]
        {
            answered_by(asker, targets, BOTH)?;
            let udp = of(&[Protocol::Udp], targets);
            let load = |protocol, target| Load::new(protocol, target).times(20).sized(8000).answers_of(8000);
            for (report, (_, target)) in all(asker.1, &udp, load)?.iter().zip(&udp) {
                report.all_answered().with_context(|| format!("from {} to {target}", asker.0))?;
                ensure!(report.pods().len() == 2, "from {} to {target}: {:?}", asker.0, report.pods());
                let whole = report.replies().all(|reply| reply.answer.length == 8000);
                ensure!(whole, "from {} to {target}: something was cut off", asker.0);
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_hears_at_once_that_nobody_listens_at_the_endpoint() {
    with_cluster(|cluster| {
        let closed = exposed_service("").replace(&format!("targetPort: {POD_PORT}"), "targetPort: 9999");
        let scene = exposed_as(cluster, &closed)?;
        let internal = at(&cluster.cluster_ips("echo")?);
        // The pods shall say it each time, and not only now and then.
        for pod in [&scene.near, &scene.far] {
            pod.place.set_setting("ipv4/icmp_ratelimit", "0")?;
            pod.place.set_setting("ipv6/icmp/ratelimit", "0")?;
        }
        // There is no SCTP in this kernel to say that nobody listens on a port.
        for asker in scene.insiders() {
            refused(asker, &of(&Protocol::SOCKETS, &internal))?;
        }
        refused(("outside", &scene.outside), &of(&Protocol::SOCKETS, &from_outside(cluster)?))
    });
}

/// A Service with every kind of address; outside traffic to it arrives at node1.
fn exposed(cluster: &Cluster, more: &str) -> Result<Scene> {
    exposed_as(cluster, &exposed_service(more))
}

fn exposed_service(more: &str) -> String {
    service("echo", "echo", "LoadBalancer") + &external_ips() + more
}

fn exposed_as(cluster: &Cluster, service: &str) -> Result<Scene> {
    let scene = Scene::set(cluster, service)?;
    cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
    route_via(cluster, &[LOAD_BALANCER, EXTERNAL].concat(), "node1")?;
    Ok(scene)
}

/// What outside clients reach the Service by, all of it at node1.
fn from_outside(cluster: &Cluster) -> Result<Vec<Target>> {
    let mut targets = at(&[LOAD_BALANCER, EXTERNAL].concat());
    targets.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
    Ok(targets)
}

/// Much passes both ways over a TCP connection, and datagrams that are too large at first find their size.
fn transfers((who, place): Asker<'_>, targets: &[Target]) -> Result<()> {
    let (tcp, udp) = (of(&[Protocol::Tcp], targets), of(&[Protocol::Udp], targets));
    let bulk = |protocol, target| Load::new(protocol, target).times(3).sized(BULK).answers_of(BULK);
    for (report, (_, target)) in all(place, &tcp, bulk)?.iter().zip(&tcp) {
        report.all_answered().with_context(|| format!("tcp from {who} to {target}"))?;
    }
    // A datagram that does not fit is lost, once for each socket and way; the next one is fragmented.
    let quick = Duration::from_millis(150);
    let datagrams = |protocol, target| {
        let load = Load::new(protocol, target).over_one_flow().times(8).giving_up_after(quick);
        load.sized(TOO_MUCH).answers_of(TOO_MUCH)
    };
    for (report, (_, target)) in all(place, &udp, datagrams)?.iter().zip(&udp) {
        let last = report.outcomes.last().context("no request was made")?;
        ensure!(last.is_ok(), "udp from {who} to {target}: {:?}", report.failure_kinds());
    }
    Ok(())
}
