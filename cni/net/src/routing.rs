//! Which way leads to each other node: what the kernel of this node should hold, from all Nodes and its own addresses.
//!
//! ```text
//!                              on a connected subnet        elsewhere
//!   --routing=native           by the node's address        nothing: the network routes it
//!   --routing=auto             by the node's address        by the overlay
//!   --routing=vxlan            by the overlay               by the overlay
//! ```
//!
//! What pods send to a node that the overlay leads to takes the overlay too, because its answers will, and because the
//! network between may not let packets from pods pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::here::Here;
use crate::network::{Item, NodeRoute, Table};
use crate::vxlan::{self, Device, Underlay};

/// How other nodes' pods are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By plain routes to nodes on a connected subnet, by VXLAN to the others.
    #[default]
    Auto,
    /// By plain routes to nodes on a connected subnet; the network routes what goes to the others.
    Native,
    /// By VXLAN.
    Vxlan,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "vxlan" => Ok(Self::Vxlan),
            _ => Err(format!("{text:?} is none of auto, native and vxlan")),
        }
    }
}

/// What of routing is set for the whole cluster.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How other nodes' pods are reached.
    pub mode: Mode,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// VXLAN's UDP port.
    pub port: u16,
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
    /// The node's InternalIP is another node's, too: the first by name keeps it.
    #[error("node {node}: InternalIP {address} is that of node {owner}")]
    SameAddress {
        /// The node.
        node: String,
        /// The address.
        address: IpAddr,
        /// The node that has it.
        owner: String,
    },
    /// No family has an InternalIP of both nodes, ours on an interface.
    #[error(
        "node {node}: no InternalIP of a family in which this node has one on an interface: no VXLAN to it"
    )]
    NoUnderlay {
        /// The node.
        node: String,
    },
}

/// What the kernel of this node should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// All of it.
    pub items: BTreeSet<Item>,
    /// What could not be planned.
    pub problems: Vec<RouteProblem>,
    /// The MTU in bytes that fits every way that pods' packets may take; None where the uplink is not known.
    pub mtu: Option<u32>,
}

/// What the node `own` should have, given every Node by name.
#[must_use]
pub fn plan(own: &str, nodes: &BTreeMap<String, NodeNetwork>, here: &Here, settings: &Settings) -> Planned {
    let nothing = NodeNetwork::default();
    let network = nodes.get(own).unwrap_or(&nothing);
    let mut planner =
        Planner { own, network, here, settings, tunnelled: BTreeMap::new(), planned: Planned::default() };
    let mut owners: Vec<(IpNet, &str)> = network.pod_cidrs.iter().map(|cidr| (cidr.trunc(), own)).collect();
    for (node, network) in nodes.iter().filter(|(name, _)| *name != own) {
        for destination in network.pod_cidrs.iter().map(IpNet::trunc) {
            let overlaps =
                |(other, _): &&(IpNet, &str)| other.contains(&destination) || destination.contains(other);
            if let Some((_, owner)) = owners.iter().find(overlaps) {
                let (node, owner) = (node.clone(), (*owner).to_owned());
                planner.planned.problems.push(RouteProblem::Overlap { node, destination, owner });
                continue;
            }
            owners.push((destination, node));
            planner.route(node, network, destination);
        }
    }
    planner.finish()
}

struct Planner<'a> {
    own: &'a str,
    network: &'a NodeNetwork,
    here: &'a Here,
    settings: &'a Settings,
    /// Whose the nodes' addresses are that the overlay leads to.
    tunnelled: BTreeMap<IpAddr, String>,
    planned: Planned,
}

impl Planner<'_> {
    fn route(&mut self, node: &str, network: &NodeNetwork, destination: IpNet) {
        let address = network.addresses.iter().find(|address| is_alike(**address, destination)).copied();
        let connected = address.filter(|address| self.here.is_connected(*address));
        match (self.settings.mode, connected) {
            (Mode::Auto | Mode::Native, Some(gateway)) => {
                let source = self.source(gateway);
                let table = Table::Main;
                self.put(Item::Route(NodeRoute { table, destination, gateway, device: None, source }));
            }
            (Mode::Auto | Mode::Vxlan, _) => self.tunnel(node, network, destination),
            (Mode::Native, None) if address.is_none() => {
                let node = node.to_owned();
                self.planned.problems.push(RouteProblem::NoAddress { node, destination });
            }
            (Mode::Native, None) => {}
        }
    }

    /// The overlay's way to `destination`, and that of our pods to the node's own addresses of the family.
    fn tunnel(&mut self, node: &str, network: &NodeNetwork, destination: IpNet) {
        let ends = Underlay::ALL.into_iter().find_map(|underlay| {
            let remote = network.addresses.iter().find(|address| underlay.has(**address))?;
            Some((underlay, self.underlay_source(underlay)?, *remote))
        });
        let Some((underlay, source, remote)) = ends else {
            let problem = RouteProblem::NoUnderlay { node: node.to_owned() };
            if self.planned.problems.last() != Some(&problem) {
                self.planned.problems.push(problem);
            }
            return;
        };
        let Settings { vni, port, .. } = *self.settings;
        let mtu = self.here.mtu(source).unwrap_or_default().saturating_sub(underlay.header());
        let mac = vxlan::mac_of(self.own);
        self.put(Item::Device(Device { underlay, vni, port, source, mac, mtu, is_ready: true }));
        let mac = vxlan::mac_of(node);
        self.put(Item::Forward { device: underlay, mac, remote });
        // No pod has a range's first address: it stands for the node.
        let gateway = match destination {
            IpNet::V4(_) => destination.network(),
            IpNet::V6(_) => vxlan::next_hop_v6(mac).into(),
        };
        self.put(Item::Neighbour { device: underlay, address: gateway, mac });
        let device = Some(underlay);
        let source = self.source(destination.addr());
        self.put(Item::Route(NodeRoute { table: Table::Main, destination, gateway, device, source }));
        let alike = |address: &&IpAddr| is_alike(**address, destination);
        let ranges: Vec<IpNet> = self.network.pod_cidrs.iter().map(IpNet::trunc).collect();
        let ranges = ranges.iter().filter(|range| is_alike(range.addr(), destination));
        ranges.for_each(|range| self.put(Item::Rule { source: *range }));
        for address in network.addresses.iter().filter(alike) {
            match self.tunnelled.get(address) {
                None => {
                    self.tunnelled.insert(*address, node.to_owned());
                    let (table, destination) = (Table::Pods, IpNet::from(*address));
                    self.put(Item::Route(NodeRoute { table, destination, gateway, device, source: None }));
                }
                // By another range of its own.
                Some(owner) if owner == node => {}
                Some(owner) => {
                    let (node, address, owner) = (node.to_owned(), *address, owner.clone());
                    self.planned.problems.push(RouteProblem::SameAddress { node, address, owner });
                }
            }
        }
    }

    /// What the node's own packets to an address like this come from, so that they are known for the node's wherever
    /// they arrive.
    fn source(&self, like: IpAddr) -> Option<IpAddr> {
        let alike = |address: &&IpAddr| address.is_ipv4() == like.is_ipv4() && self.here.has(**address);
        self.network.addresses.iter().find(alike).copied()
    }

    fn underlay_source(&self, underlay: Underlay) -> Option<IpAddr> {
        let own = |address: &&IpAddr| underlay.has(**address) && self.here.has(**address);
        self.network.addresses.iter().find(own).copied()
    }

    fn put(&mut self, item: Item) {
        self.planned.items.insert(item);
    }

    fn finish(mut self) -> Planned {
        let in_use = self.planned.items.iter().filter_map(|item| match item {
            Item::Device(device) => Some(device.underlay),
            _ => None,
        });
        // Where all goes by the overlay, the first other node may be yet to come.
        let to_come = Underlay::ALL
            .into_iter()
            .find(|underlay| self.settings.mode == Mode::Vxlan && self.underlay_source(*underlay).is_some());
        let header = in_use.chain(to_come).map(Underlay::header).max().unwrap_or(0);
        let uplink = self.network.addresses.iter().find_map(|address| self.here.mtu(*address));
        self.planned.mtu = uplink.map(|mtu| mtu.saturating_sub(header));
        self.planned
    }
}

fn is_alike(address: IpAddr, range: IpNet) -> bool {
    address.is_ipv4() == range.addr().is_ipv4()
}

#[cfg(test)]
mod tests;
