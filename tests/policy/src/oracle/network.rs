//! What one NetworkPolicy says (networking.k8s.io/v1).

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::selector::matches;
use super::{Bearer, Direction, Traffic};

/// Whether the policy isolates the traffic's subject in the traffic's direction.
pub(super) fn isolates(policy: &NetworkPolicy, traffic: &Traffic<'_>) -> bool {
    let own = policy.metadata.namespace == traffic.subject.pod.metadata.namespace;
    // A selector that nobody understands may mean any pod.
    own && concerns(policy, traffic.direction) && selects(policy, &traffic.subject).unwrap_or(true)
}

/// Whether a rule of the policy allows the traffic. What can't be understood allows nothing.
pub(super) fn allows(policy: &NetworkPolicy, traffic: &Traffic<'_>) -> bool {
    if selects(policy, &traffic.subject) != Some(true) {
        return false;
    }
    let allows = |peers: &Option<Vec<NetworkPolicyPeer>>, ports: &Option<Vec<NetworkPolicyPort>>| {
        let (peers, ports) = (peers.as_deref().unwrap_or_default(), ports.as_deref().unwrap_or_default());
        let is_peer = peers.is_empty() || peers.iter().any(|peer| is_of(peer, policy, traffic));
        is_peer && (ports.is_empty() || ports.iter().any(|port| covers(port, traffic)))
    };
    let spec = policy.spec.as_ref();
    match traffic.direction {
        Direction::Ingress => {
            let mut rules = spec.iter().flat_map(|spec| spec.ingress.iter().flatten());
            rules.any(|rule| allows(&rule.from, &rule.ports))
        }
        Direction::Egress => {
            let mut rules = spec.iter().flat_map(|spec| spec.egress.iter().flatten());
            rules.any(|rule| allows(&rule.to, &rule.ports))
        }
    }
}

fn selects(policy: &NetworkPolicy, subject: &Bearer<'_>) -> Option<bool> {
    match policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref()) {
        None => Some(true),
        Some(selector) => matches(selector, &subject.pod.metadata.labels),
    }
}

/// Whether the policy has to do with this direction. If it does not say, or nothing that is known: always with
/// ingress, with egress if it has rules for it.
fn concerns(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(NetworkPolicySpec { policy_types, egress, .. }) = &policy.spec else {
        return direction == Direction::Ingress;
    };
    let names = |wanted: &str| policy_types.iter().flatten().any(|name| name == wanted);
    match direction {
        Direction::Ingress => names("Ingress") || !names("Egress"),
        Direction::Egress if names("Ingress") || names("Egress") => names("Egress"),
        Direction::Egress => egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

fn is_of(peer: &NetworkPolicyPeer, policy: &NetworkPolicy, traffic: &Traffic<'_>) -> bool {
    match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
        (Some(block), None, None) => is_in(block, traffic.peer.address),
        (None, None, None) | (Some(_), _, _) => false,
        (None, namespaces, pods) => traffic.peer.pod.is_some_and(|bearer| {
            let in_namespace = match namespaces {
                None => bearer.pod.metadata.namespace == policy.metadata.namespace,
                Some(selector) => bearer.is_in_namespace(selector) == Some(true),
            };
            let is_pod = pods.as_ref().map_or(Some(true), |pods| matches(pods, &bearer.pod.metadata.labels));
            in_namespace && is_pod == Some(true)
        }),
    }
}

/// Whether the address is in the block; no block with an exception that is not within it has any.
fn is_in(block: &IPBlock, address: IpAddr) -> bool {
    let Ok(cidr) = block.cidr.parse::<IpNet>() else { return false };
    let excepted = block.except.iter().flatten().map(|text| text.parse::<IpNet>());
    let Ok(excepted) = excepted.collect::<Result<Vec<_>, _>>() else { return false };
    excepted.iter().all(|range| cidr.contains(&range.trunc()))
        && cidr.contains(&address)
        && !excepted.iter().any(|range| range.contains(&address))
}

fn covers(port: &NetworkPolicyPort, traffic: &Traffic<'_>) -> bool {
    let Some(protocol) = super::number(port.protocol.as_deref().unwrap_or("TCP")) else { return false };
    if protocol != traffic.protocol {
        return false;
    }
    match (&port.port, port.end_port) {
        (None, None) => true,
        (Some(IntOrString::Int(first)), None) => is_between(*first, *first, traffic.port) == Some(true),
        (Some(IntOrString::Int(first)), Some(last)) => is_between(*first, last, traffic.port) == Some(true),
        (Some(IntOrString::String(name)), None) => traffic.is_named(name),
        (None | Some(IntOrString::String(_)), Some(_)) => false,
    }
}

/// Whether the port is in a range; `None` if its ends are no ports, or in the wrong order.
pub(super) fn is_between(first: i32, last: i32, port: u16) -> Option<bool> {
    let is_range = 1 <= first && first <= last && last <= 65_535;
    is_range.then(|| (first..=last).contains(&i32::from(port)))
}
