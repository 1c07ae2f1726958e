//! What policies of a large cluster cost: time, also that on the CPU alone, and memory, printed.
//!
//! `cargo run --release -p fairlead-core --example policy_scale -- 10000 100 1000 20`: so many pods, of which so many
//! have endpoints here, under so many NetworkPolicies of so many rules each.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use fairlead_abi::{CellKey, Isolation, PolicyState};
use fairlead_core::dataplane::{MapError, PolicyMaps, RangeKey, RowPrefix};
use fairlead_core::model::ObjectName;
use fairlead_core::policy::{Capacity, Engine, PodId};
use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};
use serde_json::{Value, from_value, json};

const CAPACITY: Capacity = Capacity { policies: 65_536, cells: 1 << 21, rows: 1 << 20, peers: 1 << 19 };
const NAMESPACES: u32 = 100;
const APPS: u32 = 20;

/// Maps that cost as little as they can.
#[derive(Default)]
struct FlatMaps {
    rows: HashMap<RowPrefix, u32>,
    defaults: HashMap<u32, u32>,
    cells: HashMap<CellKey, u32>,
    peers: HashMap<RangeKey, u32>,
    isolation: HashMap<u32, Isolation>,
    state: PolicyState,
    writes: usize,
}

impl PolicyMaps for FlatMaps {
    fn write_row(&mut self, key: &RowPrefix, verdict: u32) -> Result<(), MapError> {
        self.writes += 1;
        self.rows.insert(*key, verdict);
        Ok(())
    }

    fn remove_row(&mut self, key: &RowPrefix) -> Result<(), MapError> {
        self.writes += 1;
        self.rows.remove(key);
        Ok(())
    }

    fn write_default(&mut self, policy: u32, row: u32) -> Result<(), MapError> {
        self.writes += 1;
        self.defaults.insert(policy, row);
        Ok(())
    }

    fn write_cell(&mut self, key: &CellKey, row: u32) -> Result<(), MapError> {
        self.writes += 1;
        self.cells.insert(*key, row);
        Ok(())
    }

    fn remove_cell(&mut self, key: &CellKey) -> Result<(), MapError> {
        self.writes += 1;
        self.cells.remove(key);
        Ok(())
    }

    fn write_peer(&mut self, prefix: &RangeKey, identity: u32) -> Result<(), MapError> {
        self.writes += 1;
        self.peers.insert(*prefix, identity);
        Ok(())
    }

    fn remove_peer(&mut self, prefix: &RangeKey) -> Result<(), MapError> {
        self.writes += 1;
        self.peers.remove(prefix);
        Ok(())
    }

    fn write_isolation(&mut self, index: u32, isolation: Isolation) -> Result<(), MapError> {
        self.writes += 1;
        self.isolation.insert(index, isolation);
        Ok(())
    }

    fn write_state(&mut self, state: PolicyState) -> Result<(), MapError> {
        self.writes += 1;
        self.state = state;
        Ok(())
    }

    fn rows(&self) -> Result<Vec<(RowPrefix, u32)>, MapError> {
        Ok(self.rows.iter().map(|(key, verdict)| (*key, *verdict)).collect())
    }

    fn default_row(&self, policy: u32) -> Result<u32, MapError> {
        Ok(self.defaults.get(&policy).copied().unwrap_or_default())
    }

    fn cells(&self) -> Result<Vec<(CellKey, u32)>, MapError> {
        Ok(self.cells.iter().map(|(key, row)| (*key, *row)).collect())
    }

    fn peers(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        Ok(self.peers.iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn isolation(&self, index: u32) -> Result<Isolation, MapError> {
        Ok(self.isolation.get(&index).copied().unwrap_or_default())
    }

    fn state(&self) -> Result<PolicyState, MapError> {
        Ok(self.state)
    }
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % bound
    }
}

/// How much there is.
#[derive(Clone, Copy)]
struct Size {
    pods: u32,
    local: u32,
    policies: u32,
    rules: u32,
}

fn address(number: u32) -> IpAddr {
    IpAddr::from([10, 128 + (number / 62_500) as u8, (number / 250 % 250) as u8, (number % 250) as u8 + 1])
}

fn namespace(number: u32) -> core::Namespace {
    let labels = json!({ "team": format!("team-{}", number % 10) });
    from_value(json!({ "metadata": { "name": format!("ns-{number}"), "labels": labels } }))
        .expect("a Namespace")
}

fn pod_name(number: u32) -> (String, String) {
    (format!("ns-{}", number % NAMESPACES), format!("pod-{number}"))
}

fn pod(number: u32, generation: u32) -> core::Pod {
    let (namespace, name) = pod_name(number);
    from_value(json!({
        "metadata": {
            "namespace": namespace, "name": name, "uid": number.to_string(),
            "labels": {
                "app": format!("app-{}", number / NAMESPACES % APPS), "tier": format!("tier-{}", number % 3),
                "pod-template-hash": format!("{:x}", (number / NAMESPACES % APPS + generation * 1000) * 7919),
            },
        },
        "spec": { "nodeName": format!("node-{}", number % 100), "containers": [
            { "name": "main", "ports": [{ "name": "http", "containerPort": 8080 }] },
        ] },
        "status": { "phase": "Running", "podIPs": [{ "ip": address(number) }] },
    }))
    .expect("a Pod")
}

fn policy(number: u32, rules: u32, seed: u64) -> networking::NetworkPolicy {
    let mut random = Random(u64::from(number) + seed * 1_000_003);
    let app =
        |random: &mut Random| json!({ "matchLabels": { "app": format!("app-{}", random.below(APPS)) } });
    let rule = |random: &mut Random| {
        let team = format!("team-{}", random.below(10));
        let peer = match random.below(10) {
            0 => json!({ "ipBlock": {
                "cidr": format!("203.{}.{}.0/24", random.below(100), random.below(250)),
            } }),
            1 => json!({ "namespaceSelector": { "matchLabels": { "team": team } } }),
            2..=5 => json!({
                "namespaceSelector": { "matchLabels": { "team": team } }, "podSelector": app(random),
            }),
            _ => json!({ "podSelector": app(random) }),
        };
        let port = match random.below(3) {
            0 => json!({ "port": "http" }),
            1 => json!({ "port": 1000 + random.below(100) }),
            _ => json!({ "port": 2000, "endPort": 2000 + random.below(1000) }),
        };
        (peer, port)
    };
    let rules: Vec<(Value, Value)> = (0..rules).map(|_| rule(&mut random)).collect();
    let is_egress = number.is_multiple_of(3);
    let peers = if is_egress { "to" } else { "from" };
    let rules: Vec<Value> =
        rules.into_iter().map(|(peer, port)| json!({ peers: [peer], "ports": [port] })).collect();
    let direction = if is_egress { "egress" } else { "ingress" };
    from_value(json!({
        "metadata": { "namespace": format!("ns-{}", number % NAMESPACES), "name": format!("policy-{number}") },
        "spec": {
            "podSelector": {}, "policyTypes": [if is_egress { "Egress" } else { "Ingress" }], direction: rules,
        },
    }))
    .expect("a NetworkPolicy")
}

/// The memory of this process that is in use, in MiB.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc_pid_status(5)");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

/// The time that this process has had a CPU for, whatever else the machine does.
fn on_cpu() -> Duration {
    let text = fs::read_to_string("/proc/self/schedstat").expect("sched-stats.rst");
    let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

fn add_endpoint(engine: &mut Engine, number: u32) {
    let (namespace, name) = pod_name(number);
    engine.add_endpoint(number, PodId { namespace, name, uid: number.to_string() }, vec![address(number)]);
}

/// Objects, read before anything is measured.
struct Objects {
    namespaces: Vec<core::Namespace>,
    pods: Vec<core::Pod>,
    policies: Vec<networking::NetworkPolicy>,
}

fn fill(engine: &mut Engine, objects: &Objects) {
    objects.namespaces.iter().for_each(|object| engine.apply_namespace(object));
    objects.pods.iter().for_each(|object| engine.apply_pod(object));
    objects.policies.iter().for_each(|object| engine.apply_network_policy(object));
    engine.set_synced();
}

/// Times `count` changes, each with a reconcile.
fn changes(
    what: &str,
    count: u32,
    engine: &mut Engine,
    maps: &mut FlatMaps,
    mut change: impl FnMut(&mut Engine, u32),
) {
    let mut times: Vec<Duration> = Vec::new();
    let before = maps.writes;
    let (begin, cpu) = (Instant::now(), on_cpu());
    for turn in 0..count {
        let start = Instant::now();
        change(engine, turn);
        let report = engine.reconcile(begin + Duration::from_secs(u64::from(turn) * 2), maps);
        times.push(start.elapsed());
        assert_eq!(report.pending, 0, "{:?}", report.failed.first());
    }
    times.sort();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    let (mean, writes) = ((on_cpu() - cpu) / count, (maps.writes - before) as u32 / count);
    println!("  {what}: median {:?}, p99 {:?}, on the CPU {mean:?}, {writes} writes each", at(50), at(99));
}

fn measure(size: Size) {
    let Size { pods, local, policies, rules } = size;
    println!("{pods} pods, {local} of them here, {policies} NetworkPolicies of {rules} rules:");
    let objects = Objects {
        namespaces: (0..NAMESPACES).map(namespace).collect(),
        pods: (0..pods).map(|number| pod(number, 0)).collect(),
        policies: (0..policies).map(|number| policy(number, rules, 0)).collect(),
    };
    let mut maps = FlatMaps::default();
    let before = resident();
    let mut engine = Engine::new("node-0", CAPACITY, false);
    (0..local).for_each(|number| add_endpoint(&mut engine, number));
    let start = on_cpu();
    fill(&mut engine, &objects);
    let read = on_cpu() - start;
    let start = on_cpu();
    let report = engine.reconcile(Instant::now(), &mut maps);
    let full = on_cpu() - start;
    assert_eq!(report.pending, 0, "{:?}", report.failed.first());
    println!(
        "  objects read in {read:?}, compiled in {full:?}; {:.1} MiB with the maps",
        resident() - before
    );
    println!(
        "  {} policies, {} cells, {} ranges of ports, {} prefixes",
        maps.defaults.len(),
        maps.cells.len(),
        maps.rows.len(),
        maps.peers.len()
    );

    let fresh = |number: u32, generation: u32| pod(number, generation);
    changes("a pod's labels", 200, &mut engine, &mut maps, |engine, turn| {
        engine.apply_pod(&fresh(turn * 37 % pods, 1));
    });
    changes("a pod deleted", 200, &mut engine, &mut maps, |engine, turn| {
        let (namespace, name) = pod_name(local + turn);
        engine.delete_pod(&ObjectName::new(namespace, name));
    });
    changes("a policy's rules", 200, &mut engine, &mut maps, |engine, turn| {
        engine.apply_network_policy(&policy(turn * 37 % policies, rules, 1));
    });
    changes("a policy deleted", 100, &mut engine, &mut maps, |engine, turn| {
        let name = format!("policy-{turn}");
        engine.delete_network_policy(&ObjectName::new(format!("ns-{}", turn % NAMESPACES), name));
    });
    changes("an endpoint added", 100, &mut engine, &mut maps, |engine, turn| {
        add_endpoint(engine, 2000 + turn);
    });
    changes("a namespace's labels", 100, &mut engine, &mut maps, |engine, turn| {
        engine.apply_namespace(&namespace(turn % NAMESPACES + 1));
        let mut moved = namespace(turn % NAMESPACES);
        moved.metadata.labels.iter_mut().for_each(|labels| {
            labels.insert("team".to_owned(), format!("team-{}", (turn + 5) % 10));
        });
        engine.apply_namespace(&moved);
    });
}

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).map(|text| text.parse().expect("a number")).collect();
    match numbers[..] {
        [pods, local, policies, rules] => measure(Size { pods, local, policies, rules }),
        _ => measure(Size { pods: 10_000, local: 100, policies: 1000, rules: 20 }),
    }
}
