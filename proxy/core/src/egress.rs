//! With whose address a pod's packets leave, by where they go: what [`fairlead_abi::maps::EGRESS`] should hold.
//!
//! The outside knows no way to a pod, so packets for it leave with the node's address. In the cluster, which is every
//! Node's podCIDRs and addresses, the node's own interfaces and what the operator names, everybody sees the pod's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_abi::egress;
use ipnet::IpNet;

use crate::dataplane::RangeKey;
use crate::model::Node;

/// What no router forwards for a pod, or for one alone (RFC 1122, section 3.2.1.3; RFC 1112; RFC 4291, section 2.4).
const NEAR: [&str; 6] =
    ["127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/10", "ff00::/8"];

/// Collects where the cluster is.
#[derive(Clone, Debug)]
pub struct Egress {
    node_name: String,
    kept: Option<Vec<IpNet>>,
    nodes: BTreeMap<String, Node>,
    local: Vec<IpAddr>,
}

impl Egress {
    /// For the node of this name. Packets to the ranges `kept` leave with the pod's address too; without any such list
    /// all do.
    pub fn new(node_name: &str, kept: Option<Vec<IpNet>>) -> Self {
        Self { node_name: node_name.to_owned(), kept, nodes: BTreeMap::new(), local: Vec::new() }
    }

    /// Takes up a Node.
    pub fn apply_node(&mut self, node: Node) {
        self.nodes.insert(node.name.clone(), node);
    }

    /// A Node is gone. The own one is what it was until it comes back.
    pub fn delete_node(&mut self, name: &str) {
        if name != self.node_name {
            self.nodes.remove(name);
        }
    }

    /// Takes up the addresses of the node's interfaces.
    pub fn set_local_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.local = addresses;
    }

    /// Each range of destinations, with [`egress`]. Of a family that the node has no address of, nothing: there is none
    /// to leave with.
    pub fn desired(&self) -> BTreeMap<RangeKey, u32> {
        let (Some(kept), Some(own)) = (&self.kept, self.nodes.get(&self.node_name)) else {
            return BTreeMap::new();
        };
        let has_family =
            |range: &IpNet| own.addresses.iter().any(|address| address.is_ipv4() == range.addr().is_ipv4());
        let near = NEAR.iter().filter_map(|range| range.parse::<IpNet>().ok());
        let nodes = self.nodes.values().flat_map(|node| {
            let addresses = node.addresses.iter().copied().map(IpNet::from);
            node.pod_cidrs.iter().map(IpNet::trunc).chain(addresses)
        });
        let local = self.local.iter().copied().map(IpNet::from);
        let everywhere = ["0.0.0.0/0", "::/0"].iter().filter_map(|range| range.parse::<IpNet>().ok());
        let inside = near.chain(nodes).chain(local).chain(kept.iter().map(IpNet::trunc));
        let sources =
            everywhere.map(|range| (range, egress::NODE)).chain(inside.map(|range| (range, egress::POD)));
        sources.filter(|(range, _)| has_family(range)).map(|(range, source)| (range.into(), source)).collect()
    }
}

/// A write to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The range gets this value.
    Set(RangeKey, u32),
    /// The range is told apart no more.
    Remove(RangeKey),
}

/// What leads from `actual` to `desired`: the ranges of the cluster come before what is outside of them, and go after.
pub fn diff(desired: &BTreeMap<RangeKey, u32>, actual: &BTreeMap<RangeKey, u32>) -> Vec<Write> {
    let mut sets: Vec<_> =
        desired.iter().filter(|(range, source)| actual.get(range) != Some(source)).collect();
    sets.sort_by_key(|(_, source)| **source == egress::NODE);
    let mut removals: Vec<_> = actual.iter().filter(|(range, _)| !desired.contains_key(range)).collect();
    removals.sort_by_key(|(_, source)| **source != egress::NODE);
    let sets = sets.into_iter().map(|(range, source)| Write::Set(*range, *source));
    sets.chain(removals.into_iter().map(|(range, _)| Write::Remove(*range))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> Node {
        Node {
            name: name.to_owned(),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            pod_cidrs: cidrs.iter().map(|text| text.parse().expect("a range")).collect(),
            zone: None,
            leaving: false,
        }
    }

    fn cluster() -> Egress {
        let mut egress = Egress::new("a", Some(vec!["172.16.0.0/12".parse().expect("a range")]));
        egress.apply_node(node("a", &["192.0.2.1", "2001:db8::1"], &["10.244.1.0/24", "fd00:1::/64"]));
        egress.apply_node(node("b", &["192.0.2.2"], &["10.244.2.7/24"]));
        egress.set_local_addresses(vec!["192.0.2.9".parse().expect("an address")]);
        egress
    }

    /// What the map says of an address, by its longest prefix.
    fn source(map: &BTreeMap<RangeKey, u32>, address: &str) -> Option<u32> {
        let address = address.parse::<IpAddr>().expect("an address").into();
        let holds = map.iter().filter(|(range, _)| range.contains(address));
        holds.max_by_key(|(range, _)| range.prefix_len).map(|(_, source)| *source)
    }

    #[test]
    fn the_cluster_sees_the_pods_address_and_the_outside_the_nodes() {
        let map = cluster().desired();
        for inside in [
            "10.244.1.5",
            "10.244.2.200",
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.9",
            "172.20.1.1",
            "fd00:1::5",
            "2001:db8::1",
            "224.0.0.251",
            "ff02::fb",
            "fe80::1",
            "127.0.0.1",
        ] {
            assert_eq!(source(&map, inside), Some(egress::POD), "{inside}");
        }
        for outside in ["8.8.8.8", "10.244.3.1", "192.0.2.77", "2001:db8::77", "fd00:2::1"] {
            assert_eq!(source(&map, outside), Some(egress::NODE), "{outside}");
        }
    }

    #[test]
    fn a_family_that_the_node_has_no_address_of_is_left_alone() {
        let mut egress = cluster();
        egress.apply_node(node("a", &["192.0.2.1"], &["10.244.1.0/24", "fd00:1::/64"]));
        assert_eq!(source(&egress.desired(), "2001:db8::77"), None);
        assert_eq!(source(&egress.desired(), "8.8.8.8"), Some(egress::NODE));
    }

    #[test]
    fn nothing_is_masqueraded_before_the_own_node_is_known_nor_where_it_is_switched_off() {
        let mut early = Egress::new("a", Some(Vec::new()));
        early.apply_node(node("b", &["192.0.2.2"], &["10.244.2.0/24"]));
        assert!(early.desired().is_empty());
        let mut off = Egress::new("a", None);
        off.apply_node(node("a", &["192.0.2.1"], &[]));
        assert!(off.desired().is_empty());
    }

    #[test]
    fn a_node_that_leaves_is_outside_and_the_own_one_stays() {
        let mut egress = cluster();
        egress.delete_node("b");
        egress.delete_node("a");
        assert_eq!(source(&egress.desired(), "10.244.2.200"), Some(egress::NODE));
        assert_eq!(source(&egress.desired(), "10.244.1.5"), Some(egress::POD));
    }

    #[test]
    fn the_cluster_is_known_before_anything_is_outside_of_it_and_forgotten_after() {
        let map = cluster().desired();
        let is_everywhere = |write: &Write| match write {
            Write::Set(range, _) | Write::Remove(range) => map.get(range) == Some(&egress::NODE),
        };
        let writes = diff(&map, &BTreeMap::new());
        assert_eq!(writes.iter().position(is_everywhere), Some(writes.len() - 2));
        let removals = diff(&BTreeMap::new(), &map);
        assert_eq!(removals.iter().rposition(is_everywhere), Some(1));
        assert!(diff(&map, &map).is_empty());
    }
}
