//! The interpreter: what becomes of a packet that begins a flow, read from the objects anew for each packet, by the
//! API's documentation and the project's statement of semantics.
//!
//! Nothing here is compiled, indexed or remembered, and nothing is taken from the policy engine.

mod network;
mod selector;
mod tiers;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use fairlead_abi::protocol;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Namespace, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use self::tiers::{ClusterNetworkPolicy, Decision};
use crate::case::{Endpoint, Probe};
use crate::cluster::Cluster;
use crate::world::NODE;

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It passes.
    Allowed,
    /// A local pod's policies drop it.
    Denied(Direction, Cause),
}

/// Whose policies have a say: those of the client for what it sends, those of the server for what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the server.
    Ingress,
    /// From the client.
    Egress,
}

/// Why a flow is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Nobody knows yet what the pod is.
    Unknown,
    /// A NetworkPolicy selects the pod, and none of those allows it.
    Network,
    /// The Admin tier denies it.
    Admin,
    /// The Baseline tier denies it.
    Baseline,
}

/// Reads as `+`, `e` or `i` for what NetworkPolicies deny on the client's or the server's side, followed by `A`, `B` or
/// `?` where it is the Admin tier, the Baseline tier or a pod that nobody knows.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Denied(direction, cause) = self else { return f.write_str("+") };
        f.write_str(if *direction == Direction::Egress { "e" } else { "i" })?;
        f.write_str(match cause {
            Cause::Unknown => "?",
            Cause::Network => "",
            Cause::Admin => "A",
            Cause::Baseline => "B",
        })
    }
}

/// Whether the value has all that a ClusterNetworkPolicy must have.
#[must_use]
pub fn can_read(cluster_policy: &Value) -> bool {
    tiers::read(cluster_policy).is_some()
}

/// The interpreter of one cluster.
#[derive(Clone, Debug)]
pub struct Oracle<'a> {
    cluster: &'a Cluster,
    cluster_policies: Vec<ClusterNetworkPolicy>,
}

/// One end of a flow.
#[derive(Clone, Debug)]
struct Party<'a> {
    address: IpAddr,
    /// The local pod that has the address.
    endpoint: Option<&'a Endpoint>,
    /// The Pod that has the address, if it can be selected.
    pod: Option<Bearer<'a>>,
    /// The Nodes that have it.
    nodes: Vec<&'a Node>,
    is_own_node: bool,
}

/// A Pod with its Namespace.
#[derive(Clone, Copy, Debug)]
struct Bearer<'a> {
    pod: &'a Pod,
    namespace: Option<&'a Namespace>,
}

/// A flow as one side's policies look at it.
#[derive(Clone, Debug)]
struct Traffic<'a> {
    direction: Direction,
    subject: Bearer<'a>,
    peer: &'a Party<'a>,
    protocol: u8,
    port: u16,
}

impl<'a> Oracle<'a> {
    /// The interpreter of this cluster.
    #[must_use]
    pub fn new(cluster: &'a Cluster) -> Self {
        let policies = cluster.cluster_policies.values();
        let policies = policies.filter_map(tiers::read);
        Self { cluster, cluster_policies: policies.collect() }
    }

    /// What becomes of the flow that this packet begins.
    #[must_use]
    pub fn judge(&self, probe: &Probe) -> Verdict {
        let denied = |direction| Some(Verdict::Denied(direction, self.side(direction, probe)?));
        denied(Direction::Egress).or_else(|| denied(Direction::Ingress)).unwrap_or(Verdict::Allowed)
    }

    /// Why one side's policies deny the flow that this packet begins, if they do.
    #[must_use]
    pub fn side(&self, direction: Direction, probe: &Probe) -> Option<Cause> {
        self.side_among(self, direction, probe)
    }

    /// As [`Self::side`], where the other side is whom `others` takes it for.
    #[must_use]
    pub fn side_among(&self, others: &Oracle<'_>, direction: Direction, probe: &Probe) -> Option<Cause> {
        let (client, server) = (probe.from.ip(), probe.to.ip());
        let (subject, peer) = match direction {
            Direction::Ingress => (server, client),
            Direction::Egress => (client, server),
        };
        self.denies(direction, &self.party(subject), &others.party(peer), probe)
    }

    /// Why the policies of the party that is `subject` in this direction deny the flow, if they do.
    fn denies(
        &self,
        direction: Direction,
        subject: &Party<'_>,
        peer: &Party<'_>,
        probe: &Probe,
    ) -> Option<Cause> {
        let bearer = match self.standing(subject.endpoint?) {
            Standing::Unknown => return Some(Cause::Unknown),
            Standing::Free => return None,
            Standing::Subject(bearer) => bearer,
        };
        let (protocol, port) = (probe.protocol(), probe.port());
        let traffic = Traffic { direction, subject: bearer, peer, protocol, port };
        let cause = self.decide(&traffic)?;
        let is_itself = subject.endpoint == peer.endpoint;
        let is_exempt = cause == Cause::Network && (is_itself || peer.is_own_node);
        (!is_exempt).then_some(cause)
    }

    /// The tiers in their order.
    fn decide(&self, traffic: &Traffic<'_>) -> Option<Cause> {
        match tiers::decide(&self.cluster_policies, "Admin", traffic) {
            Decision::Accept => return None,
            Decision::Deny => return Some(Cause::Admin),
            Decision::Pass => {}
        }
        let policies = self.cluster.network_policies.values();
        let isolating: Vec<_> = policies.filter(|policy| network::isolates(policy, traffic)).collect();
        if !isolating.is_empty() {
            let is_allowed = isolating.iter().any(|policy| network::allows(policy, traffic));
            return (!is_allowed).then_some(Cause::Network);
        }
        match tiers::decide(&self.cluster_policies, "Baseline", traffic) {
            Decision::Deny => Some(Cause::Baseline),
            Decision::Accept | Decision::Pass => None,
        }
    }

    /// Who has an address: the local pod that was given it, whatever Pods say; else the Pods that say so.
    fn party(&self, address: IpAddr) -> Party<'_> {
        let endpoint = self.cluster.endpoint_at(address);
        let pods = match endpoint {
            Some(endpoint) => self.cluster.pod_of(endpoint).into_iter().collect::<Vec<_>>(),
            None => self.cluster.pods.values().filter(|pod| addresses(pod).contains(&address)).collect(),
        };
        let has = |node: &&Node| {
            let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
            let mut listed = listed.filter(|entry| ["InternalIP", "ExternalIP"].contains(&&*entry.type_));
            listed.any(|entry| entry.address.parse() == Ok(address))
        };
        let nodes: Vec<&Node> = self.cluster.nodes.values().filter(has).collect();
        let is_own = |node: &&Node| node.metadata.name.as_deref() == Some(NODE);
        let is_own_node = self.cluster.addresses.contains(&address) || nodes.iter().any(is_own);
        // Of several that say so it is one that stays, the newest.
        let pods = pods.into_iter().filter(|pod| is_selectable(pod));
        let pod = pods.max_by_key(|pod| (pod.metadata.deletion_timestamp.is_none(), created(pod)));
        let pod = pod.map(|pod| self.bearer(pod));
        Party { address, endpoint, pod, nodes, is_own_node }
    }

    fn bearer(&self, pod: &'a Pod) -> Bearer<'a> {
        let name = pod.metadata.namespace.clone().unwrap_or_default();
        Bearer { pod, namespace: self.cluster.namespaces.get(&(String::new(), name)) }
    }

    fn standing(&self, endpoint: &Endpoint) -> Standing<'_> {
        if endpoint.name.is_empty() {
            return Standing::Free;
        }
        match self.cluster.known.get(&endpoint.index).map(|pod| self.bearer(pod)) {
            None | Some(Bearer { namespace: None, .. }) => Standing::Unknown,
            Some(bearer) if is_on_host(bearer.pod) => Standing::Free,
            Some(bearer) => Standing::Subject(bearer),
        }
    }
}

/// What a local pod is to policies.
enum Standing<'a> {
    /// Nobody knows.
    Unknown,
    /// Nothing that can be selected.
    Free,
    /// A subject of policies that select it.
    Subject(Bearer<'a>),
}

impl Bearer<'_> {
    /// Whether its Namespace matches; `None` if the selector can't be understood.
    fn is_in_namespace(&self, selector: &LabelSelector) -> Option<bool> {
        let understood = selector::matches(selector, &None).is_some();
        let matches = |namespace: &Namespace| selector::matches(selector, &namespace.metadata.labels);
        if understood { Some(self.namespace.is_some_and(|of| matches(of) == Some(true))) } else { None }
    }

    /// The ports of its containers, and of those init containers that go on running beside them.
    fn ports(&self) -> impl Iterator<Item = &ContainerPort> {
        let runs_on = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
        let containers = self.pod.spec.iter().flat_map(move |spec| {
            spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(runs_on))
        });
        containers.flat_map(|container| container.ports.iter().flatten())
    }
}

impl Traffic<'_> {
    /// Whether the traffic goes to a port of the destination's that has this name, and the traffic's protocol.
    fn is_named(&self, name: &str) -> bool {
        let destination = match self.direction {
            Direction::Ingress => std::slice::from_ref(&self.subject),
            Direction::Egress => self.peer.pod.as_slice(),
        };
        destination.iter().flat_map(Bearer::ports).any(|port| {
            let protocol = number(port.protocol.as_deref().unwrap_or("TCP"));
            port.name.as_deref() == Some(name)
                && protocol == Some(self.protocol)
                && port.container_port == i32::from(self.port)
        })
    }
}

/// Whether the Pod may be a peer: those of the host's network are their node to others, and those that are over are
/// nothing. As a subject one that is over stays what it was while it has its interface: its processes may linger.
fn is_selectable(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !is_on_host(pod) && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_on_host(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// When the Pod was made, in seconds of the Unix epoch.
fn created(pod: &Pod) -> i64 {
    pod.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second())
}

/// The addresses that a Pod says it has.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.iter();
    let listed = status.clone().flat_map(|status| status.pod_ips.iter().flatten()).map(|entry| &entry.ip);
    let first = status.filter_map(|status| status.pod_ip.as_ref());
    listed.chain(first).filter_map(|text| text.parse().ok()).collect()
}

/// The number of a protocol that policies name.
fn number(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(protocol::TCP),
        "UDP" => Some(protocol::UDP),
        "SCTP" => Some(protocol::SCTP),
        _ => None,
    }
}
