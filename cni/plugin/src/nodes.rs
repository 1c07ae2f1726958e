//! The cluster's Nodes as routing sees them: a pure index over the events of a watch.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_net::routing::NodeNetwork;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::runtime::watcher::Event;

use crate::condition;

/// A field of a Node that makes no sense, and was left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {node}: {field}: {value:?} makes no sense")]
pub(crate) struct Problem {
    node: String,
    field: &'static str,
    value: String,
}

/// Every Node that the API server holds, by name.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// The name of this machine's Node.
    own: String,
    /// What that Node says of its network.
    condition: Option<NodeCondition>,
    known: BTreeMap<String, NodeNetwork>,
    /// What a list under way has brought so far: it replaces `known` when it is complete.
    listing: BTreeMap<String, NodeNetwork>,
    synced: bool,
}

impl Nodes {
    /// None yet, of a cluster in which this machine's Node has that name.
    pub(crate) fn new(own: &str) -> Self {
        Self { own: own.to_owned(), ..Self::default() }
    }

    /// Takes one event; true if something that matters to routing has changed. What this machine's Node says of its
    /// network is only kept: whoever else writes that, and we, are not to chase each other.
    pub(crate) fn take(&mut self, event: Event<Node>, problems: &mut Vec<Problem>) -> bool {
        if let Event::InitApply(node) | Event::Apply(node) = &event
            && name(node) == self.own
        {
            self.condition = condition::of(node);
        }
        self.index(event, problems)
    }

    /// What this machine's Node says of its network.
    pub(crate) fn condition(&self) -> Option<&NodeCondition> {
        self.condition.as_ref()
    }

    fn index(&mut self, event: Event<Node>, problems: &mut Vec<Problem>) -> bool {
        match event {
            Event::Init => {
                self.listing.clear();
                false
            }
            Event::InitApply(node) => {
                let (name, network) = network(&node, problems);
                self.listing.insert(name, network);
                false
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                let changed = !self.synced || listed != self.known;
                self.known = listed;
                self.synced = true;
                changed
            }
            Event::Apply(node) => {
                let (name, network) = network(&node, problems);
                let changed = self.known.get(&name) != Some(&network);
                self.known.insert(name, network);
                changed
            }
            Event::Delete(node) => self.known.remove(&name(&node)).is_some(),
        }
    }

    /// The Nodes, once the first list is complete: nothing may be removed before that.
    pub(crate) fn synced(&self) -> Option<&BTreeMap<String, NodeNetwork>> {
        self.synced.then_some(&self.known)
    }
}

fn name(node: &Node) -> String {
    node.metadata.name.clone().unwrap_or_default()
}

fn network(node: &Node, problems: &mut Vec<Problem>) -> (String, NodeNetwork) {
    let name = name(node);
    let mut problem =
        |field, value: &str| problems.push(Problem { node: name.clone(), field, value: value.into() });
    let mut network = NodeNetwork::default();
    let spec = node.spec.as_ref();
    // The singular field is what clusters without dual-stack fill; otherwise it repeats the first.
    let cidrs = spec.and_then(|spec| spec.pod_cidrs.as_deref()).filter(|cidrs| !cidrs.is_empty());
    let cidrs = cidrs.or_else(|| spec?.pod_cidr.as_ref().map(std::slice::from_ref));
    for text in cidrs.unwrap_or_default().iter().filter(|text| !text.is_empty()) {
        match text.parse::<IpNet>() {
            Ok(cidr) if cidr.prefix_len() > 0 => network.pod_cidrs.push(cidr.trunc()),
            _ => problem("spec.podCIDRs", text),
        }
    }
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref());
    for address in addresses.unwrap_or_default().iter().filter(|a| a.type_ == "InternalIP") {
        match address.address.parse::<IpAddr>() {
            Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => network.addresses.push(ip),
            _ => problem("status.addresses", &address.address),
        }
    }
    (name, network)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, cidrs: &[&str], addresses: &[&str]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDRs": cidrs},
            "status": {"addresses": addresses},
        }))
        .expect("a Node")
    }

    fn take(nodes: &mut Nodes, event: Event<Node>) -> bool {
        nodes.take(event, &mut Vec::new())
    }

    fn names(nodes: &Nodes) -> Vec<&str> {
        nodes.synced().expect("synced").keys().map(String::as_str).collect()
    }

    #[test]
    fn nothing_is_known_before_the_first_list_is_complete() {
        let mut nodes = Nodes::default();
        take(&mut nodes, Event::Init);
        assert!(!take(&mut nodes, Event::InitApply(node("a", &[], &[]))));
        assert!(nodes.synced().is_none());
        assert!(take(&mut nodes, Event::InitDone));
        assert_eq!(names(&nodes), ["a"]);
    }

    #[test]
    fn an_empty_cluster_is_synced_too() {
        let mut nodes = Nodes::default();
        take(&mut nodes, Event::Init);
        assert!(take(&mut nodes, Event::InitDone));
        assert!(names(&nodes).is_empty());
    }

    #[test]
    fn a_relist_replaces_what_was_known_only_when_it_is_complete() {
        let mut nodes = Nodes::default();
        take(&mut nodes, Event::InitDone);
        take(&mut nodes, Event::Apply(node("a", &["10.0.0.0/24"], &[])));
        take(&mut nodes, Event::Init);
        take(&mut nodes, Event::InitApply(node("b", &[], &[])));
        assert_eq!(names(&nodes), ["a"]);
        assert!(take(&mut nodes, Event::InitDone));
        assert_eq!(names(&nodes), ["b"]);
    }

    #[test]
    fn a_heartbeat_changes_nothing() {
        let mut nodes = Nodes::default();
        take(&mut nodes, Event::InitDone);
        assert!(take(&mut nodes, Event::Apply(node("a", &["10.0.0.0/24"], &["192.0.2.1"]))));
        assert!(!take(&mut nodes, Event::Apply(node("a", &["10.0.0.0/24"], &["192.0.2.1"]))));
        assert!(take(&mut nodes, Event::Apply(node("a", &["10.0.0.0/24"], &["192.0.2.9"]))));
        assert!(take(&mut nodes, Event::Delete(node("a", &[], &[]))));
        assert!(!take(&mut nodes, Event::Delete(node("a", &[], &[]))));
    }

    #[test]
    fn what_makes_no_sense_is_named_and_the_rest_is_kept() {
        let mut nodes = Nodes::default();
        let mut problems = Vec::new();
        nodes.take(Event::InitDone, &mut problems);
        let odd = node("a", &["10.0.1.7/24", "0.0.0.0/0", "bad"], &["192.0.2.1", "a.example"]);
        nodes.take(Event::Apply(odd), &mut problems);
        let network = &nodes.synced().expect("synced")["a"];
        assert_eq!(network.pod_cidrs, ["10.0.1.0/24".parse::<IpNet>().expect("range")]);
        assert_eq!(network.addresses, ["192.0.2.1".parse::<IpAddr>().expect("address")]);
        let messages: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "node a: spec.podCIDRs: \"0.0.0.0/0\" makes no sense",
                "node a: spec.podCIDRs: \"bad\" makes no sense",
                "node a: status.addresses: \"a.example\" makes no sense",
            ]
        );
    }
}
