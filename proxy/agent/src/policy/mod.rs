//! The policies of this node: which pods they isolate and what passes.
//!
//! ```text
//!  API ──► watch ──► loop (thread) ──► fairlead_core::policy::Engine ──► dataplane::policies (maps)
//!                                        ▲            │
//!  CNI ADD ──► endpoints ── guard ───────┘            ├──► why: what becomes of a packet, and by which rule
//!                                                     └──► drops: names for what the programs dropped
//! ```
//!
//! One engine, under one lock, serves the loop, which follows the API, and CNI ADD, which waits until its pod's
//! verdicts are in the maps. A pod whose labels are not known within [`PATIENCE`] is refused: the kubelet tries again.

pub mod drops;
pub mod why;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fairlead_abi::{Isolation, policies};
use fairlead_core::dataplane::{MapError, PolicyMaps};
use fairlead_core::effect::Effect;
use fairlead_core::model::{ObjectName, Problem};
use fairlead_core::policy::{Capacity, EndpointState, Engine, PeerView, PodId, PolicyName, PolicyView};
use fairlead_core::stamp::Uid;
use fairlead_net::agent::PodRef;
use serde::{Deserialize, Serialize};

use crate::dataplane::endpoints::Guard;
use crate::dataplane::policies::{DropCounts, KernelPolicyMaps};
use crate::in_effect::Turns;
use crate::pace::Work;
use crate::pods::PodApi;
use crate::watch::{Change, PolicyUpdate};
use fairlead_daemon::exposition::Histogram;
use fairlead_daemon::repeated;

use drops::Tally;

/// How long a CNI ADD may wait until its pod's labels are known.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits for the watch before it asks the API itself.
const BEFORE_ASKING: Duration = Duration::from_millis(300);

/// The policies of this node.
pub struct Policies {
    state: Mutex<State>,
    /// Told after each turn of the loop.
    changed: Condvar,
}

struct State {
    node_name: String,
    engine: Engine,
    /// The indices of this node's endpoints.
    endpoints: BTreeSet<u32>,
    maps: KernelPolicyMaps,
    tally: Tally,
    listed: Listed,
    dirty: bool,
    durations: Histogram,
    warned: Warned,
    /// Who is told of each turn.
    turns: Arc<Turns>,
    /// How many writes have succeeded, and how many failed.
    writes: (u64, u64),
}

/// What was said already.
#[derive(Default)]
struct Warned {
    problems: BTreeSet<Problem>,
    version: Option<u64>,
    failures: BTreeSet<String>,
}

/// Which first lists are done.
#[derive(Clone, Copy, Debug, Default)]
struct Listed {
    pods: bool,
    namespaces: bool,
    network_policies: bool,
    cluster_policies: bool,
    nodes: bool,
}

impl Listed {
    fn all(self) -> bool {
        let Self { pods, namespaces, network_policies, cluster_policies, nodes } = self;
        pods && namespaces && network_policies && cluster_policies && nodes
    }
}

/// How policies are doing, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Whether every first list is done: until then nothing changes, and no pod is added.
    pub synced: bool,
    /// NetworkPolicies and ClusterNetworkPolicies that the API holds.
    pub objects: usize,
    /// Compiled policies that pods of this node are under.
    pub compiled: usize,
}

impl Policies {
    /// Over these maps; `keep` flows that were admitted. Each turn is told of through `turns`.
    pub fn new(
        node_name: &str,
        maps: KernelPolicyMaps,
        counts: DropCounts,
        keep: bool,
        turns: Arc<Turns>,
    ) -> Self {
        let capacity = Capacity {
            policies: maps.capacity.policies,
            cells: maps.capacity.cells,
            rows: maps.capacity.rows,
            peers: maps.capacity.peers,
        };
        let state = State {
            node_name: node_name.to_owned(),
            endpoints: BTreeSet::new(),
            engine: Engine::new(node_name, capacity, keep),
            maps,
            tally: Tally::new(counts),
            listed: Listed::default(),
            dirty: true,
            durations: Histogram::exponential(0.0005, 2.0, 15),
            warned: Warned::default(),
            turns,
            writes: (0, 0),
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Learns what an earlier agent left in the maps. Endpoints that it left have been restored by then.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn adopt(&self, addresses: Vec<IpAddr>) -> Result<(), MapError> {
        let mut state = self.lock();
        let State { engine, maps, .. } = &mut *state;
        engine.set_local_addresses(addresses);
        engine.adopt(maps)
    }

    /// Waits until the pod's labels and those of its namespace are known, and asks the API for the Pod where the watch
    /// is late. Not for an asynchronous thread.
    ///
    /// # Errors
    /// When they are not known after [`PATIENCE`].
    pub fn await_pod(&self, pod: &PodRef, api: &PodApi) -> Result<(), String> {
        let id = pod_id(pod);
        let started = Instant::now();
        let known = |state: &mut State| state.engine.pod_state(&id) == EndpointState::Programmed;
        let wait = |until: Duration| {
            let left = until.saturating_sub(started.elapsed());
            let waited = self.changed.wait_timeout_while(self.lock(), left, |state| !known(state));
            waited.unwrap_or_else(PoisonError::into_inner).0.engine.pod_state(&id)
        };
        if wait(BEFORE_ASKING) == EndpointState::Programmed {
            return Ok(());
        }
        let refused = match api.get(pod, PATIENCE.saturating_sub(started.elapsed())) {
            Ok(found) => {
                found.into_iter().for_each(|object| self.lock().engine.apply_pod(&object.into()));
                String::new()
            }
            Err(why) => format!("; asked for it: {why}"),
        };
        match wait(PATIENCE) {
            EndpointState::Programmed => Ok(()),
            state => Err(format!("{state}{refused}")),
        }
    }

    /// How policies are doing.
    pub fn status(&self) -> PolicyStatus {
        let state = self.lock();
        PolicyStatus {
            synced: state.engine.is_synced(),
            objects: state.engine.policies().len(),
            compiled: state.compiled().len(),
        }
    }

    /// Each policy object, with what it does here.
    pub fn views(&self) -> Vec<PolicyView> {
        self.lock().engine.policies()
    }

    /// Parts of objects that make no sense.
    pub fn problems(&self) -> Vec<Problem> {
        self.lock().engine.problems()
    }

    /// What is not as the objects ask, and why.
    pub fn pending(&self) -> Vec<String> {
        self.lock().engine.pending().map(|(what, error)| format!("{what}: {error}")).collect()
    }

    /// Whether the maps hold what the policy of that name says.
    pub fn policy_effect(&self, name: &PolicyName) -> Effect {
        self.lock().engine.policy_effect(name)
    }

    /// Whether the maps hold what the Pod of that name says.
    pub fn pod_effect(&self, name: &ObjectName) -> Effect {
        self.lock().engine.pod_effect(name)
    }

    /// Which object the policy of that name is.
    pub fn uid(&self, name: &PolicyName) -> Option<Uid> {
        self.lock().engine.policy_stamp(name).map(|stamp| stamp.uid)
    }

    /// Which object the Pod of that name is.
    pub fn pod_uid(&self, name: &ObjectName) -> Option<Uid> {
        self.lock().engine.pod_uid(name)
    }

    /// The policies that the maps do not hold, as in `NetworkPolicy shop/web`, each with why.
    pub fn failed(&self) -> Vec<(String, String)> {
        let state = self.lock();
        state.engine.failed_policies().map(|(name, error)| (name.to_string(), error.to_string())).collect()
    }

    /// How many entries the maps of policies hold, by name of map.
    pub fn entries(&self) -> [(&'static str, usize); 3] {
        self.lock().engine.entries()
    }

    /// How many writes have succeeded, and how many failed.
    pub fn writes(&self) -> (u64, u64) {
        self.lock().writes
    }

    /// How long reconciles took, in seconds.
    pub fn durations(&self) -> Histogram {
        self.lock().durations.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The ids of compiled policies that endpoints are under.
    fn compiled(&self) -> BTreeSet<u32> {
        let of = |index: &u32| {
            let Isolation { ingress, egress } = self.engine.endpoint_policies(*index);
            [ingress, egress]
        };
        self.endpoints.iter().flat_map(of).filter(|id| *id >= policies::FIRST).collect()
    }

    fn add(&mut self, index: u32, pod: &PodRef, addresses: &[IpAddr]) {
        self.endpoints.insert(index);
        self.engine.add_endpoint(index, pod_id(pod), addresses.to_vec());
    }

    fn take(&mut self, update: PolicyUpdate) {
        let engine = &mut self.engine;
        match update {
            PolicyUpdate::Pod(change) => match change {
                Change::Apply(pod) | Change::Found(pod) => engine.apply_pod(&(*pod).into()),
                Change::Delete(name) => engine.delete_pod(&name),
                Change::Listed => self.listed.pods = true,
            },
            PolicyUpdate::Namespace(change) => match change {
                Change::Apply(space) | Change::Found(space) => engine.apply_namespace(&(*space).into()),
                Change::Delete(name) => engine.delete_namespace(&name.name),
                Change::Listed => self.listed.namespaces = true,
            },
            PolicyUpdate::NetworkPolicy(change) => match change {
                Change::Apply(policy) | Change::Found(policy) => {
                    engine.apply_network_policy(&(*policy).into());
                }
                Change::Delete(name) => engine.delete_network_policy(&name),
                Change::Listed => self.listed.network_policies = true,
            },
            PolicyUpdate::ClusterPolicy(change) => match change {
                Change::Apply(policy) | Change::Found(policy) => {
                    engine.apply_cluster_policy(&(*policy).into());
                }
                Change::Delete(name) => engine.delete_cluster_policy(&name.name),
                Change::Listed => self.listed.cluster_policies = true,
            },
            PolicyUpdate::Node(change) => match change {
                Change::Apply(node) | Change::Found(node) => engine.apply_node(&(*node).into()),
                // As for Services: the own node is what it was until its Node comes back.
                Change::Delete(name) if *name.name == *self.node_name => {}
                Change::Delete(name) => engine.delete_node(&name.name),
                Change::Listed => self.listed.nodes = true,
            },
            PolicyUpdate::Interfaces(addresses) if addresses.is_empty() => return,
            PolicyUpdate::Interfaces(addresses) => engine.set_local_addresses(addresses),
        }
        self.dirty = true;
    }

    fn reconcile(&mut self, now: Instant) {
        self.dirty = false;
        if self.listed.all() {
            self.engine.set_synced();
        }
        let started = Instant::now();
        // Before an id may get another meaning.
        self.tally.read();
        let report = self.engine.reconcile(now, &mut self.maps);
        let compiled = self.compiled();
        self.tally.name(compiled, |id| self.engine.compiled(id));
        self.durations.observe(started.elapsed().as_secs_f64());
        self.writes.0 += report.applied.total() as u64;
        self.writes.1 += report.failed.len() as u64;
        let failures: BTreeSet<String> = report.failed.iter().map(ToString::to_string).collect();
        self.warn(failures);
        self.turns.tell();
    }

    /// Says once what is wrong with objects and what could not be written.
    fn warn(&mut self, failures: BTreeSet<String>) {
        let version = self.engine.problems_version();
        if self.warned.version != Some(version) {
            self.warned.version = Some(version);
            let problems: BTreeSet<Problem> = self.engine.problems().into_iter().collect();
            repeated::some(
                problems.difference(&self.warned.problems),
                |Problem { object, field, message }| {
                    tracing::warn!(object, field, "left out: {message}");
                },
            );
            self.warned.problems = problems;
        }
        repeated::some(failures.difference(&self.warned.failures), |failure| {
            tracing::warn!("{failure}; it is tried again");
        });
        self.warned.failures = failures;
    }
}

/// The loop that keeps the maps of policies programmed.
pub struct PolicyLoop(pub Arc<Policies>);

impl Work<PolicyUpdate> for PolicyLoop {
    fn take(&mut self, updates: impl Iterator<Item = PolicyUpdate>) {
        let mut state = self.0.lock();
        updates.for_each(|update| state.take(update));
    }

    fn is_dirty(&self) -> bool {
        self.0.lock().dirty
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.0.lock().engine.next_deadline()
    }

    fn work(&mut self, now: Instant) {
        self.0.lock().reconcile(now);
        self.0.changed.notify_all();
    }
}

impl Guard for Arc<Policies> {
    fn restore(&mut self, index: u32, is_own: bool, pod: &PodRef, addresses: &[IpAddr]) {
        let mut state = self.lock();
        if !is_own && let Err(e) = state.maps.write_isolation(index, Isolation::default()) {
            tracing::warn!("close an endpoint that is restored: {e}");
        }
        state.add(index, pod, addresses);
    }

    fn admit(&mut self, index: u32, pod: &PodRef, addresses: &[IpAddr]) -> Result<(), String> {
        let mut state = self.lock();
        state.add(index, pod, addresses);
        state.reconcile(Instant::now());
        match state.engine.endpoint_state(index) {
            EndpointState::Programmed => Ok(()),
            other => Err(other.to_string()),
        }
    }

    fn release(&mut self, index: u32) {
        let mut state = self.lock();
        state.endpoints.remove(&index);
        state.engine.remove_endpoint(index);
        state.reconcile(Instant::now());
    }
}

/// Whose address it is, as in `Pod shop/web`; none if it is nobody's in the cluster.
fn name_of(peer: &PeerView) -> Option<String> {
    let pod = peer.pod.as_ref().map(|pod| format!("Pod {pod}"));
    pod.or_else(|| peer.node.as_ref().map(|node| format!("Node {node}")))
}

fn pod_id(pod: &PodRef) -> PodId {
    PodId { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() }
}
