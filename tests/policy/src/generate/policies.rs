//! Random NetworkPolicies and ClusterNetworkPolicies, some of them with parts that make no sense.

use fairlead_prog_tests::random::Random;
use serde_json::{Value, from_value, json};

use super::chance;
use super::objects::{LABELS, NAMESPACES, PORT_NAMES, PORTS, PROTOCOLS};
use crate::case::Object;

/// How many policies of each kind there may be.
const POLICIES: usize = 8;
/// Ranges of addresses that hold each other, pods, nodes and machines outside.
const RANGES: [&str; 28] = [
    "10.1.0.0/24",
    "10.1.0.2/31",
    "10.1.0.2/32",
    "10.1.0.4/30",
    "10.0.0.0/8",
    "10.0.0.0/14",
    "0.0.0.0/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "10.2.0.0/29",
    "10.2.0.3/32",
    "10.2.0.99/24",
    "192.0.2.0/24",
    "192.0.2.1/32",
    "192.0.2.2/32",
    "198.51.100.0/24",
    "198.51.100.0/25",
    "198.51.100.7/32",
    "fd00:1::/64",
    "fd00:1::2/127",
    "fd00:1::3/128",
    "fd00::/8",
    "::/0",
    "fd00:2::/64",
    "2001:db8::/32",
    "2001:db8::1/128",
    "2001:db8:ffff::/48",
    "2001:db8:ffff::7/128",
];
/// Ranges of ports, whose ends probes try.
const PORT_RANGES: [(i32, i32); 7] =
    [(80, 443), (1, 65_535), (8000, 9000), (53, 53), (1, 52), (54, 65_535), (9090, 9091)];

/// Some policies of both kinds.
pub(super) fn policies(random: &mut Random) -> Vec<Object> {
    let mut objects = Vec::new();
    for number in 0..1 + random.below(POLICIES) {
        let namespace = *random.one_of(&NAMESPACES);
        objects.push(network_policy(random, namespace, &format!("policy-{number}")));
    }
    // Many clusters have none of these.
    if chance(random, 2, 3) {
        for number in 0..random.below(POLICIES) {
            objects.push(cluster_policy(random, &format!("policy-{number}")));
        }
    }
    objects
}

/// A NetworkPolicy of this name.
pub(super) fn network_policy(random: &mut Random, namespace: &str, name: &str) -> Object {
    let mut spec = json!({});
    if chance(random, 11, 12) {
        spec["podSelector"] = if chance(random, 1, 3) { json!({}) } else { selector(random) };
    }
    match random.below(6) {
        0 => {}
        1 => spec["policyTypes"] = json!([]),
        2 => spec["policyTypes"] = json!(["Ingress"]),
        3 => spec["policyTypes"] = json!(["Egress"]),
        _ => spec["policyTypes"] = json!(["Ingress", "Egress"]),
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        if chance(random, 3, 4) {
            let count = *random.one_of(&[0, 1, 1, 2, 3]);
            spec[direction] = (0..count).map(|_| network_rule(random, peers)).collect();
        }
    }
    let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec });
    Object::NetworkPolicy(from_value(object).expect("a NetworkPolicy"))
}

fn network_rule(random: &mut Random, peers: &str) -> Value {
    let mut rule = json!({});
    if chance(random, 3, 4) {
        let count = *random.one_of(&[0, 1, 1, 2, 3]);
        rule[peers] = (0..count).map(|_| network_peer(random)).collect();
    }
    if chance(random, 1, 2) {
        let count = *random.one_of(&[0, 1, 1, 2, 3]);
        rule["ports"] = (0..count).map(|_| network_port(random)).collect();
    }
    rule
}

fn network_peer(random: &mut Random) -> Value {
    match random.below(24) {
        0..=5 => json!({ "podSelector": selector(random) }),
        6..=10 => json!({ "namespaceSelector": namespace_selector(random) }),
        11..=15 => json!({
            "namespaceSelector": namespace_selector(random),
            "podSelector": selector(random),
        }),
        16 => json!({}),
        17 => json!({ "ipBlock": block(random), "podSelector": selector(random) }),
        _ => json!({ "ipBlock": block(random) }),
    }
}

fn block(random: &mut Random) -> Value {
    let cidr = *random.one_of(&RANGES);
    let mut block = json!({ "cidr": cidr });
    if chance(random, 1, 32) {
        block["cidr"] = json!(random.one_of(&["nonsense", "10.1.0.2", "10.1.0.0/33", ""]));
    }
    if chance(random, 1, 2) {
        let outer: ipnet::IpNet = cidr.parse().expect("a range");
        let inner = |text: &&str| {
            let range: ipnet::IpNet = text.parse().expect("a range");
            outer.contains(&range) && outer != range
        };
        let mut within: Vec<&str> = RANGES.into_iter().filter(inner).collect();
        if within.is_empty() || chance(random, 1, 16) {
            let stray: &str = random.one_of::<&str>(&["198.51.100.0/24", "::/0", "nonsense", "10.1.0.0/24"]);
            within.push(stray);
        }
        let count = random.below(3);
        block["except"] = (0..count).map(|_| json!(random.one_of(&within))).collect();
    }
    block
}

fn network_port(random: &mut Random) -> Value {
    let mut port = json!({});
    if chance(random, 3, 4) {
        port["protocol"] = json!(random.one_of(&PROTOCOLS));
    }
    match random.below(16) {
        0 => {}
        1..=5 => port["port"] = json!(random.one_of(&PORTS)),
        6..=9 => {
            let (first, last) = *random.one_of(&PORT_RANGES);
            port["port"] = json!(first);
            port["endPort"] = json!(last);
        }
        10..=13 => port["port"] = json!(random.one_of(&PORT_NAMES)),
        14 => port["port"] = json!("unheard-of"),
        _ => match random.below(6) {
            0 => port["protocol"] = json!("ICMP"),
            1 => port["endPort"] = json!(80),
            2 => port = json!({ "port": "http", "endPort": 9090 }),
            3 => port = json!({ "port": 443, "endPort": 80 }),
            4 => port["port"] = json!(0),
            _ => port["port"] = json!(65_536),
        },
    }
    port
}

/// A ClusterNetworkPolicy of this name.
pub(super) fn cluster_policy(random: &mut Random, name: &str) -> Object {
    let mut spec = json!({
        "tier": random.one_of(&["Admin", "Baseline", "Baseline"]),
        "priority": random.one_of(&[0, 1, 1, 2, 500, 1000]),
        "subject": subject(random),
    });
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        if chance(random, 3, 4) {
            let count = *random.one_of(&[0, 1, 1, 2, 2, 3, 4]);
            spec[direction] = (0..count).map(|_| cluster_rule(random, peers)).collect();
        }
    }
    if chance(random, 1, 24) {
        // The last of these is one too many.
        let never = json!({
            "action": "Deny",
            "from": [{ "namespaces": { "matchLabels": { "app": "none" } } }],
        });
        let mut rules = vec![never; 25];
        rules.push(json!({ "action": "Deny", "from": [{ "namespaces": {} }] }));
        spec["ingress"] = json!(rules);
    }
    Object::ClusterNetworkPolicy(json!({ "metadata": { "name": name }, "spec": spec }))
}

fn subject(random: &mut Random) -> Value {
    if chance(random, 1, 2) {
        json!({ "namespaces": if chance(random, 1, 3) { json!({}) } else { namespace_selector(random) } })
    } else {
        json!({ "pods": namespaced_pods(random) })
    }
}

fn namespaced_pods(random: &mut Random) -> Value {
    json!({ "namespaceSelector": namespace_selector(random), "podSelector": selector(random) })
}

fn cluster_rule(random: &mut Random, peers: &str) -> Value {
    let listed: Vec<Value> =
        (0..*random.one_of(&[1, 1, 1, 2, 2, 3])).map(|_| cluster_peer(random, peers == "to")).collect();
    let mut rule = json!({ "action": random.one_of(&["Accept", "Deny", "Deny", "Pass"]), peers: listed });
    if chance(random, 1, 2) {
        let count = *random.one_of(&[1, 1, 2, 3]);
        rule["protocols"] = (0..count).map(|_| protocol(random)).collect();
    }
    if chance(random, 1, 4) {
        rule["name"] = json!("a rule");
    }
    rule
}

fn cluster_peer(random: &mut Random, is_egress: bool) -> Value {
    match random.below(if is_egress { 20 } else { 10 }) {
        0..=4 => json!({ "namespaces": namespace_selector(random) }),
        5..=8 => json!({ "pods": namespaced_pods(random) }),
        9 if chance(random, 1, 4) => match random.below(4) {
            0 => json!({}),
            1 => json!({ "namespaces": {}, "pods": namespaced_pods(random) }),
            2 => json!({ "networks": if is_egress { json!([]) } else { json!(["0.0.0.0/0"]) } }),
            _ => json!({ "services": { "name": "a kind of tomorrow" } }),
        },
        9 => json!({ "namespaces": {} }),
        10..=12 => json!({ "nodes": selector(random) }),
        13 if chance(random, 1, 4) => json!({ "domainNames": ["example.org"] }),
        _ => {
            let count = *random.one_of(&[1, 1, 2, 3]);
            json!({ "networks": (0..count).map(|_| random.one_of(&RANGES)).collect::<Vec<_>>() })
        }
    }
}

fn protocol(random: &mut Random) -> Value {
    if chance(random, 1, 48) {
        return match random.below(3) {
            0 => json!({}),
            1 => json!({ "tcp": { "destinationPort": { "number": 0 } } }),
            _ => json!({ "udp": { "destinationPort": { "range": { "start": 9, "end": 8 } } } }),
        };
    }
    if chance(random, 1, 4) {
        return json!({ "destinationNamedPort": random.one_of(&PORT_NAMES) });
    }
    let ports = match random.below(4) {
        0 => json!({}),
        1 => {
            let (start, end) = *random.one_of(&PORT_RANGES[..3]);
            json!({ "destinationPort": { "range": { "start": start, "end": end } } })
        }
        _ => json!({ "destinationPort": { "number": random.one_of(&PORTS) } }),
    };
    let name = *random.one_of(&["tcp", "udp", "sctp"]);
    json!({ name: ports })
}

fn namespace_selector(random: &mut Random) -> Value {
    if chance(random, 1, 4) {
        let name = *random.one_of(&NAMESPACES);
        return json!({ "matchLabels": { "kubernetes.io/metadata.name": name } });
    }
    selector(random)
}

/// A selector of labels, many of them empty; a few can't be understood.
fn selector(random: &mut Random) -> Value {
    let mut selector = json!({});
    if chance(random, 1, 4) {
        return selector;
    }
    let mut requirements = Vec::new();
    for _ in 0..1 + random.below(2) {
        let (key, values) = *random.one_of(&LABELS);
        let some: Vec<&str> = (0..1 + random.below(2)).map(|_| *random.one_of(&values)).collect();
        match random.below(12) {
            0..=4 => selector["matchLabels"][key] = json!(some[0]),
            5 | 6 => requirements.push(json!({ "key": key, "operator": "In", "values": some })),
            7 | 8 => requirements.push(json!({ "key": key, "operator": "NotIn", "values": some })),
            9 => requirements.push(json!({ "key": key, "operator": "Exists" })),
            10 => requirements.push(json!({ "key": key, "operator": "DoesNotExist" })),
            _ => requirements.extend(senseless(random, key)),
        }
    }
    if !requirements.is_empty() {
        selector["matchExpressions"] = json!(requirements);
    }
    selector
}

fn senseless(random: &mut Random, key: &str) -> Option<Value> {
    chance(random, 1, 4).then(|| match random.below(3) {
        0 => json!({ "key": key, "operator": "Like", "values": ["web"] }),
        1 => json!({ "key": key, "operator": "In", "values": [] }),
        _ => json!({ "key": key, "operator": "Exists", "values": ["web"] }),
    })
}
