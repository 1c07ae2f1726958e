//! Routes to the other nodes' pods: what they should be, what they are, and the changes between the two.
//!
//! A node route goes to a node's podCIDR by way of the node's address, marked with [`ROUTE_PROTOCOL`]. The
//! routes to local pods carry the same mark but no gateway, and are not this module's: ADD and DEL own them.
//! The diff is always a full one, against the kernel's own table, so that changes made by others and missed
//! events heal at the next pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::ROUTE_PROTOCOL;
use crate::netlink::{cause, open};

/// A route: a range of addresses and the way there, the device itself if there is no gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// The next hop.
    pub gateway: Option<IpAddr>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
    }
}

/// What routing needs to know of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// spec.podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// The InternalIPs in status.addresses.
    pub addresses: Vec<IpAddr>,
}

/// A podCIDR that gets no route, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteProblem {
    /// The node has no InternalIP of the podCIDR's family.
    #[error("node {node}: no InternalIP of the family of podCIDR {destination}")]
    NoAddress {
        /// The node.
        node: String,
        /// The podCIDR.
        destination: IpNet,
    },
    /// The podCIDR overlaps another node's: the first by name keeps it.
    #[error("node {node}: podCIDR {destination} overlaps that of node {owner}")]
    Overlap {
        /// The node.
        node: String,
        /// Its podCIDR.
        destination: IpNet,
        /// The node that has it.
        owner: String,
    },
}

/// The routes that the node `own` should have, given every Node by name.
#[must_use]
pub fn desired(own: &str, nodes: &BTreeMap<String, NodeNetwork>) -> (BTreeSet<Route>, Vec<RouteProblem>) {
    let mut routes = BTreeSet::new();
    let mut problems = Vec::new();
    let own_cidrs = nodes.get(own).into_iter().flat_map(|network| &network.pod_cidrs);
    let mut owners: Vec<(IpNet, &str)> = own_cidrs.map(|cidr| (cidr.trunc(), own)).collect();
    for (node, network) in nodes.iter().filter(|(name, _)| *name != own) {
        for destination in network.pod_cidrs.iter().map(IpNet::trunc) {
            let overlaps =
                |(other, _): &&(IpNet, &str)| other.contains(&destination) || destination.contains(other);
            if let Some((_, owner)) = owners.iter().find(overlaps) {
                let (node, owner) = (node.clone(), (*owner).to_owned());
                problems.push(RouteProblem::Overlap { node, destination, owner });
                continue;
            }
            owners.push((destination, node));
            let family = |address: &&IpAddr| address.is_ipv4() == destination.addr().is_ipv4();
            match network.addresses.iter().find(family) {
                Some(gateway) => {
                    routes.insert(Route { destination, gateway: Some(*gateway) });
                }
                None => problems.push(RouteProblem::NoAddress { node: node.clone(), destination }),
            }
        }
    }
    (routes, problems)
}

/// A change to the routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add the route, in place of one to the same destination if there is one.
    Set(Route),
    /// Remove exactly this route; it may be gone already, by having been replaced.
    Remove(Route),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(route) => write!(f, "set route {route}"),
            Self::Remove(route) => write!(f, "remove route {route}"),
        }
    }
}

/// The changes that lead from `actual` to `desired`: sets first, so that no destination is without a route
/// while its gateway changes.
#[must_use]
pub fn diff(desired: &BTreeSet<Route>, actual: &BTreeSet<Route>) -> Vec<Change> {
    let sets = desired.difference(actual).cloned().map(Change::Set);
    let removals = actual.difference(desired).cloned().map(Change::Remove);
    sets.chain(removals).collect()
}

/// The kernel's table of node routes, in the namespace of the thread that opened it.
pub struct RouteTable {
    handle: rtnetlink::Handle,
}

impl RouteTable {
    /// Opens the table; within a tokio runtime.
    ///
    /// # Errors
    /// When the system gives no netlink socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self { handle: open()? })
    }

    /// The node routes that there are.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn read(&self) -> io::Result<BTreeSet<Route>> {
        let mut routes = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut stream = std::pin::pin!(self.handle.route().get(request).execute());
            while let Some(message) = stream.try_next().await.map_err(cause)? {
                routes.extend(node_route(&message));
            }
        }
        Ok(routes)
    }

    /// Carries out one change.
    ///
    /// # Errors
    /// When the kernel refuses, as it does where the gateway is not on a connected subnet.
    pub async fn apply(&self, change: &Change) -> io::Result<()> {
        match change {
            Change::Set(route) => {
                let request = self.handle.route().add(route_message(route, None)).replace();
                request.execute().await.map_err(cause)
            }
            Change::Remove(route) => {
                let outcome = self.handle.route().del(route_message(route, None)).execute().await;
                match outcome.map_err(cause) {
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                    outcome => outcome,
                }
            }
        }
    }
}

/// The route in `message` if it is a node route.
fn node_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.protocol != RouteProtocol::from(ROUTE_PROTOCOL) {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let find = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| {
        message.attributes.iter().find_map(wanted).and_then(address)
    };
    let gateway = find(|attribute| match attribute {
        RouteAttribute::Gateway(address) => Some(address),
        _ => None,
    })?;
    let destination = find(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address),
        _ => None,
    })?;
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(Route { destination, gateway: Some(gateway) })
}

/// The message for a route of ours in the main table, through `device` if given.
pub(crate) fn route_message(route: &Route, device: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if route.destination.addr().is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        },
        destination_prefix_length: route.destination.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Other(ROUTE_PROTOCOL),
        scope: if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(device.map(RouteAttribute::Oif));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[(&str, &[&str], &[&str])]) -> BTreeMap<String, NodeNetwork> {
        let network = |cidrs: &[&str], addresses: &[&str]| NodeNetwork {
            pod_cidrs: cidrs.iter().map(|c| c.parse().expect("podCIDR")).collect(),
            addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
        };
        list.iter().map(|(name, cidrs, addresses)| ((*name).into(), network(cidrs, addresses))).collect()
    }

    fn routes(list: &[&str]) -> BTreeSet<Route> {
        let route = |text: &&str| {
            let (destination, gateway) = text.split_once(" via ").expect("route");
            Route {
                destination: destination.parse().expect("destination"),
                gateway: Some(gateway.parse().expect("gateway")),
            }
        };
        list.iter().map(route).collect()
    }

    #[test]
    fn every_other_nodes_ranges_go_by_its_address_of_the_same_family() {
        let nodes = nodes(&[
            ("a", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]),
            ("b", &["10.244.2.0/24", "fd00:2::/64"], &["2001:db8::2", "192.0.2.2"]),
            ("c", &["10.244.3.0/24"], &["192.0.2.3"]),
        ]);
        let (found, problems) = desired("a", &nodes);
        let expected =
            ["10.244.2.0/24 via 192.0.2.2", "10.244.3.0/24 via 192.0.2.3", "fd00:2::/64 via 2001:db8::2"];
        assert_eq!(found, routes(&expected));
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn a_range_without_an_address_of_its_family_is_a_problem_and_the_others_are_routed() {
        let nodes = nodes(&[("b", &["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.2"])]);
        let (found, problems) = desired("a", &nodes);
        assert_eq!(found, routes(&["10.244.2.0/24 via 192.0.2.2"]));
        let messages: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(messages, ["node b: no InternalIP of the family of podCIDR fd00:2::/64"]);
    }

    #[test]
    fn an_overlapping_range_never_takes_a_neighbours_or_our_own_traffic() {
        let nodes = nodes(&[
            ("a", &["10.244.1.0/24"], &["192.0.2.1"]),
            ("b", &["10.244.2.0/24"], &["192.0.2.2"]),
            ("c", &["10.244.2.128/25"], &["192.0.2.3"]),
            ("d", &["10.244.0.0/16"], &["192.0.2.4"]),
        ]);
        let (found, problems) = desired("a", &nodes);
        assert_eq!(found, routes(&["10.244.2.0/24 via 192.0.2.2"]));
        let messages: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "node c: podCIDR 10.244.2.128/25 overlaps that of node b",
                "node d: podCIDR 10.244.0.0/16 overlaps that of node a",
            ]
        );
    }

    #[test]
    fn the_diff_sets_what_is_missing_and_removes_what_is_left_over() {
        let want = routes(&["10.244.2.0/24 via 192.0.2.2", "10.244.3.0/24 via 192.0.2.3"]);
        let have = routes(&[
            "10.244.2.0/24 via 192.0.2.2",
            "10.244.3.0/24 via 192.0.2.9",
            "10.244.4.0/24 via 192.0.2.4",
        ]);
        let changes: Vec<_> = diff(&want, &have).iter().map(ToString::to_string).collect();
        assert_eq!(
            changes,
            [
                "set route 10.244.3.0/24 via 192.0.2.3",
                "remove route 10.244.3.0/24 via 192.0.2.9",
                "remove route 10.244.4.0/24 via 192.0.2.4",
            ]
        );
        assert!(diff(&want, &want).is_empty());
    }
}
