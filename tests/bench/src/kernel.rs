//! The baselines: what Linux alone does, without netfilter and without Fairlead.
//!
//! ```text
//! limit    client ──veth── server
//!
//! direct   client ──veth── node ──veth── server       pods, wired as fairlead-cni wires them
//!                           │
//!                          veth
//!                           │
//!          outside ──veth─ fabric                     direct_outside: outside → server
//! ```
//!
//! *limit* is the least that two namespaces can be apart. *direct* is plain routing through the node:
//! each pod has a /32, a link-local next hop and permanent neighbours on both sides of its veth. The fabric is
//! a bridge in a namespace of its own, as in the harness's clusters.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use crate::cell::Target;
use crate::orders::Request;
use crate::topology::{End, Path, Topology};

/// Name of the path over a single veth pair.
pub(crate) const LIMIT: &str = "limit";
/// Name of the path from pod to pod.
pub(crate) const DIRECT: &str = "direct";
/// Name of the path from outside of the node to a pod.
pub(crate) const DIRECT_OUTSIDE: &str = "direct_outside";
/// All of them.
pub(crate) const NAMES: [&str; 3] = [LIMIT, DIRECT, DIRECT_OUTSIDE];

/// Of a veth pair, as the kernel makes it.
pub(crate) const MTU: u32 = 1500;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 3);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 2);

/// Builds the two ends of a single veth pair.
pub(crate) fn add_limit(topology: &mut Topology) -> Result<()> {
    let client = topology.add_client("limit client", None)?;
    let server = topology.add_server("limit server", None)?;
    let peer = topology.worker(server).pid();
    ip(
        topology,
        client,
        &[
            format!("link add eth0 type veth peer name eth0 netns {peer}"),
            format!("addr add {CLIENT}/24 dev eth0"),
            "link set lo up".into(),
            "link set eth0 up".into(),
        ],
    )?;
    ip(
        topology,
        server,
        &[format!("addr add {SERVER}/24 dev eth0"), "link set lo up".into(), "link set eth0 up".into()],
    )?;
    let target = Target::itself(IpAddr::V4(SERVER));
    topology.add_path(Path { name: LIMIT, direct: None, client, server, target })
}

/// Builds a node with two pods, and a client outside of it.
pub(crate) fn add_direct(topology: &mut Topology) -> Result<()> {
    let fabric = topology.add_node("direct fabric")?;
    let node = add_node(topology, "direct node")?;
    let client = topology.add_client("direct client", None)?;
    let server = topology.add_server("direct server", None)?;
    let outside = topology.add_client("direct outside", None)?;
    add_pod(topology, node, client, CLIENT, MTU)?;
    add_pod(topology, node, server, SERVER, MTU)?;
    let (node_pid, outside_pid) = (topology.worker(node).pid(), topology.worker(outside).pid());
    ip(
        topology,
        fabric,
        &[
            "link add fabric up type bridge".into(),
            format!("link add port1 up master fabric type veth peer name eth0 netns {node_pid}"),
            format!("link add port2 up master fabric type veth peer name eth0 netns {outside_pid}"),
        ],
    )?;
    ip(topology, node, &[format!("addr add {NODE}/24 dev eth0"), "link set eth0 up".into()])?;
    ip(
        topology,
        outside,
        &[
            "link set lo up".into(),
            format!("addr add {OUTSIDE}/24 dev eth0"),
            "link set eth0 up".into(),
            format!("route add default via {NODE}"),
        ],
    )?;
    let target = Target::itself(IpAddr::V4(SERVER));
    topology.add_path(Path { name: DIRECT, direct: None, client, server, target })?;
    topology.add_path(Path { name: DIRECT_OUTSIDE, direct: None, client: outside, server, target })
}

/// Makes a namespace that forwards.
pub(crate) fn add_node(topology: &mut Topology, name: &str) -> Result<End> {
    let node = topology.add_node(name)?;
    for (path, value) in [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")] {
        topology
            .worker(node)
            .tell(Request::Sysctl { path: format!("net/ipv4/{path}"), value: value.into() })?;
    }
    ip(topology, node, &["link set lo up".into()])?;
    Ok(node)
}

/// Joins a pod to its node by a veth pair, as `fairlead-cni` would.
pub(crate) fn add_pod(
    topology: &mut Topology,
    node: End,
    pod: End,
    address: Ipv4Addr,
    mtu: u32,
) -> Result<()> {
    const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    let last = address.octets()[3];
    let (host, near, far) =
        (format!("pod{last}"), format!("02:00:00:00:01:{last:02x}"), format!("02:00:00:00:02:{last:02x}"));
    let pid = topology.worker(pod).pid();
    ip(
        topology,
        node,
        &[
            format!(
                "link add {host} address {near} mtu {mtu} type veth peer name eth0 address {far} mtu {mtu} netns {pid}"
            ),
            format!("link set {host} up"),
        ],
    )?;
    ip(
        topology,
        pod,
        &[
            "link set lo up".into(),
            "link set eth0 up".into(),
            format!("addr add {address}/32 dev eth0"),
            format!("route add {NEXT_HOP} dev eth0 scope link"),
            format!("route add default via {NEXT_HOP} dev eth0"),
            format!("neigh add {NEXT_HOP} lladdr {near} dev eth0 nud permanent"),
        ],
    )?;
    ip(
        topology,
        node,
        &[
            format!("route add {address}/32 dev {host} scope link"),
            format!("neigh add {address} lladdr {far} dev {host} nud permanent"),
        ],
    )
}

/// Has a worker run `ip` commands in its namespace.
pub(crate) fn ip(topology: &mut Topology, end: End, commands: &[String]) -> Result<()> {
    topology.worker(end).tell(Request::Ip(commands.join("\n")))
}
