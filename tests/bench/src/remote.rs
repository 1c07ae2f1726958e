//! The baselines between two nodes: what Linux alone does, with routes and with VXLAN.
//!
//! ```text
//! client ──veth── node ──veth── fabric ──veth── node ──veth── server
//!
//! direct_remote   each node has a route to the other's pods through its uplink
//! direct_vxlan    each node has one through a VXLAN device over that uplink
//! ```
//!
//! Nodes, fabric and pods are wired like those of a cluster with two nodes. The two paths have their own pods on the same
//! nodes; those of the second have an MTU with room for the overlay's header.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use fairlead_net::vxlan::{DEFAULT_PORT, DEFAULT_VNI, Underlay};

use crate::cell::Target;
use crate::kernel::{MTU, add_node, add_pod, ip};
use crate::orders::Request;
use crate::topology::{End, Path, Topology};

/// Name of the path by routes.
pub(crate) const REMOTE: &str = "direct_remote";
/// Name of the path by VXLAN.
pub(crate) const VXLAN: &str = "direct_vxlan";
/// Both of them.
pub(crate) const NAMES: [&str; 2] = [REMOTE, VXLAN];

/// One node's side of everything.
struct Side {
    end: End,
    /// The node's address on the fabric.
    address: Ipv4Addr,
    /// The pod of the path by routes, and the one of that by VXLAN.
    pods: [Ipv4Addr; 2],
    /// What the node's VXLAN device is addressed by.
    mac: &'static str,
}

/// Builds the two nodes with their pods.
pub(crate) fn add(topology: &mut Topology) -> Result<()> {
    let fabric = topology.add_node("remote fabric")?;
    ip(topology, fabric, &["link add fabric up type bridge".into()])?;
    let near = Side {
        end: add_node(topology, "near node")?,
        address: Ipv4Addr::new(10, 203, 0, 1),
        pods: [Ipv4Addr::new(10, 204, 1, 2), Ipv4Addr::new(10, 205, 1, 3)],
        mac: "02:00:00:00:03:01",
    };
    let far = Side {
        end: add_node(topology, "far node")?,
        address: Ipv4Addr::new(10, 203, 0, 2),
        pods: [Ipv4Addr::new(10, 204, 2, 2), Ipv4Addr::new(10, 205, 2, 3)],
        mac: "02:00:00:00:03:02",
    };
    for side in [&near, &far] {
        plug(topology, fabric, side)?;
    }
    join(topology, &near, &far)?;
    join(topology, &far, &near)?;
    for (number, name) in NAMES.into_iter().enumerate() {
        let client = topology.add_client(&format!("{name} client"), None)?;
        let server = topology.add_server(&format!("{name} server"), None)?;
        for (side, pod) in [(&near, client), (&far, server)] {
            add_pod(topology, side.end, pod, side.pods[number], [MTU, MTU - Underlay::V4.header()][number])?;
        }
        let target = Target::itself(IpAddr::V4(far.pods[number]));
        topology.add_path(Path { name, direct: None, client, server, target })?;
    }
    Ok(())
}

/// Gives a node its uplink.
fn plug(topology: &mut Topology, fabric: End, side: &Side) -> Result<()> {
    let (pid, port) = (topology.worker(side.end).pid(), side.address.octets()[3]);
    let pair = format!("link add port{port} up master fabric type veth peer name eth0 netns {pid}");
    ip(topology, fabric, &[pair])?;
    ip(topology, side.end, &[format!("addr add {}/24 dev eth0", side.address), "link set eth0 up".into()])
}

/// Gives a node the routes to the other's pods: an overlay's next hop is an address that only its neighbour entry knows,
/// and where that is, only its forwarding entry.
fn join(topology: &mut Topology, side: &Side, other: &Side) -> Result<()> {
    let Side { address, mac, .. } = side;
    let [routed, tunnelled] = other.pods.map(network);
    ip(
        topology,
        side.end,
        &[
            format!("route add {routed}/24 via {}", other.address),
            format!(
                "link add overlay address {mac} mtu {} type vxlan id {DEFAULT_VNI} local {address} dev eth0 \
                 dstport {DEFAULT_PORT} nolearning",
                MTU - Underlay::V4.header()
            ),
            "link set overlay up".into(),
            format!("neigh add {tunnelled} lladdr {} dev overlay nud permanent", other.mac),
            format!("route add {tunnelled}/24 via {tunnelled} dev overlay onlink"),
        ],
    )?;
    let entry = format!("fdb append {} dev overlay dst {} self", other.mac, other.address);
    topology.worker(side.end).tell(Request::Bridge(entry)).map(drop)
}

/// The address of the /24 that the pod's is in.
fn network(pod: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = pod.octets();
    Ipv4Addr::new(a, b, c, 0)
}
