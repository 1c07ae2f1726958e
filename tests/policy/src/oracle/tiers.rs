//! What the ClusterNetworkPolicies of a tier say (policy.networking.k8s.io/v1alpha2).
//!
//! The types are the API's, as far as the interpreter reads them.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use super::network::is_between;
use super::selector::matches;
use super::{Bearer, Direction, Traffic};

/// More rules than these have no effect.
const RULES: usize = 25;

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ClusterNetworkPolicy {
    pub(super) metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Clone, Debug, Deserialize)]
struct Spec {
    tier: String,
    priority: i32,
    subject: Selected,
    #[serde(default)]
    ingress: Vec<Rule>,
    #[serde(default)]
    egress: Vec<Rule>,
}

/// Some pods: a subject or a peer.
#[derive(Clone, Debug, Deserialize)]
struct Selected {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPod>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespacedPod {
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

#[derive(Clone, Debug, Deserialize)]
struct Rule {
    action: String,
    #[serde(default)]
    from: Vec<Peer>,
    #[serde(default)]
    to: Vec<Peer>,
    #[serde(default)]
    protocols: Vec<Protocol>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    #[serde(flatten)]
    selected: Selected,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
    domain_names: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protocol {
    tcp: Option<PortMatch>,
    udp: Option<PortMatch>,
    sctp: Option<PortMatch>,
    destination_named_port: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMatch {
    destination_port: Option<Port>,
}

#[derive(Clone, Debug, Deserialize)]
struct Port {
    number: Option<i32>,
    range: Option<PortRange>,
}

#[derive(Clone, Debug, Deserialize)]
struct PortRange {
    start: i32,
    end: i32,
}

/// The policy; none if the value lacks what one must have.
pub(super) fn read(value: &Value) -> Option<ClusterNetworkPolicy> {
    serde_json::from_value(value.clone()).ok()
}

/// What a tier decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Accept,
    Deny,
    /// A rule leaves it to the next tier, or none matches.
    Pass,
}

/// What the policies of `tier` say to the traffic: the first rule that matches decides, by priority, name and place.
pub(super) fn decide(policies: &[ClusterNetworkPolicy], tier: &str, traffic: &Traffic<'_>) -> Decision {
    let mut concerned: Vec<&ClusterNetworkPolicy> = policies
        .iter()
        .filter(|policy| policy.spec.tier == tier)
        .filter(|policy| policy.spec.subject.holds(&traffic.subject) == Some(true))
        .collect();
    concerned.sort_by_key(|policy| (policy.spec.priority, policy.metadata.name.clone()));
    for policy in concerned {
        let rules = match traffic.direction {
            Direction::Ingress => &policy.spec.ingress,
            Direction::Egress => &policy.spec.egress,
        };
        if let Some(decision) = rules.iter().take(RULES).find_map(|rule| rule.decide(traffic)) {
            return decision;
        }
    }
    Decision::Pass
}

impl Rule {
    /// What the rule decides, if it matches.
    fn decide(&self, traffic: &Traffic<'_>) -> Option<Decision> {
        let action = match self.action.as_str() {
            "Accept" => Decision::Accept,
            "Deny" => Decision::Deny,
            "Pass" => Decision::Pass,
            _ => return Some(Decision::Deny),
        };
        let Some(matches) = self.matches(traffic) else {
            // Fail closed: it accepts nothing, and otherwise denies everything.
            return (action != Decision::Accept).then_some(Decision::Deny);
        };
        matches.then_some(action)
    }

    /// Whether the rule matches; `None` if a part of it can't be understood, or if it is about nobody.
    fn matches(&self, traffic: &Traffic<'_>) -> Option<bool> {
        let peers = match traffic.direction {
            Direction::Ingress => &self.from,
            Direction::Egress => &self.to,
        };
        if peers.is_empty() {
            return None;
        }
        let mut is_peer = false;
        for peer in peers {
            is_peer |= peer.holds(traffic)?;
        }
        let mut is_covered = self.protocols.is_empty();
        for protocol in &self.protocols {
            is_covered |= protocol.covers(traffic)?;
        }
        Some(is_peer && is_covered)
    }
}

impl Selected {
    /// Whether the pod is one of these; `None` if they can't be understood.
    fn holds(&self, bearer: &Bearer<'_>) -> Option<bool> {
        match (&self.namespaces, &self.pods) {
            (Some(selector), None) => bearer.is_in_namespace(selector),
            (None, Some(pods)) => {
                let is_pod = matches(&pods.pod_selector, &bearer.pod.metadata.labels)?;
                Some(bearer.is_in_namespace(&pods.namespace_selector)? && is_pod)
            }
            _ => None,
        }
    }

    fn is_understood(&self) -> bool {
        let is_understood = |selector: &LabelSelector| matches(selector, &None).is_some();
        match (&self.namespaces, &self.pods) {
            (Some(selector), None) => is_understood(selector),
            (None, Some(pods)) => {
                is_understood(&pods.namespace_selector) && is_understood(&pods.pod_selector)
            }
            _ => false,
        }
    }
}

impl Peer {
    /// Whether the traffic's peer is one of these; `None` if they can't be understood: names of domains never are, and
    /// ingress knows pods only.
    fn holds(&self, traffic: &Traffic<'_>) -> Option<bool> {
        let Self { selected, nodes, networks, domain_names } = self;
        let selects_pods = selected.namespaces.is_some() || selected.pods.is_some();
        let is_egress = traffic.direction == Direction::Egress;
        match (selects_pods, nodes, networks, domain_names) {
            (true, None, None, None) if selected.is_understood() => {
                Some(traffic.peer.pod.is_some_and(|bearer| selected.holds(&bearer) == Some(true)))
            }
            (false, Some(selector), None, None) if is_egress => {
                matches(selector, &None)?;
                let mut nodes = traffic.peer.nodes.iter();
                Some(nodes.any(|node| matches(selector, &node.metadata.labels) == Some(true)))
            }
            (false, None, Some(networks), None) if is_egress && !networks.is_empty() => {
                let networks: Result<Vec<IpNet>, _> = networks.iter().map(|text| text.parse()).collect();
                Some(networks.ok()?.iter().any(|network| network.contains(&traffic.peer.address)))
            }
            _ => None,
        }
    }
}

impl Protocol {
    /// Whether the traffic is of this protocol; `None` if it can't be understood.
    fn covers(&self, traffic: &Traffic<'_>) -> Option<bool> {
        let Self { tcp, udp, sctp, destination_named_port } = self;
        let (name, ports) = match (tcp, udp, sctp, destination_named_port) {
            (Some(ports), None, None, None) => ("TCP", ports),
            (None, Some(ports), None, None) => ("UDP", ports),
            (None, None, Some(ports), None) => ("SCTP", ports),
            (None, None, None, Some(name)) => return Some(traffic.is_named(name)),
            _ => return None,
        };
        let (first, last) = match &ports.destination_port {
            None => (1, 65_535),
            Some(Port { number: Some(number), range: None }) => (*number, *number),
            Some(Port { number: None, range: Some(range) }) => (range.start, range.end),
            Some(_) => return None,
        };
        let is_port = is_between(first, last, traffic.port)?;
        Some(is_port && super::number(name) == Some(traffic.protocol))
    }
}
