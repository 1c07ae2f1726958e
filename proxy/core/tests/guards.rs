//! Source ranges, ranges of ClusterIPs and Maglev tables from outside: their order, and what a restart finds.
//!
//! The maps in memory panic at any write that would leave a guarded frontend without its ranges.

use std::time::{Duration, Instant};

use fairlead_abi::{Backend, Frontend, FrontendKey, Region, frontend_flags};
use fairlead_core::dataplane::{
    MapAction, MapCause, MapError, MemoryMaps, RangeKey, ServiceMaps, SourceRangeKey,
};
use fairlead_core::frontends::WithoutLocal;
use fairlead_core::model::{Protocol, frontend_key};
use fairlead_core::reconcile::{Capacity, Reconciler};
use fairlead_core::settings::Settings;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use serde_json::{Value, from_value, json};

const CAPACITY: Capacity = Capacity { slots: 4000, backends: 1000 };

/// Maps in which source ranges can't be written while `is_full`.
#[derive(Default)]
struct FewRanges {
    inner: MemoryMaps,
    is_full: bool,
}

impl ServiceMaps for FewRanges {
    fn write_source_range(&mut self, range: &SourceRangeKey, present: bool) -> Result<(), MapError> {
        if self.is_full && present {
            return Err(MapError::source_range(MapAction::Program, range, MapCause::Full(0)));
        }
        self.inner.write_source_range(range, present)
    }

    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        self.inner.write_backend(id, backend)
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError> {
        self.inner.write_slots(base, ids)
    }

    fn write_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), MapError> {
        self.inner.write_frontend(key, frontend)
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        self.inner.remove_frontend(key)
    }

    fn write_service_cidr(&mut self, cidr: &RangeKey, flags: u32) -> Result<(), MapError> {
        self.inner.write_service_cidr(cidr, flags)
    }

    fn remove_service_cidr(&mut self, cidr: &RangeKey) -> Result<(), MapError> {
        self.inner.remove_service_cidr(cidr)
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        self.inner.backends()
    }

    fn last_generation(&self) -> Result<u32, MapError> {
        self.inner.last_generation()
    }

    fn slots(&self, region: Region) -> Result<Vec<u32>, MapError> {
        self.inner.slots(region)
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapError> {
        self.inner.frontends()
    }

    fn source_ranges(&self) -> Result<Vec<SourceRangeKey>, MapError> {
        self.inner.source_ranges()
    }

    fn service_cidrs(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        self.inner.service_cidrs()
    }
}

fn service(ranges: &[&str]) -> core::Service {
    from_value(json!({
        "metadata": { "namespace": "default", "name": "web" },
        "spec": {
            "clusterIPs": ["10.96.0.1"], "type": "LoadBalancer", "loadBalancerSourceRanges": ranges,
            "ports": [{ "port": 80 }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } },
    }))
    .expect("a Service")
}

fn slice(hosts: std::ops::RangeInclusive<u8>) -> discovery::EndpointSlice {
    let endpoints: Vec<Value> = hosts
        .map(|host| json!({ "addresses": [format!("10.244.0.{host}")], "nodeName": "elsewhere" }))
        .collect();
    from_value(json!({
        "metadata": { "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "port": 8080 }],
        "endpoints": endpoints,
    }))
    .expect("an EndpointSlice")
}

fn service_cidr(range: &str) -> networking::ServiceCIDR {
    from_value(json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": [range] } }))
        .expect("a ServiceCIDR")
}

fn with_maglev(size: u32) -> Settings {
    Settings { maglev: Some(size), ..Settings::default() }
}

/// A reconciler that has all its lists.
fn synced(settings: Settings) -> Reconciler {
    let mut reconciler = Reconciler::new("a", CAPACITY, settings);
    reconciler.set_synced();
    reconciler
}

/// The load balancer's frontend.
fn balanced(maps: &MemoryMaps) -> Option<Frontend> {
    maps.frontend(&frontend_key("203.0.113.1".parse().expect("an address"), 80, Protocol::Tcp))
}

/// What the places of the load balancer's table lead to.
fn table(maps: &MemoryMaps) -> Vec<fairlead_abi::Address> {
    let region = balanced(maps).expect("a frontend").maglev;
    maps.backends_in(region).iter().map(|backend| backend.address).collect()
}

#[test]
fn an_address_whose_ranges_find_no_room_is_closed_until_they_do() {
    let now = Instant::now();
    let (mut reconciler, mut maps) = (synced(Settings::default()), FewRanges::default());
    reconciler.index_mut().apply_service(&service(&[]));
    reconciler.reconcile(now, &mut maps);
    assert!(balanced(&maps.inner).is_some());

    maps.is_full = true;
    reconciler.index_mut().apply_service(&service(&["10.0.0.0/8"]));
    let report = reconciler.reconcile(now, &mut maps);
    assert_eq!((report.pending, balanced(&maps.inner)), (1, None), "closed rather than open to all");
    assert_eq!(
        report.failed[0].to_string(),
        "Service default/web: program source range 10.0.0.0/8 of Service port 1: map full (0)"
    );

    maps.is_full = false;
    let at = reconciler.next_deadline().expect("a retry");
    assert_eq!(reconciler.reconcile(at, &mut maps).pending, 0);
    assert!(balanced(&maps.inner).expect("a frontend").flags & frontend_flags::GUARDED != 0);
}

#[test]
fn a_guarded_address_keeps_its_old_ranges_until_the_new_ones_are_there() {
    let now = Instant::now();
    let (mut reconciler, mut maps) = (synced(Settings::default()), FewRanges::default());
    reconciler.index_mut().apply_service(&service(&["10.0.0.0/8"]));
    reconciler.reconcile(now, &mut maps);
    maps.is_full = true;
    reconciler.index_mut().apply_service(&service(&["192.0.2.0/24"]));
    assert_eq!(reconciler.reconcile(now, &mut maps).pending, 1);
    let frontend = balanced(&maps.inner).expect("a frontend");
    let admits = |maps: &FewRanges, client: &str| {
        let client: std::net::IpAddr = client.parse().expect("an address");
        maps.inner.admits(frontend.service, client.into())
    };
    assert!(admits(&maps, "10.0.0.1") && !admits(&maps, "192.0.2.1"));
    maps.is_full = false;
    let at = reconciler.next_deadline().expect("a retry");
    reconciler.reconcile(at, &mut maps);
    assert!(!admits(&maps, "10.0.0.1") && admits(&maps, "192.0.2.1"));
}

#[test]
fn a_restart_keeps_ranges_that_still_hold_and_removes_the_others() {
    let now = Instant::now();
    let (mut reconciler, mut maps) = (synced(Settings::default()), MemoryMaps::default());
    reconciler.index_mut().apply_service(&service(&["10.0.0.0/8", "192.0.2.0/24"]));
    reconciler.index_mut().apply_service_cidr(&service_cidr("10.96.0.0/12"));
    reconciler.reconcile(now, &mut maps);
    assert_eq!((maps.source_ranges().expect("ranges").len(), maps.cidrs().len()), (2, 1));

    let mut restarted = Reconciler::new("a", CAPACITY, Settings::default());
    restarted.adopt(&maps).expect("readable maps");
    restarted.index_mut().apply_service(&service(&["10.0.0.0/8"]));
    restarted.index_mut().apply_service_cidr(&service_cidr("10.97.0.0/16"));
    let before = maps.writes;
    restarted.reconcile(now, &mut maps);
    assert_eq!(maps.writes, before, "not before every list is done");
    restarted.set_synced();
    restarted.reconcile(now, &mut maps);
    assert_eq!(maps.source_ranges().expect("ranges").len(), 1);
    assert_eq!(maps.cidrs(), ["10.97.0.0/16 drop", "10.96.0.1/32"]);

    let mut restarted = synced(Settings::default());
    restarted.adopt(&maps).expect("readable maps");
    restarted.reconcile(now, &mut maps);
    assert!(maps.source_ranges().expect("ranges").is_empty() && maps.cidrs().is_empty());
    assert_eq!(maps.dump(), "");
}

#[test]
fn two_nodes_with_different_ids_have_the_same_tables() {
    let one = {
        let (mut reconciler, mut maps) = (synced(with_maglev(251)), MemoryMaps::default());
        reconciler.index_mut().apply_service(&service(&[]));
        reconciler.index_mut().apply_slice(&slice(1..=20));
        reconciler.reconcile(Instant::now(), &mut maps);
        table(&maps)
    };
    let (mut reconciler, mut maps) = (synced(with_maglev(251)), MemoryMaps::default());
    reconciler.index_mut().apply_service(&service(&[]));
    let mut now = Instant::now();
    for hosts in [15..=30, 3..=17, 8..=9, 1..=20] {
        reconciler.index_mut().apply_slice(&slice(hosts));
        reconciler.reconcile(now, &mut maps);
        now += Duration::from_secs(2);
    }
    assert_eq!((table(&maps).len(), table(&maps) == one), (251, true));
}

#[test]
fn a_table_of_another_size_takes_the_place_of_one_that_an_earlier_run_left() {
    let now = Instant::now();
    let (mut reconciler, mut maps) = (synced(with_maglev(13)), MemoryMaps::default());
    reconciler.index_mut().apply_service(&service(&[]));
    reconciler.index_mut().apply_slice(&slice(1..=5));
    reconciler.reconcile(now, &mut maps);
    for (settings, expected, backends) in
        [(with_maglev(13), 13, 0), (with_maglev(17), 17, 0), (Settings::default(), 0, 0)]
    {
        let mut restarted = synced(settings);
        restarted.adopt(&maps).expect("readable maps");
        restarted.index_mut().apply_service(&service(&[]));
        restarted.index_mut().apply_slice(&slice(1..=5));
        let report = restarted.reconcile(now, &mut maps);
        assert_eq!(
            (balanced(&maps).expect("a frontend").maglev.len, report.applied.backends),
            (expected, backends)
        );
        assert_eq!(restarted.next_deadline(), None, "nothing is left over");
    }
}

#[test]
fn a_table_that_is_not_as_it_should_be_is_not_taken_over() {
    let now = Instant::now();
    let (mut reconciler, mut maps) = (synced(with_maglev(13)), MemoryMaps::default());
    reconciler.index_mut().apply_service(&service(&[]));
    reconciler.index_mut().apply_slice(&slice(1..=5));
    reconciler.reconcile(now, &mut maps);
    let right = table(&maps);

    let key = frontend_key("203.0.113.1".parse().expect("an address"), 80, Protocol::Tcp);
    let frontend = balanced(&maps).expect("a frontend");
    let mut wrong = maps.slots(frontend.maglev).expect("slots");
    wrong.reverse();
    let elsewhere = Region { base: 3000, len: 13 };
    maps.write_slots(elsewhere.base, &wrong).expect("room");
    maps.write_frontend(&key, &Frontend { maglev: elsewhere, ..frontend }).expect("room");

    let mut restarted = synced(with_maglev(13));
    restarted.adopt(&maps).expect("readable maps");
    restarted.index_mut().apply_service(&service(&[]));
    restarted.index_mut().apply_slice(&slice(1..=5));
    let report = restarted.reconcile(now, &mut maps);
    assert_eq!((report.applied.backends, report.applied.regions, report.applied.frontends), (0, 1, 1));
    assert_eq!(table(&maps), right);
}

#[test]
fn what_costs_much_to_read_says_when_it_changed() {
    let now = Instant::now();
    let (mut reconciler, mut maps) = (synced(Settings::default()), MemoryMaps::default());
    reconciler.index_mut().apply_service(&service(&["nonsense"]));
    reconciler.reconcile(now, &mut maps);
    let (problems, checks) = (reconciler.problems_version(), reconciler.health_checks_version());
    reconciler.index_mut().apply_service(&service(&["nonsense"]));
    reconciler.index_mut().apply_slice(&slice(1..=5));
    reconciler.reconcile(now, &mut maps);
    assert_eq!((reconciler.problems_version(), reconciler.health_checks_version()), (problems, checks));
    reconciler.index_mut().apply_service(&service(&[]));
    assert!(reconciler.problems_version() > problems);
}

/// The cases of kube-proxy's test of the metric of the same meaning.
#[test]
fn ports_whose_local_policy_leaves_them_without_endpoints_are_counted() {
    let count = |internal: &str, external: &str, nodes: &[&str]| {
        let mut reconciler = synced(Settings::default());
        let service = json!({
            "metadata": { "namespace": "default", "name": "web" },
            "spec": {
                "clusterIPs": ["10.96.0.1"], "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }],
                "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            },
        });
        let endpoint = |(host, node)| json!({ "addresses": [format!("10.244.0.{host}")], "nodeName": node });
        let mut slice = serde_json::to_value(slice(1..=1)).expect("a value");
        slice["endpoints"] = (1..).zip(nodes).map(endpoint).collect();
        reconciler.index_mut().apply_service(&from_value(service).expect("a Service"));
        reconciler.index_mut().apply_slice(&from_value(slice).expect("an EndpointSlice"));
        reconciler.reconcile(Instant::now(), &mut MemoryMaps::default());
        let WithoutLocal { internal, external } = reconciler.without_local();
        (internal, external)
    };
    let (near, far) = (&["a", "b", "c"], &["b", "c", "d"]);
    for (internal, external) in [("Local", "Cluster"), ("Cluster", "Local"), ("Local", "Local")] {
        assert_eq!(count(internal, external, near), (0, 0));
        assert_eq!(count(internal, external, &[]), (0, 0));
        let expected = (usize::from(internal == "Local"), usize::from(external == "Local"));
        assert_eq!(count(internal, external, far), expected);
    }
}
