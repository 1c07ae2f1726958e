//! The reconciler from outside: what it writes, in which order, and what it leaves alone.
//!
//! The maps in memory panic at any write that would let a program see half a Service.

use std::time::{Duration, Instant};

use fairlead_abi::{Backend, Frontend};
use fairlead_core::dataplane::{FaultyMaps, MapCause, MemoryMaps, ServiceMaps};
use fairlead_core::model::{ObjectName, Protocol, frontend_key};
use fairlead_core::reconcile::{Applied, Capacity, Reconciler, Report};
use fairlead_core::settings::Settings;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde_json::{from_value, json};

const CAPACITY: Capacity = Capacity { slots: 1000, backends: 1000 };

fn service(name: &str, ip: &str) -> core::Service {
    from_value(json!({
        "metadata": { "namespace": "default", "name": name },
        "spec": { "clusterIPs": [ip], "ports": [{ "name": "http", "port": 80 }] },
    }))
    .expect("a Service")
}

fn slice(service: &str, addresses: &[&str]) -> discovery::EndpointSlice {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
    from_value(json!({
        "metadata": {
            "namespace": "default",
            "name": format!("{service}-1"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": endpoints,
    }))
    .expect("an EndpointSlice")
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn synced(capacity: Capacity) -> Reconciler {
    let mut reconciler = Reconciler::new("a", capacity, Settings::default());
    reconciler.set_synced();
    reconciler
}

fn frontend(maps: &impl ServiceMaps, ip: &str) -> Option<Frontend> {
    let key = frontend_key(ip.parse().expect("an address"), 80, Protocol::Tcp);
    let frontends = maps.frontends().expect("readable maps");
    frontends.into_iter().find(|(other, _)| *other == key).map(|(_, frontend)| frontend)
}

fn backends(maps: &MemoryMaps, ip: &str) -> Vec<Backend> {
    frontend(maps, ip).map(|frontend| maps.backends_in(frontend.internal)).unwrap_or_default()
}

/// Two Services of two endpoints each, programmed.
fn two_services() -> (Reconciler, MemoryMaps) {
    let (mut reconciler, mut maps) = (synced(CAPACITY), MemoryMaps::default());
    for (number, web) in ["web", "api"].into_iter().enumerate() {
        let index = reconciler.index_mut();
        index.apply_service(&service(web, &format!("10.96.0.{}", number + 1)));
        index.apply_slice(&slice(web, &[&format!("10.244.{number}.2"), &format!("10.244.{number}.3")]));
    }
    let report = reconciler.reconcile(Instant::now(), &mut maps);
    let applied = Applied { backends: 4, regions: 2, frontends: 4, ..Applied::default() };
    assert_eq!(report, Report { applied, ..Report::default() });
    (reconciler, maps)
}

#[test]
fn nothing_is_written_before_every_watch_has_finished_its_first_list() {
    let (_, mut maps) = two_services();
    let writes = maps.writes;
    let mut restarted = Reconciler::new("a", CAPACITY, Settings::default());
    restarted.adopt(&maps).expect("readable maps");
    restarted.index_mut().apply_service(&service("web", "10.96.0.1"));
    let report = restarted.reconcile(Instant::now(), &mut maps);
    assert_eq!((report.applied.total(), report.pending, maps.writes), (0, 1, writes));
    restarted.set_synced();
    let report = restarted.reconcile(Instant::now(), &mut maps);
    assert_eq!(
        (report.applied.removed, report.applied.frontends),
        (2, 1),
        "api is gone, web has no endpoints"
    );
}

#[test]
fn a_restart_keeps_every_id_and_writes_nothing() {
    let (_, mut maps) = two_services();
    let before = maps.clone();
    let mut restarted = Reconciler::new("a", CAPACITY, Settings::default());
    restarted.adopt(&maps).expect("readable maps");
    for (number, web) in ["web", "api"].into_iter().enumerate() {
        let index = restarted.index_mut();
        index.apply_service(&service(web, &format!("10.96.0.{}", number + 1)));
        index.apply_slice(&slice(web, &[&format!("10.244.{number}.2"), &format!("10.244.{number}.3")]));
    }
    restarted.set_synced();
    assert_eq!(restarted.reconcile(Instant::now(), &mut maps), Report::default());
    assert_eq!(maps.writes, before.writes);
    assert!(restarted.next_deadline().is_none());

    restarted.index_mut().apply_slice(&slice("web", &["10.244.0.2", "10.244.0.9"]));
    restarted.reconcile(Instant::now(), &mut maps);
    let (old, new) = (backends(&before, "10.96.0.1"), backends(&maps, "10.96.0.1"));
    assert_eq!(new[0], old[0], "the endpoint that stays keeps its generation, and so its flows");
    let generations =
        before.backends().expect("readable maps").into_iter().map(|(_, backend)| backend.generation);
    assert!(generations.max() < Some(new[1].generation), "a generation that no flow carries");
}

#[test]
fn an_object_that_comes_again_unchanged_costs_nothing() {
    let (mut reconciler, mut maps) = two_services();
    let writes = maps.writes;
    reconciler.index_mut().apply_service(&service("web", "10.96.0.1"));
    reconciler.index_mut().replace_slices(&[
        slice("web", &["10.244.0.3", "10.244.0.2"]),
        slice("api", &["10.244.1.2", "10.244.1.3"]),
    ]);
    assert_eq!(reconciler.reconcile(Instant::now(), &mut maps), Report::default());
    assert_eq!(maps.writes, writes);
}

#[test]
fn a_changed_endpoint_is_one_backend_one_region_one_switch_and_one_vacancy() {
    let (mut reconciler, mut maps) = two_services();
    let other = frontend(&maps, "10.96.0.2");
    reconciler.index_mut().apply_slice(&slice("web", &["10.244.0.2", "10.244.0.4"]));
    let report = reconciler.reconcile(Instant::now(), &mut maps);
    assert_eq!(
        report.applied,
        Applied { backends: 1, regions: 1, frontends: 1, vacated: 1, ..Applied::default() }
    );
    assert_eq!(frontend(&maps, "10.96.0.2"), other);
}

#[test]
fn a_relist_removes_what_it_lacks() {
    let (mut reconciler, mut maps) = two_services();
    reconciler.index_mut().replace_services(&[service("api", "10.96.0.2")]);
    let report = reconciler.reconcile(Instant::now(), &mut maps);
    assert_eq!(report.applied.removed, 2);
    assert_eq!(frontend(&maps, "10.96.0.1"), None);
    reconciler.index_mut().replace_slices(&[]);
    reconciler.reconcile(Instant::now(), &mut maps);
    assert!(maps.backends().expect("readable maps").is_empty());
}

#[test]
fn an_endpoint_that_comes_back_is_a_new_tenant() {
    let (mut reconciler, mut maps) = two_services();
    let before = backends(&maps, "10.96.0.1");
    for addresses in [&[][..], &["10.244.0.2", "10.244.0.3"]] {
        reconciler.index_mut().apply_slice(&slice("web", addresses));
        reconciler.reconcile(Instant::now(), &mut maps);
    }
    let after = backends(&maps, "10.96.0.1");
    assert_eq!(after.len(), 2);
    assert!(after.iter().all(|new| before.iter().all(|old| old.generation != new.generation)));
}

#[test]
fn a_restarted_agent_gives_no_number_of_a_tenant_that_is_gone() {
    let (_, mut maps) = two_services();
    let mut given: Vec<u32> = Vec::new();
    for run in 0..5 {
        let mut restarted = synced(CAPACITY);
        restarted.adopt(&maps).expect("readable maps");
        restarted.index_mut().apply_service(&service("web", "10.96.0.1"));
        restarted.index_mut().apply_service(&service("api", "10.96.0.2"));
        restarted.index_mut().apply_slice(&slice("api", &["10.244.1.2", "10.244.1.3"]));
        // One endpoint comes, and is gone before the agent restarts.
        for addresses in [&["10.244.0.2", "10.244.0.9"][..], &["10.244.0.2"]] {
            restarted.index_mut().apply_slice(&slice("web", addresses));
            restarted.reconcile(Instant::now() + Duration::from_secs(10 * run), &mut maps);
            given.extend(backends(&maps, "10.96.0.1").get(1).map(|backend| backend.generation));
        }
    }
    let mut numbers = given.clone();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!((given.len(), numbers.len()), (5, 5), "{given:?}");
}

#[test]
fn services_over_the_same_pods_have_backends_of_their_own() {
    let (mut reconciler, mut maps) = two_services();
    reconciler.index_mut().apply_slice(&slice("api", &["10.244.0.2", "10.244.0.3"]));
    reconciler.reconcile(Instant::now(), &mut maps);
    let web = backends(&maps, "10.96.0.1");
    reconciler.index_mut().delete_service(&name("api"));
    reconciler.index_mut().delete_slice(&name("api-1"));
    reconciler.reconcile(Instant::now(), &mut maps);
    assert_eq!(backends(&maps, "10.96.0.1"), web);
    assert_eq!(maps.backends().expect("readable maps").len(), 2, "those of api are vacated");
}

#[test]
fn ids_and_slots_rest_before_they_serve_again() {
    let now = Instant::now();
    let (mut reconciler, mut maps) = (synced(Capacity { slots: 2, backends: 3 }), MemoryMaps::default());
    reconciler.index_mut().apply_service(&service("web", "10.96.0.1"));
    reconciler.index_mut().apply_slice(&slice("web", &["10.244.0.2", "10.244.0.3"]));
    assert_eq!(reconciler.reconcile(now, &mut maps).pending, 0);
    reconciler.index_mut().apply_slice(&slice("web", &[]));
    reconciler.reconcile(now, &mut maps);

    reconciler.index_mut().apply_slice(&slice("web", &["10.244.0.4", "10.244.0.5"]));
    let report = reconciler.reconcile(now + Duration::from_millis(900), &mut maps);
    assert_eq!(report.failed[0].error.cause, MapCause::Full(2));
    assert_eq!(
        report.failed[0].to_string(),
        "Service default/web: program backend 10.244.0.4:8080: map full (2)"
    );
    let deadline = reconciler.next_deadline().expect("a retry");
    let report = reconciler.reconcile(deadline.max(now + Duration::from_secs(1)), &mut maps);
    assert_eq!((report.pending, backends(&maps, "10.96.0.1").len()), (0, 2));
}

#[test]
fn long_churn_with_failures_and_restarts_loses_no_number() {
    let capacity = Capacity { slots: 120, backends: 61 };
    let mut now = Instant::now();
    for seed in 0..5 {
        let mut reconciler = synced(capacity);
        let mut maps = FaultyMaps::new(MemoryMaps::default(), seed, 200);
        let mut state = seed as u32;
        for turn in 0..600 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (service_number, count, first) = ((state >> 8) % 4, (state >> 12) % 8, (state >> 16) % 12);
            let web = format!("web{service_number}");
            let addresses: Vec<String> =
                (first..first + count).map(|host| format!("10.244.{service_number}.{}", host + 1)).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            reconciler.index_mut().apply_slice(&slice(&web, &addresses));
            match state >> 28 {
                0..3 => reconciler.index_mut().delete_service(&name(&web)),
                _ => reconciler
                    .index_mut()
                    .apply_service(&service(&web, &format!("10.96.0.1{service_number}"))),
            }
            now += Duration::from_millis(700);
            reconciler.reconcile(now, &mut maps);
            if turn % 50 == 49 {
                let mut restarted = Reconciler::new("a", capacity, Settings::default());
                restarted.adopt(&maps).expect("readable maps");
                restarted.set_synced();
                reconciler = restarted;
                reconciler.reconcile(now, &mut maps);
            }
        }
        reconciler.index_mut().replace_services(&[]);
        reconciler.index_mut().replace_slices(&[]);
        maps.failures_per_mille = 0;
        for _ in 0..3 {
            now += Duration::from_secs(31);
            reconciler.reconcile(now, &mut maps);
        }
        assert_eq!(maps.inner.dump(), "", "seed {seed}");
        assert_eq!(maps.inner.lingering(), [""; 0], "seed {seed}");

        let all: Vec<String> = (1..=60).map(|host| format!("10.244.9.{host}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        reconciler.index_mut().apply_service(&service("all", "10.96.0.9"));
        reconciler.index_mut().apply_slice(&slice("all", &all));
        let report = reconciler.reconcile(now + Duration::from_secs(2), &mut maps);
        assert_eq!(report.pending, 0, "seed {seed}: {:?}", report.failed);
        assert_eq!(backends(&maps.inner, "10.96.0.9").len(), 60, "seed {seed}");
    }
}

#[test]
fn a_failed_write_holds_up_its_own_service_alone_and_is_retried_with_growing_pauses() {
    let now = Instant::now();
    let mut reconciler = synced(CAPACITY);
    let mut maps = MemoryMaps::with_room_for(3);
    for (ip, web) in [("10.96.0.1", "api"), ("10.96.0.2", "web")] {
        reconciler.index_mut().apply_service(&service(web, ip));
        reconciler.index_mut().apply_slice(&slice(web, &["10.244.0.2"]));
    }
    let report = reconciler.reconcile(now, &mut maps);
    assert_eq!((report.pending, report.applied.frontends), (1, 3));
    assert_eq!(
        report.failed[0].to_string(),
        "Service default/web: program frontend 10.96.0.2 (whole): map full (3)"
    );
    assert_eq!(reconciler.services()[1].pending, Some(report.failed[0].error.to_string()));

    let writes = maps.writes;
    let mut at = reconciler.next_deadline().expect("a retry");
    let mut pauses = vec![at - now];
    for _ in 0..3 {
        reconciler.reconcile(at, &mut maps);
        let next = reconciler.next_deadline().expect("a retry");
        pauses.push(next - at);
        at = next;
    }
    assert!(pauses.is_sorted_by(|a, b| a < b), "{pauses:?}");
    assert_eq!(maps.writes, writes, "what could be written once is not written again");

    reconciler.index_mut().delete_service(&name("api"));
    reconciler.reconcile(now, &mut maps);
    let soon = reconciler.next_deadline().expect("a retry");
    assert!(soon - now <= Duration::from_millis(100), "room was made");
    assert_eq!(reconciler.reconcile(soon, &mut maps).pending, 0);
    assert_eq!(reconciler.next_deadline(), None);
}

#[test]
fn an_address_passes_to_another_service_without_a_gap() {
    let (mut reconciler, mut maps) = two_services();
    reconciler.index_mut().delete_service(&name("web"));
    reconciler.index_mut().apply_service(&service("new", "10.96.0.1"));
    reconciler.index_mut().apply_slice(&slice("new", &["10.244.7.7"]));
    let report = reconciler.reconcile(Instant::now(), &mut maps);
    assert_eq!((report.applied.frontends, report.applied.removed), (2, 0));
    assert_eq!(backends(&maps, "10.96.0.1").len(), 1);
}

#[test]
fn the_view_of_a_service_says_what_its_clients_meet() {
    let (reconciler, _) = two_services();
    let views = serde_json::to_value(reconciler.services()).expect("a value");
    assert_eq!(
        views[1],
        json!({
            "namespace": "default", "name": "web", "port": "http", "protocol": "TCP", "pending": null,
            "frontends": [{
                "address": "10.96.0.1:80", "kind": "cluster_ip", "id": 2,
                "keepSource": false, "guarded": false, "affinity": 0, "withoutBackend": "drop",
                "internal": ["10.244.0.2:8080", "10.244.0.3:8080"],
                "external": ["10.244.0.2:8080", "10.244.0.3:8080"],
            }],
        })
    );
}

/// The first programming of a large cluster takes well under a second (in a release build), and what comes
/// after depends on the change alone.
#[test]
fn a_large_cluster_costs_its_size_once_and_then_only_its_changes() {
    let (services, endpoints) = (10_000_u32, 10_u32);
    let mut reconciler =
        synced(Capacity { slots: services * endpoints + 1, backends: services * endpoints + 2 });
    for number in 0..services {
        let (high, low) = (number / 250, number % 250);
        let web = format!("web{number}");
        let addresses: Vec<String> =
            (0..endpoints).map(|host| format!("10.{}.{high}.{low}", 100 + host)).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        reconciler.index_mut().apply_service(&service(&web, &format!("10.96.{high}.{low}")));
        reconciler.index_mut().apply_slice(&slice(&web, &addresses));
    }
    let mut maps = MemoryMaps::default();
    let start = Instant::now();
    let report = reconciler.reconcile(start, &mut maps);
    let full = start.elapsed();
    assert_eq!(report.applied.total() as u32, services * (endpoints + 3));
    assert_eq!(report.pending, 0);

    reconciler.index_mut().apply_slice(&slice("web77", &["10.1.1.1"]));
    let mut change = full;
    for host in 1..=5 {
        reconciler.index_mut().apply_slice(&slice("web77", &[&format!("10.1.1.{host}")]));
        let start = Instant::now();
        let report = reconciler.reconcile(start + Duration::from_secs(2 * host), &mut maps);
        change = change.min(start.elapsed());
        let vacated = if host == 1 { endpoints as usize } else { 1 };
        let applied = Applied { backends: 1, regions: 1, frontends: 1, vacated, ..Applied::default() };
        assert_eq!(report.applied, applied);
    }
    println!("{services} Services of {endpoints} endpoints: {full:?}; a change after that: {change:?}");
    assert!(change < full / 100, "{change:?} for one change, {full:?} for all");
    if !cfg!(debug_assertions) {
        assert!(full < Duration::from_secs(1), "{full:?}");
    }
}
