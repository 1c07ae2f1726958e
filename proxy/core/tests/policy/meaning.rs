//! What policies mean.

use fairlead_abi::{Reason, policies};
use fairlead_core::policy::EndpointState;
use serde_json::{Value, json};

use crate::world::{World, name, pod};

fn labelled(key: &str, value: &str) -> Value {
    json!({ "matchLabels": { key: value } })
}

/// Local pods `shop/web` (app=web) and `shop/db` (app=db), remote ones `shop/far` (app=web) and `bank/teller` (app=db).
fn shop() -> World {
    let mut world = World::new();
    world.pod("shop/web", "a", "10.244.0.2", json!({ "app": "web" }));
    world.pod("shop/db", "a", "10.244.0.3", json!({ "app": "db" }));
    world.pod("shop/far", "b", "10.244.1.2", json!({ "app": "web" }));
    world.pod("bank/teller", "b", "10.244.1.3", json!({ "app": "db" }));
    world
}

#[test]
fn without_policies_everything_passes() {
    let mut world = shop();
    world.settle();
    for client in ["shop/far", "bank/teller", "203.0.113.1"] {
        assert!(world.allows(client, "shop/web", "tcp/80") && world.allows("shop/web", client, "udp/53"));
    }
    assert_eq!(world.engine.endpoint_policies(1).ingress, policies::OPEN);
}

#[test]
fn a_pod_is_isolated_by_whatever_policies_select_it_and_allows_are_united() {
    let mut world = shop();
    world.policy("shop/deny", json!({ "podSelector": labelled("app", "db") }));
    world.settle();
    assert_eq!(world.ask("shop/web", "shop/db", "tcp/80"), Err(Reason::PolicyIngress));
    assert!(world.allows("shop/db", "shop/web", "tcp/80"), "it is about ingress only");
    world.policy(
        "shop/web",
        json!({
            "podSelector": {}, "ingress": [{ "from": [{ "podSelector": labelled("app", "web") }] }],
        }),
    );
    world.policy(
        "shop/dns",
        json!({ "podSelector": {}, "ingress": [{ "ports": [{ "protocol": "UDP", "port": 53 }] }] }),
    );
    world.settle();
    assert!(world.allows("shop/far", "shop/db", "tcp/80"), "a pod of this namespace with that label");
    assert!(
        !world.allows("bank/teller", "shop/db", "tcp/80") && world.allows("bank/teller", "shop/db", "udp/53")
    );
    assert!(world.allows_other("shop/far", "shop/db") && !world.allows_other("bank/teller", "shop/db"));
    world.engine.delete_network_policy(&name("shop/web"));
    world.settle();
    assert!(!world.allows("shop/far", "shop/db", "tcp/80") && world.allows("shop/far", "shop/db", "udp/53"));
}

#[test]
fn selectors_of_one_peer_are_both_meant_and_those_of_several_either() {
    let mut world = shop();
    let both = json!({ "namespaceSelector": labelled("team", "b"), "podSelector": labelled("app", "db") });
    world.policy(
        "shop/both",
        json!({ "podSelector": labelled("app", "web"), "ingress": [{ "from": [both] }] }),
    );
    world.settle();
    assert!(
        world.allows("bank/teller", "shop/web", "tcp/80") && !world.allows("shop/db", "shop/web", "tcp/80")
    );
    world.policy(
        "shop/both",
        json!({
            "podSelector": labelled("app", "web"),
            "ingress": [{ "from": [
                { "namespaceSelector": labelled("team", "z") }, { "podSelector": labelled("app", "db") },
            ] }],
        }),
    );
    world.settle();
    assert!(
        !world.allows("bank/teller", "shop/web", "tcp/80") && world.allows("shop/db", "shop/web", "tcp/80")
    );
    world.namespace("bank", json!({ "team": "z" }));
    world.settle();
    assert!(world.allows("bank/teller", "shop/web", "tcp/80"), "the namespace's labels changed");
}

#[test]
fn egress_is_judged_at_the_client_by_who_the_server_is() {
    let mut world = shop();
    world.policy(
        "shop/out",
        json!({
            "podSelector": labelled("app", "web"), "policyTypes": ["Egress"],
            "egress": [
                { "to": [{ "podSelector": labelled("app", "db") }], "ports": [{ "port": "http" }] },
                { "to": [{ "ipBlock": { "cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"] } }] },
            ],
        }),
    );
    world.settle();
    assert!(world.allows("shop/web", "shop/db", "tcp/8080"), "the port that its container calls http");
    assert_eq!(world.ask("shop/web", "shop/db", "tcp/80"), Err(Reason::PolicyEgress));
    assert!(
        world.allows("shop/web", "203.0.113.1", "tcp/1")
            && !world.allows("shop/web", "203.0.113.200", "tcp/1")
    );
    assert!(world.allows("203.0.113.200", "shop/web", "tcp/1"), "it is about egress only");
    let mut other = pod("shop/db", "a", "10.244.0.3", json!({ "app": "db" }));
    other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
    world.apply(other);
    world.settle();
    assert!(
        world.allows("shop/web", "shop/db", "tcp/9090") && !world.allows("shop/web", "shop/db", "tcp/8080")
    );
}

#[test]
fn a_named_port_of_ingress_is_that_of_the_pod_itself() {
    let mut world = shop();
    world.policy(
        "shop/named",
        json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": "http" }, { "port": "none" }] }] }),
    );
    let mut other = pod("shop/db", "a", "10.244.0.3", json!({ "app": "db" }));
    other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(5432);
    world.apply(other);
    world.settle();
    assert!(
        world.allows("shop/far", "shop/web", "tcp/8080") && !world.allows("shop/far", "shop/web", "tcp/5432")
    );
    assert!(
        world.allows("shop/far", "shop/db", "tcp/5432") && !world.allows("shop/far", "shop/db", "udp/5432")
    );
    assert_ne!(world.engine.endpoint_policies(1).ingress, world.engine.endpoint_policies(2).ingress);
}

#[test]
fn ranges_match_pods_too_and_one_rules_exception_may_be_anothers_range() {
    let mut world = shop();
    world.policy(
        "shop/blocks",
        json!({
            "podSelector": {},
            "ingress": [
                { "from": [{ "ipBlock": { "cidr": "10.244.0.0/16", "except": ["10.244.1.0/24"] } }] },
                { "from": [{ "ipBlock": { "cidr": "10.244.1.0/31" } }, { "ipBlock": { "cidr": "::/0" } }] },
            ],
        }),
    );
    world.settle();
    assert!(world.allows("shop/db", "shop/web", "tcp/80"));
    assert!(!world.allows("shop/far", "shop/web", "tcp/80"));
    assert!(
        world.allows("10.244.1.1", "shop/web", "tcp/80") && !world.allows("8.8.8.8", "shop/web", "tcp/80")
    );
}

#[test]
fn a_pod_reaches_itself_and_its_node_but_no_other_node() {
    let mut world = shop();
    world.policy("shop/deny", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }));
    world.engine.set_local_addresses(vec!["10.244.0.1".parse().expect("an address")]);
    world.settle();
    assert!(world.allows("shop/web", "shop/web", "tcp/80") && !world.allows("shop/web", "shop/db", "tcp/80"));
    assert!(
        world.allows("192.0.2.1", "shop/web", "tcp/80") && world.allows("shop/web", "10.244.0.1", "udp/53")
    );
    assert!(!world.allows("192.0.2.2", "shop/web", "tcp/80"));
}

#[test]
fn pods_on_their_nodes_network_are_neither_subject_nor_peer() {
    let mut world = shop();
    let mut host = pod("shop/agent", "b", "192.0.2.2", json!({ "app": "web" }));
    host["spec"]["hostNetwork"] = json!(true);
    world.apply(host);
    world.policy(
        "shop/web",
        json!({ "podSelector": {}, "ingress": [{ "from": [{ "podSelector": labelled("app", "web") }] }] }),
    );
    world.settle();
    assert!(!world.allows("192.0.2.2", "shop/db", "tcp/80"));
    let why = world.why("shop/db", "shop/agent", "tcp/80");
    assert!(why.ingress.allowed && why.ingress.reason.contains("its node's network"), "{why}");
}

#[test]
fn a_pod_that_has_ended_is_no_peer_and_one_that_terminates_still_is() {
    let mut world = shop();
    world.policy(
        "shop/web",
        json!({ "podSelector": {}, "ingress": [{ "from": [{ "podSelector": labelled("app", "web") }] }] }),
    );
    let mut far = pod("shop/far", "b", "10.244.1.2", json!({ "app": "web" }));
    far["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    world.apply(far.clone());
    world.settle();
    assert!(world.allows("shop/far", "shop/db", "tcp/80"));
    far["status"]["phase"] = json!("Succeeded");
    world.apply(far);
    world.settle();
    assert!(!world.allows("10.244.1.2", "shop/db", "tcp/80"));
}

#[test]
fn an_address_that_two_pods_claim_is_the_one_that_stays() {
    let mut world = shop();
    world.policy(
        "shop/web",
        json!({ "podSelector": {}, "ingress": [{ "from": [{ "podSelector": labelled("app", "web") }] }] }),
    );
    let mut old = pod("shop/far", "b", "10.244.1.2", json!({ "app": "web" }));
    old["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    world.apply(old);
    world.apply(pod("bank/new", "b", "10.244.1.2", json!({ "app": "web" })));
    world.settle();
    assert!(!world.allows("10.244.1.2", "shop/db", "tcp/80"));
    assert_eq!(world.engine.who("10.244.1.2".parse().expect("an address")).pod.as_deref(), Some("bank/new"));
}

#[test]
fn a_deleted_pod_stays_under_its_policies_while_its_endpoint_is_there() {
    let mut world = shop();
    world.policy("shop/deny", json!({ "podSelector": labelled("app", "db") }));
    world.settle();
    let before = world.engine.endpoint_policies(2);
    world.engine.delete_pod(&name("shop/db"));
    world.settle();
    assert_eq!(world.engine.endpoint_policies(2), before);
    let mut other = pod("shop/db", "a", "10.244.0.9", json!({ "app": "web" }));
    other["metadata"]["uid"] = json!("another");
    world.apply(other);
    world.settle();
    assert_eq!(world.engine.endpoint_policies(2), before, "a Pod of the same name is not the same Pod");
    assert_eq!(world.engine.endpoint_state(2), EndpointState::Programmed);
}

#[test]
fn a_pod_or_namespace_that_is_not_known_closes_the_endpoint() {
    let mut world = shop();
    let index = world.endpoint("shop/ghost", "1", "10.244.0.4".parse().expect("an address"));
    world.apply(pod("void/lost", "a", "10.244.0.5", json!({})));
    let lost = world.endpoint("void/lost", "uid of void/lost", "10.244.0.5".parse().expect("an address"));
    let none = world.endpoint("shop/", "", "10.244.0.6".parse().expect("an address"));
    world.settle();
    assert_eq!(world.engine.endpoint_state(index), EndpointState::PodUnknown);
    assert_eq!(world.engine.endpoint_state(lost), EndpointState::NamespaceUnknown);
    assert_eq!(world.maps.isolation_of(index).ingress, policies::CLOSED);
    assert_eq!(world.maps.isolation_of(none).ingress, policies::OPEN, "no Pod of the API");
    world.namespace("void", json!({}));
    world.apply(pod("shop/ghost", "a", "10.244.0.4", json!({})));
    world.settle();
    assert_eq!(world.engine.endpoint_state(index), EndpointState::PodUnknown, "its uid is another");
    assert_eq!(world.engine.endpoint_state(lost), EndpointState::Programmed);
}

#[test]
fn a_static_pod_is_known_by_the_hash_of_its_configuration() {
    let mut world = shop();
    let mut object = pod("shop/static", "a", "10.244.0.4", json!({ "app": "db" }));
    object["metadata"]["annotations"] = json!({ "kubernetes.io/config.hash": "hash" });
    world.apply(object);
    world.policy("shop/deny", json!({ "podSelector": labelled("app", "db") }));
    let index = world.endpoint("shop/static", "hash", "10.244.0.4".parse().expect("an address"));
    world.settle();
    assert_eq!(world.engine.endpoint_state(index), EndpointState::Programmed);
    assert!(world.engine.endpoint_policies(index).ingress >= policies::FIRST);
}

#[test]
fn tiers_decide_in_order_and_hairpins_are_subject_to_cluster_policies() {
    let mut world = shop();
    let subject = json!({ "namespaces": labelled("team", "a") });
    world.cluster_policy(
        "guard",
        json!({
            "tier": "Admin", "priority": 10, "subject": subject,
            "ingress": [
                { "action": "Pass", "from": [{ "namespaces": labelled("team", "b") }] },
                {
                    "action": "Deny", "from": [{ "namespaces": {} }],
                    "protocols": [{ "tcp": { "destinationPort": { "number": 22 } } }],
                },
            ],
        }),
    );
    world.settle();
    assert!(
        world.allows("bank/teller", "shop/web", "tcp/22") && world.allows("shop/db", "shop/web", "tcp/80")
    );
    assert_eq!(world.ask("shop/db", "shop/web", "tcp/22"), Err(Reason::PolicyIngress));
    assert_eq!(world.ask("shop/web", "shop/web", "tcp/22"), Err(Reason::PolicyIngress), "even itself");
    assert!(world.allows("203.0.113.1", "shop/web", "tcp/22"), "no pod");
    world.cluster_policy(
        "base",
        json!({
            "tier": "Baseline", "priority": 0, "subject": subject,
            "ingress": [{ "action": "Deny", "from": [{ "namespaces": {} }] }],
        }),
    );
    world.settle();
    assert!(
        !world.allows("bank/teller", "shop/web", "tcp/22") && !world.allows("shop/db", "shop/web", "tcp/80")
    );
    world.policy("shop/web", json!({ "podSelector": {}, "ingress": [{ "from": [{ "namespaceSelector": labelled("team", "b") }] }] }));
    world.settle();
    assert!(
        world.allows("bank/teller", "shop/web", "tcp/22"),
        "the NetworkPolicy decides before the Baseline"
    );
    let why = world.why("bank/teller", "shop/web", "tcp/22");
    assert_eq!(why.ingress.decided_by.as_deref(), Some("NetworkPolicy shop/web ingress rule 1"));
    assert_eq!(why.ingress.passed_by.as_deref(), Some("ClusterNetworkPolicy guard ingress rule 1"));
    world.cluster_policy(
        "first",
        json!({
            "tier": "Admin", "priority": 9, "subject": subject,
            "ingress": [{ "action": "Deny", "from": [{ "namespaces": labelled("team", "b") }] }],
        }),
    );
    world.settle();
    assert!(!world.allows("bank/teller", "shop/web", "tcp/22"), "the lower priority number is asked first");
    world.engine.delete_cluster_policy("first");
    world.settle();
    assert!(world.allows("bank/teller", "shop/web", "tcp/22"));
}

#[test]
fn nodes_and_networks_are_peers_of_cluster_policies() {
    let mut world = shop();
    world.cluster_policy(
        "out",
        json!({
            "tier": "Admin", "priority": 1, "subject": { "namespaces": {} },
            "egress": [
                { "action": "Accept", "to": [{ "nodes": labelled("zone", "x") }] },
                { "action": "Deny", "to": [{ "nodes": {} }, { "networks": ["203.0.113.0/24"] }] },
            ],
        }),
    );
    world.settle();
    assert!(
        world.allows("shop/web", "192.0.2.1", "tcp/1") && !world.allows("shop/web", "192.0.2.2", "tcp/1")
    );
    assert!(
        !world.allows("shop/web", "203.0.113.9", "tcp/1") && world.allows("shop/web", "shop/far", "tcp/1")
    );
    world.node("b", "192.0.2.9", json!({ "zone": "x" }));
    world.settle();
    assert!(world.allows("shop/web", "192.0.2.2", "tcp/1") && world.allows("shop/web", "192.0.2.9", "tcp/1"));
}

#[test]
fn a_policy_that_is_not_understood_closes_rather_than_opens() {
    let mut world = shop();
    let strange = json!({ "matchExpressions": [{ "key": "app", "operator": "Like", "values": ["x"] }] });
    world.policy("shop/strange", json!({ "podSelector": strange, "ingress": [{}] }));
    world.settle();
    assert!(
        !world.allows("shop/far", "shop/web", "tcp/80") && !world.allows("shop/far", "shop/db", "tcp/80")
    );
    assert_eq!(world.engine.problems().len(), 1);
    let view = world.engine.policies();
    assert_eq!((view.len(), view[0].problems, view[0].pods.len()), (1, 1, 2));
}

#[test]
fn an_explanation_names_rules_and_what_came_nearest() {
    let mut world = shop();
    world.policy(
        "shop/web",
        json!({
            "podSelector": labelled("app", "db"),
            "ingress": [{ "from": [{ "podSelector": labelled("app", "web") }], "ports": [{ "port": 80 }] }],
        }),
    );
    world.settle();
    let allowed = world.why("shop/far", "shop/db", "tcp/80");
    assert_eq!(
        allowed.to_string(),
        "10.244.1.2 (pod shop/far) to 10.244.0.3 (pod shop/db) tcp/80: allowed\n  \
         egress: allowed: no policy selects the pod: everything passes\n  \
         ingress: allowed: a rule allows it: NetworkPolicy shop/web ingress rule 1"
    );
    let denied = world.why("shop/far", "shop/db", "tcp/81");
    assert_eq!(
        denied.ingress.misses,
        ["NetworkPolicy shop/web: rule 1 names the peer, but tcp/80 rather than tcp/81"]
    );
    let denied = world.why("203.0.113.1", "shop/db", "tcp/80");
    assert_eq!(denied.ingress.misses, ["NetworkPolicy shop/web: no ingress rule names the peer"]);
    let value = serde_json::to_value(&denied).expect("a value");
    assert_eq!(value["ingress"]["policies"], json!(["NetworkPolicy shop/web"]));
    assert_eq!(value["server"]["endpoint"], json!(2));
    let compiled = world.engine.compiled(world.maps.isolation_of(2).ingress).expect("a policy");
    assert_eq!(compiled.policies, ["NetworkPolicy shop/web"]);
}
