//! Which endpoints of a Service port its clients may use.
//!
//! Pure; called by [`crate::frontends`]. The rules are those of kube-proxy's CategorizeEndpoints (1.36): ready
//! endpoints, or if there are none, those that still serve while they terminate, decided separately for
//! the whole cluster and for this node. Where every ready endpoint has a hint, the cluster's are only those meant
//! for this node, or else for this node's zone, if there are any.

use std::fmt;
use std::net::IpAddr;

use crate::model::{EndpointSlice, ServicePort, SliceEndpoint, SlicePort, socket_label};

/// An endpoint of a Service port, merged from every slice that lists it, as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: BackendAddress,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, though perhaps on its way out.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    /// Whom it is meant for, by node.
    pub for_nodes: Hint,
    /// Whom it is meant for, by zone.
    pub for_zones: Hint,
}

/// What a hint says to this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// There is none.
    #[default]
    None,
    /// Use another one.
    Others,
    /// Use this one.
    Us,
}

/// The node that chooses.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    /// The name of the node.
    pub node: &'a str,
    /// Its zone, if it has one.
    pub zone: Option<&'a str>,
}

/// The address and port of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendAddress {
    /// The endpoint's address.
    pub ip: IpAddr,
    /// The endpoint's port.
    pub port: u16,
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&socket_label(self.ip, self.port))
    }
}

/// The endpoints of one Service port, of one family, by kind of client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    /// For clients that may use any endpoint.
    pub cluster: Vec<BackendAddress>,
    /// For clients that may use only those on this node.
    pub local: Vec<BackendAddress>,
    /// Whether any endpoint is usable on any node: if not, clients are refused, else an empty list drops.
    pub any: bool,
}

/// The endpoints that `slices` list for `port`, in order of address; an address listed twice counts once.
///
/// While an endpoint moves from one slice to another both may list it, in different states, and an address may
/// have passed from a pod that terminates to a new one: the state of one that does not terminate holds, then the
/// state in which it can do more, whatever the order of the slices.
pub fn merge<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    viewer: Viewer<'_>,
) -> Vec<Endpoint> {
    let mut merged: Vec<Endpoint> = Vec::new();
    for slice in slices {
        let answers = |listed: &&SlicePort| listed.name == port.name && listed.protocol == port.protocol;
        for number in slice.ports.iter().filter(answers).map(|listed| listed.port) {
            merged.extend(slice.endpoints.iter().map(|listed| viewer.sees(listed, number)));
        }
    }
    // Of those with one address the best comes first, and stays.
    merged.sort_unstable_by(|a, b| a.address.cmp(&b.address).then_with(|| b.rank().cmp(&a.rank())));
    merged.dedup_by_key(|endpoint| endpoint.address);
    merged
}

/// Sorts `endpoints`, which are of one family, by the clients that may use them.
pub fn categorize(endpoints: &[Endpoint]) -> Categories {
    let is_meant = preference(endpoints);
    let cluster = usable(endpoints.iter(), is_meant);
    let local = usable(endpoints.iter().filter(|endpoint| endpoint.local), |_| true);
    Categories { any: !cluster.is_empty(), cluster, local }
}

/// The ready ones that are meant for this node, or if no ready ones are there, those that serve while they terminate.
fn usable<'a>(
    endpoints: impl Iterator<Item = &'a Endpoint> + Clone,
    is_meant: fn(&Endpoint) -> bool,
) -> Vec<BackendAddress> {
    let ready = endpoints.clone().filter(|endpoint| endpoint.ready && is_meant(endpoint));
    let ready: Vec<BackendAddress> = ready.map(|endpoint| endpoint.address).collect();
    if !ready.is_empty() {
        return ready;
    }
    endpoints.filter(|endpoint| endpoint.drains()).map(|endpoint| endpoint.address).collect()
}

/// Which ready endpoints to use: by node, or by zone, if every ready one has such a hint and one is meant for us.
fn preference(endpoints: &[Endpoint]) -> fn(&Endpoint) -> bool {
    let hinted = |hint: fn(&Endpoint) -> Hint| {
        let mut ready = endpoints.iter().filter(|endpoint| endpoint.ready).map(hint);
        ready.clone().all(|hint| hint != Hint::None) && ready.any(|hint| hint == Hint::Us)
    };
    if hinted(|endpoint| endpoint.for_nodes) {
        |endpoint| endpoint.for_nodes == Hint::Us
    } else if hinted(|endpoint| endpoint.for_zones) {
        |endpoint| endpoint.for_zones == Hint::Us
    } else {
        |_| true
    }
}

impl Viewer<'_> {
    fn sees(&self, listed: &SliceEndpoint, port: u16) -> Endpoint {
        let (zones, nodes) = match &listed.hints {
            Some(hints) => (&hints.zones[..], &hints.nodes[..]),
            None => Default::default(),
        };
        Endpoint {
            address: BackendAddress { ip: listed.address, port },
            ready: listed.ready,
            serving: listed.serving,
            terminating: listed.terminating,
            local: listed.node.as_deref() == Some(self.node),
            for_nodes: hint(nodes, Some(self.node)),
            for_zones: hint(zones, self.zone),
        }
    }
}

fn hint(named: &[Box<str>], us: Option<&str>) -> Hint {
    match named {
        [] => Hint::None,
        names if names.iter().any(|name| us == Some(name)) => Hint::Us,
        _ => Hint::Others,
    }
}

impl Endpoint {
    /// Whether it still serves while it terminates.
    fn drains(&self) -> bool {
        self.serving && self.terminating
    }

    /// How much it can do, for comparison. The last parts only make the outcome the same in any order.
    fn rank(&self) -> impl Ord {
        (!self.terminating, self.ready, self.serving, self.local, self.for_nodes, self.for_zones)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Protocol};

    const VIEWER: Viewer<'_> = Viewer { node: "a", zone: None };

    fn slice(name: &str, (ready, serving, terminating): (bool, bool, bool), node: &str) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("default", name),
            service: ObjectName::new("default", "web"),
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
            endpoints: vec![SliceEndpoint {
                address: "10.244.0.2".parse().expect("an address"),
                ready,
                serving,
                terminating,
                node: Some(node.into()),
                hints: None,
            }],
        }
    }

    /// What becomes of one address that two slices list, which must not depend on their order.
    fn merged(slices: &[EndpointSlice; 2]) -> Endpoint {
        let name = "http".into();
        let port = ServicePort { index: 0, name, protocol: Protocol::Tcp, port: 80, node_port: None };
        let outcomes =
            [[0, 1], [1, 0]].map(|order| merge(order.iter().map(|index| &slices[*index]), &port, VIEWER));
        assert_eq!(outcomes[0], outcomes[1]);
        assert_eq!(outcomes[0].len(), 1, "it counts once");
        outcomes[0][0]
    }

    #[test]
    fn an_endpoint_in_two_slices_counts_once_in_its_better_state_whatever_their_order() {
        let draining = (false, true, true);
        let endpoint = merged(&[slice("old", draining, "b"), slice("new", (true, true, false), "a")]);
        assert!(endpoint.ready && endpoint.local);
        let endpoint =
            merged(&[slice("old", (false, true, false), "a"), slice("new", (true, true, false), "a")]);
        assert!(endpoint.ready);
    }

    #[test]
    fn an_address_that_passed_to_a_new_pod_is_that_ones_even_before_it_is_ready() {
        let endpoint =
            merged(&[slice("old", (false, true, true), "a"), slice("new", (false, false, false), "b")]);
        assert!(!endpoint.drains() && !endpoint.local);
    }
}
