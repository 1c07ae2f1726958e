//! Where NodePorts are served, that nobody takes them, and ClusterIPs from outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;

use anyhow::{Result, ensure};
use fairlead_cluster_tests::ask::{Target, answered_by, answered_seeing, eventually, of, refused};
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses, route_via};
use fairlead_cluster_tests::{service, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Load, Options, Place, Protocol, binary};

const BOTH: &[&str] = &["near", "far"];
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Addresses that a node has beside those that its Node object names.
const SECOND: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 95, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x95, 0, 0, 0, 0, 0, 1))];

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn node_ports_are_served_on_the_primary_addresses_alone() {
    with_cluster(|cluster| {
        let (scene, primary, second) = second_address(cluster)?;
        for asker in scene.insiders().into_iter().chain([("outside", &scene.outside)]) {
            answered_by(asker, &primary, BOTH)?;
            refused(asker, &second)?;
        }
        refused(("a node", &scene.node1), &sockets(cluster, &LOOPBACK)?)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn node_ports_are_served_on_the_addresses_that_the_command_line_names() {
    let named = Options::default().with_arguments(&["--nodeport-addresses", "10.95.0.0/16,fd00:95::/64"]);
    with_cluster_of(named, |cluster| {
        let (scene, primary, second) = second_address(cluster)?;
        for asker in scene.insiders().into_iter().chain([("outside", &scene.outside)]) {
            answered_by(asker, &second, BOTH)?;
            refused(asker, &primary)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn node_ports_can_be_limited_to_the_primary_addresses_of_one_family() {
    let primary = Options::default().with_arguments(&["--nodeport-addresses", "10.90.0.0/24"]);
    with_cluster_of(primary, |cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let [v4, v6] = node_addresses(cluster, "node1")?;
        let outside = ("outside", &scene.outside);
        answered_by(outside, &sockets(cluster, &[v4])?, BOTH)?;
        refused(outside, &sockets(cluster, &[v6])?)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn node_ports_are_served_on_loopback_for_those_who_ask_for_it() {
    let loopback = Options::default().with_arguments(&["--nodeport-loopback"]);
    with_cluster_of(loopback, |cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let targets = sockets(cluster, &LOOPBACK)?;
        answered_by(("a node", &scene.node1), &targets, BOTH)?;
        // A pod's loopback is its own.
        refused(("a pod", &scene.client.place), &targets)?;
        let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        answered_by(("outside", &scene.outside), &node_ports, BOTH)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn no_process_of_a_node_can_bind_a_node_port() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let node_ports = sockets(cluster, &node_addresses(cluster, "node1")?)?;
        answered_by(("a node", &scene.node1), &node_ports, BOTH)?;
        for protocol in Protocol::SOCKETS {
            let port = cluster.node_port("echo", &protocol.to_string())?;
            let told = serve(&scene.node1, protocol, port)?;
            ensure!(told.contains("Address already in use"), "{protocol} on {port}: {told:?}");
            for &(_, target) in node_ports.iter().filter(|(of, _)| *of == protocol) {
                let load = Load::new(protocol, target).from_source(target.ip()).from_port(port);
                let failure = scene.node1.ask(load)?.err();
                let told = failure.as_ref().map(|failure| failure.text.as_str()).unwrap_or_default();
                ensure!(told.contains("Address already in use"), "{protocol} from {target}: {failure:?}");
            }
            // What is no NodePort can be bound, and a pod binds what it likes.
            ensure!(serve(&scene.node1, protocol, port - 1)? == "ready", "{protocol} on {}", port - 1);
            ensure!(serve(&scene.client.place, protocol, port)? == "ready", "{protocol} on {port} in a pod");
        }
        // The port of one protocol is free to the others' sockets.
        let udp = cluster.node_port("echo", "udp")?;
        ensure!(serve(&scene.node1, Protocol::Tcp, udp)? == "ready", "tcp on {udp}");
        let ports =
            Protocol::SOCKETS.map(|protocol| (protocol, cluster.node_port("echo", &protocol.to_string())));
        cluster.kubectl(&["delete", "service", "echo"])?;
        for (protocol, port) in ports {
            let port = port?;
            eventually(|| {
                let told = serve(&scene.node1, protocol, port)?;
                ensure!(told == "ready", "the port of a Service that is gone can't be bound: {told}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_outside_client_with_a_route_to_cluster_ips_is_served_and_masqueraded() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        let addresses = cluster.cluster_ips("echo")?;
        for name in ["node1", "node2"] {
            route_via(cluster, &addresses, name)?;
            let node = cluster.node(name)?;
            let outside = ("outside", &scene.outside);
            answered_seeing(outside, &at(&addresses), BOTH, |like| Ok(node.address(like)))?;
        }
        Ok(())
    });
}

/// node1 has [`SECOND`] on another interface; with the NodePorts at its primary addresses, and at those.
fn second_address(cluster: &Cluster) -> Result<(Scene, Vec<Target>, Vec<Target>)> {
    let node = cluster.node("node1")?.place();
    node.ip(&["link", "add", "second", "type", "veth", "peer", "name", "second-peer"])?;
    for address in SECOND {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        node.ip(&["address", "add", &format!("{address}/{bits}"), "dev", "second"])?;
    }
    node.ip(&["link", "set", "second", "up"])?;
    let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
    route_via(cluster, &SECOND, "node1")?;
    let primary = sockets(cluster, &node_addresses(cluster, "node1")?)?;
    Ok((scene, primary, sockets(cluster, &SECOND)?))
}

/// The NodePorts of `echo` for which there are sockets: raw packets to a node's own address never come to a hook, and
/// nobody refuses them.
fn sockets(cluster: &Cluster, addresses: &[IpAddr]) -> Result<Vec<Target>> {
    Ok(of(&Protocol::SOCKETS, &at_node_ports(cluster, "echo", addresses)?))
}

/// What a server says that is started here on that port: `ready`, or what is wrong.
fn serve(place: &Place, protocol: Protocol, port: u16) -> Result<String> {
    let mut command = place.command(binary("fairlead-harness")?)?;
    command.args(["serve", "--pod", "squatter", "--port", &format!("{port}/{protocol}")]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let said = |from: &mut dyn std::io::Read| {
        let mut bytes = [0; 512];
        from.read(&mut bytes).map(|count| String::from_utf8_lossy(&bytes[..count]).trim_end().to_owned())
    };
    let ready = child.stdout.as_mut().map(|stdout| said(stdout)).transpose()?.unwrap_or_default();
    if ready.is_empty() {
        let why = child.stderr.as_mut().map(|stderr| said(stderr)).transpose()?.unwrap_or_default();
        child.wait()?;
        return Ok(why);
    }
    child.kill()?;
    child.wait()?;
    Ok(ready)
}
