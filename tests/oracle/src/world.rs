//! The surroundings of every case: the network of `fairlead-prog-tests`, and who lives in it.
//!
//! | who | addresses |
//! |---|---|
//! | the node under test, [`NODE`], and its pods | as [`fairlead_prog_tests::place`] says |
//! | the node [`OTHER_NODE`], and its pods | 192.0.2.2, 10.2.0.x; 2001:db8::2, fd00:2::x |
//! | everyone else | behind the gateway, or unknown on the uplink's own network |

use std::net::IpAddr;

use fairlead_prog_tests::{FAMILIES, Family, Pod};

/// The name of the node under test.
pub const NODE: &str = "this";
/// The name of the node behind [`Way::Node2`].
pub const OTHER_NODE: &str = "other";
/// The zones that nodes and hints name.
pub const ZONES: [&str; 3] = ["east", "west", "north"];

/// How a packet leaves the programs for its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into a pod of the node.
    Pod(Pod),
    /// Up the node's own stack.
    Stack,
    /// To the other node.
    Node2,
    /// To the gateway.
    Gateway,
    /// Out of the uplink, to a machine whose Ethernet address the kernel is still to find.
    Stranger,
}

/// The way to `address`, by the namespace's routes.
#[must_use]
pub fn way(address: IpAddr) -> Way {
    if let Some(pod) = pod_at(address) {
        return Way::Pod(pod);
    }
    if FAMILIES.iter().any(|family| family.node() == address) {
        return Way::Stack;
    }
    let text = address.to_string();
    if text.starts_with("10.2.0.") || text.starts_with("fd00:2::") || is_other_node(address) {
        Way::Node2
    } else if text.starts_with("192.0.2.") || text.starts_with("2001:db8::") {
        Way::Stranger
    } else {
        Way::Gateway
    }
}

/// The pod of the node under test that has this address.
#[must_use]
pub fn pod_at(address: IpAddr) -> Option<Pod> {
    Pod::ALL.into_iter().find(|pod| FAMILIES.iter().any(|family| pod.ip(*family) == address))
}

/// The family of an address.
#[must_use]
pub fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// One of two addresses, by family.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn pick(family: Family, v4: &str, v6: &str) -> IpAddr {
    let text = if family == Family::V4 { v4 } else { v6 };
    text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
}

/// The address of the other node.
#[must_use]
pub fn other_node(family: Family) -> IpAddr {
    pick(family, "192.0.2.2", "2001:db8::2")
}

fn is_other_node(address: IpAddr) -> bool {
    FAMILIES.iter().any(|family| other_node(*family) == address)
}

/// Pods of the other node.
#[must_use]
pub fn remote_pods(family: Family) -> [IpAddr; 3] {
    let of = |v4, v6| pick(family, v4, v6);
    [of("10.2.0.9", "fd00:2::9"), of("10.2.0.10", "fd00:2::a"), of("10.2.0.11", "fd00:2::b")]
}

/// A machine that is in no cluster, and may be an endpoint all the same.
#[must_use]
pub fn outsider(family: Family) -> IpAddr {
    pick(family, "203.0.113.9", "2001:db8:beef::9")
}

/// An address that the node has beside its primary one: where NodePorts may be asked to be, too.
#[must_use]
pub fn second_address(family: Family) -> IpAddr {
    pick(family, "203.0.113.129", "2001:db8:cafe::1")
}

/// Senders whose packets come over the uplink.
#[must_use]
pub fn clients(family: Family) -> [IpAddr; 6] {
    let of = |v4, v6| pick(family, v4, v6);
    [
        family.client(),
        of("198.51.100.8", "2001:db8:ffff::8"),
        of("203.0.113.200", "2001:db8:eeee::1"),
        family.stranger(),
        remote_pods(family)[0],
        other_node(family),
    ]
}
