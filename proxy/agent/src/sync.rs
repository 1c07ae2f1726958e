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

use crate::metrics::Histogram;
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
    /// What failed at the last reconcile that tried, by object.
    pub failures: Vec<String>,
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
            failures: Vec::new(),
            pending: 0,
            node_known: false,
        }
    }
}

/// The bounds that kube-proxy's histogram of the same name has.
fn programming_bounds() -> Vec<f64> {
    let minute = (1..=60).map(f64::from);
    let minutes = (1..=10).map(|n| 60.0 + 5.0 * f64::from(n)).chain([115.0]);
    let rest = (0..7).map(|n| 120.0 + 30.0 * f64::from(n));
    [0.25, 0.5].into_iter().chain(minute).chain(minutes).chain(rest).collect()
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
    pub fn new(
        reconciler: Arc<Mutex<Reconciler>>,
        maps: M,
        node: N,
        progress: Arc<Mutex<Progress>>,
    ) -> Self {
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
        progress.failures = self.failures.iter().cloned().collect();
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
