//! Flows that could be taken for each other, and packets that belong to none.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{Target, answered_by};
use fairlead_cluster_tests::objects::{at, spec};
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses, outside_address};
use fairlead_cluster_tests::{POD_PORT, pod, service, variants, with_cluster};
use fairlead_harness::packet::{self, Segment};
use fairlead_harness::{Cluster, Load, Place, Protocol, RunningPod, Traffic};

/// A port that clients use for everything.
const PORT: u16 = 4000;
/// Long enough for twenty requests.
const A_WHILE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn one_client_port_reaches_one_pod_through_two_services_at_once() {
    with_cluster(|cluster| {
        let (solo, client) = two_services(cluster)?;
        let outside = cluster.client()?;
        for i in [0, 1] {
            let mut targets = Vec::new();
            for name in ["one", "two"] {
                let ip = cluster.cluster_ips(name)?[i];
                targets.extend([Protocol::Tcp, Protocol::Sctp].map(|p| (p, SocketAddr::new(ip, 80))));
            }
            at_the_same_time("a pod", &client.place, &targets, PORT)?;
            // A pod that is its own backend, and clients that are masqueraded to one address.
            at_the_same_time("the pod itself", &solo.place, &targets, PORT + 1)?;
            let address = node_addresses(cluster, "node2")?[i];
            let [mut node_ports, more] =
                ["one", "two"].map(|name| at_node_ports(cluster, name, &[address]).unwrap_or_default());
            node_ports.extend(more);
            node_ports.retain(|(protocol, _)| *protocol != Protocol::Udp);
            at_the_same_time("outside", &outside, &node_ports, PORT)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn one_client_port_reaches_one_pod_through_one_service_after_another() {
    with_cluster(|cluster| {
        let (_, client) = two_services(cluster)?;
        for _ in 0..3 {
            for name in ["one", "two"] {
                for (protocol, target) in at(&cluster.cluster_ips(name)?) {
                    let load = Load::new(protocol, target).over_one_flow().from_port(PORT).times(3);
                    let load = load.giving_up_after(Duration::from_millis(500));
                    let report = client.place.requests(&load)?;
                    report.all_answered().with_context(|| format!("{protocol} to {name}, {target}"))?;
                }
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn two_clients_with_one_port_are_masqueraded_apart() {
    with_cluster(|cluster| {
        two_services(cluster)?;
        let outside = cluster.client()?;
        for address in node_addresses(cluster, "node2")? {
            for (protocol, target) in at_node_ports(cluster, "one", &[address])? {
                let clients = cluster.client_addresses(address);
                let load = |source: &IpAddr| Load::new(protocol, target).from_source(*source).from_port(PORT);
                let traffic = clients.iter().map(|source| outside.traffic(&load(source).over_one_flow()));
                all_answered(&format!("{protocol} to {target}"), traffic.collect::<Result<_>>()?)?;
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_connection_through_a_service_and_one_straight_to_its_pod_share_a_client_port() {
    with_cluster(|cluster| {
        let (solo, client) = two_services(cluster)?;
        for (i, ip) in cluster.cluster_ips("one")?.into_iter().enumerate() {
            let straight = SocketAddr::new(solo.ips[i], POD_PORT);
            for (first, second) in
                [((ip, 80).into(), straight), (straight, (ip, 80).into())] as [(SocketAddr, SocketAddr); 2]
            {
                let load = |target| Load::new(Protocol::Tcp, target).from_port(PORT).over_one_flow();
                let one = client.place.traffic(&load(first))?;
                thread::sleep(A_WHILE / 2);
                let two = client.place.traffic(&load(second))?;
                all_answered(&format!("{first}, then {second}"), vec![one, two])?;
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn no_connection_is_reset_by_packets_that_are_out_of_its_window() {
    with_cluster(|cluster| {
        let echo = service("echo", "echo", "NodePort") + &spec("externalTrafficPolicy: Local");
        let scene = Scene::set(cluster, &echo)?;
        let internal = at(&cluster.cluster_ips("echo")?);
        let external = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        let (pod, outside) = (&scene.client.place, &scene.outside);
        answered_by(("a pod", pod), &internal, &["near", "far"])?;
        answered_by(("outside", outside), &external, &["near"])?;
        let tcp =
            |targets: Vec<Target>| targets.into_iter().filter(|(protocol, _)| *protocol == Protocol::Tcp);
        for (_, target) in tcp(internal) {
            let client = scene.client.address(target.ip())?;
            disturbed(&scene, pod, client, target).with_context(|| format!("from a pod to {target}"))?;
        }
        for (_, target) in tcp(external) {
            let client = outside_address(cluster, target.ip())?;
            disturbed(&scene, outside, client, target)
                .with_context(|| format!("from outside to {target}"))?;
        }
        Ok(())
    });
}

/// Two Services `one` and `two` in front of the pod `solo` on node1, and a pod `client` beside it.
fn two_services(cluster: &Cluster) -> Result<(RunningPod, RunningPod)> {
    let services = service("one", "solo", "NodePort") + &service("two", "solo", "NodePort");
    cluster.apply(&(services + &pod("solo", "solo", "node1") + &pod("client", "client", "node1")))?;
    let (solo, client) = (cluster.pod("solo")?, cluster.pod("client")?);
    for name in ["one", "two"] {
        answered_by(("a pod", &client.place), &at(&cluster.cluster_ips(name)?), &["solo"])?;
        let node_ports = at_node_ports(cluster, name, &node_addresses(cluster, "node2")?)?;
        answered_by(("outside", &cluster.client()?), &node_ports, &["solo"])?;
    }
    answered_by(("a pod", &client.place), &variants(&solo.ips, POD_PORT), &["solo"])?;
    Ok((solo, client))
}

/// One lasting flow to each of the targets, all from one port, at the same time.
fn at_the_same_time(who: &str, place: &Place, targets: &[Target], port: u16) -> Result<()> {
    let load = |protocol, target| Load::new(protocol, target).from_port(port).over_one_flow();
    let traffic = targets.iter().map(|&(protocol, target)| place.traffic(&load(protocol, target)));
    all_answered(&format!("from {who} to {targets:?}"), traffic.collect::<Result<_>>()?)
}

fn all_answered(what: &str, traffic: Vec<Traffic>) -> Result<()> {
    thread::sleep(A_WHILE);
    for traffic in traffic {
        traffic.stop()?.all_answered().with_context(|| what.to_owned())?;
    }
    Ok(())
}

/// A connection goes on while segments come from both ends that do not belong to it.
fn disturbed(scene: &Scene, place: &Place, client: IpAddr, target: SocketAddr) -> Result<()> {
    // The pause is long enough for a flow that is taken to be over to be forgotten.
    let load = Load::new(Protocol::Tcp, target).from_port(PORT).over_one_flow().every(A_WHILE);
    let traffic = place.traffic(&load)?;
    thread::sleep(A_WHILE / 3);
    let client = SocketAddr::new(client, PORT);
    for flags in [packet::RST, packet::RST | packet::ACK, packet::ACK, packet::FIN | packet::ACK] {
        for sequence in [0x0100_0000, 0x5100_0000, 0xa100_0000, 0xf100_0000_u32] {
            let acknowledgement = sequence ^ 0x0f0f_0f0f;
            let segment = Segment { flags, sequence, acknowledgement, ..Segment::default() };
            place.inject(&packet::tcp(client, target, &segment))?;
            // One of the two has the connection; of the other, nobody knows what it says.
            for pod in [&scene.near, &scene.far] {
                let backend = SocketAddr::new(pod.address(target.ip())?, POD_PORT);
                pod.place.inject(&packet::tcp(backend, client, &segment))?;
            }
        }
        thread::sleep(A_WHILE / 2);
    }
    let report = traffic.stop()?;
    report.all_answered()?;
    ensure!(report.outcomes.len() >= 3, "only {} requests", report.outcomes.len());
    ensure!(report.pods().len() == 1, "one connection was answered by {:?}", report.pods());
    Ok(())
}
