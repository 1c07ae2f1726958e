//! The loop that keeps the maps programmed, on a thread of its own: updates in, a short pause so that what
//! comes together is done together, a reconcile, and again when something failed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fairlead_core::dataplane::ServiceMaps;
use fairlead_core::model::{ObjectName, Problem};
use fairlead_core::reconcile::{Reconciler, Report};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::exposition::Histogram;
use crate::watch::{Change, TRIGGER_ANNOTATION, Update};

/// The shortest time between two reconciles.
const MIN_INTERVAL: Duration = Duration::from_millis(3);
/// How long the loop waits when nothing asks for anything.
const IDLE: Duration = Duration::from_secs(3600);

/// How the loop is doing.
#[derive(Clone, Debug)]
pub struct Progress {
    /// When the maps first held everything that the first lists asked for, or what of it there was room for.
    pub first_programmed: Option<SystemTime>,
    /// When the last reconcile ended.
    pub last_finished: Option<SystemTime>,
    /// When the oldest update came that no reconcile has taken up.
    pub queued_since: Option<SystemTime>,
    /// When the last update came.
    pub last_queued: Option<SystemTime>,
    /// How long reconciles took, in seconds.
    pub durations: Histogram,
    /// How long it took from the cause of an endpoint's change until it was programmed, in seconds.
    pub programming: Histogram,
    /// How many Services came that changed, ever and since the last reconcile.
    pub service_changes: Changes,
    /// The same for EndpointSlices.
    pub endpoint_changes: Changes,
    /// How many writes have succeeded.
    pub writes: u64,
    /// How many writes have failed.
    pub failed_writes: u64,
    /// How many Services are not as their objects ask.
    pub pending: usize,
    /// Whether the node's own Node object is known.
    pub node_known: bool,
}

/// How many changes there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Ever.
    pub total: u64,
    /// Since the last reconcile.
    pub pending: u64,
}

impl Changes {
    fn add(&mut self, count: usize) {
        self.total += count as u64;
        self.pending += count as u64;
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            first_programmed: None,
            last_finished: None,
            queued_since: None,
            last_queued: None,
            durations: Histogram::exponential(0.001, 2.0, 15),
            programming: Histogram::new(programming_bounds()),
            service_changes: Changes::default(),
            endpoint_changes: Changes::default(),
            writes: 0,
            failed_writes: 0,
            pending: 0,
            node_known: false,
        }
    }
}

/// The bounds that kube-proxy's histogram of the same name has.
fn programming_bounds() -> Vec<f64> {
    let seconds = (1..60).map(f64::from);
    let minutes = (0..12).map(|n| 60.0 + 5.0 * f64::from(n));
    let longer = (0..7).map(|n| 120.0 + 30.0 * f64::from(n));
    [0.25, 0.5].into_iter().chain(seconds).chain(minutes).chain(longer).collect()
}

/// The loop's state. `maps` are the kernel's, or others in tests; `node` is told the node's addresses.
pub struct Sync<M, N> {
    reconciler: Arc<Mutex<Reconciler>>,
    maps: M,
    node: N,
    progress: Arc<Mutex<Progress>>,
    listed: Listed,
    triggers: Vec<SystemTime>,
    dirty: bool,
    node_dirty: bool,
    problems: BTreeSet<Problem>,
    failures: BTreeSet<String>,
}

/// Which first lists are done.
#[derive(Clone, Copy, Debug, Default)]
struct Listed {
    services: bool,
    slices: bool,
    nodes: bool,
}

impl<M: ServiceMaps, N: FnMut(&[IpAddr])> Sync<M, N> {
    /// A loop over these.
    pub fn new(reconciler: Arc<Mutex<Reconciler>>, maps: M, node: N, progress: Arc<Mutex<Progress>>) -> Self {
        Self {
            reconciler,
            maps,
            node,
            progress,
            listed: Listed::default(),
            triggers: Vec::new(),
            dirty: false,
            node_dirty: false,
            problems: BTreeSet::new(),
            failures: BTreeSet::new(),
        }
    }

    /// Runs until nobody can send updates any more.
    pub fn run(mut self, updates: &Receiver<Update>) {
        let mut earliest = Instant::now();
        loop {
            let deadline = if self.dirty { Some(earliest) } else { self.reconciler().next_deadline() };
            let wait = deadline.map_or(IDLE, |deadline| deadline.saturating_duration_since(Instant::now()));
            match updates.recv_timeout(wait) {
                Ok(update) => {
                    self.take(update);
                    updates.try_iter().for_each(|update| self.take(update));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            let due = self.reconciler().next_deadline().is_some_and(|deadline| deadline <= now);
            if due || self.dirty && earliest <= now {
                self.reconcile(now);
                earliest = Instant::now() + MIN_INTERVAL;
            }
        }
    }

    /// Takes up one update.
    fn take(&mut self, update: Update) {
        let now = SystemTime::now();
        {
            let mut reconciler = self.reconciler.lock().unwrap_or_else(PoisonError::into_inner);
            let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            let index = reconciler.index_mut();
            match update {
                Update::Service(change) => {
                    progress.service_changes.add(count(&change));
                    match change {
                        Change::Apply(service) => index.apply_service(&service),
                        Change::Delete(service) => index.delete_service(&name_of(&*service)),
                        Change::Replace(services) => {
                            index.replace_services(&services);
                            self.listed.services = true;
                        }
                    }
                }
                Update::Slice(change) => {
                    progress.endpoint_changes.add(count(&change));
                    match change {
                        Change::Apply(slice) => {
                            self.triggers.extend(trigger(&slice));
                            index.apply_slice(&slice);
                        }
                        Change::Delete(slice) => index.delete_slice(&name_of(&*slice)),
                        Change::Replace(slices) => {
                            index.replace_slices(&slices);
                            self.listed.slices = true;
                        }
                    }
                }
                Update::Node(change) => {
                    let own = index.node_name().to_owned();
                    match change {
                        Change::Apply(node) => {
                            self.node_dirty |= node.name_any() == own;
                            index.apply_node(&node);
                        }
                        Change::Delete(node) => {
                            self.node_dirty |= node.name_any() == own;
                            index.delete_node(&node.name_any());
                        }
                        Change::Replace(nodes) => {
                            self.node_dirty = true;
                            index.replace_nodes(&nodes);
                            self.listed.nodes = true;
                        }
                    }
                }
                Update::Tick => {
                    self.node_dirty = true;
                    self.dirty = true;
                    return;
                }
            }
            progress.last_queued = Some(now);
            progress.queued_since.get_or_insert(now);
        }
        self.dirty = true;
    }

    fn reconcile(&mut self, now: Instant) {
        self.dirty = false;
        let started = Instant::now();
        let mut reconciler = self.reconciler.lock().unwrap_or_else(PoisonError::into_inner);
        if self.listed.services && self.listed.slices && self.listed.nodes {
            reconciler.set_synced();
        }
        let addresses = reconciler.index().node().map(|node| node.addresses.clone());
        if self.node_dirty && self.listed.nodes {
            self.node_dirty = false;
            // A Node that is missing from the API for a while takes no address from the programs.
            (self.node)(addresses.as_deref().unwrap_or_default());
        }
        let report = reconciler.reconcile(now, &mut self.maps);
        let synced = reconciler.is_synced();
        let problems = reconciler.problems();
        drop(reconciler);
        self.warn(problems, &report);
        if synced {
            self.note(report, started.elapsed(), addresses.is_some());
        }
    }

    /// Says once what is wrong with objects and what could not be written.
    fn warn(&mut self, problems: Vec<Problem>, report: &Report) {
        let problems: BTreeSet<Problem> = problems.into_iter().collect();
        for problem in problems.difference(&self.problems) {
            tracing::warn!(object = problem.object, field = problem.field, "left out: {}", problem.message);
        }
        self.problems = problems;
        for failure in report.failed.iter().map(ToString::to_string) {
            if !self.failures.contains(&failure) {
                tracing::warn!("{failure}; it will be tried again");
                self.failures.insert(failure);
            }
        }
        if report.pending == 0 && report.failed.is_empty() {
            self.failures.clear();
        }
    }

    fn note(&mut self, report: Report, took: Duration, node_known: bool) {
        let now = SystemTime::now();
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.first_programmed.is_none() {
            tracing::info!(writes = report.applied.total(), took = ?took, "first programming done");
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
        progress.node_known = node_known;
    }

    fn reconciler(&self) -> MutexGuard<'_, Reconciler> {
        self.reconciler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count<K>(change: &Change<K>) -> usize {
    match change {
        Change::Replace(all) => all.len(),
        Change::Apply(_) | Change::Delete(_) => 1,
    }
}

fn name_of(object: &impl kube::Resource) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// When the change was made that the slice's last write is due to, if it says so.
fn trigger(slice: &EndpointSlice) -> Option<SystemTime> {
    let text = slice.annotations().get(TRIGGER_ANNOTATION)?;
    let stamp: Timestamp = text.parse().ok()?;
    Some(stamp.into())
}

#[cfg(test)]
mod tests {
    use fairlead_core::dataplane::MemoryMaps;
    use fairlead_core::reconcile::Capacity;
    use k8s_openapi::api::core::v1::{Node, Service};
    use serde_json::json;

    use super::*;

    /// What is told the node's addresses.
    type Tell = Box<dyn FnMut(&[IpAddr])>;

    /// A loop over maps in memory, and the addresses that it told the node.
    struct Bench {
        sync: Sync<MemoryMaps, Tell>,
        told: Arc<Mutex<Vec<Vec<IpAddr>>>>,
    }

    impl Bench {
        fn new() -> Self {
            let capacity = Capacity { slots: 64, backends: 64 };
            let reconciler = Arc::new(Mutex::new(Reconciler::new("here", capacity)));
            let told: Arc<Mutex<Vec<Vec<IpAddr>>>> = Arc::default();
            let tell = Arc::clone(&told);
            let node = Box::new(move |addresses: &[IpAddr]| {
                tell.lock().expect("not poisoned").push(addresses.to_vec());
            });
            Self { sync: Sync::new(reconciler, MemoryMaps::default(), node, Arc::default()), told }
        }

        fn after(&mut self, updates: impl IntoIterator<Item = Update>) -> &mut Self {
            updates.into_iter().for_each(|update| self.sync.take(update));
            self.sync.reconcile(Instant::now());
            self
        }

        fn progress(&self) -> Progress {
            self.sync.progress.lock().expect("not poisoned").clone()
        }
    }

    fn frontends(bench: &Bench) -> usize {
        ServiceMaps::frontends(&bench.sync.maps).expect("read").len()
    }

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "type": "ClusterIP",
                     "ports": [{"port": 80, "protocol": "TCP"}]},
        }))
        .expect("a Service")
    }

    fn slice(annotations: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web-1", "annotations": annotations,
                         "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}],
        }))
        .expect("a slice")
    }

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "here"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }))
        .expect("a Node")
    }

    fn lists() -> [Update; 3] {
        [
            Update::Service(Change::Replace(vec![service()])),
            Update::Slice(Change::Replace(vec![slice(json!({}))])),
            Update::Node(Change::Replace(vec![node()])),
        ]
    }

    #[test]
    fn nothing_is_programmed_and_nobody_ready_before_every_first_list_is_done() {
        let mut bench = Bench::new();
        let [services, slices, nodes] = lists();
        bench.after([services, slices]);
        assert_eq!(frontends(&bench), 0);
        assert!(bench.progress().first_programmed.is_none());
        bench.after([nodes]);
        assert_eq!(frontends(&bench), 1);
        assert!(bench.progress().first_programmed.is_some());
        assert!(bench.progress().node_known);
    }

    #[test]
    fn the_node_learns_its_addresses_and_when_they_change() {
        let mut bench = Bench::new();
        bench.after(lists());
        let mut moved = node();
        moved.status.as_mut().expect("a status").addresses.as_mut().expect("addresses")[0].address =
            "192.0.2.2".into();
        bench.after([Update::Node(Change::Apply(Box::new(moved)))]);
        bench.after([Update::Service(Change::Apply(Box::new(service())))]);
        let expected: Vec<Vec<IpAddr>> =
            ["192.0.2.1", "192.0.2.2"].map(|text| vec![text.parse().expect("an address")]).into();
        assert_eq!(*bench.told.lock().expect("not poisoned"), expected);
    }

    #[test]
    fn a_deleted_service_leaves_the_maps() {
        let mut bench = Bench::new();
        bench.after(lists());
        bench.after([Update::Service(Change::Delete(Box::new(service())))]);
        assert_eq!(frontends(&bench), 0);
    }

    #[test]
    fn changes_are_counted_and_their_programming_is_timed() {
        let mut bench = Bench::new();
        bench.after(lists());
        let stamp = Timestamp::now().to_string();
        let update = Update::Slice(Change::Apply(Box::new(slice(json!({TRIGGER_ANNOTATION: stamp})))));
        bench.sync.take(update);
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
        let (sender, receiver) = std::sync::mpsc::channel();
        for update in lists() {
            sender.send(update).expect("sent");
        }
        drop(sender);
        let progress = Arc::clone(&bench.sync.progress);
        bench.sync.run(&receiver);
        assert!(progress.lock().expect("not poisoned").first_programmed.is_some());
    }
}
