//! Which version of an object is in effect: the one whose writes have succeeded, not the one that was heard of last.

use std::time::{Duration, Instant};

use fairlead_core::dataplane::{MemoryMaps, MemoryPolicyMaps};
use fairlead_core::effect::{Effect, State, Wanted};
use fairlead_core::model::ObjectName;
use fairlead_core::policy::{Capacity as PolicyCapacity, Engine, PodId, PolicyName};
use fairlead_core::reconcile::{Capacity, Reconciler};
use fairlead_core::settings::Settings;
use fairlead_core::stamp::Version;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, from_value, json};

const CAPACITY: Capacity = Capacity { slots: 1000, backends: 1000 };
const POLICIES: PolicyCapacity =
    PolicyCapacity { policies: 64, cells: 1 << 10, rows: 1 << 10, peers: 1 << 10 };

fn version(number: u32) -> Option<Version> {
    Version::new(&number.to_string())
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

/// A reconciler and its maps.
struct Bench {
    reconciler: Reconciler,
    maps: MemoryMaps,
    now: Instant,
}

impl Bench {
    fn new(maps: MemoryMaps) -> Self {
        let mut reconciler = Reconciler::new("a", CAPACITY, Settings::default());
        reconciler.set_synced();
        let mut bench = Self { reconciler, maps, now: Instant::now() };
        bench.turn();
        bench
    }

    fn service(&mut self, service: &str, number: u32, spec: Value) {
        let meta = json!({ "namespace": "default", "name": service, "resourceVersion": number.to_string() });
        let object = from_value(json!({ "metadata": meta, "spec": spec })).expect("a Service");
        self.reconciler.index_mut().apply_service(&object);
    }

    fn slice(&mut self, service: &str, slice: &str, number: u32, address: &str) {
        let object = json!({
            "metadata": {
                "namespace": "default", "name": slice, "resourceVersion": number.to_string(),
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [{ "addresses": [address] }],
        });
        self.reconciler.index_mut().apply_slice(&from_value(object).expect("an EndpointSlice"));
    }

    fn turn(&mut self) {
        self.now += Duration::from_secs(60);
        self.reconciler.reconcile(self.now, &mut self.maps);
    }

    fn effect(&self, service: &str) -> Effect {
        self.reconciler.service_effect(&name(service))
    }
}

fn at(ip: &str) -> Value {
    json!({ "clusterIPs": [ip], "ports": [{ "name": "http", "port": 80 }] })
}

#[test]
fn a_services_version_is_in_effect_after_the_write_and_the_former_one_until_then() {
    let mut bench = Bench::new(MemoryMaps::default());
    bench.service("web", 7, at("10.96.0.1"));
    let effect = bench.effect("web");
    assert_eq!((effect.version, effect.heard), (None, version(7)));
    assert!(matches!(effect.state, State::Waiting(_)), "{effect:?}");
    bench.turn();
    assert_eq!((bench.effect("web").version, bench.effect("web").state), (version(7), State::InEffect));

    bench.service("web", 8, at("10.96.0.2"));
    let effect = bench.effect("web");
    assert_eq!((effect.version, effect.heard), (version(7), version(8)));
    assert!(effect.meets(Wanted { version: version(8), deleted: false }).is_err());
    bench.turn();
    assert_eq!(bench.effect("web").version, version(8));
}

#[test]
fn a_change_that_means_nothing_to_the_maps_is_in_effect_at_once() {
    let mut bench = Bench::new(MemoryMaps::default());
    bench.service("web", 7, at("10.96.0.1"));
    bench.turn();
    bench.service("web", 9, at("10.96.0.1"));
    assert_eq!((bench.effect("web").version, bench.effect("web").state), (version(9), State::InEffect));
}

#[test]
fn slices_have_versions_of_their_own_and_count_until_they_are_out_of_the_maps() {
    let mut bench = Bench::new(MemoryMaps::default());
    bench.service("web", 1, at("10.96.0.1"));
    bench.slice("web", "web-a", 2, "10.244.0.2");
    bench.turn();
    assert_eq!(bench.effect("web").slices, [("web-a".to_owned(), version(2))]);

    bench.slice("web", "web-a", 3, "10.244.0.3");
    bench.slice("web", "web-b", 4, "10.244.0.4");
    assert_eq!(bench.effect("web").slices, [("web-a".to_owned(), version(2))]);
    assert_eq!(bench.effect("web").version, version(1), "the Service itself did not change");
    bench.turn();
    let both = [("web-a".to_owned(), version(3)), ("web-b".to_owned(), version(4))];
    assert_eq!(bench.effect("web").slices, both);

    bench.reconciler.index_mut().delete_slice(&name("web-a"));
    assert_eq!(bench.effect("web").slices, both);
    bench.turn();
    assert_eq!(bench.effect("web").slices, both[1..]);
}

#[test]
fn a_deleted_service_is_gone_when_it_is_out_of_the_maps() {
    let mut bench = Bench::new(MemoryMaps::default());
    let deleted = Wanted { version: None, deleted: true };
    bench.service("web", 7, at("10.96.0.1"));
    bench.turn();
    bench.reconciler.index_mut().delete_service(&name("web"));
    assert!(bench.effect("web").meets(deleted).is_err());
    assert_eq!(bench.effect("web").version, version(7), "it still is in the maps");
    bench.turn();
    assert_eq!(bench.effect("web").meets(deleted), Ok(()));
    assert!(!bench.effect("web").is_known());
}

#[test]
fn what_there_is_no_room_for_is_not_in_effect_and_names_the_map() {
    let mut bench = Bench::new(MemoryMaps::with_room_for(2));
    bench.service("web", 7, at("10.96.0.1"));
    bench.turn();
    bench.service("web2", 8, at("10.96.0.2"));
    bench.turn();
    assert_eq!(bench.effect("web").state, State::InEffect);
    let State::Failed(why) = bench.effect("web2").state else { panic!("{:?}", bench.effect("web2")) };
    assert!(why.contains("map full (2)"), "{why}");
    assert_eq!(bench.effect("web2").version, None);
    bench.reconciler.index_mut().delete_service(&name("web"));
    bench.turn();
    bench.turn();
    assert_eq!((bench.effect("web2").version, bench.effect("web2").state), (version(8), State::InEffect));
}

#[test]
fn an_address_that_another_service_has_keeps_one_from_being_in_effect_and_a_bad_field_does_not() {
    let mut bench = Bench::new(MemoryMaps::default());
    bench.service("a", 1, at("10.96.0.1"));
    bench.service("b", 2, at("10.96.0.1"));
    let bad = json!({ "clusterIPs": ["10.96.0.3"], "externalIPs": ["127.0.0.1"], "ports": [{ "port": 80 }] });
    bench.service("c", 3, bad);
    bench.turn();
    assert_eq!(bench.effect("b").state, State::Refused);
    let why = bench.effect("b").meets(Wanted::default()).expect_err("refused");
    assert!(why.contains("is already that of Service default/a"), "{why}");
    let effect = bench.effect("c");
    assert_eq!((effect.state.clone(), effect.left_out.len()), (State::InEffect, 1), "{effect:?}");
}

#[test]
fn a_service_for_no_proxy_is_in_effect_as_it_is() {
    let mut bench = Bench::new(MemoryMaps::default());
    bench.service("headless", 5, json!({ "clusterIP": "None", "clusterIPs": ["None"] }));
    let effect = bench.effect("headless");
    assert_eq!((effect.meets(Wanted::default()), effect.version), (Ok(()), version(5)));
    assert!(effect.note.is_some());
}

#[test]
fn nothing_is_in_effect_before_every_first_list_is_done() {
    let mut reconciler = Reconciler::new("a", CAPACITY, Settings::default());
    let object = json!({ "metadata": { "namespace": "default", "name": "web", "resourceVersion": "7" } });
    let object: core::Service = from_value(object).expect("a Service");
    reconciler.index_mut().apply_service(&object);
    for web in ["web", "none"] {
        assert_eq!(reconciler.service_effect(&name(web)).state, State::NotSynced);
        assert_eq!(reconciler.service_effect(&name(web)).version, None);
    }
}

/// An engine with a pod of this node, and its maps.
fn engine(capacity: PolicyCapacity) -> (Engine, MemoryPolicyMaps) {
    let mut engine = Engine::new("a", capacity, false);
    let namespace = json!({ "metadata": { "name": "default" } });
    engine.apply_namespace(&from_value(namespace).expect("a Namespace"));
    pod(&mut engine, 1, "web");
    engine.set_synced();
    let id = PodId { namespace: "default".into(), name: "web".into(), uid: "1".into() };
    engine.add_endpoint(1, id, vec!["10.244.0.2".parse().expect("an address")]);
    (engine, MemoryPolicyMaps::with_capacity(capacity))
}

fn pod(engine: &mut Engine, number: u32, app: &str) {
    let meta = json!({
        "namespace": "default", "name": "web", "uid": "1", "labels": { "app": app },
        "resourceVersion": number.to_string(),
    });
    let status = json!({ "podIPs": [{ "ip": "10.244.0.2" }] });
    let object = json!({ "metadata": meta, "spec": { "nodeName": "a", "containers": [] }, "status": status });
    engine.apply_pod(&from_value(object).expect("a Pod"));
}

fn policy(engine: &mut Engine, number: u32, ports: u32) {
    let meta = json!({ "namespace": "default", "name": "only", "resourceVersion": number.to_string() });
    let rules: Vec<Value> = (1..=ports)
        .map(|port| {
            let app = json!({ "matchLabels": { "app": format!("app-{port}") } });
            json!({ "from": [{ "podSelector": app }], "ports": [{ "port": port }] })
        })
        .collect();
    let object = json!({ "metadata": meta, "spec": { "podSelector": {}, "ingress": rules } });
    engine.apply_network_policy(&from_value(object).expect("a NetworkPolicy"));
}

#[test]
fn a_policys_version_is_in_effect_when_pods_are_under_it() {
    let (mut engine, mut maps) = engine(POLICIES);
    let only = PolicyName::Network(name("only"));
    let mut now = Instant::now();
    let mut turn = |engine: &mut Engine| {
        now += Duration::from_secs(60);
        engine.reconcile(now, &mut maps);
    };
    turn(&mut engine);
    assert_eq!(engine.pod_effect(&name("web")).meets(Wanted::default()), Ok(()));
    policy(&mut engine, 7, 1);
    let effect = engine.policy_effect(&only);
    assert_eq!((effect.version, effect.heard), (None, version(7)));
    turn(&mut engine);
    assert_eq!(
        (engine.policy_effect(&only).version, engine.policy_effect(&only).state),
        (version(7), State::InEffect)
    );
    policy(&mut engine, 8, 2);
    assert_eq!(engine.policy_effect(&only).version, version(7));
    turn(&mut engine);
    assert_eq!(engine.policy_effect(&only).version, version(8));
    engine.delete_network_policy(&name("only"));
    assert_eq!(engine.policy_effect(&only).version, version(8));
    turn(&mut engine);
    assert_eq!(engine.policy_effect(&only).meets(Wanted { version: None, deleted: true }), Ok(()));
}

#[test]
fn a_policy_that_there_is_no_room_for_is_not_in_effect_nor_is_its_pod() {
    let (mut engine, mut maps) = engine(PolicyCapacity { cells: 2, rows: 2, ..POLICIES });
    for number in 1..=8 {
        let meta = json!({
            "namespace": "default", "name": format!("p{number}"), "uid": format!("p{number}"),
            "labels": { "app": format!("app-{number}") }, "resourceVersion": "3",
        });
        let status = json!({ "podIPs": [{ "ip": format!("10.244.1.{number}") }] });
        let object =
            json!({ "metadata": meta, "spec": { "nodeName": "b", "containers": [] }, "status": status });
        engine.apply_pod(&from_value(object).expect("a Pod"));
    }
    policy(&mut engine, 7, 8);
    engine.reconcile(Instant::now(), &mut maps);
    let effect = engine.policy_effect(&PolicyName::Network(name("only")));
    assert_eq!(effect.version, None);
    assert!(matches!(&effect.state, State::Failed(why) if why.contains("map full (2)")), "{effect:?}");
    assert!(matches!(engine.pod_effect(&name("web")).state, State::Failed(_)));
    let failed: Vec<String> = engine.failed_policies().map(|(name, _)| name.to_string()).collect();
    assert_eq!(failed, ["NetworkPolicy default/only"]);
}

#[test]
fn a_pods_status_is_in_effect_at_once_and_its_labels_when_they_are_written() {
    let (mut engine, mut maps) = engine(POLICIES);
    engine.reconcile(Instant::now(), &mut maps);
    assert_eq!(engine.pod_effect(&name("web")).version, version(1));
    pod(&mut engine, 2, "web");
    assert_eq!(
        (engine.pod_effect(&name("web")).version, engine.pod_effect(&name("web")).state),
        (version(2), State::InEffect)
    );
    pod(&mut engine, 3, "other");
    assert_eq!(engine.pod_effect(&name("web")).version, version(2));
    engine.reconcile(Instant::now(), &mut maps);
    assert_eq!(engine.pod_effect(&name("web")).version, version(3));
}
