//! A cluster's worth of Pods and NetworkPolicies, as teams have them.
//!
//! Each of 50 namespaces is a team's: ten applications in three tiers and two versions, twenty pods of each, of which
//! two pods run on the node that is measured. A team's twenty policies have twenty rules each: ten for either
//! direction, or in every fifth namespace all twenty for ingress. Rules name applications of the team, other teams, a
//! tier in all namespaces of an environment, ranges with exceptions, and by port: numbers, ranges, names, DNS. All but
//! two of the policies select both local pods, by different selectors, and of those two each selects one: no two local
//! pods are under the same policies.
//!
//! One rule, in the middle of the middle policy, lets the benchmark's own traffic pass, from pods of the same team and
//! from the namespace that has no policy; no other rule does.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use crate::cell::Target;

/// Teams, of a namespace each.
pub(crate) const TEAMS: u32 = 50;
/// Policies of a team.
pub(crate) const POLICIES: u32 = 20;
/// Rules of a policy.
const RULES: u32 = 20;
/// Pods of a team that run elsewhere.
const REMOTE: u32 = 198;
/// Pods of a team that run on the node that is measured.
const LOCAL: u32 = 2;
/// Applications of a team.
const APPS: u32 = 10;

/// A team whose pods are isolated in both directions.
pub(crate) const ISOLATED: u32 = 1;
/// A team whose pods are isolated for ingress alone.
pub(crate) const INGRESS_ONLY: u32 = 0;
/// The namespace without policies.
pub(crate) const OPEN: &str = "open";
/// The policy that lets the benchmark's traffic pass.
pub(crate) const MIDDLE: u32 = POLICIES / 2;
/// The label's value of pods that have that traffic.
pub(crate) const TRAFFIC: &str = "traffic";

/// Pods on a node elsewhere.
const PODS_PER_NODE: u32 = 100;
const ENVIRONMENTS: [&str; 3] = ["prod", "staging", "dev"];
const TIERS: [&str; 3] = ["front", "back", "data"];
const PORTS: [u16; 6] = [80, 443, 8080, 8443, 5432, 6379];

/// The namespaces.
pub(crate) fn namespaces() -> impl Iterator<Item = Value> {
    let namespace = |name: String, labels: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        })
    };
    let of_team = move |team| {
        let environment = ENVIRONMENTS[(team % 3) as usize];
        namespace(name_of(team), json!({ "env": environment, "tenant": tenant(team) }))
    };
    (0..TEAMS).map(of_team).chain([namespace(OPEN.to_owned(), json!({}))])
}

/// The pods of the node that is measured: the teams', and two that no policy selects.
///
/// # Errors
/// Never, unless a pod here makes no sense.
pub(crate) fn local_pods() -> Result<Vec<Pod>> {
    let of_team = |team| (0..LOCAL).map(move |number| (name_of(team), number));
    let all = (0..TEAMS).flat_map(of_team).chain((0..LOCAL).map(|number| (OPEN.to_owned(), number)));
    let pod = |(namespace, number): (String, u32)| {
        let mut labels = labels(&namespace, number);
        labels["role"] = json!(TRAFFIC);
        json!({
            "metadata": { "namespace": namespace, "name": local(number), "labels": labels },
            "spec": { "nodeName": "node1", "containers": containers() },
        })
    };
    decode(all.map(pod))
}

/// The teams' other pods, with the status that their kubelets report.
///
/// # Errors
/// Never, unless a pod here makes no sense.
pub(crate) fn remote_pods() -> Result<Vec<Pod>> {
    let pod = |number: u32| {
        let (team, of_team) = (number / REMOTE, LOCAL + number % REMOTE);
        let (v4, v6) = addresses(number);
        json!({
            "metadata": {
                "namespace": name_of(team),
                "name": format!("app-{}-{of_team}", of_team % APPS),
                "labels": labels(&name_of(team), of_team),
            },
            "spec": { "nodeName": format!("far-{}", number / PODS_PER_NODE), "containers": containers() },
            "status": {
                "phase": "Running",
                "podIP": v4,
                "podIPs": [{ "ip": v4 }, { "ip": v6 }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        })
    };
    decode((0..TEAMS * REMOTE).map(pod))
}

/// The policies of all teams.
///
/// # Errors
/// Never, unless a policy here makes no sense.
pub(crate) fn policies() -> Result<Vec<NetworkPolicy>> {
    decode((0..TEAMS).flat_map(|team| (0..POLICIES).map(move |number| policy(team, number, true))))
}

/// A team's policy of that number, which lets datagrams of the benchmark pass, or not, if it is the middle one.
pub(crate) fn policy(team: u32, number: u32, datagrams: bool) -> Value {
    let split = if team.is_multiple_of(5) { RULES } else { RULES / 2 };
    let rules = |peers: &str, range: std::ops::Range<u32>| -> Vec<Value> {
        let middle = u32::midpoint(range.start, range.end);
        range
            .map(|rule| {
                let (who, ports) = if (number, rule) == (MIDDLE, middle) {
                    (traffic_peers(team), traffic_ports(datagrams))
                } else {
                    (common_peers(team, number, rule), common_ports(number, rule))
                };
                json!({ peers: who, "ports": ports })
            })
            .collect()
    };
    let mut spec = json!({
        "podSelector": subject(number),
        "policyTypes": ["Ingress"],
        "ingress": rules("from", 0..split),
    });
    if split < RULES {
        spec["policyTypes"] = json!(["Ingress", "Egress"]);
        spec["egress"] = json!(rules("to", split..RULES));
    }
    json!({ "metadata": { "namespace": name_of(team), "name": policy_name(number) }, "spec": spec })
}

/// The name of a team's policy.
pub(crate) fn policy_name(number: u32) -> String {
    format!("policy-{number}")
}

/// A team's namespace.
pub(crate) fn name_of(team: u32) -> String {
    format!("team-{team}")
}

/// The name of a namespace's local pod of that number.
pub(crate) fn local(number: u32) -> String {
    format!("local-{number}")
}

/// Whom a policy selects: all pods of the node, but for the last two policies.
fn subject(number: u32) -> Value {
    let expression = |key, operator, values: &[&str]| {
        let mut expression = json!({ "key": key, "operator": operator });
        if !values.is_empty() {
            expression["values"] = json!(values);
        }
        json!({ "matchExpressions": [expression] })
    };
    if let Some(own) = number.checked_sub(POLICIES - LOCAL) {
        return json!({ "matchLabels": { "app": app(own) } });
    }
    match number % 4 {
        0 => json!({}),
        1 => expression("app", "Exists", &[]),
        2 => expression("tier", "In", &["front", "back"]),
        _ => expression("version", "NotIn", &["v0"]),
    }
}

/// Who is named by most rules.
fn common_peers(team: u32, number: u32, rule: u32) -> Value {
    match rule % 5 {
        0 => json!([{ "podSelector": { "matchLabels": { "app": app(number + rule) } } }]),
        1 => {
            let other = name_of((team + 1 + (number + rule) % 5) % TEAMS);
            json!([{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": other } } }])
        }
        2 => json!([{
            "namespaceSelector": { "matchLabels": { "env": ENVIRONMENTS[(team % 3) as usize] } },
            "podSelector": { "matchLabels": { "tier": TIERS[(rule % 3) as usize] } },
        }]),
        3 if rule == 18 => json!([{ "ipBlock": {
            "cidr": format!("fd00:20:{team:x}:{number:x}::/64"),
            "except": [format!("fd00:20:{team:x}:{number:x}:8000::/65")],
        } }]),
        3 => {
            let range = format!("10.{}.{}", 128 + team, number * 12 + rule / 5 * 3);
            json!([{ "ipBlock": { "cidr": format!("{range}.0/24"), "except": [format!("{range}.128/26")] } }])
        }
        _ => json!([
            { "podSelector": { "matchExpressions": [
                { "key": "tier", "operator": "In", "values": [TIERS[(rule % 3) as usize], "data"] },
            ] } },
            { "namespaceSelector": { "matchLabels": { "tenant": tenant(team + number) } } },
        ]),
    }
}

/// The ports that most rules open.
fn common_ports(number: u32, rule: u32) -> Value {
    match rule % 4 {
        0 => json!([{ "protocol": "TCP", "port": PORTS[((number + rule) % 6) as usize] }]),
        1 => {
            let first = 9000 + 100 * (rule % 3);
            json!([{ "protocol": "TCP", "port": first, "endPort": first + 99 }])
        }
        2 => json!([{ "protocol": "TCP", "port": if rule % 8 == 2 { "http" } else { "metrics" } }]),
        _ => json!([{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }]),
    }
}

/// Who has the benchmark's traffic: pods of the team, and of the namespace without policies.
fn traffic_peers(team: u32) -> Value {
    let in_namespace = |name: &str| {
        json!({
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": name } },
            "podSelector": { "matchLabels": { "role": TRAFFIC } },
        })
    };
    json!([in_namespace(&name_of(team)), in_namespace(OPEN)])
}

/// The ports of the benchmark's servers; without datagrams that one of another port is open.
fn traffic_ports(datagrams: bool) -> Value {
    let Target { many, sink, datagram, .. } = Target::itself(Ipv4Addr::UNSPECIFIED.into());
    json!([
        { "protocol": "TCP", "port": many, "endPort": sink },
        { "protocol": "UDP", "port": if datagrams { datagram } else { datagram + 1000 } },
    ])
}

/// The labels of a namespace's pod of that number.
fn labels(namespace: &str, number: u32) -> Value {
    let (of_app, of_tier) = (number % APPS, TIERS[(number % APPS % 3) as usize]);
    json!({
        "app": app(of_app),
        "tier": of_tier,
        "version": format!("v{}", 1 + number / APPS % 2),
        "pod-template-hash": format!("{namespace}{of_app}"),
    })
}

fn containers() -> Value {
    json!([{
        "name": "main",
        "image": "fairlead-bench",
        "ports": [
            { "name": "http", "containerPort": 8080, "protocol": "TCP" },
            { "name": "metrics", "containerPort": 9090, "protocol": "TCP" },
        ],
    }])
}

/// The addresses of a pod elsewhere.
fn addresses(number: u32) -> (Ipv4Addr, Ipv6Addr) {
    let (node, host) = ((number / PODS_PER_NODE) as u8, (1 + number % PODS_PER_NODE) as u8);
    (
        Ipv4Addr::new(10, 64, node, host),
        Ipv6Addr::new(0xfd00, 0x10, 0x64, u16::from(node), 0, 0, 0, u16::from(host)),
    )
}

fn app(number: u32) -> String {
    format!("app-{}", number % APPS)
}

fn tenant(team: u32) -> String {
    format!("tenant-{}", team % 10)
}

fn decode<K: serde::de::DeserializeOwned>(objects: impl Iterator<Item = Value>) -> Result<Vec<K>> {
    Ok(objects.map(serde_json::from_value).collect::<serde_json::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_are_as_many_pods_policies_and_rules_as_the_results_say() {
        let (local, remote, policies) = (local_pods().unwrap(), remote_pods().unwrap(), policies().unwrap());
        let in_teams = local.iter().filter(|pod| pod.metadata.namespace.as_deref() != Some(OPEN)).count();
        assert_eq!((in_teams, in_teams + remote.len(), policies.len()), (100, 10_000, 1_000));
        for policy in policies {
            let spec = policy.spec.unwrap();
            let rules =
                spec.ingress.map_or(0, |rules| rules.len()) + spec.egress.map_or(0, |rules| rules.len());
            assert_eq!(rules, 20, "{:?}", policy.metadata);
        }
    }

    #[test]
    fn every_pod_elsewhere_has_a_name_and_an_address_of_its_own() {
        let pods = remote_pods().unwrap();
        let names: HashSet<_> =
            pods.iter().map(|pod| (&pod.metadata.namespace, &pod.metadata.name)).collect();
        let addresses: HashSet<_> =
            pods.iter().map(|pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone())).collect();
        assert_eq!((names.len(), addresses.len()), (9_900, 9_900));
    }

    #[test]
    fn one_rule_in_the_middle_lets_the_benchmarks_traffic_pass() {
        let names_traffic = |rule: &&Value| rule.to_string().contains(TRAFFIC);
        for (team, expected) in [(ISOLATED, [1, 1]), (INGRESS_ONLY, [1, 0])] {
            for (direction, expected) in ["ingress", "egress"].into_iter().zip(expected) {
                let rules = (0..POLICIES).flat_map(|number| {
                    policy(team, number, true)["spec"][direction].as_array().cloned().unwrap_or_default()
                });
                assert_eq!(rules.collect::<Vec<_>>().iter().filter(names_traffic).count(), expected);
            }
        }
    }

    #[test]
    fn no_datagrams_pass_if_the_middle_policy_is_to_let_none() {
        assert_ne!(policy(ISOLATED, MIDDLE, true), policy(ISOLATED, MIDDLE, false));
        assert_eq!(policy(ISOLATED, MIDDLE + 1, true), policy(ISOLATED, MIDDLE + 1, false));
    }
}
