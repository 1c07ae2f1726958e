//! Processes of a node itself, and connections that something should not end.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{Lasting, answered_by, answered_seeing, kept_out, of, refused};
use fairlead_cluster_tests::objects::{at, external_ips, patch, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{POD_PORT, pod, service, with_cluster};
use fairlead_harness::packet::{self, Segment};
use fairlead_harness::{Answer, Load, Place, Protocol};
use serde_json::json;

const BOTH: &[&str] = &["near", "far"];
/// A port that a client uses for everything.
const PORT: u16 = 4000;
/// Long enough for twenty requests.
const A_WHILE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root: run make test"]
fn a_node_is_seen_by_its_own_address_through_every_frontend() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &external_ips()))?;
        cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
        let mut targets = at(&[LOAD_BALANCER, EXTERNAL].concat());
        targets.extend(at(&cluster.cluster_ips("echo")?));
        // A node leads its own sockets, raw packets to its own address never come to a hook.
        let own = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        targets.extend(of(&Protocol::SOCKETS, &own));
        let node = cluster.node("node1")?;
        answered_seeing(("a node", &scene.node1), &targets, BOTH, |like| Ok(node.address(like)))
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn under_internal_policy_local_a_node_without_an_endpoint_is_not_answered() {
    with_cluster(|cluster| {
        let away = service("away", "away", "ClusterIP") + &spec("internalTrafficPolicy: Local");
        let scene = Scene::set(cluster, &(away + &pod("solo", "away", "node2")))?;
        cluster.pod("solo")?;
        let targets = at(&cluster.cluster_ips("away")?);
        answered_by(("a node", &scene.node2), &targets, &["solo"])?;
        kept_out(("a node", &scene.node1), &targets)?;
        patch(cluster, "service/away", &json!({ "spec": { "internalTrafficPolicy": "Cluster" } }))?;
        answered_by(("a node", &scene.node1), &targets, &["solo"])
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn a_plain_connection_to_a_pod_of_another_node_survives_one_from_its_port_through_the_pods_service() {
    with_cluster(|cluster| {
        let away = service("away", "away", "ClusterIP") + &pod("solo", "away", "node2");
        let scene = Scene::set(cluster, &away)?;
        let (solo, client) = (cluster.pod("solo")?, &scene.client.place);
        let targets = of(&[Protocol::Tcp], &at(&cluster.cluster_ips("away")?));
        answered_by(("a pod", client), &targets, &["solo"])?;
        let [mut plain, mut through] = [Lasting::default(), Lasting::default()];
        for &(protocol, target) in &targets {
            let load = |target| Load::new(protocol, target).from_port(PORT).over_one_flow();
            let straight = SocketAddr::new(solo.address(target.ip())?, POD_PORT);
            plain.begin(format!("straight to {straight}"), client, &load(straight))?;
            thread::sleep(A_WHILE);
            // Time and again, each time over a connection that ends.
            for number in 1..=3 {
                let report = client.requests(&load(target).times(3).giving_up_after(A_WHILE * 2))?;
                report.all_answered().with_context(|| format!("connection {number} to {target}"))?;
            }
            through.begin(format!("to {target}"), client, &load(target))?;
        }
        thread::sleep(A_WHILE);
        through.were_undisturbed(10)?;
        plain.were_undisturbed(30)
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn open_connections_outlive_the_addresses_that_their_service_gives_up_with_its_type() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "LoadBalancer"))?;
        cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
        let cluster_ips = at(&cluster.cluster_ips("echo")?);
        let balanced = at(&LOAD_BALANCER);
        let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        route_via(cluster, &LOAD_BALANCER, "node1")?;
        let everything = [&balanced[..], &node_ports, &cluster_ips].concat();
        let external = [&balanced[..], &node_ports].concat();
        let mut connections = Lasting::default();
        let [pod, node] = scene.insiders();
        for ((who, place), targets) in
            [(pod, &everything), (node, &everything), (("outside", &scene.outside), &external)]
        {
            for (protocol, target) in of(&[Protocol::Tcp], targets) {
                let what = format!("{protocol} from {who} to {target}");
                place.request_until_answered(protocol, target).with_context(|| what.clone())?;
                connections.begin(what, place, &Load::new(protocol, target).over_one_flow())?;
            }
        }
        let outside = ("outside", &scene.outside);
        patch(cluster, "service/echo", &json!({ "spec": { "type": "NodePort" } }))?;
        cluster.set_load_balancer("echo", &[], None)?;
        kept_out(pod, &balanced)?;
        answered_by(outside, &node_ports, BOTH)?;
        patch(cluster, "service/echo", &json!({ "spec": { "type": "ClusterIP" } }))?;
        // That nobody listens there any more is the kernel's to say, which is chary of ICMP.
        refused(outside, &of(&[Protocol::Tcp], &node_ports))?;
        for insider in [pod, node] {
            answered_by(insider, &cluster_ips, BOTH)?;
        }
        connections.were_undisturbed(50)
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn no_masqueraded_connection_is_reset_by_packets_that_are_out_of_its_window() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        let targets = of(&[Protocol::Tcp], &node_ports);
        answered_by(("outside", &scene.outside), &targets, BOTH)?;
        // Several to each, so that either pod has some.
        let open = targets.iter().cycle().take(12).map(|&(_, target)| Talk::begin(&scene.outside, target));
        let mut talks: Vec<Talk> = open.collect::<Result<_>>()?;
        for flags in [packet::RST, packet::RST | packet::ACK, packet::FIN | packet::ACK] {
            for talk in &talks {
                disturb(&scene, talk, flags)?;
            }
            // Long enough for a port that is taken to be free to be given to others.
            thread::sleep(A_WHILE / 2);
            for &(protocol, target) in &targets {
                let newcomers = Load::new(protocol, target).times(5).in_parallel(4);
                scene.outside.requests(&newcomers.every(Duration::from_millis(2)))?.all_answered()?;
            }
            for talk in &mut talks {
                talk.goes_on().with_context(|| format!("{talk:?} after the flags {flags:#x}"))?;
            }
        }
        Ok(())
    });
}

/// A connection from outside of which is known with which address and port the pod sees it.
#[derive(Debug)]
struct Talk {
    stream: BufReader<TcpStream>,
    client: SocketAddr,
    target: SocketAddr,
    pod: String,
    masquerade: SocketAddr,
}

impl Talk {
    fn begin(place: &Place, target: SocketAddr) -> Result<Self> {
        let patience = Duration::from_secs(1);
        let stream = place.netns().run(|| TcpStream::connect_timeout(&target, patience))??;
        stream.set_read_timeout(Some(patience))?;
        let client = stream.local_addr()?;
        let mut stream = BufReader::new(stream);
        let answer = ask(&mut stream)?;
        ensure!(answer.client.ip() != client.ip(), "{client} is not masqueraded");
        Ok(Self { stream, client, target, pod: answer.pod, masquerade: answer.client })
    }

    fn goes_on(&mut self) -> Result<()> {
        let answer = ask(&mut self.stream)?;
        ensure!(answer.pod == self.pod && answer.client == self.masquerade, "{answer:?}");
        Ok(())
    }
}

fn ask(stream: &mut BufReader<TcpStream>) -> Result<Answer> {
    stream.get_mut().write_all(b"hello\n")?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("the answer {line:?}"))
}

/// Segments from both ends of a connection that do not belong to it.
fn disturb(scene: &Scene, talk: &Talk, flags: u8) -> Result<()> {
    let server = if talk.pod == scene.near.name { &scene.near } else { &scene.far };
    let backend = SocketAddr::new(server.address(talk.target.ip())?, POD_PORT);
    for sequence in [0x0100_0000, 0x5100_0000, 0xa100_0000, 0xf100_0000_u32] {
        let acknowledgement = sequence ^ 0x0f0f_0f0f;
        let segment = Segment { flags, sequence, acknowledgement, ..Segment::default() };
        scene.outside.inject(&packet::tcp(talk.client, talk.target, &segment))?;
        server.place.inject(&packet::tcp(backend, talk.masquerade, &segment))?;
    }
    Ok(())
}
