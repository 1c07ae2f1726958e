//! The loop that keeps the maps of Services programmed, at the [`pace`](crate::pace) of such loops.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};

use fairlead_core::dataplane::ServiceMaps;
use fairlead_core::index::Index;
use fairlead_core::model::{ObjectName, Problem};
use fairlead_core::reconcile::{Reconciler, Report};
use fairlead_daemon::repeated;
use kube::ResourceExt;
use tokio::sync::watch;

use crate::dataplane::trim_memory;
use crate::host_ports;
use crate::in_effect::Turns;
use crate::pace::Work;
use crate::progress::Progress;
use crate::service_health::Checks;
use crate::watch::{Change, Update};

/// The loop's state. `maps` are the kernel's, or others in tests; `node` is told the node's addresses.
pub struct Sync<M, N> {
    reconciler: Arc<Mutex<Reconciler>>,
    maps: M,
    node: N,
    progress: Arc<Mutex<Progress>>,
    checks: watch::Sender<Checks>,
    checks_version: Option<u64>,
    listed: Listed,
    triggers: Vec<SystemTime>,
    dirty: bool,
    node_dirty: bool,
    /// Whether the API had the own Node object, and has it no more. Its addresses stay good until it comes back.
    node_gone: bool,
    problems: BTreeSet<Problem>,
    problems_version: Option<u64>,
    failures: BTreeSet<String>,
    /// Who waits for a pod's host ports to be in the maps.
    waiting: Vec<(ObjectName, mpsc::Sender<Result<(), String>>)>,
    /// Who is told of each turn.
    turns: Arc<Turns>,
}

/// Which first lists are done.
#[derive(Clone, Copy, Debug, Default)]
struct Listed {
    services: bool,
    slices: bool,
    nodes: bool,
    service_cidrs: bool,
}

impl Listed {
    fn all(self) -> bool {
        self.services && self.slices && self.nodes && self.service_cidrs
    }
}

impl<M: ServiceMaps, N: FnMut(&[IpAddr])> Work<Update> for Sync<M, N> {
    fn take(&mut self, updates: impl Iterator<Item = Update>) {
        let (reconciler, progress) = (Arc::clone(&self.reconciler), Arc::clone(&self.progress));
        let mut reconciler = lock(&reconciler);
        let mut progress = lock(&progress);
        for update in updates {
            self.take_one(update, reconciler.index_mut(), &mut progress);
        }
    }

    fn is_dirty(&self) -> bool {
        self.dirty
    }

    fn next_deadline(&self) -> Option<Instant> {
        lock(&self.reconciler).next_deadline()
    }

    fn work(&mut self, now: Instant) {
        self.reconcile(now);
    }
}

impl<M: ServiceMaps, N: FnMut(&[IpAddr])> Sync<M, N> {
    /// A loop over these. What load balancers may ask about Services is sent through `checks`.
    pub fn new(
        reconciler: Arc<Mutex<Reconciler>>,
        maps: M,
        node: N,
        progress: Arc<Mutex<Progress>>,
        checks: watch::Sender<Checks>,
    ) -> Self {
        // Ranges that the operator gives need no list.
        let service_cidrs = lock(&reconciler).index().settings().service_cidrs.is_some();
        Self {
            reconciler,
            maps,
            node,
            progress,
            checks,
            checks_version: None,
            listed: Listed { service_cidrs, ..Listed::default() },
            triggers: Vec::new(),
            dirty: false,
            node_dirty: false,
            node_gone: false,
            problems: BTreeSet::new(),
            problems_version: None,
            failures: BTreeSet::new(),
            waiting: Vec::new(),
            turns: Arc::default(),
        }
    }

    /// The same, telling of each turn.
    pub fn telling(self, turns: Arc<Turns>) -> Self {
        Self { turns, ..self }
    }

    fn take_one(&mut self, update: Update, index: &mut Index, progress: &mut Progress) {
        match update {
            Update::Service(change) => {
                progress.service_changes.add(&change);
                match change {
                    Change::Apply(service) | Change::Found(service) => {
                        index.apply_service(&(*service).into());
                    }
                    Change::Delete(name) => index.delete_service(&name),
                    Change::Listed => self.listed.services = true,
                }
            }
            Update::Slice(change) => {
                progress.endpoint_changes.add(&change);
                match change {
                    Change::Apply(slice) => {
                        self.triggers.extend(slice.caused());
                        index.apply_slice(&(*slice).into());
                    }
                    Change::Found(slice) => index.apply_slice(&(*slice).into()),
                    Change::Delete(name) => index.delete_slice(&name),
                    Change::Listed => self.listed.slices = true,
                }
            }
            Update::Node(change) => self.take_node(change, index),
            Update::ServiceCidr(change) => match change {
                Change::Apply(range) | Change::Found(range) => index.apply_service_cidr(&(*range).into()),
                Change::Delete(name) => index.delete_service_cidr(&name.name),
                Change::Listed => self.listed.service_cidrs = true,
            },
            Update::Interfaces(addresses) => {
                // None at all means that they could not be listed, or that the node is cut off for a moment.
                if !addresses.is_empty() {
                    index.set_local_addresses(addresses);
                }
                self.node_dirty = true;
                self.dirty = true;
                return;
            }
            Update::HostPorts(host_ports::Change { owner, wanted, done }) => {
                index.set_host_ports(owner.clone(), wanted);
                self.waiting.push((owner, done));
                self.dirty = true;
                return;
            }
        }
        let now = SystemTime::now();
        progress.last_queued = Some(now);
        progress.queued_since.get_or_insert(now);
        self.dirty = true;
    }

    /// The own Node is kept when it goes: a Node that somebody deletes to have it registered anew, or a mistake, is
    /// not to end the traffic to its NodePorts.
    fn take_node(&mut self, change: Change<crate::watch::Node>, index: &mut Index) {
        match change {
            Change::Apply(node) | Change::Found(node) => {
                if node.name_any() == index.node_name() {
                    self.node_dirty = true;
                    self.node_gone = false;
                }
                index.apply_node(&(*node).into());
            }
            Change::Delete(name) if *name.name == *index.node_name() => self.node_gone = true,
            Change::Delete(name) => index.delete_node(&name.name),
            Change::Listed => {
                self.node_dirty |= !self.listed.nodes;
                self.listed.nodes = true;
            }
        }
    }

    fn reconcile(&mut self, now: Instant) {
        self.dirty = false;
        let started = Instant::now();
        let reconciler = Arc::clone(&self.reconciler);
        let mut reconciler = lock(&reconciler);
        if self.listed.all() {
            reconciler.set_synced();
        }
        if self.node_dirty && self.listed.nodes {
            self.node_dirty = false;
            let addresses = reconciler.index().node().map(|node| node.addresses.clone());
            (self.node)(addresses.as_deref().unwrap_or_default());
        }
        let report = reconciler.reconcile(now, &mut self.maps);
        for (owner, done) in self.waiting.drain(..) {
            // Who waits no more has been told that it takes too long.
            let _ = done.send(reconciler.has_host_ports(&owner));
        }
        self.warn(&reconciler, &report);
        if reconciler.is_synced() {
            let node_eligible = !self.node_gone && reconciler.index().node_eligible();
            self.tell_checks(&reconciler);
            drop(reconciler);
            self.note(report, started.elapsed(), node_eligible);
        }
        self.turns.tell();
    }

    /// Passes on what load balancers may ask, if it changed.
    fn tell_checks(&mut self, reconciler: &Reconciler) {
        let version = reconciler.health_checks_version();
        let addresses = Checks::addresses_of(reconciler.index());
        if self.checks_version == Some(version) && self.checks.borrow().addresses == addresses {
            return;
        }
        self.checks_version = Some(version);
        // Nobody is left to be told only while the agent ends.
        let _ = self.checks.send(Checks { all: reconciler.health_checks(), addresses });
    }

    /// Says once what is wrong with objects and what could not be written.
    fn warn(&mut self, reconciler: &Reconciler, report: &Report) {
        let version = reconciler.problems_version();
        if self.problems_version != Some(version) {
            self.problems_version = Some(version);
            let problems: BTreeSet<Problem> = reconciler.problems().into_iter().collect();
            repeated::some(problems.difference(&self.problems), |Problem { object, field, message }| {
                tracing::warn!(object, field, "left out: {message}");
            });
            self.problems = problems;
        }
        let failures = report.failed.iter().map(ToString::to_string);
        let new: BTreeSet<String> = failures.filter(|failure| !self.failures.contains(failure)).collect();
        repeated::some(&new, |failure| tracing::warn!("{failure}; it will be tried again"));
        self.failures.extend(new);
        if report.pending == 0 && report.failed.is_empty() {
            self.failures.clear();
        }
    }

    fn note(&mut self, report: Report, took: Duration, node_eligible: bool) {
        let now = SystemTime::now();
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.first_programmed.is_none() {
            tracing::info!(writes = report.applied.total(), took = ?took, "first programming done");
            // The lists as they came over the wire are gone, and were far more than what is kept of them.
            trim_memory();
        }
        progress.first_programmed.get_or_insert(now);
        progress.last_finished = Some(now);
        progress.queued_since = None;
        progress.durations.observe(took.as_secs_f64());
        for trigger in self.triggers.drain(..) {
            progress.programming.observe(now.duration_since(trigger).unwrap_or_default().as_secs_f64());
        }
        progress.service_changes.pending = 0;
        progress.endpoint_changes.pending = 0;
        progress.writes += report.applied.total() as u64;
        progress.failed_writes += report.failed.len() as u64;
        progress.pending = report.pending;
        progress.node_eligible = node_eligible;
    }
}

/// A panic elsewhere leaves these as they were between two steps, which is a state like any other.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use fairlead_core::dataplane::MemoryMaps;
    use fairlead_core::reconcile::Capacity;
    use fairlead_core::settings::{NodePortAddresses, Settings};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use crate::progress::Changes;
    use crate::watch::{EndpointSlice, Node, Service, TRIGGER_ANNOTATION};

    use super::*;
    use crate::pace;

    /// What is told the node's addresses.
    type Tell = Box<dyn FnMut(&[IpAddr])>;

    /// A loop over maps in memory, and the addresses that it told the node.
    struct Bench {
        sync: Sync<MemoryMaps, Tell>,
        told: Arc<Mutex<Vec<Vec<IpAddr>>>>,
        checks: watch::Receiver<Checks>,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(Settings::default())
        }

        fn with(settings: Settings) -> Self {
            let capacity = Capacity { slots: 64, backends: 64 };
            let reconciler = Arc::new(Mutex::new(Reconciler::new("here", capacity, settings)));
            let told: Arc<Mutex<Vec<Vec<IpAddr>>>> = Arc::default();
            let tell = Arc::clone(&told);
            let node = Box::new(move |addresses: &[IpAddr]| {
                tell.lock().expect("not poisoned").push(addresses.to_vec());
            });
            let (sender, checks) = watch::channel(Checks::default());
            let sync: Sync<MemoryMaps, Tell> =
                Sync::new(reconciler, MemoryMaps::default(), node, Arc::default(), sender);
            Self { sync, told, checks }
        }

        fn after(&mut self, updates: impl IntoIterator<Item = Update>) -> &mut Self {
            self.sync.take(updates.into_iter());
            self.sync.reconcile(Instant::now());
            self
        }

        fn progress(&self) -> Progress {
            self.sync.progress.lock().expect("not poisoned").clone()
        }
    }

    fn frontends(bench: &Bench) -> usize {
        let all = ServiceMaps::frontends(&bench.sync.maps).expect("read");
        all.iter().filter(|(key, _)| key.protocol != 0).count()
    }

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "type": "LoadBalancer",
                     "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
                     "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]},
        }))
        .expect("a Service")
    }

    fn slice(annotations: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web-1", "annotations": annotations,
                         "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "here"}],
        }))
        .expect("a slice")
    }

    fn node(address: &str, taint: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "here"},
            "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }))
        .expect("a Node")
    }

    fn apply_node(address: &str, taint: &str) -> Update {
        Update::Node(Change::Apply(Box::new(node(address, taint))))
    }

    fn lists() -> [Update; 7] {
        [
            Update::Service(Change::Found(Box::new(service()))),
            Update::Service(Change::Listed),
            Update::Slice(Change::Found(Box::new(slice(
                json!({TRIGGER_ANNOTATION: "2024-01-01T00:00:00Z"}),
            )))),
            Update::Slice(Change::Listed),
            Update::Node(Change::Found(Box::new(node("192.0.2.1", "none")))),
            Update::Node(Change::Listed),
            Update::ServiceCidr(Change::Listed),
        ]
    }

    #[test]
    fn nothing_is_programmed_and_nobody_ready_before_every_first_list_is_done() {
        let mut bench = Bench::new();
        for update in lists() {
            assert_eq!(frontends(&bench), 0);
            assert!(bench.progress().first_programmed.is_none());
            bench.after([update]);
        }
        assert_eq!(frontends(&bench), 2);
        assert!(bench.progress().first_programmed.is_some());
        assert!(bench.progress().node_eligible);
    }

    #[test]
    fn ranges_that_the_operator_gives_need_no_list() {
        let settings = Settings { service_cidrs: Some(Vec::new()), ..Settings::default() };
        let mut bench = Bench::with(settings);
        bench.after(lists().into_iter().take(6));
        assert!(bench.progress().first_programmed.is_some());
    }

    #[test]
    fn the_node_learns_its_addresses_and_when_they_change() {
        let mut bench = Bench::new();
        bench.after(lists());
        bench.after([apply_node("192.0.2.2", "none")]);
        bench.after([Update::Service(Change::Apply(Box::new(service())))]);
        let expected: Vec<Vec<IpAddr>> =
            ["192.0.2.1", "192.0.2.2"].map(|text| vec![text.parse().expect("an address")]).into();
        assert_eq!(*bench.told.lock().expect("not poisoned"), expected);
    }

    #[test]
    fn a_node_that_is_gone_from_the_api_keeps_its_node_ports_but_gets_no_traffic() {
        let mut bench = Bench::new();
        bench.after(lists());
        let before = bench.sync.maps.dump();
        bench.after([Update::Node(Change::Delete(ObjectName::new("", "here")))]);
        assert_eq!(bench.sync.maps.dump(), before);
        assert!(!bench.progress().node_eligible);
        bench.after([apply_node("192.0.2.1", "none")]);
        assert!(bench.progress().node_eligible);
    }

    #[test]
    fn a_node_that_the_autoscaler_is_about_to_delete_gets_no_traffic() {
        let mut bench = Bench::new();
        bench.after(lists());
        bench.after([apply_node("192.0.2.1", "ToBeDeletedByClusterAutoscaler")]);
        assert!(!bench.progress().node_eligible);
    }

    #[test]
    fn node_ports_follow_the_addresses_of_interfaces_where_they_are_asked_for_there() {
        let within = vec!["198.51.100.0/24".parse().expect("a range")];
        let nodeport_addresses = NodePortAddresses::Within(within);
        let mut bench = Bench::with(Settings { nodeport_addresses, ..Settings::default() });
        bench.after(lists());
        assert_eq!(frontends(&bench), 1, "the ClusterIP alone");
        let addresses = ["192.0.2.1", "198.51.100.7"].map(|text| text.parse().expect("an address"));
        bench.after([Update::Interfaces(addresses.to_vec())]);
        assert_eq!(frontends(&bench), 2);
        bench.after([Update::Interfaces(Vec::new())]);
        assert_eq!(frontends(&bench), 2, "a failure to list them takes nothing away");
    }

    #[test]
    fn a_deleted_service_leaves_the_maps() {
        let mut bench = Bench::new();
        bench.after(lists());
        bench.after([Update::Service(Change::Delete(ObjectName::new("default", "web")))]);
        assert_eq!(frontends(&bench), 0);
    }

    #[test]
    fn load_balancers_can_ask_for_a_services_local_endpoints() {
        let mut bench = Bench::new();
        bench.after(lists());
        assert!(bench.checks.has_changed().expect("open"));
        assert_eq!(bench.checks.borrow_and_update().all[0].local_endpoints, 1);
        bench.after([apply_node("192.0.2.1", "other")]);
        assert!(!bench.checks.has_changed().expect("open"), "nothing to tell");
    }

    #[test]
    fn changes_are_counted_and_their_programming_is_timed() {
        let mut bench = Bench::new();
        bench.after(lists());
        assert_eq!(bench.progress().programming.count(), 0, "a list says nothing of when");
        let stamp = Timestamp::now().to_string();
        let update = Update::Slice(Change::Apply(Box::new(slice(json!({TRIGGER_ANNOTATION: stamp})))));
        bench.sync.take(std::iter::once(update));
        assert_eq!(bench.progress().endpoint_changes, Changes { total: 2, pending: 1 });
        assert!(bench.progress().queued_since.is_some());
        bench.after([]);
        assert_eq!(bench.progress().endpoint_changes, Changes { total: 2, pending: 0 });
        assert!(bench.progress().queued_since.is_none());
        assert_eq!(bench.progress().programming.count(), 1);
    }

    #[test]
    fn the_loop_ends_when_nobody_can_send_any_more() {
        let bench = Bench::new();
        let (sender, receiver) = mpsc::channel();
        for update in lists() {
            sender.send(update).expect("sent");
        }
        drop(sender);
        let progress = Arc::clone(&bench.sync.progress);
        pace::run(&receiver, bench.sync);
        assert!(progress.lock().expect("not poisoned").first_programmed.is_some());
    }
}
