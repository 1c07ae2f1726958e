//! Nodes that join, leave, move, reboot and are cut off: routes follow, and open connections go on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{Lasting, all, answered, answered_by, of, within};
use fairlead_cluster_tests::scene::{at_node_ports, node_addresses};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, pod, service, variants, with_cluster_of};
use fairlead_harness::{Cluster, Load, Options, Place, Protocol, RunningPod, output};
use nix::sys::signal::Signal;

/// How long a node may take to follow what others do: one that has lost its connections needs a while to see that.
const SOON: Duration = Duration::from_secs(25);
/// The device of an overlay over IPv4.
const OVERLAY: &str = "fairlead-vxlan";
/// How long a connection may stall: a peer that was away is tried again ever more rarely.
const STALL: Duration = Duration::from_secs(20);
/// How long a node is cut off, and how long to see that nothing happens.
const A_WHILE: Duration = Duration::from_secs(2);
/// What passes through the overlay of a fabric of 1500 bytes.
const OVERLAY_MTU: u32 = 1450;
/// How much goes over a connection, and what needs fragments.
const MUCH: usize = 1 << 20;
const LARGE: usize = 8000;
/// A host number that no node has at first.
const NEW_HOST: u8 = 42;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn routes_follow_nodes_that_come_move_vanish_and_go_while_connections_between_the_others_go_on() {
    nodes_come_and_go(Options::default());
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_overlay_follows_nodes_that_come_move_vanish_and_go_while_connections_between_the_others_go_on() {
    nodes_come_and_go(Options::default().with_cni_arguments(&["--routing=vxlan"]));
}

fn nodes_come_and_go(options: Options) {
    with_cluster_of(options.with_nodes(3).with_late("node3"), |cluster| {
        let manifests = pod("client", "client", "node1") + &pod("far", "far", "node2");
        cluster.apply(&(manifests + &service("far", "far", "NodePort")))?;
        let (client, far) = (cluster.pod("client")?, cluster.pod("far")?);
        let connections = connect(cluster, &client, &far)?;
        joins(cluster, &[&client, &far]).context("a node joins")?;
        moves_unseen(cluster, &client, &far).context("a node moves while the daemon of another is dead")?;
        is_cut_off(cluster, &client, &far).context("a node is cut off")?;
        outage(cluster).context("the API is away, and the daemon starts anew")?;
        leaves_unseen(cluster).context("a node leaves while the daemon of another is away")?;
        // Most of the time they wait, ever longer, for a peer that was away.
        connections.were_undisturbed(10)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn pods_of_before_the_first_node_joined_on_another_subnet_send_what_is_too_large_for_the_overlay_all_the_same()
 {
    let options = Options::default().with_nodes(3).with_late("node3").with_subnet("node3", 2);
    with_cluster_of(options, |cluster| {
        cluster.apply(&pod("old", "old", "node1"))?;
        let old = cluster.pod("old")?;
        joins(cluster, &[&old])?;
        let new = cluster.pod("new")?;
        for (from, to) in [(&old, &new), (&new, &old)] {
            let targets = variants(&to.ips, POD_PORT);
            let much = |protocol, target| Load::new(protocol, target).times(1).sized(MUCH).answers_of(MUCH);
            for report in all(&from.place, &of(&[Protocol::Tcp], &targets), much)? {
                report.all_answered().with_context(|| format!("much from {} to {}", from.name, to.name))?;
            }
            // The first ones are lost, until whoever sends fragments has been told how large they may be.
            let large = |protocol, target| {
                let load =
                    Load::new(protocol, target).over_one_flow().times(12).giving_up_after(A_WHILE / 10);
                load.sized(LARGE).answers_of(LARGE)
            };
            for report in all(&from.place, &of(&[Protocol::Udp], &targets), large)? {
                let last = report.outcomes.last().context("no request was made")?;
                ensure!(last.is_ok(), "from {} to {}: {:?}", from.name, to.name, report.failures());
            }
        }
        // In IPv4 the node makes smaller fragments of fragments.
        for &address in new.ips.iter().filter(|address| address.is_ipv6()) {
            let learned = old.place.path_mtu(address)?;
            ensure!(
                learned == Some(OVERLAY_MTU),
                "the old pod thinks that {learned:?} bytes to {address} fit"
            );
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_that_reboots_gives_its_pods_addresses_to_new_ones_and_forgets_none_of_those() {
    // Room for four pods, but not for eight.
    let options = Options::default().with_pod_cidrs("node2", ["10.244.2.0/29", "fd00:10:244:2::/125"]);
    with_cluster_of(options, |cluster| {
        let group = |names: &[&str]| names.iter().map(|name| pod(name, "b", "node2")).collect::<String>();
        let (old, new) = (["b1", "b2", "b3", "b4"], ["c1", "c2", "c3", "c4"]);
        cluster.apply(&(pod("client", "client", "node1") + &group(&old)))?;
        let client = cluster.pod("client")?;
        for name in old {
            reach(&client.place, &cluster.pod(name)?)?;
        }
        cluster.reboot("node2")?;
        // The old pods' objects are still there, as when the kubelet has not looked yet.
        cluster.apply(&group(&new))?;
        let pods: Vec<RunningPod> = new.map(|name| cluster.pod(name)).into_iter().collect::<Result<_>>()?;
        pods.iter().try_for_each(|pod| reach(&client.place, pod))?;
        cluster.kubectl(&[&["delete", "pod", "--force", "--grace-period=0"][..], &old].concat())?;
        old.iter().try_for_each(|name| cluster.wait_until_gone(name))?;
        pods.iter().try_for_each(|pod| reach(&client.place, pod))?;
        // What the old pods' DEL must not have given away is not given away.
        cluster.kubectl(&["delete", "pod", "c1", "--wait=false"])?;
        cluster.wait_until_gone("c1")?;
        cluster.apply(&group(&["d1"]))?;
        let last = cluster.pod("d1")?;
        let kept: Vec<IpAddr> = pods[1..].iter().flat_map(|pod| pod.ips.clone()).collect();
        ensure!(!last.ips.iter().any(|ip| kept.contains(ip)), "{last:?} has an address of {kept:?}");
        reach(&client.place, &last)?;
        reach(&last.place, &client)
    });
}

/// Connections across nodes that shall go on: from pod to pod, to a Service, and from outside to a NodePort.
fn connect(cluster: &Cluster, client: &RunningPod, far: &RunningPod) -> Result<Lasting> {
    let outside = cluster.client()?;
    let direct = variants(&far.ips, POD_PORT);
    let service = variants(&cluster.cluster_ips("far")?, SERVICE_PORT);
    let node_port = at_node_ports(cluster, "far", &node_addresses(cluster, "node1")?)?;
    let mut connections = Lasting::default();
    for (who, place, targets) in [
        ("a pod", &client.place, direct),
        ("a pod through a Service", &client.place, service),
        ("outside", &outside, node_port),
    ] {
        answered_by((who, place), &targets, &["far"])?;
        for &(_, target) in targets.iter().filter(|(protocol, _)| *protocol == Protocol::Tcp) {
            let load = Load::new(Protocol::Tcp, target).over_one_flow().giving_up_after(STALL);
            let load = load.every(Duration::from_millis(50));
            connections.begin(format!("from {who} to {target}"), place, &load)?;
        }
    }
    Ok(connections)
}

fn joins(cluster: &mut Cluster, others: &[&RunningPod]) -> Result<()> {
    cluster.join("node3")?;
    cluster.apply(&pod("new", "new", "node3"))?;
    let new = cluster.pod("new")?;
    for other in others {
        reach(&other.place, &new)?;
        reach(&new.place, other)?;
    }
    routes(cluster, &["node1", "node2"], "node3", true)
}

/// The node that moved has lost its connections to the API with its address; another one's daemon is not there to see it.
fn moves_unseen(cluster: &mut Cluster, client: &RunningPod, far: &RunningPod) -> Result<()> {
    cluster.node_mut("node1")?.stop_daemon(Signal::SIGKILL)?;
    let before = hops(cluster.node("node1")?.place(), 2)?;
    ensure!(before == texts(&node_addresses(cluster, "node2")?, &before), "the way to node2 is {before:?}");
    cluster.readdress("node2", NEW_HOST)?;
    routes(cluster, &["node2"], "node1", true)?;
    ensure!(hops(cluster.node("node1")?.place(), 2)? == before, "somebody else minds node1's routes");
    cluster.node_mut("node1")?.start_daemon()?;
    let wanted = texts(&node_addresses(cluster, "node2")?, &before);
    within(SOON, || {
        let now = hops(cluster.node("node1")?.place(), 2)?;
        ensure!(now == wanted, "node1 sends what is for node2's pods to {now:?}, not to {wanted:?}");
        Ok(())
    })?;
    reach(&client.place, far)
}

fn is_cut_off(cluster: &mut Cluster, client: &RunningPod, far: &RunningPod) -> Result<()> {
    cluster.node("node2")?.set_cable(false)?;
    cluster.node_mut("node2")?.stop_daemon(Signal::SIGTERM)?;
    thread::sleep(A_WHILE);
    // It finds neither the API nor anyone else.
    cluster.node_mut("node2")?.start_daemon()?;
    thread::sleep(A_WHILE / 4);
    cluster.node("node2")?.set_cable(true)?;
    reach(&client.place, far)?;
    reach(&far.place, client)?;
    routes(cluster, &["node2"], "node3", true)
}

fn outage(cluster: &mut Cluster) -> Result<()> {
    let Some(faults) = cluster.faults() else {
        println!("left out: a real API server has no outages on demand");
        return Ok(());
    };
    let before = all_routes(cluster.node("node1")?.place())?;
    let outage = faults.outage()?;
    let node = cluster.node_mut("node1")?;
    node.stop_daemon(Signal::SIGTERM)?;
    node.start_daemon()?;
    thread::sleep(A_WHILE / 2);
    let after = all_routes(cluster.node("node1")?.place())?;
    ensure!(after == before, "without the API node1 came from\n{before}to\n{after}");
    outage.end()
}

fn leaves_unseen(cluster: &mut Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "pod", "new", "--wait=false"])?;
    cluster.wait_until_gone("new")?;
    cluster.node_mut("node1")?.stop_daemon(Signal::SIGTERM)?;
    cluster.leave("node3")?;
    routes(cluster, &["node2"], "node3", false)?;
    routes(cluster, &["node1"], "node3", true)?;
    cluster.node_mut("node1")?.start_daemon()?;
    routes(cluster, &["node1"], "node3", false)
}

/// By every protocol and over both families the pod is reached.
fn reach(place: &Place, pod: &RunningPod) -> Result<()> {
    within(SOON, || answered(("a pod", place), &variants(&pod.ips, POD_PORT)))
        .with_context(|| format!("to pod {}", pod.name))
}

/// Sooner or later these nodes have routes to that node's pods, of both families, or none.
fn routes(cluster: &Cluster, nodes: &[&str], to: &str, wanted: bool) -> Result<()> {
    let number: u8 = to.trim_start_matches("node").parse()?;
    for node in nodes {
        let place = cluster.node(node)?.place();
        within(SOON, || {
            let found = gateways(place, number)?.len();
            ensure!(found == if wanted { 2 } else { 0 }, "{node} has {found} routes to the pods of {to}");
            Ok(())
        })?;
    }
    Ok(())
}

/// To which nodes' addresses a node sends what is for the pods of node `number`, IPv4 before IPv6. By the overlay, both
/// families go to the one address behind the next hop's Ethernet address.
fn hops(place: &Place, number: u8) -> Result<BTreeSet<String>> {
    let gateways = gateways(place, number)?;
    let neighbours = place.ip(&["neigh", "show", "dev", OVERLAY]);
    let Ok(neighbours) = neighbours else { return Ok(gateways.into_iter().collect()) };
    let after = |text: &str, begin: &str, word: &str| {
        let line = text.lines().find(|line| line.starts_with(begin));
        let found = line.and_then(|line| line.split_whitespace().skip_while(|w| *w != word).nth(1));
        found.map(str::to_owned).with_context(|| format!("no {word} of {begin}in {text}"))
    };
    let mut bridge = place.command("bridge")?;
    let forwarding = output(bridge.args(["fdb", "show", "dev", OVERLAY]))?;
    let hop = |gateway: &String| {
        let mac = after(&neighbours, &format!("{gateway} "), "lladdr")?;
        after(&forwarding, &format!("{mac} "), "dst")
    };
    gateways.iter().map(hop).collect()
}

/// The addresses as text, of the families that `like` has.
fn texts(addresses: &[IpAddr], like: &BTreeSet<String>) -> BTreeSet<String> {
    let has = |address: &&IpAddr| like.iter().any(|text| text.contains(':') == address.is_ipv6());
    addresses.iter().filter(has).map(ToString::to_string).collect()
}

/// The next hops of the routes to the pods of node `number`.
fn gateways(place: &Place, number: u8) -> Result<Vec<String>> {
    let networks = [format!("10.244.{number}.0/24 "), format!("fd00:10:244:{number}::/64 ")];
    let text = all_routes(place)?;
    let lines = text.lines().filter(|line| networks.iter().any(|network| line.starts_with(network)));
    let gateway =
        |line: &str| line.split_whitespace().skip_while(|word| *word != "via").nth(1).map(str::to_owned);
    Ok(lines.filter_map(gateway).collect())
}

/// The node's routes of Fairlead's.
fn all_routes(place: &Place) -> Result<String> {
    let protocol = fairlead_net::ROUTE_PROTOCOL.to_string();
    let mut text = String::new();
    for family in ["-4", "-6"] {
        text += &place.ip(&[family, "route", "show", "proto", &protocol])?;
    }
    Ok(text)
}
