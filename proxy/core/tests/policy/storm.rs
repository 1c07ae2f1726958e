//! Storms of changes: what the maps hold in the end is what a fresh engine would write, and on the way there no packet
//! meets anything but the old state, the new one, or a closed door.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fairlead_abi::{CellKey, Isolation, PolicyState, Reason};
use fairlead_core::dataplane::{
    FaultyMaps, FlowSide, MapError, MemoryPolicyMaps, PolicyMaps, RangeKey, RowPrefix,
};
use fairlead_core::model::Protocol;
use fairlead_core::policy::{Engine, Party, PodId};
use serde_json::{Value, json};

use crate::world::{CAPACITY, feed, name};

const PODS: u32 = 14;
const LOCAL: u32 = 6;
const PORTS: [(Protocol, u16); 5] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 8080),
    (Protocol::Tcp, 8081),
    (Protocol::Udp, 80),
    (Protocol::Udp, 1500),
];

/// Numbers that follow from a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % bound
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u32) as usize].clone()
    }

    fn list(&mut self, most: u32, mut one: impl FnMut(&mut Self) -> Value) -> Value {
        (0..self.below(most + 1)).map(|_| one(self)).collect()
    }
}

/// A change of one object.
#[derive(Clone, Debug)]
enum Change {
    Object(Value),
    NoPod(u32),
    NoPolicy(String),
    NoClusterPolicy(String),
}

/// Objects, an engine, and what it was fed last.
struct Storm {
    random: Random,
    engine: Engine,
    /// The last state of each object that there is, by kind and name.
    objects: BTreeMap<String, Value>,
    now: Instant,
}

fn pod_name(number: u32) -> String {
    format!("{}/p{number}", ["x", "y", "z"][number as usize % 3])
}

fn selector(random: &mut Random) -> Value {
    match random.below(6) {
        0 => json!({}),
        1 => json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["a"] }] }),
        2 => json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["a", "b"] }] }),
        3 => json!({ "matchExpressions": [{ "key": "extra", "operator": "Exists" }] }),
        _ => json!({ "matchLabels": { "app": random.pick(&["a", "b", "c"]) } }),
    }
}

fn namespaces(random: &mut Random) -> Value {
    match random.below(3) {
        0 => json!({}),
        _ => json!({ "matchLabels": { "team": random.pick(&["s", "t"]) } }),
    }
}

fn block(random: &mut Random) -> Value {
    random.pick(&[
        json!({ "cidr": "10.244.0.0/16", "except": ["10.244.1.0/29"] }),
        json!({ "cidr": "10.244.1.0/28" }),
        json!({ "cidr": "0.0.0.0/0", "except": ["10.244.0.0/24"] }),
        json!({ "cidr": "10.244.1.3/32" }),
        json!({ "cidr": "::/0", "except": ["fd00::1:0/125"] }),
        json!({ "cidr": "fd00::/64" }),
        json!({ "cidr": "203.0.113.0/24", "except": ["203.0.113.8/29", "203.0.113.1/32"] }),
    ])
}

fn network_policy(random: &mut Random) -> Value {
    let peer = |random: &mut Random| match random.below(4) {
        0 => json!({ "podSelector": selector(random) }),
        1 => json!({ "namespaceSelector": namespaces(random) }),
        2 => json!({ "ipBlock": block(random) }),
        _ => json!({ "namespaceSelector": namespaces(random), "podSelector": selector(random) }),
    };
    let port = |random: &mut Random| {
        random.pick(&[
            json!({ "port": 80 }),
            json!({ "port": "http" }),
            json!({ "protocol": "UDP" }),
            json!({ "protocol": "UDP", "port": 1000, "endPort": 1999 }),
        ])
    };
    let rules = |random: &mut Random, peers: &str| {
        random.list(3, |random| json!({ peers: random.list(2, peer), "ports": random.list(2, port) }))
    };
    let types =
        random.pick(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"]), json!([])]);
    json!({
        "podSelector": selector(random), "policyTypes": types,
        "ingress": rules(random, "from"), "egress": rules(random, "to"),
    })
}

fn cluster_policy(random: &mut Random) -> Value {
    let pods = |random: &mut Random| match random.below(2) {
        0 => json!({ "namespaces": namespaces(random) }),
        _ => json!({ "pods": { "namespaceSelector": namespaces(random), "podSelector": selector(random) } }),
    };
    let to = |random: &mut Random| match random.below(4) {
        0 => json!({ "nodes": random.pick(&[json!({}), json!({ "matchLabels": { "zone": "b" } })]) }),
        1 => json!({ "networks": [block(random)["cidr"]] }),
        _ => pods(random),
    };
    let port = |random: &mut Random| {
        random.pick(&[
            json!({ "tcp": { "destinationPort": { "number": 80 } } }),
            json!({ "udp": {} }),
            json!({ "destinationNamedPort": "http" }),
            json!({ "tcp": { "destinationPort": { "range": { "start": 81, "end": 8080 } } } }),
        ])
    };
    let one_or_more = |random: &mut Random, one: &dyn Fn(&mut Random) -> Value| -> Value {
        (0..1 + random.below(2)).map(|_| one(random)).collect()
    };
    let rules = |random: &mut Random, peers: &str, one: &dyn Fn(&mut Random) -> Value| {
        random.list(3, |random| {
            json!({
                "action": random.pick(&["Accept", "Deny", "Pass"]),
                peers: one_or_more(random, one), "protocols": random.list(1, port),
            })
        })
    };
    json!({
        "tier": random.pick(&["Admin", "Baseline"]), "priority": random.below(3), "subject": pods(random),
        "ingress": rules(random, "from", &pods), "egress": rules(random, "to", &to),
    })
}

fn change(random: &mut Random, everything: bool) -> Change {
    match random.below(if everything { 15 } else { 13 }) {
        0 => Change::NoPod(random.below(PODS)),
        1..=5 => {
            let number = random.below(PODS);
            let (node, host) = if number < LOCAL { ("a", number) } else { ("b", random.below(10)) };
            let address = format!("10.244.{}.{}", u32::from(node == "b"), host + 1);
            let full = pod_name(number);
            let (namespace, name) = full.split_once('/').expect("a namespace");
            let mut labels = json!({ "app": random.pick(&["a", "b", "c"]) });
            if random.below(4) == 0 {
                labels["extra"] = json!("1");
            }
            let v6 = format!("fd00::{}:{}", u32::from(node == "b"), host + 1);
            let mut object = json!({
                "kind": "Pod",
                "metadata": {
                    "namespace": namespace, "name": name, "labels": labels, "uid": number.to_string(),
                    "creationTimestamp": format!("2025-01-01T00:00:{:02}Z", random.below(60)),
                },
                "spec": { "nodeName": node, "containers": [{ "name": "main", "ports": [
                    { "name": "http", "containerPort": 8080 + random.below(2) },
                ] }] },
                "status": { "phase": random.pick(&["Running", "Running", "Running", "Failed"]),
                    "podIPs": [{ "ip": address }, { "ip": v6 }] },
            });
            if random.below(8) == 0 {
                object["metadata"]["deletionTimestamp"] = json!("2025-01-02T00:00:00Z");
            }
            Change::Object(object)
        }
        6 => Change::NoPolicy(format!("{}/n{}", random.pick(&["x", "y", "z"]), random.below(3))),
        7 => Change::NoClusterPolicy(format!("c{}", random.below(4))),
        8..=10 => Change::Object(json!({
            "kind": "NetworkPolicy",
            "metadata": { "namespace": random.pick(&["x", "y", "z"]), "name": format!("n{}", random.below(3)) },
            "spec": network_policy(random),
        })),
        11 | 12 => Change::Object(json!({
            "kind": "ClusterNetworkPolicy", "metadata": { "name": format!("c{}", random.below(4)) },
            "spec": cluster_policy(random),
        })),
        13 => Change::Object(namespace(random.pick(&["x", "y", "z"]), random.pick(&["s", "t"]))),
        _ => Change::Object(node(random.pick(&["b", "c"]), random.below(3), random.pick(&["b", "c"]))),
    }
}

fn namespace(name: &str, team: &str) -> Value {
    json!({ "kind": "Namespace", "metadata": { "name": name, "labels": { "team": team } } })
}

fn node(name: &str, host: u32, zone: &str) -> Value {
    json!({
        "kind": "Node", "metadata": { "name": name, "labels": { "zone": zone } },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.0.2.{}", host + 1) }] },
    })
}

impl Storm {
    fn new(seed: u64) -> Self {
        let engine = Engine::new("a", CAPACITY, false);
        let mut storm = Self { random: Random(seed), engine, objects: BTreeMap::new(), now: Instant::now() };
        for name in ["x", "y", "z"] {
            storm.feed(&Change::Object(namespace(name, "s")));
        }
        storm.feed(&Change::Object(node("a", 0, "a")));
        storm.engine.set_synced();
        storm
    }

    fn feed(&mut self, change: &Change) {
        let engine = &mut self.engine;
        match change {
            Change::Object(object) => {
                let key = key(object);
                if object["kind"] == "Pod" && !self.objects.contains_key(&key) {
                    add_endpoint(engine, object);
                }
                feed(engine, object.clone());
                self.objects.insert(key, object.clone());
            }
            Change::NoPod(number) => {
                let full = pod_name(*number);
                if *number < LOCAL {
                    engine.remove_endpoint(*number);
                }
                engine.delete_pod(&name(&full));
                self.objects.remove(&format!("Pod {full}"));
            }
            Change::NoPolicy(full) => {
                engine.delete_network_policy(&name(full));
                self.objects.remove(&format!("NetworkPolicy {full}"));
            }
            Change::NoClusterPolicy(name) => {
                engine.delete_cluster_policy(name);
                self.objects.remove(&format!("ClusterNetworkPolicy /{name}"));
            }
        }
    }

    /// A fresh engine that was fed the same objects.
    fn fresh(&self) -> Engine {
        let mut engine = Engine::new("a", CAPACITY, false);
        for object in self.objects.values() {
            if object["kind"] == "Pod" {
                add_endpoint(&mut engine, object);
            }
            feed(&mut engine, object.clone());
        }
        engine.set_synced();
        engine
    }

    /// Another engine takes over.
    fn restart(&mut self, maps: &MemoryPolicyMaps) {
        self.engine = self.fresh();
        self.engine.adopt(maps).expect("readable maps");
    }

    fn addresses(&self) -> Vec<FlowSide> {
        let mut sides: Vec<FlowSide> = (0..LOCAL)
            .filter(|number| self.objects.contains_key(&format!("Pod {}", pod_name(*number))))
            .flat_map(|number| {
                let host = number + 1;
                [format!("10.244.0.{host}"), format!("fd00::{host}")].map(|own| side(&own, Some(number)))
            })
            .collect();
        sides.extend((0..10).map(|host| side(&format!("10.244.1.{}", host + 1), None)));
        for other in [
            "192.0.2.1",
            "192.0.2.2",
            "203.0.113.1",
            "203.0.113.9",
            "203.0.113.20",
            "fd00::1:3",
            "fd00::1:9",
            "2001:db8::1",
        ] {
            sides.push(side(other, None));
        }
        sides
    }

    /// What becomes of each flow at one side of it, by `judge`.
    fn survey(&self, mut judge: impl FnMut(Probe) -> bool) -> BTreeMap<Probe, bool> {
        let sides = self.addresses();
        let mut found = BTreeMap::new();
        for own in sides.iter().filter(|side| side.endpoint.is_some()) {
            for peer in sides.iter().filter(|peer| peer.address.is_ipv4() == own.address.is_ipv4()) {
                for (number, _) in PORTS.iter().enumerate() {
                    for ingress in [true, false] {
                        let probe = Probe {
                            endpoint: own.endpoint.unwrap_or_default(),
                            own: own.address,
                            peer: peer.address,
                            port: number,
                            ingress,
                        };
                        found.insert(probe, judge(probe));
                    }
                }
            }
        }
        found
    }

    /// By the rules.
    fn ideal(&self) -> BTreeMap<Probe, bool> {
        self.survey(|probe| {
            let (own, peer) = (Party::Address(probe.own), Party::Address(probe.peer));
            let (protocol, port) = PORTS[probe.port];
            match probe.ingress {
                true => self.engine.why(&peer, &own, Some(protocol), port).ingress.allowed,
                false => self.engine.why(&own, &peer, Some(protocol), port).egress.allowed,
            }
        })
    }
}

/// One side of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Probe {
    endpoint: u32,
    own: std::net::IpAddr,
    peer: std::net::IpAddr,
    port: usize,
    ingress: bool,
}

impl Probe {
    fn judge(self, maps: &MemoryPolicyMaps) -> Result<(), Reason> {
        let own = FlowSide { address: self.own, endpoint: Some(self.endpoint) };
        let peer = FlowSide { address: self.peer, endpoint: None };
        let (protocol, port) = PORTS[self.port];
        match self.ingress {
            true => maps.judge(peer, own, protocol.number(), port),
            false => maps.judge(own, peer, protocol.number(), port),
        }
    }
}

fn side(address: &str, endpoint: Option<u32>) -> FlowSide {
    FlowSide { address: address.parse().expect("an address"), endpoint }
}

fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{} {}/{}", object["kind"].as_str().expect("a kind"), text("namespace"), text("name"))
}

fn add_endpoint(engine: &mut Engine, pod: &Value) {
    let text = |field: &str| pod["metadata"][field].as_str().expect("a text").to_owned();
    let number: u32 = text("uid").parse().expect("a number");
    if number < LOCAL {
        let host = number + 1;
        let addresses = [format!("10.244.0.{host}"), format!("fd00::{host}")];
        let pod = PodId { namespace: text("namespace"), name: text("name"), uid: text("uid") };
        let addresses = addresses.map(|address| address.parse().expect("an address"));
        engine.add_endpoint(number, pod, addresses.to_vec());
    }
}

/// Maps that show `watch` what they hold after each write.
struct Watched<'a, M> {
    inner: M,
    watch: &'a mut dyn FnMut(&M, &str),
}

impl<M> Watched<'_, M> {
    fn saw<T>(&mut self, result: Result<T, MapError>, what: &str) -> Result<T, MapError> {
        (self.watch)(&self.inner, what);
        result
    }
}

impl<M: PolicyMaps> PolicyMaps for Watched<'_, M> {
    fn write_row(&mut self, key: &RowPrefix, verdict: u32) -> Result<(), MapError> {
        self.inner.write_row(key, verdict)
    }

    fn remove_row(&mut self, key: &RowPrefix) -> Result<(), MapError> {
        self.inner.remove_row(key)
    }

    fn write_default(&mut self, policy: u32, row: u32) -> Result<(), MapError> {
        let result = self.inner.write_default(policy, row);
        self.saw(result, &format!("default of {policy} {row}"))
    }

    fn write_cell(&mut self, key: &CellKey, row: u32) -> Result<(), MapError> {
        let result = self.inner.write_cell(key, row);
        self.saw(result, &format!("{key:?} {row}"))
    }

    fn remove_cell(&mut self, key: &CellKey) -> Result<(), MapError> {
        let result = self.inner.remove_cell(key);
        self.saw(result, &format!("no {key:?}"))
    }

    fn write_peer(&mut self, prefix: &RangeKey, identity: u32) -> Result<(), MapError> {
        let result = self.inner.write_peer(prefix, identity);
        self.saw(result, &format!("{prefix} {identity}"))
    }

    fn remove_peer(&mut self, prefix: &RangeKey) -> Result<(), MapError> {
        let result = self.inner.remove_peer(prefix);
        self.saw(result, &format!("no {prefix}"))
    }

    fn write_isolation(&mut self, index: u32, isolation: Isolation) -> Result<(), MapError> {
        let result = self.inner.write_isolation(index, isolation);
        self.saw(result, &format!("endpoint {index} {isolation:?}"))
    }

    fn write_state(&mut self, state: PolicyState) -> Result<(), MapError> {
        self.inner.write_state(state)
    }

    fn rows(&self) -> Result<Vec<(RowPrefix, u32)>, MapError> {
        self.inner.rows()
    }

    fn default_row(&self, policy: u32) -> Result<u32, MapError> {
        self.inner.default_row(policy)
    }

    fn cells(&self) -> Result<Vec<(CellKey, u32)>, MapError> {
        self.inner.cells()
    }

    fn peers(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        self.inner.peers()
    }

    fn isolation(&self, index: u32) -> Result<Isolation, MapError> {
        self.inner.isolation(index)
    }

    fn state(&self) -> Result<PolicyState, MapError> {
        self.inner.state()
    }
}

/// The maps of `engine` are what a fresh one writes, and judge as the rules say.
fn expect_settled(storm: &Storm, maps: &MemoryPolicyMaps) {
    let mut fresh = MemoryPolicyMaps::default();
    let report = storm.fresh().reconcile(storm.now, &mut fresh);
    assert_eq!(report.pending, 0);
    assert_eq!(maps.dump(), fresh.dump());
    for (probe, allowed) in storm.ideal() {
        assert_eq!(probe.judge(maps).is_ok(), allowed, "{probe:?}");
    }
}

#[test]
fn the_end_of_a_storm_is_what_a_fresh_engine_writes_whatever_failed_on_the_way() {
    for seed in 0..6 {
        let mut storm = Storm::new(seed);
        let mut maps = FaultyMaps::new(MemoryPolicyMaps::default(), seed, 0);
        for turn in 0..100 {
            maps.failures_per_mille = [0, 100, 300][turn % 3];
            for _ in 0..=storm.random.below(3) {
                let change = change(&mut storm.random, true);
                storm.feed(&change);
            }
            storm.now += Duration::from_millis(400);
            let report = storm.engine.reconcile(storm.now, &mut maps);
            if report.pending == 0 && turn % 7 == 0 {
                storm.restart(&maps.inner);
            }
            if turn % 50 == 49 {
                maps.failures_per_mille = 0;
                storm.now += Duration::from_secs(60);
                let report = storm.engine.reconcile(storm.now, &mut maps);
                assert_eq!((report.pending, report.failed.first()), (0, None));
                assert_eq!(storm.engine.next_deadline(), None);
                expect_settled(&storm, &maps.inner);
                let writes = maps.inner.writes;
                storm.restart(&maps.inner);
                storm.engine.reconcile(storm.now, &mut maps);
                assert_eq!(maps.inner.writes - writes, 1, "only the revision");
            }
        }
    }
}

#[test]
fn no_packet_meets_anything_but_the_old_state_or_the_new_one() {
    for seed in 0..3 {
        let mut storm = Storm::new(seed);
        let mut maps = MemoryPolicyMaps::default();
        for turn in 0..50 {
            // A namespace's labels are two things: whose policies select its pods, and whom its pods are.
            let change = change(&mut storm.random, false);
            storm.feed(&change);
            storm.now += Duration::from_secs(2);
            let old = storm.survey(|probe| probe.judge(&maps).is_ok());
            let mut seen = Vec::new();
            let mut watch = |maps: &MemoryPolicyMaps, what: &str| seen.push((maps.clone(), what.to_owned()));
            let mut watched = Watched { inner: maps, watch: &mut watch };
            storm.engine.reconcile(storm.now, &mut watched);
            maps = watched.inner;
            // Nor is a pod that meets itself one thing.
            for (probe, old) in old.into_iter().filter(|(probe, _)| probe.own != probe.peer) {
                let new = probe.judge(&maps).is_ok();
                for (moment, what) in &seen {
                    let now = probe.judge(moment).is_ok();
                    assert!(
                        now == old || now == new,
                        "{seed} {turn}: {probe:?} is {now} after {what}, though it was {old} and will be {new}: {change:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_fails_never_opens_anything() {
    for seed in 0..3 {
        let mut storm = Storm::new(seed + 100);
        let mut maps = FaultyMaps::new(MemoryPolicyMaps::default(), seed, 0);
        for turn in 0..40 {
            storm.now += Duration::from_secs(60);
            maps.failures_per_mille = 0;
            assert_eq!(storm.engine.reconcile(storm.now, &mut maps).pending, 0);
            let change = change(&mut storm.random, false);
            storm.feed(&change);
            let old = storm.survey(|probe| probe.judge(&maps.inner).is_ok());
            let mut calm = MemoryPolicyMaps::default();
            storm.fresh().reconcile(storm.now, &mut calm);
            let mut seen = Vec::new();
            maps.failures_per_mille = 200;
            for _ in 0..3 {
                storm.now += Duration::from_millis(300);
                let mut watch = |maps: &FaultyMaps<MemoryPolicyMaps>, what: &str| {
                    seen.push((maps.inner.clone(), what.to_owned()));
                };
                let mut watched = Watched { inner: maps, watch: &mut watch };
                storm.engine.reconcile(storm.now, &mut watched);
                maps = watched.inner;
            }
            for (probe, old) in old.into_iter().filter(|(probe, _)| probe.own != probe.peer) {
                if old || probe.judge(&calm).is_ok() {
                    continue;
                }
                for (moment, what) in &seen {
                    let judged = probe.judge(moment);
                    assert!(judged.is_err(), "{seed} {turn}: {probe:?} is open after {what}: {change:?}");
                }
            }
        }
    }
}
