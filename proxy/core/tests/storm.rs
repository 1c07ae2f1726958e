//! A storm of changes, which may come in any order, twice, or late: what the maps hold in the end is the same.

use std::time::{Duration, Instant};

use fairlead_core::dataplane::{FaultyMaps, MemoryMaps};
use fairlead_core::host_ports::{HostPort, HostPorts, owner};
use fairlead_core::model::{ObjectName, Protocol};
use fairlead_core::reconcile::{Capacity, Reconciler};
use fairlead_core::settings::Settings;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde_json::{Value, from_value, json};

const CAPACITY: Capacity = Capacity { slots: 200_000, backends: 20_000 };
const SERVICES: u32 = 40;
const CHANGES: usize = 1000;

/// A change of one object.
#[derive(Clone)]
enum Change {
    Service(Box<core::Service>),
    Slice(Box<discovery::EndpointSlice>),
    NoService(ObjectName),
    NoSlice(ObjectName),
    HostPorts(ObjectName, Option<HostPorts>),
}

impl Change {
    fn feed(&self, reconciler: &mut Reconciler) {
        let index = reconciler.index_mut();
        match self {
            Self::Service(object) => index.apply_service(object),
            Self::Slice(object) => index.apply_slice(object),
            Self::NoService(name) => index.delete_service(name),
            Self::NoSlice(name) => index.delete_slice(name),
            Self::HostPorts(owner, wanted) => index.set_host_ports(owner.clone(), wanted.clone()),
        }
    }

    /// Which object it is of.
    fn object(&self) -> (bool, ObjectName) {
        match self {
            Self::Service(object) => (true, name_of(&object.metadata)),
            Self::Slice(object) => (false, name_of(&object.metadata)),
            Self::NoService(name) | Self::HostPorts(name, _) => (true, name.clone()),
            Self::NoSlice(name) => (false, name.clone()),
        }
    }
}

fn name_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectName {
    ObjectName::new(meta.namespace.as_deref().expect("a namespace"), meta.name.as_deref().expect("a name"))
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % bound
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u32) as usize]
    }
}

fn change(random: &mut Random) -> Change {
    let number = random.below(SERVICES);
    let slice = random.below(2);
    match random.below(12) {
        10 | 11 => host_ports(random),
        0 => Change::NoService(ObjectName::new("default", format!("web{number}"))),
        1 => Change::NoSlice(ObjectName::new("default", format!("web{number}-{slice}"))),
        2..=4 => Change::Service(Box::new(from_value(service(number, random)).expect("a Service"))),
        _ => {
            let slice = endpoint_slice(number, slice, random);
            Change::Slice(Box::new(from_value(slice).expect("an EndpointSlice")))
        }
    }
}

/// Of one of a few pods, which ask for each other's ports and for Services'.
fn host_ports(random: &mut Random) -> Change {
    let number = random.below(10);
    let port = |index, random: &mut Random| HostPort {
        index,
        host_ip: *random.pick(&[None, None, Some([192, 0, 2, 1].into()), Some([192, 0, 2, 9].into())]),
        host_port: (29_990 + random.below(SERVICES)) as u16,
        container_port: 8080,
        protocol: *random.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp]),
    };
    let wanted = HostPorts {
        pod: ObjectName::new("default", format!("pod{number}")),
        addresses: vec![[10, 245, 0, number as u8].into()],
        ports: (0..1 + random.below(2)).map(|index| port(index as usize, random)).collect(),
    };
    Change::HostPorts(owner(&format!("container{number}"), "eth0"), (random.below(4) > 0).then_some(wanted))
}

fn service(number: u32, random: &mut Random) -> Value {
    let policy = |random: &mut Random| *random.pick(&["Cluster", "Local"]);
    let ranges =
        random.pick(&[json!([]), json!(["10.0.0.0/8"]), json!(["192.0.2.0/24", "10.0.0.0/8"])]).clone();
    let labels = match random.below(12) {
        0 => json!({ "service.kubernetes.io/headless": "" }),
        _ => json!({}),
    };
    // Some addresses are asked for by several Services.
    let shared = random.below(SERVICES + 5);
    json!({
        "metadata": {
            "namespace": "default", "name": format!("web{number}"), "labels": labels,
            "creationTimestamp": format!("2025-01-01T00:00:{:02}Z", number % 7),
        },
        "spec": {
            "clusterIPs": [format!("10.96.0.{}", number + 1), format!("fd00:10:96::{}", number + 1)],
            "type": random.pick(&["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName"]),
            "ports": [
                { "name": "http", "port": 80 + random.below(2), "nodePort": 30_000 + number },
                { "name": "dns", "port": 53, "protocol": "UDP" },
            ],
            "externalTrafficPolicy": policy(random), "internalTrafficPolicy": policy(random),
            "healthCheckNodePort": 31_000 + number,
            "sessionAffinity": random.pick(&["None", "ClientIP"]),
            "loadBalancerSourceRanges": ranges,
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": format!("203.0.113.{}", shared + 1) }] } },
    })
}

fn endpoint_slice(number: u32, slice: u32, random: &mut Random) -> Value {
    let endpoint = |random: &mut Random| {
        let (ready, terminating) =
            *random.pick(&[(true, false), (true, false), (false, true), (false, false)]);
        json!({
            "addresses": [format!("10.244.{number}.{}", random.below(12) + 1)],
            "nodeName": random.pick(&["a", "b", "c"]),
            "conditions": { "ready": ready, "serving": random.below(3) > 0, "terminating": terminating },
        })
    };
    let count = random.below(9);
    let endpoints: Vec<Value> = (0..count).map(|_| endpoint(random)).collect();
    json!({
        "metadata": {
            "namespace": "default", "name": format!("web{number}-{slice}"),
            "labels": { "kubernetes.io/service-name": format!("web{number}") },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080 }, { "name": "dns", "port": 5353, "protocol": "UDP" }],
        "endpoints": endpoints,
    })
}

fn reconciler() -> Reconciler {
    let settings = Settings { maglev: Some(13), ..Settings::default() };
    let mut reconciler = Reconciler::new("a", CAPACITY, settings);
    let node = json!({
        "metadata": { "name": "a" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
    });
    reconciler.index_mut().apply_node(&from_value(node).expect("a Node"));
    reconciler.set_synced();
    reconciler
}

fn settle(reconciler: &mut Reconciler, maps: &mut FaultyMaps<MemoryMaps>, mut now: Instant) {
    reconciler.reconcile(now, maps);
    while let Some(deadline) = reconciler.next_deadline() {
        now = now.max(deadline) + Duration::from_millis(1);
        reconciler.reconcile(now, maps);
    }
}

/// What the maps hold, and what is asked of them.
fn state(reconciler: &Reconciler, maps: &FaultyMaps<MemoryMaps>) -> String {
    let mut problems: Vec<String> = reconciler.problems().iter().map(ToString::to_string).collect();
    problems.sort();
    let ranges = maps.inner.cidrs().join("\n");
    format!("{}{ranges}\n{:?}\n{}", maps.inner.dump(), reconciler.health_checks(), problems.join("\n"))
}

#[test]
fn a_storm_of_changes_ends_in_the_same_maps_whatever_came_between() {
    for seed in (0..6).chain([74]) {
        let mut random = Random(seed);
        let changes: Vec<Change> = (0..CHANGES).map(|_| change(&mut random)).collect();

        // At once, each object in its last state.
        let mut last: Vec<&Change> = Vec::new();
        for change in changes.iter().rev() {
            if !last.iter().any(|known| known.object() == change.object()) {
                last.push(change);
            }
        }
        let (mut calm, mut maps) = (reconciler(), FaultyMaps::new(MemoryMaps::default(), seed, 0));
        last.iter().for_each(|change| change.feed(&mut calm));
        settle(&mut calm, &mut maps, Instant::now());
        let expected = state(&calm, &maps);
        assert!(expected.lines().count() > 100, "{expected}");

        // One by one, some late and some twice, with reconciles between, failing writes and restarts.
        let (mut storm, mut maps) = (reconciler(), FaultyMaps::new(MemoryMaps::default(), seed, 100));
        let mut now = Instant::now();
        for (number, change) in changes.iter().enumerate() {
            if random.below(10) == 0 {
                random.pick(&changes[..=number]).feed(&mut storm);
            }
            change.feed(&mut storm);
            now += Duration::from_millis(u64::from(random.below(400)));
            if random.below(5) == 0 {
                storm.reconcile(now, &mut maps);
            }
            if number % 300 == 299 {
                let mut restarted = reconciler();
                restarted.adopt(&maps).expect("readable maps");
                changes[..=number].iter().for_each(|change| change.feed(&mut restarted));
                storm = restarted;
            }
        }
        // What came late may have undone a later change; the watch's next list puts that right.
        last.iter().for_each(|change| change.feed(&mut storm));
        settle(&mut storm, &mut maps, now);
        let found = state(&storm, &maps);
        let differing = expected.lines().zip(found.lines()).find(|(expected, found)| expected != found);
        assert_eq!(differing, None, "seed {seed}: expected and found");
        assert_eq!(found.len(), expected.len(), "seed {seed}");
    }
}
