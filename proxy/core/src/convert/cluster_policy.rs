//! ClusterNetworkPolicies. A rule of which a part can't be understood fails closed, as the API asks of peers of
//! unknown kinds: if it accepts it matches nothing, else it denies everything.

use super::network_policy::checked_selector;
use super::{Notes, port_number, range};
use crate::model;
use crate::policy::api::{self, ClusterNetworkPolicy};
use crate::policy::model::{Action, ClusterPolicy, Direction, Peer, PodPeer, Ports, Rule, Scope, Tier};
use crate::policy::selector::Selector;

/// How many rules a direction may have.
const MAX_RULES: usize = 25;
/// The highest priority number.
const MAX_PRIORITY: i32 = 1000;

pub(super) fn convert(object: &ClusterNetworkPolicy, notes: &mut Notes) -> Option<ClusterPolicy> {
    let Some(name) = object.metadata.name.as_deref() else {
        notes.note("metadata.name", "missing");
        return None;
    };
    let spec = &object.spec;
    let tier = match spec.tier.as_str() {
        "Admin" => Tier::Admin,
        "Baseline" => Tier::Baseline,
        other => {
            notes
                .note("spec.tier", format!("{other:?} is neither Admin nor Baseline: the policy is skipped"));
            return None;
        }
    };
    if !(0..=MAX_PRIORITY).contains(&spec.priority) {
        notes.note("spec.priority", format!("{} is not between 0 and {MAX_PRIORITY}", spec.priority));
    }
    let ingress = spec.ingress.iter().map(|api::IngressRule { name, action, from, protocols }| Given {
        direction: Direction::Ingress,
        name,
        action,
        peers: from,
        protocols,
    });
    let egress = spec.egress.iter().map(|api::EgressRule { name, action, to, protocols }| Given {
        direction: Direction::Egress,
        name,
        action,
        peers: to,
        protocols,
    });
    Some(ClusterPolicy {
        name: name.into(),
        tier,
        priority: spec.priority,
        subject: subject(&spec.subject, notes),
        ingress: rules(ingress, notes).into(),
        egress: rules(egress, notes).into(),
    })
}

/// A rule as the object has it.
struct Given<'a> {
    direction: Direction,
    name: &'a str,
    action: &'a str,
    peers: &'a [api::Peer],
    protocols: &'a [api::Protocol],
}

/// A subject that can't be understood selects no pod.
fn subject(given: &api::Subject, notes: &mut Notes) -> Option<PodPeer> {
    match (&given.namespaces, &given.pods) {
        (Some(namespaces), None) => {
            let scope = Scope::Matching(checked_selector(namespaces, "spec.subject.namespaces", notes)?);
            Some(PodPeer { scope, pods: Selector::default() })
        }
        (None, Some(pods)) => namespaced_pod(pods, "spec.subject.pods", notes),
        _ => {
            notes.note("spec.subject", "has not exactly one of namespaces and pods: it selects no pod");
            None
        }
    }
}

fn namespaced_pod(given: &api::NamespacedPod, field: &str, notes: &mut Notes) -> Option<PodPeer> {
    let namespaces =
        checked_selector(&given.namespace_selector, &format!("{field}.namespaceSelector"), notes);
    let pods = checked_selector(&given.pod_selector, &format!("{field}.podSelector"), notes);
    Some(PodPeer { scope: Scope::Matching(namespaces?), pods: pods? })
}

fn rules<'a>(given: impl ExactSizeIterator<Item = Given<'a>>, notes: &mut Notes) -> Vec<Rule> {
    let count = given.len();
    let mut rules = Vec::with_capacity(count.min(MAX_RULES));
    for (index, given) in given.enumerate() {
        let field = format!("spec.{}[{index}]", given.direction);
        if index == MAX_RULES {
            notes.note(field, format!("{count} rules are more than {MAX_RULES}: the rest is left out"));
            break;
        }
        rules.push(rule(index, &given, &field, notes));
    }
    rules
}

fn rule(index: usize, given: &Given<'_>, field: &str, notes: &mut Notes) -> Rule {
    let action = match given.action {
        "Accept" => Some(Action::Accept),
        "Deny" => Some(Action::Deny),
        "Pass" => Some(Action::Pass),
        other => {
            notes.note(format!("{field}.action"), format!("{other:?} is none of Accept, Deny, Pass"));
            None
        }
    };
    let list = if given.direction == Direction::Ingress { "from" } else { "to" };
    if given.peers.is_empty() {
        notes.note(format!("{field}.{list}"), "is empty");
    }
    let mut peers = Vec::new();
    let mut understood = action.is_some() && !given.peers.is_empty();
    for (place, peer) in given.peers.iter().enumerate() {
        let converted = convert_peer(peer, given.direction, &format!("{field}.{list}[{place}]"), notes);
        understood &= converted.is_some();
        peers.extend(converted.into_iter().flatten());
    }
    let mut ports = Vec::new();
    for (place, protocol) in given.protocols.iter().enumerate() {
        let converted = convert_protocol(protocol, &format!("{field}.protocols[{place}]"), notes);
        understood &= converted.is_some();
        ports.extend(converted);
    }
    let name = given.name.into();
    match action {
        Some(action) if understood => {
            let ports = (!ports.is_empty()).then(|| ports.into());
            Rule { index, name, action, peers: Some(peers.into()), ports }
        }
        Some(Action::Accept) => {
            notes.note(field, "is not understood: it accepts nothing");
            Rule { index, name, action: Action::Accept, peers: Some(Box::default()), ports: None }
        }
        _ => {
            notes.note(field, "is not understood: it denies everything");
            Rule { index, name, action: Action::Deny, peers: None, ports: None }
        }
    }
}

/// The peers that `given` stands for: networks are one each. None if it can't be understood.
fn convert_peer(
    given: &api::Peer,
    direction: Direction,
    field: &str,
    notes: &mut Notes,
) -> Option<Vec<Peer>> {
    let one = |peer: Option<Peer>| peer.map(|peer| vec![peer]);
    match given {
        api::Peer {
            namespaces: Some(selector),
            pods: None,
            nodes: None,
            networks: None,
            domain_names: None,
        } => {
            let scope =
                checked_selector(selector, &format!("{field}.namespaces"), notes).map(Scope::Matching);
            one(scope.map(|scope| Peer::Pods(PodPeer { scope, pods: Selector::default() })))
        }
        api::Peer { namespaces: None, pods: Some(pods), nodes: None, networks: None, domain_names: None } => {
            one(namespaced_pod(pods, &format!("{field}.pods"), notes).map(Peer::Pods))
        }
        api::Peer {
            namespaces: None,
            pods: None,
            nodes: Some(selector),
            networks: None,
            domain_names: None,
        } if direction == Direction::Egress => {
            one(checked_selector(selector, &format!("{field}.nodes"), notes).map(Peer::Nodes))
        }
        api::Peer {
            namespaces: None,
            pods: None,
            nodes: None,
            networks: Some(listed),
            domain_names: None,
        } if direction == Direction::Egress && !listed.is_empty() => {
            let network = |(index, text): (usize, &String)| {
                let cidr = notes.check(format!("{field}.networks[{index}]"), range(text))?;
                Some(Peer::Network { cidr, except: Box::default() })
            };
            listed.iter().enumerate().map(network).collect()
        }
        api::Peer { namespaces: None, pods: None, nodes: None, networks: None, domain_names: Some(_) } => {
            notes.note(format!("{field}.domainNames"), "is not supported");
            None
        }
        _ => {
            notes.note(field, "is of a kind that is not known");
            None
        }
    }
}

fn convert_protocol(given: &api::Protocol, field: &str, notes: &mut Notes) -> Option<Ports> {
    use model::Protocol::{Sctp, Tcp, Udp};
    match given {
        api::Protocol { tcp: Some(ports), udp: None, sctp: None, destination_named_port: None } => {
            convert_ports(Tcp, ports, &format!("{field}.tcp"), notes)
        }
        api::Protocol { tcp: None, udp: Some(ports), sctp: None, destination_named_port: None } => {
            convert_ports(Udp, ports, &format!("{field}.udp"), notes)
        }
        api::Protocol { tcp: None, udp: None, sctp: Some(ports), destination_named_port: None } => {
            convert_ports(Sctp, ports, &format!("{field}.sctp"), notes)
        }
        api::Protocol { tcp: None, udp: None, sctp: None, destination_named_port: Some(name) }
            if !name.is_empty() =>
        {
            Some(Ports::Named { name: name.as_str().into(), protocol: None })
        }
        _ => {
            notes.note(field, "is of a kind that is not known");
            None
        }
    }
}

fn convert_ports(
    protocol: model::Protocol,
    given: &api::ProtocolPorts,
    field: &str,
    notes: &mut Notes,
) -> Option<Ports> {
    let Some(port) = &given.destination_port else { return Some(Ports::all(protocol)) };
    let field = format!("{field}.destinationPort");
    match port {
        api::Port { number: Some(number), range: None } => {
            let port = notes.check(format!("{field}.number"), port_number(*number))?;
            Some(Ports::Range { protocol, first: port, last: port })
        }
        api::Port { number: None, range: Some(api::PortRange { start, end }) } => {
            let first = notes.check(format!("{field}.range.start"), port_number(*start))?;
            let last = port_number(*end).and_then(|last| match last >= first {
                true => Ok(last),
                false => Err(format!("{last} is less than {first}")),
            });
            Some(Ports::Range { protocol, first, last: notes.check(format!("{field}.range.end"), last)? })
        }
        _ => {
            notes.note(field, "has not exactly one of number and range");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert;
    use serde_json::{Value, from_value, json};

    fn policy(spec: Value) -> (Option<ClusterPolicy>, Vec<String>) {
        let object = json!({ "metadata": { "name": "guard" }, "spec": spec });
        let converted = convert::cluster_policy(&from_value(object).expect("a ClusterNetworkPolicy"));
        (
            converted.value,
            converted.problems.iter().map(|one| format!("{}: {}", one.field, one.message)).collect(),
        )
    }

    fn egress(rule: Value) -> (Rule, Vec<String>) {
        let spec =
            json!({ "tier": "Admin", "priority": 1, "subject": { "namespaces": {} }, "egress": [rule] });
        let (policy, problems) = policy(spec);
        (policy.expect("a policy").egress[0].clone(), problems)
    }

    #[test]
    fn a_rule_names_peers_and_ports() {
        let (rule, problems) = egress(json!({
            "name": "out", "action": "Pass",
            "to": [
                { "namespaces": { "matchLabels": { "team": "a" } } },
                { "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": "web" } } } },
                { "nodes": {} }, { "networks": ["10.0.0.0/8", "fd00::/8"] },
            ],
            "protocols": [
                { "tcp": { "destinationPort": { "number": 80 } } }, { "udp": {} },
                { "sctp": { "destinationPort": { "range": { "start": 1, "end": 9 } } } },
                { "destinationNamedPort": "http" },
            ],
        }));
        let peers: Vec<String> = rule.peers.iter().flatten().map(Peer::to_string).collect();
        assert_eq!(
            peers,
            [
                "namespaces team=a, pods any",
                "namespaces any, pods app=web",
                "nodes any",
                "10.0.0.0/8",
                "fd00::/8",
            ]
        );
        let ports: Vec<String> = rule.ports.iter().flatten().map(Ports::to_string).collect();
        assert_eq!(ports, ["tcp/80", "udp", "sctp/1-9", "http"]);
        assert_eq!((&*rule.name, rule.action, problems.len()), ("out", Action::Pass, 0));
    }

    #[test]
    fn a_rule_with_a_peer_of_unknown_kind_fails_closed() {
        for peer in [json!({}), json!({ "services": {} }), json!({ "domainNames": ["example.com"] })] {
            let rule = |action: &str| {
                egress(json!({ "action": action, "to": [peer, { "networks": ["10.0.0.0/8"] }] })).0
            };
            let accept = rule("Accept");
            assert_eq!((accept.action, accept.peers), (Action::Accept, Some(Box::default())), "{peer}");
            for action in ["Deny", "Pass"] {
                let rule = rule(action);
                assert_eq!((rule.action, rule.peers, rule.ports), (Action::Deny, None, None), "{peer}");
            }
        }
        let (_, problems) = egress(json!({ "action": "Pass", "to": [{}] }));
        assert_eq!(
            problems,
            [
                "spec.egress[0].to[0]: is of a kind that is not known",
                "spec.egress[0]: is not understood: it denies everything",
            ]
        );
    }

    #[test]
    fn rules_beyond_the_twenty_fifth_are_left_out() {
        let rules: Vec<Value> =
            (0..30).map(|_| json!({ "action": "Deny", "from": [{ "namespaces": {} }] })).collect();
        let (policy, problems) = policy(json!({
            "tier": "Baseline", "priority": 0, "subject": { "namespaces": {} }, "ingress": rules,
        }));
        assert_eq!(policy.expect("a policy").ingress.len(), 25);
        assert_eq!(problems, ["spec.ingress[25]: 30 rules are more than 25: the rest is left out"]);
    }

    #[test]
    fn a_subject_that_is_not_understood_selects_no_pod() {
        for subject in [json!({}), json!({ "nodes": {} })] {
            let (policy, problems) = policy(json!({ "tier": "Admin", "priority": 1, "subject": subject }));
            assert_eq!(policy.expect("a policy").subject, None);
            assert_eq!(problems.len(), 1);
        }
        let (none, problems) = policy(json!({ "tier": "Middle", "priority": 1, "subject": {} }));
        assert_eq!((none, problems.len()), (None, 1));
    }
}
