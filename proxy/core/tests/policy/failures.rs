//! Writes that fail, and maps that are full: the pods concerned are closed, and the rest goes on.

use std::time::{Duration, Instant};

use fairlead_abi::policies;
use fairlead_core::dataplane::{FaultyMaps, MemoryPolicyMaps};
use fairlead_core::policy::{Capacity, EndpointState, Engine};
use serde_json::{Value, json};

use crate::world::{CAPACITY, World, name};

/// A world with so much room, in its maps and by what its engine was told of them.
fn world(capacity: Capacity) -> World {
    let mut world = World::with(Engine::new("a", capacity, false));
    world.maps = MemoryPolicyMaps::with_capacity(capacity);
    world.pod("shop/web", "a", "10.244.0.2", json!({ "app": "web" }));
    world.pod("bank/teller", "a", "10.244.0.3", json!({ "app": "db" }));
    world
}

/// From every app its own range of ports: a row and a cell each.
fn many(apps: u32) -> Value {
    let rule = |number: u32| {
        let app = format!("app-{number}");
        json!({
            "from": [{ "podSelector": { "matchLabels": { "app": app } } }], "ports": [{ "port": number + 1 }],
        })
    };
    json!({ "podSelector": {}, "ingress": (0..apps).map(rule).collect::<Vec<Value>>() })
}

fn fill(world: &mut World, pods: u32) {
    for number in 0..pods {
        let address = format!("10.244.1.{}", number + 1);
        world.pod(&format!("shop/p{number}"), "b", &address, json!({ "app": format!("app-{number}") }));
    }
}

fn reconcile(world: &mut World) {
    world.now += Duration::from_secs(60);
    world.engine.reconcile(world.now, &mut world.maps);
}

fn expect_failed(world: &World, limit: &str) {
    let EndpointState::Failed(reason) = world.engine.endpoint_state(1) else {
        panic!("{:?}", world.engine.endpoint_state(1));
    };
    assert!(reason.starts_with("NetworkPolicy shop/many: program ") && reason.ends_with(limit), "{reason}");
    assert_eq!(world.maps.isolation_of(1).ingress, policies::CLOSED);
    let pending: Vec<String> = world.engine.pending().map(|(part, _)| part).collect();
    assert_eq!(pending[0], "NetworkPolicy shop/many");
    assert!(world.engine.next_deadline().is_some());
    assert!(world.engine.policies().iter().any(|view| view.pending.is_some()));
}

#[test]
fn a_policy_with_too_many_cells_closes_its_pods_and_leaves_room_to_others() {
    let mut world = world(Capacity { cells: 8, ..CAPACITY });
    fill(&mut world, 20);
    world.policy("shop/many", many(20));
    world.policy("bank/few", many(2));
    reconcile(&mut world);
    expect_failed(&world, "map full (8)");
    assert_eq!(world.engine.endpoint_state(2), EndpointState::Programmed);
    assert_eq!(world.maps.sizes()[1], 0, "none of it is written");
    let why = world.why("shop/p1", "shop/web", "tcp/2");
    assert!(!why.allowed && why.ingress.reason.contains("map full (8)"), "{why}");
    world.policy("shop/many", many(5));
    world.settle();
    assert_eq!(world.engine.endpoint_state(1), EndpointState::Programmed);
    assert!(world.allows("shop/p1", "shop/web", "tcp/2") && !world.allows("shop/p1", "shop/web", "tcp/3"));
    world.policy("shop/many", many(20));
    reconcile(&mut world);
    expect_failed(&world, "map full (8)");
    world.engine.delete_network_policy(&name("shop/many"));
    world.settle();
    assert!(world.allows("shop/p1", "shop/web", "tcp/9"));
    assert_eq!(world.engine.next_deadline(), None);
}

#[test]
fn a_policy_with_too_many_ranges_of_ports_closes_its_pods() {
    let mut world = world(Capacity { rows: 16, ..CAPACITY });
    fill(&mut world, 20);
    world.policy("shop/many", many(20));
    reconcile(&mut world);
    expect_failed(&world, "map full (16)");
    assert_eq!(world.maps.sizes()[2], 0, "none of it is written");
}

#[test]
fn addresses_that_find_no_room_close_the_pods_that_would_mistake_them() {
    let mut world = world(Capacity { peers: 8, ..CAPACITY });
    fill(&mut world, 20);
    world.policy("shop/many", many(20));
    world.policy("bank/deny", json!({ "podSelector": {} }));
    reconcile(&mut world);
    expect_failed(&world, "map full (8)");
    assert_eq!(world.engine.endpoint_state(2), EndpointState::Programmed, "it treats all alike");
    for number in 0..15 {
        world.engine.delete_pod(&name(&format!("shop/p{number}")));
    }
    reconcile(&mut world);
    reconcile(&mut world);
    assert_eq!(world.engine.endpoint_state(1), EndpointState::Programmed);
    assert!(world.allows("shop/p17", "shop/web", "tcp/18"));
}

#[test]
fn ranges_never_take_the_room_of_addresses() {
    let mut world = world(Capacity { peers: 64, ..CAPACITY });
    let block = |number: u32| json!({ "ipBlock": { "cidr": format!("203.0.{number}.0/24") } });
    let blocks: Vec<Value> = (0..100).map(block).collect();
    world.policy("shop/many", json!({ "podSelector": {}, "ingress": [{ "from": blocks }] }));
    world.policy("bank/few", many(2));
    reconcile(&mut world);
    expect_failed(&world, "map full (64)");
    assert_eq!(world.engine.endpoint_state(2), EndpointState::Programmed);
    assert!(world.maps.sizes()[3] < 10, "none of it is written");
    world.policy("shop/many", json!({ "podSelector": {}, "ingress": [{ "from": [block(1)] }] }));
    world.settle();
    assert!(world.allows("203.0.1.1", "shop/web", "tcp/1"));
}

#[test]
fn an_endpoint_that_can_not_be_put_under_its_policies_says_so_and_is_tried_again() {
    let mut world = world(CAPACITY);
    world.policy("shop/deny", json!({ "podSelector": {} }));
    let mut maps = FaultyMaps::new(std::mem::take(&mut world.maps), 1, 1000);
    let now = Instant::now();
    world.engine.reconcile(now, &mut maps);
    assert!(matches!(world.engine.endpoint_state(1), EndpointState::Failed(_)));
    assert!(matches!(world.engine.endpoint_state(2), EndpointState::Failed(_)));
    assert!(world.engine.pending().any(|(part, _)| part == "endpoint 2"));
    let deadline = world.engine.next_deadline().expect("a retry");
    assert!(deadline > now);
    maps.failures_per_mille = 0;
    let report = world.engine.reconcile(deadline, &mut maps);
    assert_eq!((report.pending, report.failed.len()), (0, 0));
    assert_eq!(world.engine.endpoint_state(1), EndpointState::Programmed);
}

#[test]
fn a_pod_is_put_under_its_policies_at_once() {
    let mut world = world(CAPACITY);
    world.policy("shop/deny", json!({ "podSelector": {} }));
    world.settle();
    world.pod("shop/new", "a", "10.244.0.9", json!({}));
    let report = world.settle();
    assert_eq!((report.applied.isolations, report.applied.cells), (1, 0), "it shares a compiled policy");
    assert!(!world.allows("shop/web", "shop/new", "tcp/80"));
}
