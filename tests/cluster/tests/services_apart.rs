//! Flows that could be taken for each other, and packets that belong to none.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_cluster_tests::ask::{Lasting, Target, answered, answered_by, of};
use fairlead_cluster_tests::objects::{at, spec};
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses, outside_address};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, pod, service, variants, with_cluster};
use fairlead_harness::packet::{self, Segment};
use fairlead_harness::{Cluster, Load, Place, Protocol, RunningPod};

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
        let mut flows = Lasting::default();
        for name in ["one", "two"] {
            let internal = of(&[Protocol::Tcp, Protocol::Sctp], &at(&cluster.cluster_ips(name)?));
            let addresses = node_addresses(cluster, "node2")?;
            let external = of(&[Protocol::Tcp, Protocol::Sctp], &at_node_ports(cluster, name, &addresses)?);
            for (who, place, targets) in [
                ("a pod", &client.place, &internal),
                // A pod that is its own backend, and a client that is masqueraded.
                ("the pod itself", &solo.place, &internal),
                ("outside", &outside, &external),
            ] {
                for &(protocol, target) in targets {
                    let load = Load::new(protocol, target).from_port(PORT).over_one_flow();
                    flows.begin(format!("{protocol} from {who} to {name}, {target}"), place, &load)?;
                }
            }
        }
        thread::sleep(A_WHILE);
        flows.were_undisturbed(3)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn one_client_port_reaches_one_pod_through_one_service_after_another() {
    with_cluster(|cluster| {
        let (_, client) = two_services(cluster)?;
        for name in ["one", "two", "one"] {
            in_turn("a pod", &client.place, &at(&cluster.cluster_ips(name)?))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn one_port_of_a_node_reaches_one_pod_by_one_address_of_its_service_after_another() {
    with_cluster(|cluster| {
        two_services(cluster)?;
        for name in ["node1", "node2"] {
            let node = cluster.node(name)?;
            let cluster_ips = of(&Protocol::SOCKETS, &at(&cluster.cluster_ips("one")?));
            let own = at_node_ports(cluster, "one", &[node.layout().ipv4, node.layout().ipv6])?;
            let own = of(&Protocol::SOCKETS, &own);
            for targets in [&cluster_ips, &own, &cluster_ips] {
                in_turn(name, node.place(), targets)?;
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
        let mut flows = Lasting::default();
        for (protocol, target) in at_node_ports(cluster, "one", &node_addresses(cluster, "node2")?)? {
            for source in cluster.client_addresses(target.ip()) {
                let load = Load::new(protocol, target).from_source(source).from_port(PORT).over_one_flow();
                flows.begin(format!("{protocol} from {source} to {target}"), &outside, &load)?;
            }
        }
        thread::sleep(A_WHILE);
        flows.were_undisturbed(3)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_connection_through_a_service_and_one_straight_to_its_pod_share_a_client_port() {
    with_cluster(|cluster| {
        let (solo, client) = two_services(cluster)?;
        let [mut flows, mut later] = [Lasting::default(), Lasting::default()];
        for (service, port) in [("one", PORT), ("two", PORT + 1)] {
            for (ip, &straight) in cluster.cluster_ips(service)?.into_iter().zip(&solo.ips) {
                let targets = [(ip, SERVICE_PORT).into(), (straight, POD_PORT).into()];
                // Either of them first.
                let [first, second] = if service == "one" { targets } else { [targets[1], targets[0]] };
                let load = |target| Load::new(Protocol::Tcp, target).from_port(port).over_one_flow();
                flows.begin(format!("{first}, before {second}"), &client.place, &load(first))?;
                thread::sleep(A_WHILE / 3);
                later.begin(format!("{second}, after {first}"), &client.place, &load(second))?;
            }
        }
        thread::sleep(A_WHILE);
        flows.were_undisturbed(3)?;
        later.were_undisturbed(3)
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
        let (mut flows, mut disturbances) = (Lasting::default(), Vec::new());
        for (who, place, targets) in [("a pod", pod, &internal), ("outside", outside, &external)] {
            for (protocol, target) in of(&[Protocol::Tcp], targets) {
                let own = if who == "a pod" {
                    scene.client.address(target.ip())?
                } else {
                    outside_address(cluster, target.ip())?
                };
                // The pause is long enough for a flow that is taken to be over to be forgotten.
                let load = Load::new(protocol, target).from_port(PORT).over_one_flow().every(A_WHILE);
                flows.begin(format!("from {who} to {target}"), place, &load)?;
                disturbances.push((place, SocketAddr::new(own, PORT), target));
            }
        }
        thread::sleep(A_WHILE / 3);
        for flags in [packet::RST, packet::RST | packet::ACK, packet::ACK, packet::FIN | packet::ACK] {
            for &(place, client, target) in &disturbances {
                disturb(&scene, place, client, target, flags)?;
            }
            thread::sleep(A_WHILE / 2);
        }
        flows.were_undisturbed(3)
    });
}

/// Two Services `one` and `two` in front of the pod `solo` on node1, and a pod `client` beside it.
fn two_services(cluster: &Cluster) -> Result<(RunningPod, RunningPod)> {
    let services = service("one", "solo", "NodePort") + &service("two", "solo", "NodePort");
    cluster.apply(&(services + &pod("solo", "solo", "node1") + &pod("client", "client", "node1")))?;
    let (solo, client) = (cluster.pod("solo")?, cluster.pod("client")?);
    let (mut internal, mut external) = (variants(&solo.ips, POD_PORT), Vec::new());
    for name in ["one", "two"] {
        internal.extend(at(&cluster.cluster_ips(name)?));
        external.extend(at_node_ports(cluster, name, &node_addresses(cluster, "node2")?)?);
    }
    answered(("a pod", &client.place), &internal)?;
    answered(("outside", &cluster.client()?), &external)?;
    Ok((solo, client))
}

/// A short flow to each of the targets, one after another, all from one port.
fn in_turn(who: &str, place: &Place, targets: &[Target]) -> Result<()> {
    for &(protocol, target) in targets {
        let load = Load::new(protocol, target).over_one_flow().from_port(PORT).times(3);
        let report = place.requests(&load.giving_up_after(Duration::from_millis(500)))?;
        report.all_answered().with_context(|| format!("{protocol} from {who} to {target}"))?;
    }
    Ok(())
}

/// Segments from both ends of a connection that do not belong to it.
fn disturb(scene: &Scene, place: &Place, client: SocketAddr, target: SocketAddr, flags: u8) -> Result<()> {
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
    Ok(())
}
