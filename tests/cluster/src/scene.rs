//! The usual scene: a few pods on two nodes, and those who ask them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, Place, Protocol, RunningPod};

use crate::pod;

/// An address of a load balancer, and one for externalIPs, of each family: nobody's on the fabric, so that a client
/// needs a route to them, by a node.
pub const LOAD_BALANCER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 0x10)),
];
/// See [`LOAD_BALANCER`].
pub const EXTERNAL: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 20)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x20)),
];

/// A pod `client` on node1, and two of the app `echo`: `near` on node1, `far` on node2.
pub struct Scene {
    /// The pod `client`.
    pub client: RunningPod,
    /// The pod `near`.
    pub near: RunningPod,
    /// The pod `far`.
    pub far: RunningPod,
    /// node1 itself.
    pub node1: Place,
    /// node2 itself.
    pub node2: Place,
    /// The client outside the cluster.
    pub outside: Place,
}

impl Scene {
    /// Applies the pods and whatever else is given, and waits until the pods run.
    ///
    /// # Errors
    /// When they don't.
    pub fn set(cluster: &Cluster, more: &str) -> Result<Self> {
        let pods =
            pod("client", "client", "node1") + &pod("near", "echo", "node1") + &pod("far", "echo", "node2");
        cluster.apply(&(pods + more))?;
        Ok(Self {
            client: cluster.pod("client")?,
            near: cluster.pod("near")?,
            far: cluster.pod("far")?,
            node1: cluster.node("node1")?.place().clone(),
            node2: cluster.node("node2")?.place().clone(),
            outside: cluster.client()?,
        })
    }

    /// Who asks from inside on node1: a pod, and the node itself.
    pub fn insiders(&self) -> [(&'static str, &Place); 2] {
        [("a pod", &self.client.place), ("a node", &self.node1)]
    }
}

/// The addresses of a node, IPv4 and IPv6.
///
/// # Errors
/// When there is no such node.
pub fn node_addresses(cluster: &Cluster, node: &str) -> Result<[IpAddr; 2]> {
    let layout = cluster.node(node)?.layout();
    Ok([layout.ipv4, layout.ipv6])
}

/// The Service's NodePorts at these addresses, by each protocol.
///
/// # Errors
/// When it has none.
pub fn at_node_ports(
    cluster: &Cluster,
    service: &str,
    addresses: &[IpAddr],
) -> Result<Vec<(Protocol, SocketAddr)>> {
    let mut targets = Vec::new();
    for protocol in Protocol::ALL {
        let port = cluster.node_port(service, &protocol.to_string())?;
        targets.extend(addresses.iter().map(|&address| (protocol, (address, port).into())));
    }
    Ok(targets)
}

/// Sends what the client outside has for these addresses to that node, instead of wherever it went.
///
/// # Errors
/// When there is no such node, or the kernel refuses.
pub fn route_via(cluster: &Cluster, addresses: &[IpAddr], node: &str) -> Result<()> {
    addresses.iter().try_for_each(|&address| cluster.route_via(address, node))
}

/// The address that the client outside sends from when it does not choose.
///
/// # Errors
/// When it has none of that family.
pub fn outside_address(cluster: &Cluster, like: IpAddr) -> Result<IpAddr> {
    cluster.client_addresses(like).first().copied().context("the client outside has no address")
}
