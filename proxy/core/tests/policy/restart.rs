//! A restart: what an earlier run left in the maps is taken over.

use std::time::{Duration, Instant};

use fairlead_abi::policies;
use fairlead_core::dataplane::MemoryPolicyMaps;
use fairlead_core::policy::{EndpointState, Engine, PodId};
use serde_json::{Value, json};

use crate::world::{CAPACITY, World, feed, name, pod};

fn objects() -> Vec<Value> {
    let policy = |name: &str, spec: Value| json!({ "kind": "NetworkPolicy", "metadata": { "namespace": "shop", "name": name }, "spec": spec });
    let peers = json!([
        { "podSelector": { "matchLabels": { "app": "web" } } },
        { "namespaceSelector": { "matchLabels": { "team": "b" } } },
        { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.244.1.0/24"] } },
    ]);
    vec![
        json!({ "kind": "Namespace", "metadata": { "name": "shop", "labels": { "team": "a" } } }),
        json!({ "kind": "Namespace", "metadata": { "name": "bank", "labels": { "team": "b" } } }),
        json!({
            "kind": "Node", "metadata": { "name": "a" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        }),
        pod("shop/web", "a", "10.244.0.2", json!({ "app": "web" })),
        pod("shop/db", "a", "10.244.0.3", json!({ "app": "db" })),
        pod("shop/far", "b", "10.244.1.2", json!({ "app": "web" })),
        pod("bank/teller", "b", "10.244.1.3", json!({ "app": "db" })),
        policy(
            "in",
            json!({
                "podSelector": {}, "ingress": [{ "from": peers, "ports": [{ "port": 80 }, { "port": "http" }] }],
            }),
        ),
        policy(
            "out",
            json!({
                "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Egress"],
                "egress": [{ "to": [{ "podSelector": {} }], "ports": [{ "port": "http" }] }],
            }),
        ),
    ]
}

/// A fresh engine over the maps, which has not been told anything but endpoints.
fn restarted(maps: &MemoryPolicyMaps) -> Engine {
    let mut engine = Engine::new("a", CAPACITY, false);
    for (index, name, host) in [(1, "web", 2), (2, "db", 3)] {
        let uid = format!("uid of shop/{name}");
        let pod = PodId { namespace: "shop".to_owned(), name: name.to_owned(), uid };
        engine.add_endpoint(index, pod, vec![[10, 244, 0, host].into()]);
    }
    engine.adopt(maps).expect("readable maps");
    engine
}

fn settled() -> MemoryPolicyMaps {
    let mut maps = MemoryPolicyMaps::default();
    let mut engine = restarted(&maps);
    objects().into_iter().for_each(|object| feed(&mut engine, object));
    engine.set_synced();
    let report = engine.reconcile(Instant::now(), &mut maps);
    assert_eq!((report.pending, report.failed.len()), (0, 0));
    maps
}

#[test]
fn nothing_but_the_revision_is_written_where_nothing_changed() {
    let mut maps = settled();
    let (writes, revision, dump) = (maps.writes, maps.revision(), maps.dump());
    let mut engine = restarted(&maps);
    let mut objects = objects();
    // The order in which objects come is another.
    objects.reverse();
    objects.into_iter().for_each(|object| feed(&mut engine, object));
    engine.set_synced();
    engine.reconcile(Instant::now(), &mut maps);
    assert_eq!((maps.writes - writes, maps.revision() - revision), (1, 1), "{}", maps.dump());
    assert_eq!(maps.dump(), dump);
    engine.reconcile(Instant::now(), &mut maps);
    assert_eq!(maps.writes - writes, 1);
}

#[test]
fn nothing_is_written_before_every_list_is_done() {
    let mut maps = settled();
    let writes = maps.writes;
    let mut engine = restarted(&maps);
    engine.remove_endpoint(1);
    engine.reconcile(Instant::now(), &mut maps);
    assert_eq!(maps.writes, writes);
    assert_eq!(engine.endpoint_state(2), EndpointState::NotSynced);
}

#[test]
fn what_changed_meanwhile_is_written_and_what_nobody_wants_is_removed() {
    let mut maps = settled();
    let mut engine = restarted(&maps);
    objects().into_iter().for_each(|object| feed(&mut engine, object));
    engine.delete_network_policy(&name("shop/out"));
    engine.delete_pod(&name("shop/far"));
    feed(&mut engine, pod("bank/teller", "b", "10.244.1.3", json!({ "app": "web" })));
    engine.set_synced();
    engine.reconcile(Instant::now(), &mut maps);
    let mut fresh = MemoryPolicyMaps::default();
    let mut other = restarted(&fresh);
    objects().into_iter().for_each(|object| feed(&mut other, object));
    other.delete_network_policy(&name("shop/out"));
    other.delete_pod(&name("shop/far"));
    feed(&mut other, pod("bank/teller", "b", "10.244.1.3", json!({ "app": "web" })));
    other.set_synced();
    other.reconcile(Instant::now(), &mut fresh);
    assert_eq!(maps.dump(), fresh.dump());
}

#[test]
fn ids_of_an_earlier_run_are_not_given_out_while_anybody_is_under_them() {
    let mut maps = settled();
    let old = maps.isolation_of(1).ingress;
    let mut engine = restarted(&maps);
    objects().into_iter().for_each(|object| feed(&mut engine, object));
    let selector = json!({ "matchLabels": { "app": "web" } });
    feed(
        &mut engine,
        json!({
            "kind": "NetworkPolicy", "metadata": { "namespace": "shop", "name": "more" },
            "spec": { "podSelector": selector },
        }),
    );
    engine.set_synced();
    let now = Instant::now();
    engine.reconcile(now, &mut maps);
    let new = maps.isolation_of(1).ingress;
    assert!(new >= policies::FIRST && new != old);
    engine.delete_network_policy(&name("shop/more"));
    engine.reconcile(now + Duration::from_secs(2), &mut maps);
    assert!(maps.isolation_of(1).ingress == maps.isolation_of(2).ingress);
}

#[test]
fn an_index_that_another_pod_gets_never_shows_it_the_formers_policies() {
    let mut world = World::new();
    world.pod("shop/web", "a", "10.244.0.2", json!({ "app": "web" }));
    world.policy("shop/deny", json!({ "podSelector": {} }));
    world.settle();
    assert!(world.maps.isolation_of(1).ingress >= policies::FIRST);
    world.engine.remove_endpoint(1);
    world.settle();
    assert_eq!(world.maps.isolation_of(1).ingress, policies::CLOSED);
    assert_eq!(world.engine.endpoint_state(1), EndpointState::NoEndpoint);
    world.apply(pod("bank/teller", "a", "10.244.0.2", json!({})));
    let teller = PodId { namespace: "bank".to_owned(), name: "teller".to_owned(), uid: String::new() };
    world.engine.add_endpoint(1, teller, vec![[10, 244, 0, 2].into()]);
    world.settle();
    assert_eq!(world.maps.isolation_of(1).ingress, policies::OPEN);
    assert_eq!(world.engine.who([10, 244, 0, 2].into()).pod.as_deref(), Some("bank/teller"));
}
