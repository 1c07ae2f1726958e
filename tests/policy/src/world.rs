//! The surroundings of every case: the network of `fairlead-prog-tests`, with more local pods in it.
//!
//! | who | addresses |
//! |---|---|
//! | the node under test, [`NODE`] | 192.0.2.1, 203.0.113.129; 2001:db8::1, 2001:db8:cafe::1 |
//! | its pods | 10.1.0.x; fd00:1::x |
//! | the node [`OTHER_NODE`] | 192.0.2.2; 2001:db8::2 |
//! | its pods | 10.2.0.x; fd00:2::x |
//! | everyone else | behind the gateway |

use std::net::IpAddr;

use fairlead_prog_tests::{FAMILIES, Family, Pod};

pub use fairlead_oracle::world::{NODE, OTHER_NODE, other_node, pick, second_address};

/// The address of the local pod with this number, from 2 on.
#[must_use]
pub fn local_pod(family: Family, number: u32) -> IpAddr {
    pick(family, &format!("10.1.0.{number}"), &format!("fd00:1::{number}"))
}

/// The address of the other node's pod with this number.
#[must_use]
pub fn remote_pod(family: Family, number: u32) -> IpAddr {
    pick(family, &format!("10.2.0.{number}"), &format!("fd00:2::{number}"))
}

/// Machines outside of the cluster.
#[must_use]
pub fn outsiders(family: Family) -> [IpAddr; 3] {
    [
        family.client(),
        pick(family, "198.51.100.130", "2001:db8:ffff:8000::1"),
        pick(family, "203.0.113.9", "2001:db8:beef::9"),
    ]
}

/// The addresses that the node's interfaces have, as the agent would find them.
#[must_use]
pub fn node_addresses() -> Vec<IpAddr> {
    FAMILIES.iter().flat_map(|family| [family.node(), second_address(*family)]).collect()
}

/// The interface of the local pod with this index: there are two, and more pods.
#[must_use]
pub fn interface(index: u32) -> Pod {
    Pod::ALL[index as usize % Pod::ALL.len()]
}
