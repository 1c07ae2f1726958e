//! NetworkPolicies. A part that can't be understood matches nothing; the policy isolates all the same.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Notes, object_name, port_number, protocol, range, selector};
use crate::policy::model::{Action, NetworkPolicy, Peer, PodPeer, Ports, Rule, Scope};
use crate::policy::selector::Selector;

pub(super) fn convert(object: &networking::NetworkPolicy, notes: &mut Notes) -> Option<NetworkPolicy> {
    let name = object_name(&object.metadata, notes)?;
    let default = networking::NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default);
    let (ingress, egress) = directions(spec, notes);
    let pods = spec
        .pod_selector
        .as_ref()
        .map_or(Some(Selector::default()), |pods| checked_selector(pods, "spec.podSelector", notes));
    let Some(pods) = pods else {
        let nothing = || Some(Arc::from([]));
        return Some(NetworkPolicy {
            name,
            pods: Selector::default(),
            ingress: ingress.then(nothing).flatten(),
            egress: egress.then(nothing).flatten(),
        });
    };
    let namespace = &name.namespace;
    let ingress = ingress.then(|| {
        let rules = spec.ingress.iter().flatten().enumerate().map(|(index, rule)| {
            let field = format!("spec.ingress[{index}]");
            let peers = (rule.from.as_deref(), "from");
            convert_rule(index, &field, namespace, peers, rule.ports.as_deref(), notes)
        });
        rules.collect()
    });
    let egress = egress.then(|| {
        let rules = spec.egress.iter().flatten().enumerate().map(|(index, rule)| {
            let field = format!("spec.egress[{index}]");
            let peers = (rule.to.as_deref(), "to");
            convert_rule(index, &field, namespace, peers, rule.ports.as_deref(), notes)
        });
        rules.collect()
    });
    Some(NetworkPolicy { name, pods, ingress, egress })
}

/// Whether the policy is about ingress and egress: where it does not say, always and if it has such rules.
fn directions(spec: &networking::NetworkPolicySpec, notes: &mut Notes) -> (bool, bool) {
    let listed = spec.policy_types.as_deref().unwrap_or_default();
    let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    if listed.is_empty() {
        return (true, has_egress);
    }
    for (index, kind) in
        listed.iter().enumerate().filter(|(_, kind)| !matches!(kind.as_str(), "Ingress" | "Egress"))
    {
        notes.note(format!("spec.policyTypes[{index}]"), format!("{kind:?} is neither Ingress nor Egress"));
    }
    let lists = |wanted: &str| listed.iter().any(|kind| kind == wanted);
    match (lists("Ingress"), lists("Egress")) {
        // Nothing in it is understood.
        (false, false) => (true, has_egress),
        both => both,
    }
}

fn convert_rule(
    index: usize,
    field: &str,
    namespace: &Arc<str>,
    (peers, peers_field): (Option<&[networking::NetworkPolicyPeer]>, &str),
    ports: Option<&[networking::NetworkPolicyPort]>,
    notes: &mut Notes,
) -> Rule {
    let peers = peers.filter(|peers| !peers.is_empty()).map(|peers| {
        let peers = peers.iter().enumerate().filter_map(|(place, peer)| {
            convert_peer(peer, &format!("{field}.{peers_field}[{place}]"), namespace, notes)
        });
        peers.collect()
    });
    let ports = ports.filter(|ports| !ports.is_empty()).map(|ports| {
        let ports = ports
            .iter()
            .enumerate()
            .filter_map(|(place, port)| convert_port(port, &format!("{field}.ports[{place}]"), notes));
        ports.collect()
    });
    Rule { index, name: "".into(), action: Action::Accept, peers, ports }
}

fn convert_peer(
    peer: &networking::NetworkPolicyPeer,
    field: &str,
    namespace: &Arc<str>,
    notes: &mut Notes,
) -> Option<Peer> {
    let networking::NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
    if let Some(block) = ip_block {
        if namespace_selector.is_some() || pod_selector.is_some() {
            notes.note(field, "has an ipBlock and a selector: it matches nothing");
            return None;
        }
        return convert_block(block, &format!("{field}.ipBlock"), notes);
    }
    if namespace_selector.is_none() && pod_selector.is_none() {
        notes.note(field, "has neither selector nor ipBlock: it matches nothing");
        return None;
    }
    let scope = match namespace_selector {
        None => Scope::One(namespace.clone()),
        Some(selector) => {
            Scope::Matching(checked_selector(selector, &format!("{field}.namespaceSelector"), notes)?)
        }
    };
    let pods = match pod_selector {
        None => Selector::default(),
        Some(selector) => checked_selector(selector, &format!("{field}.podSelector"), notes)?,
    };
    Some(Peer::Pods(PodPeer { scope, pods }))
}

/// A block of which an exception can't be understood matches nothing: it would match too much.
fn convert_block(block: &networking::IPBlock, field: &str, notes: &mut Notes) -> Option<Peer> {
    let cidr = notes.check(format!("{field}.cidr"), range(&block.cidr))?;
    let mut except: Vec<IpNet> = Vec::new();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let inside = range(text).and_then(|part| match cidr.contains(&part) && cidr != part {
            true => Ok(part),
            false => Err(format!("{part} does not lie in {cidr}")),
        });
        except.push(notes.check(format!("{field}.except[{index}]"), inside)?);
    }
    except.sort();
    except.dedup();
    Some(Peer::Network { cidr, except: except.into() })
}

fn convert_port(port: &networking::NetworkPolicyPort, field: &str, notes: &mut Notes) -> Option<Ports> {
    let protocol = notes.check(format!("{field}.protocol"), protocol(&port.protocol))?;
    let number = match &port.port {
        None if port.end_port.is_some() => {
            notes.note(format!("{field}.endPort"), "has no port to begin at: it matches nothing");
            return None;
        }
        None => return Some(Ports::all(protocol)),
        Some(IntOrString::String(name)) if port.end_port.is_some() => {
            notes.note(
                format!("{field}.endPort"),
                format!("beside the named port {name:?}: it matches nothing"),
            );
            return None;
        }
        Some(IntOrString::String(name)) if name.is_empty() => {
            notes.note(format!("{field}.port"), "is empty: it matches nothing");
            return None;
        }
        Some(IntOrString::String(name)) => {
            return Some(Ports::Named { name: name.as_str().into(), protocol: Some(protocol) });
        }
        Some(IntOrString::Int(number)) => *number,
    };
    let first = notes.check(format!("{field}.port"), port_number(number))?;
    let last = match port.end_port {
        None => first,
        Some(end) => {
            let checked = port_number(end).and_then(|end| match end >= first {
                true => Ok(end),
                false => Err(format!("{end} is less than port {first}")),
            });
            notes.check(format!("{field}.endPort"), checked)?
        }
    };
    Some(Ports::Range { protocol, first, last })
}

pub(super) fn checked_selector(object: &LabelSelector, field: &str, notes: &mut Notes) -> Option<Selector> {
    let checked = selector::convert(object);
    checked.map_err(|(part, message)| notes.note(format!("{field}.{part}"), message)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert;
    use serde_json::{Value, from_value, json};

    fn policy(spec: Value) -> (NetworkPolicy, Vec<String>) {
        let object = json!({ "metadata": { "namespace": "shop", "name": "web" }, "spec": spec });
        let converted = convert::network_policy(&from_value(object).expect("a NetworkPolicy"));
        let problems =
            converted.problems.iter().map(|one| format!("{}: {}", one.field, one.message)).collect();
        (converted.value.expect("a NetworkPolicy"), problems)
    }

    fn peers(from: Value) -> (Vec<String>, Vec<String>) {
        let (policy, problems) = policy(json!({ "podSelector": {}, "ingress": [{ "from": from }] }));
        let rules = policy.ingress.expect("ingress");
        (rules[0].peers.iter().flatten().map(Peer::to_string).collect(), problems)
    }

    #[test]
    fn policy_types_default_to_ingress_and_to_egress_where_there_are_such_rules() {
        let about = |spec: Value| {
            let (policy, _) = policy(spec);
            (policy.ingress.is_some(), policy.egress.is_some())
        };
        assert_eq!(about(json!({ "podSelector": {} })), (true, false));
        assert_eq!(about(json!({ "podSelector": {}, "egress": [] })), (true, false));
        assert_eq!(about(json!({ "podSelector": {}, "egress": [{}] })), (true, true));
        assert_eq!(about(json!({ "podSelector": {}, "policyTypes": ["Egress"] })), (false, true));
        let both = json!({ "podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}] });
        assert_eq!(about(both), (true, false));
    }

    #[test]
    fn peers_are_namespaces_and_pods_together_or_ranges() {
        let (peers, problems) = peers(json!([
            { "podSelector": { "matchLabels": { "app": "web" } } },
            { "namespaceSelector": { "matchLabels": { "team": "a" } } },
            { "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": "web" } } },
            { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } },
        ]));
        assert_eq!(
            peers,
            [
                "namespace shop, pods app=web",
                "namespaces team=a, pods any",
                "namespaces any, pods app=web",
                "10.0.0.0/8 except 10.1.0.0/16",
            ]
        );
        assert!(problems.is_empty());
    }

    #[test]
    fn a_peer_that_makes_no_sense_is_refused_and_the_others_count() {
        let (peers, problems) = peers(json!([
            {},
            { "ipBlock": { "cidr": "10.0.0.0/8" }, "podSelector": {} },
            { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["192.0.2.0/24"] } },
            { "ipBlock": { "cidr": "nonsense" } },
            { "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Like" }] } },
            { "podSelector": {} },
        ]));
        assert_eq!(peers, ["namespace shop, pods any"]);
        assert_eq!(
            problems,
            [
                "spec.ingress[0].from[0]: has neither selector nor ipBlock: it matches nothing",
                "spec.ingress[0].from[1]: has an ipBlock and a selector: it matches nothing",
                "spec.ingress[0].from[2].ipBlock.except[0]: 192.0.2.0/24 does not lie in 10.0.0.0/8",
                "spec.ingress[0].from[3].ipBlock.cidr: \"nonsense\" is not an address range",
                "spec.ingress[0].from[4].podSelector.matchExpressions[0].operator: \
                 \"Like\" is none of In, NotIn, Exists, DoesNotExist",
            ]
        );
    }

    #[test]
    fn an_empty_list_is_everyone_but_a_list_of_nonsense_is_nobody() {
        let rules = |ingress: Value| policy(json!({ "podSelector": {}, "ingress": ingress })).0.ingress;
        let rule = |rule: Value| rules(json!([rule])).expect("ingress")[0].clone();
        assert_eq!(rule(json!({})).peers, None);
        assert_eq!(rule(json!({ "from": [], "ports": [] })).peers, None);
        assert_eq!(rule(json!({ "from": [], "ports": [] })).ports, None);
        assert_eq!(rule(json!({ "from": [{}] })).peers, Some(Box::default()));
        assert_eq!(rules(json!([])).expect("ingress").len(), 0);
    }

    #[test]
    fn ports_are_numbers_names_and_ranges() {
        let ports = |ports: Value| {
            let (policy, problems) = policy(json!({ "podSelector": {}, "ingress": [{ "ports": ports }] }));
            let rules = policy.ingress.expect("ingress");
            let ports: Vec<String> = rules[0].ports.iter().flatten().map(Ports::to_string).collect();
            (ports, problems)
        };
        let (good, _) = ports(json!([
            { "port": 80 }, { "port": "http" }, { "protocol": "UDP", "port": 1000, "endPort": 1999 },
            { "protocol": "SCTP" },
        ]));
        assert_eq!(good, ["tcp/80", "tcp/http", "udp/1000-1999", "sctp"]);
        let (bad, problems) = ports(json!([
            { "port": 0 }, { "port": "http", "endPort": 90 }, { "endPort": 90 }, { "port": 80, "endPort": 79 },
            { "protocol": "ICMP" },
        ]));
        assert!(bad.is_empty());
        assert_eq!(
            problems,
            [
                "spec.ingress[0].ports[0].port: 0 is not between 1 and 65535",
                "spec.ingress[0].ports[1].endPort: beside the named port \"http\": it matches nothing",
                "spec.ingress[0].ports[2].endPort: has no port to begin at: it matches nothing",
                "spec.ingress[0].ports[3].endPort: 79 is less than port 80",
                "spec.ingress[0].ports[4].protocol: \"ICMP\" is none of TCP, UDP, SCTP",
            ]
        );
    }

    #[test]
    fn a_policy_that_selects_nobody_knows_whom_closes_its_namespace() {
        let (policy, problems) = policy(json!({
            "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Like" }] },
            "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}],
        }));
        assert!(policy.pods.is_empty());
        assert_eq!(policy.ingress.map(|rules| rules.len()), Some(0));
        assert_eq!(policy.egress.map(|rules| rules.len()), Some(0));
        assert_eq!(problems.len(), 1);
    }
}
