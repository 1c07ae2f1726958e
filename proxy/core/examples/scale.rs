//! What a large cluster costs: time and memory, printed.
//!
//! `cargo run --release -p fairlead-core --example scale -- 10000 10 ClusterIP`: so many Services, of so many endpoints,
//! of this type; a number after that is the size of Maglev tables, a prime.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use fairlead_abi::{Backend, Frontend, FrontendKey, Region};
use fairlead_core::dataplane::{MapError, RangeKey, ServiceMaps, SourceRangeKey};
use fairlead_core::reconcile::{Capacity, Reconciler};
use fairlead_core::settings::Settings;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde_json::{from_value, json};

/// Maps as flat as the kernel's, whose memory is there from the start.
struct FlatMaps {
    frontends: HashMap<FrontendKey, Frontend>,
    slots: Vec<u32>,
    backends: Vec<Backend>,
}

impl FlatMaps {
    fn new(capacity: Capacity, frontends: usize) -> Self {
        Self {
            frontends: HashMap::with_capacity(frontends),
            slots: vec![1; capacity.slots as usize],
            // Not zeros, which the allocator would not really give.
            backends: vec![Backend { reserved: 1, ..Backend::default() }; capacity.backends as usize],
        }
    }
}

impl ServiceMaps for FlatMaps {
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        self.backends[id as usize] = *backend;
        Ok(())
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError> {
        let base = base as usize;
        self.slots[base..base + ids.len()].copy_from_slice(ids);
        Ok(())
    }

    fn write_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), MapError> {
        self.frontends.insert(*key, *frontend);
        Ok(())
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        self.frontends.remove(key);
        Ok(())
    }

    fn write_source_range(&mut self, _: &SourceRangeKey, _: bool) -> Result<(), MapError> {
        Ok(())
    }

    fn write_service_cidr(&mut self, _: &RangeKey, _: u32) -> Result<(), MapError> {
        Ok(())
    }

    fn remove_service_cidr(&mut self, _: &RangeKey) -> Result<(), MapError> {
        Ok(())
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        let tenants = (0..).zip(&self.backends).filter(|(_, backend)| backend.has_tenant());
        Ok(tenants.map(|(id, backend)| (id, *backend)).collect())
    }

    fn last_generation(&self) -> Result<u32, MapError> {
        Ok(self.backends.iter().map(|backend| backend.generation).max().unwrap_or_default())
    }

    fn slots(&self, region: Region) -> Result<Vec<u32>, MapError> {
        let base = region.base as usize;
        Ok(self.slots[base..base + region.len as usize].to_vec())
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapError> {
        Ok(self.frontends.iter().map(|(key, frontend)| (*key, *frontend)).collect())
    }

    fn source_ranges(&self) -> Result<Vec<SourceRangeKey>, MapError> {
        Ok(Vec::new())
    }

    fn service_cidrs(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        Ok(Vec::new())
    }
}

fn service(number: u32, kind: &str) -> core::Service {
    let node_port = if kind == "NodePort" { 20_000 + number } else { 0 };
    from_value(json!({
        "metadata": { "namespace": format!("team-{}", number % 100), "name": format!("service-{number}") },
        "spec": {
            "clusterIPs": [format!("10.96.{}.{}", number / 250, number % 250)],
            "type": kind,
            "ports": [{ "name": "http", "port": 80, "nodePort": node_port }],
        },
    }))
    .expect("a Service")
}

fn slice(number: u32, endpoints: u32, first: u32) -> discovery::EndpointSlice {
    let endpoint = |host: u32| {
        let host = first + number * endpoints + host;
        json!({
            "addresses": [format!("10.{}.{}.{}", 128 + host / 62_500, host / 250 % 250, host % 250 + 1)],
            "nodeName": format!("node-{}", host % 500),
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "hints": { "forZones": [{ "name": format!("zone-{}", host % 3) }] },
        })
    };
    from_value(json!({
        "metadata": {
            "namespace": format!("team-{}", number % 100),
            "name": format!("service-{number}-abcde"),
            "labels": { "kubernetes.io/service-name": format!("service-{number}") },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    }))
    .expect("an EndpointSlice")
}

/// The memory of this process that is in use, in MiB.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc_pid_status(5)");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

fn fill(reconciler: &mut Reconciler, services: u32, endpoints: u32, kind: &str) {
    let index = reconciler.index_mut();
    index.apply_node(
        &from_value(json!({
            "metadata": { "name": "node-0" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        }))
        .expect("a Node"),
    );
    for number in 0..services {
        index.apply_service(&service(number, kind));
        index.apply_slice(&slice(number, endpoints, 0));
    }
    reconciler.set_synced();
}

fn measure(services: u32, endpoints: u32, kind: &str, maglev: Option<u32>) {
    let settings = Settings { maglev, ..Settings::default() };
    let table = maglev.unwrap_or(0);
    let capacity =
        Capacity { slots: services * (endpoints + table) * 2 + 1024, backends: services * endpoints + 1024 };
    let mut maps = FlatMaps::new(capacity, services as usize * 4);
    let fresh = || Reconciler::new("node-0", capacity, settings.clone());
    println!("{services} Services ({kind}) of {endpoints} endpoints, Maglev {maglev:?}:");

    let before = resident();
    let mut reconciler = fresh();
    fill(&mut reconciler, services, endpoints, kind);
    let indexed = resident();
    let start = Instant::now();
    let report = reconciler.reconcile(start, &mut maps);
    let full = start.elapsed();
    assert_eq!(report.pending, 0, "{:?}", report.failed.first());
    println!(
        "  first reconcile {full:?}; {:.1} MiB of objects, {:.1} MiB more with the ledger",
        indexed - before,
        resident() - indexed
    );

    let mut changes: Vec<Duration> = Vec::new();
    for turn in 0..200 {
        let changed = slice(turn * 37 % services, endpoints, 1_000_000 + turn % 5);
        let start = Instant::now();
        reconciler.index_mut().apply_slice(&changed);
        let report = reconciler.reconcile(start + Duration::from_secs(u64::from(turn)), &mut maps);
        changes.push(start.elapsed());
        assert_eq!(report.pending, 0);
    }
    changes.sort();
    println!(
        "  a change of all endpoints of one Service: median {:?}, worst {:?}",
        changes[100], changes[199]
    );
    for turn in 0..200 {
        reconciler.index_mut().apply_slice(&slice(turn * 37 % services, endpoints, 0));
        reconciler.reconcile(start + Duration::from_secs(300 + u64::from(turn)), &mut maps);
    }
    drop(reconciler);

    let before = resident();
    let start = Instant::now();
    let mut restarted = fresh();
    restarted.adopt(&maps).expect("readable maps");
    let read = start.elapsed();
    fill(&mut restarted, services, endpoints, kind);
    let start = Instant::now();
    let report = restarted.reconcile(start, &mut maps);
    println!(
        "  adoption: reading {read:?}, first reconcile {:?}, {} writes; {:.1} MiB in all",
        start.elapsed(),
        report.applied.total(),
        resident() - before
    );
    assert_eq!(report.applied.total(), 0, "{:?}", report.applied);
    if !cfg!(debug_assertions) {
        let limit = Duration::from_micros(50) * services * (1 + endpoints / 5);
        assert!(full < limit, "{full:?}");
        assert!(changes[100] < Duration::from_millis(1), "{:?}", changes[100]);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| arguments.get(index).map(|text| text.parse().expect("a number"));
    let kind = arguments.get(2).map_or("ClusterIP", String::as_str);
    measure(number(0).unwrap_or(10_000), number(1).unwrap_or(10), kind, number(3));
}
