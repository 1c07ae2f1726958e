//! Which endpoints of a Service port its clients may use.
//!
//! Pure; called by [`crate::frontends`]. The rules are those of kube-proxy's CategorizeEndpoints: ready
//! endpoints, or if there are none, those that still serve while they terminate, decided separately for
//! the whole cluster and for this node.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::model::{EndpointSlice, ServicePort, SlicePort, socket_label};

/// An endpoint of a Service port, merged from every slice that lists it.
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

/// The endpoints that `slices` list for `port`, by address; an address listed twice counts once.
///
/// While an endpoint moves from one slice to another both may list it, in different states: the state in
/// which it can do more then holds, whatever the order of the slices.
pub fn merge<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    node_name: &str,
) -> Vec<Endpoint> {
    let mut merged = BTreeMap::new();
    for slice in slices {
        let answers = |listed: &&SlicePort| listed.name == port.name && listed.protocol == port.protocol;
        for number in slice.ports.iter().filter(answers).map(|listed| listed.port) {
            for listed in &slice.endpoints {
                let address = BackendAddress { ip: listed.address, port: number };
                let endpoint = Endpoint {
                    address,
                    ready: listed.ready,
                    serving: listed.serving,
                    terminating: listed.terminating,
                    local: listed.node.as_deref() == Some(node_name),
                };
                merged
                    .entry(address)
                    .and_modify(|known| *known = better(*known, endpoint))
                    .or_insert(endpoint);
            }
        }
    }
    merged.into_values().collect()
}

/// Sorts `endpoints`, which are of one family, by the clients that may use them.
pub fn categorize(endpoints: &[Endpoint]) -> Categories {
    let cluster = usable(endpoints.iter());
    let local = usable(endpoints.iter().filter(|endpoint| endpoint.local));
    Categories { any: !cluster.is_empty(), cluster, local }
}

/// The ready ones, or if there are none, those that serve while they terminate.
fn usable<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> Vec<BackendAddress> {
    let ready: Vec<BackendAddress> =
        endpoints.clone().filter(|endpoint| endpoint.ready).map(|endpoint| endpoint.address).collect();
    if !ready.is_empty() {
        return ready;
    }
    endpoints.filter(|endpoint| endpoint.drains()).map(|endpoint| endpoint.address).collect()
}

impl Endpoint {
    /// Whether it still serves while it terminates.
    fn drains(&self) -> bool {
        self.serving && self.terminating
    }

    /// How much it can do, for comparison.
    fn rank(&self) -> (bool, bool, bool) {
        (self.ready, self.drains(), self.serving)
    }
}

fn better(a: Endpoint, b: Endpoint) -> Endpoint {
    let chosen = if b.rank() > a.rank() { b } else { a };
    Endpoint { local: a.local || b.local, ..chosen }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Protocol, SliceEndpoint};

    fn address(number: &str) -> BackendAddress {
        let ip = format!("10.244.0.{number}").parse().expect("an address");
        BackendAddress { ip, port: 80 }
    }

    fn endpoint(text: &str) -> Endpoint {
        let [number, state, place] = text.split(':').collect::<Vec<_>>()[..] else { panic!("{text:?}") };
        let (ready, serving, terminating) = match state {
            "ready" => (true, true, false),
            "unready" => (false, false, false),
            "draining" => (false, true, true),
            "gone" => (false, false, true),
            "unserving-ready" => (true, false, false),
            "ready-terminating" => (true, true, true),
            _ => panic!("{text:?}"),
        };
        Endpoint { address: address(number), ready, serving, terminating, local: place == "local" }
    }

    #[test]
    fn each_kind_of_client_gets_the_endpoints_that_the_table_says() {
        let table = include_str!("data/endpoints.txt");
        let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(rows.len() > 10);
        for row in rows {
            let [case, endpoints, cluster, local, any] =
                row.split('|').map(str::trim).collect::<Vec<_>>()[..]
            else {
                panic!("{row:?} has not five columns")
            };
            let endpoints: Vec<Endpoint> = endpoints.split_whitespace().map(endpoint).collect();
            let addresses = |list: &str| list.split_whitespace().map(address).collect::<Vec<_>>();
            let expected =
                Categories { cluster: addresses(cluster), local: addresses(local), any: any == "yes" };
            assert_eq!(categorize(&endpoints), expected, "{case}");
        }
    }

    fn slice(name: &str, ready: bool, node: &str) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("default", name),
            service: ObjectName::new("default", "web"),
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
            endpoints: vec![SliceEndpoint {
                address: address("2").ip,
                ready,
                serving: true,
                terminating: !ready,
                node: Some(node.into()),
            }],
        }
    }

    #[test]
    fn an_endpoint_in_two_slices_counts_once_in_its_better_state_whatever_their_order() {
        let port =
            ServicePort { index: 0, name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let slices = [slice("old", false, "a"), slice("new", true, "b")];
        for order in [[0, 1], [1, 0]] {
            let merged = merge(order.iter().map(|index| &slices[*index]), &port, "a");
            let expected = Endpoint {
                address: address("2"),
                ready: true,
                serving: true,
                terminating: false,
                local: true,
            };
            assert_eq!(merged, [expected]);
        }
    }
}
