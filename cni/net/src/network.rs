//! What the node's kernel holds for the ways to other nodes, as a set of items, and the changes from one set to another.
//!
//! Every item is marked as ours: routes and rules by [`ROUTE_PROTOCOL`](crate::ROUTE_PROTOCOL), the rest by hanging on
//! a device whose name is ours. The routes to local pods carry the same mark but no gateway, and are none of these:
//! ADD and DEL own them. The diff is always a full one, against what the kernel holds, so that changes made by others
//! and missed events heal at the next pass.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::attachment::Mac;
use crate::vxlan::{Device, Underlay};

/// Which routing table a route is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The main one.
    Main,
    /// Ours, which only packets from this node's podCIDRs ask: the ways to nodes' own addresses.
    Pods,
}

/// A route to what is another node's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRoute {
    /// Where it is.
    pub table: Table,
    /// Where to.
    pub destination: IpNet,
    /// The next hop.
    pub gateway: IpAddr,
    /// The overlay's device that leads there; None where the gateway's own subnet says.
    pub device: Option<Underlay>,
    /// The source address of what the node itself sends.
    pub source: Option<IpAddr>,
}

/// Something that the kernel holds for the ways to other nodes; what comes earlier here is needed by what comes later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// An overlay's device.
    Device(Device),
    /// Where an overlay's device sends frames to this Ethernet address.
    Forward {
        /// The device.
        device: Underlay,
        /// The other node's device.
        mac: Mac,
        /// The other node.
        remote: IpAddr,
    },
    /// The Ethernet address of a next hop.
    Neighbour {
        /// The device.
        device: Underlay,
        /// The next hop.
        address: IpAddr,
        /// The other node's device.
        mac: Mac,
    },
    /// A route.
    Route(NodeRoute),
    /// That packets from this range ask [`Table::Pods`] first.
    Rule {
        /// A podCIDR of this node.
        source: IpNet,
    },
}

/// What an item is about: the kernel holds one item for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Device(Underlay),
    Forward(Underlay, Mac),
    Neighbour(Underlay, IpAddr),
    Route(Table, IpNet),
    Rule(IpNet),
}

impl Item {
    fn key(&self) -> Key {
        match self {
            Self::Device(device) => Key::Device(device.underlay),
            Self::Forward { device, mac, .. } => Key::Forward(*device, *mac),
            Self::Neighbour { device, address, .. } => Key::Neighbour(*device, *address),
            Self::Route(route) => Key::Route(route.table, route.destination),
            Self::Rule { source } => Key::Rule(*source),
        }
    }
}

impl fmt::Display for NodeRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, destination, gateway, device, source } = self;
        write!(f, "{destination} via {gateway}")?;
        device.map_or(Ok(()), |device| write!(f, " dev {}", device.ifname()))?;
        source.map_or(Ok(()), |source| write!(f, " src {source}"))?;
        match table {
            Table::Main => Ok(()),
            Table::Pods => f.write_str(" for pods"),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(Device { underlay, vni, port, source, mac, mtu, .. }) => {
                let name = underlay.ifname();
                write!(f, "device {name} vni {vni} port {port} source {source} mac {mac} mtu {mtu}")
            }
            Self::Forward { device, mac, remote } => {
                write!(f, "forwarding of {mac} to {remote} dev {}", device.ifname())
            }
            Self::Neighbour { device, address, mac } => {
                write!(f, "neighbour {address} at {mac} dev {}", device.ifname())
            }
            Self::Route(route) => write!(f, "route {route}"),
            Self::Rule { source } => write!(f, "rule for packets from {source}"),
        }
    }
}

/// A change of what the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Put the item there, in place of one about the same if there is one.
    Set(Item),
    /// Remove exactly this item; it may be gone already, with what it hung on.
    Remove(Item),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(item) => write!(f, "set {item}"),
            Self::Remove(item) => write!(f, "remove {item}"),
        }
    }
}

/// The changes that lead from `actual` to `desired`: sets first, so that no destination is without a route while its
/// way changes, each after what it needs; then removals, the other way round. What a set replaces is not removed.
#[must_use]
pub fn diff(desired: &BTreeSet<Item>, actual: &BTreeSet<Item>) -> Vec<Change> {
    let set: Vec<&Item> = desired.difference(actual).collect();
    let replaced: BTreeSet<Key> = set.iter().map(|item| item.key()).collect();
    let left_over = actual.iter().rev().filter(|item| !desired.contains(item));
    let removals = left_over.filter(|item| !replaced.contains(&item.key())).cloned().map(Change::Remove);
    set.iter().map(|item| Change::Set((*item).clone())).chain(removals).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vxlan::mac_of;

    fn device(port: u16) -> Item {
        let source = "192.0.2.1".parse().expect("address");
        let mac = mac_of("a");
        Item::Device(Device { underlay: Underlay::V4, vni: 1, port, source, mac, mtu: 1450, is_ready: true })
    }

    fn forward(remote: &str) -> Item {
        Item::Forward { device: Underlay::V4, mac: mac_of("b"), remote: remote.parse().expect("address") }
    }

    fn route(destination: &str, gateway: &str) -> Item {
        Item::Route(NodeRoute {
            table: Table::Main,
            destination: destination.parse().expect("range"),
            gateway: gateway.parse().expect("address"),
            device: None,
            source: None,
        })
    }

    fn texts(desired: &[Item], actual: &[Item]) -> Vec<String> {
        let set = |items: &[Item]| items.iter().cloned().collect();
        diff(&set(desired), &set(actual)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_others_need_is_set_first_and_removed_last() {
        let all = [route("10.244.2.0/24", "10.244.2.0"), forward("192.0.2.2"), device(4789)];
        let kinds = |changes: Vec<String>| -> Vec<String> {
            changes.iter().map(|text| text.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!(kinds(texts(&all, &[])), ["set device", "set forwarding", "set route"]);
        assert_eq!(kinds(texts(&[], &all)), ["remove route", "remove forwarding", "remove device"]);
        assert!(texts(&all, &all).is_empty());
    }

    #[test]
    fn a_set_replaces_and_nothing_is_removed_that_it_has_replaced() {
        let changes = texts(
            &[route("10.244.2.0/24", "192.0.2.2"), route("10.244.3.0/24", "192.0.2.3")],
            &[
                route("10.244.2.0/24", "192.0.2.2"),
                route("10.244.3.0/24", "192.0.2.9"),
                route("10.244.4.0/24", "192.0.2.4"),
            ],
        );
        assert_eq!(
            changes,
            ["set route 10.244.3.0/24 via 192.0.2.3", "remove route 10.244.4.0/24 via 192.0.2.4"]
        );
        let moved = texts(&[device(8472), forward("192.0.2.9")], &[device(4789), forward("192.0.2.2")]);
        assert_eq!(moved.len(), 2, "{moved:?}");
        assert!(moved.iter().all(|change| change.starts_with("set ")), "{moved:?}");
    }

    #[test]
    fn a_second_route_to_the_same_place_is_removed_once_the_right_one_is_there() {
        let (right, wrong) = (route("10.244.2.0/24", "192.0.2.2"), route("10.244.2.0/24", "192.0.2.9"));
        let changes = texts(std::slice::from_ref(&right), &[right.clone(), wrong]);
        assert_eq!(changes, ["remove route 10.244.2.0/24 via 192.0.2.9"]);
    }
}
