//! NetworkPolicies and ClusterNetworkPolicies, compiled to the decision table that the programs look up.
//!
//! ```text
//! watch ──► convert ──► objects ──► absorb ────────────────► apply ─────────────► maps
//!                       state,      census: who is whom      numbers, rows, cells,
//!                       dirty       places: addresses        endpoints; order of
//!                       objects     programs: ordered rules  writes, retries
//! ```
//!
//! What the programs look up: [`fairlead_abi::Isolation`] and what it leads to. A pod's *program* is the ordered list
//! of all rules of the objects that select it in one direction. The peers that programs in use name are interned and
//! counted (the census); an address's *signature* is the set of them that it is, and equal signatures are one
//! *identity*. What a program says to an identity is a *row*. Pods under the same objects share one *compiled policy*.
//!
//! A pod of which something is not known is closed, and so is one under a policy that can't be written; the rest
//! proceeds. Work is proportional to what changed. [`Engine::why`] answers from the programs that fill the maps.

mod absorb;
mod adopt;
pub mod api;
mod apply;
mod census;
mod compiled;
mod effect;
mod endpoints;
mod explain;
mod identity;
mod known;
mod ledger;
pub mod model;
mod objects;
mod places;
mod prefix;
mod program;
mod row;
mod select;
pub mod selector;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};

use crate::dataplane::{MapError, PolicyMaps};
use crate::model::{ObjectName, Problem};

use absorb::Absorbed;
use adopt::Leftovers;
use api::ClusterNetworkPolicy;
use apply::Pass;
use census::Census;
use compiled::{Compiled, Key, Loaded, PolicyIds};
use endpoints::{Endpoint, Endpoints};
use identity::Identities;
use ledger::Ledger;
use model::Handle;
use objects::Objects;
use places::Places;

pub use explain::{Explanation, Party, PartyView, Side};
pub use model::{Direction, PodId, PolicyName};
pub use view::{
    Applied, Capacity, CompiledView, EndpointState, Failure, PeerView, PolicyView, Report, RuleView,
};

/// The first pause before a failed write is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause before a failed write is tried again.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// The objects that policies are about, and the state of the maps that follow them.
#[derive(Debug)]
pub struct Engine {
    node_name: Arc<str>,
    capacity: Capacity,
    keep: bool,
    synced: bool,
    objects: Objects,
    absorbed: Absorbed,
    endpoints: Endpoints,
    census: Census,
    places: Places,
    identities: Identities,
    compiled: BTreeMap<Handle, Compiled>,
    handles: HashMap<Key, Handle>,
    last_handle: Handle,
    /// Programs that others replaced, whose peers are still in use.
    replaced: Vec<(Handle, Loaded)>,
    ids: PolicyIds,
    ledger: Ledger,
    leftovers: Option<Leftovers>,
    /// Endpoints that could not be put under other policies.
    unclosed: BTreeMap<u32, MapError>,
    /// Why the map of peers is not as it should be.
    peer_error: Option<MapError>,
    /// Why something that nobody needs is still there.
    leftover: Option<MapError>,
    /// Whether the revision must grow.
    unrevised: bool,
    retry: Option<Retry>,
}

/// When failed writes are tried again.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Engine {
    /// Empty maps of this size, on the node of that name; `keep`: flows that were admitted stay so.
    pub fn new(node_name: impl Into<String>, capacity: Capacity, keep: bool) -> Self {
        Self {
            node_name: node_name.into().into(),
            capacity,
            keep,
            synced: false,
            objects: Objects::default(),
            absorbed: Absorbed::default(),
            endpoints: Endpoints::default(),
            census: Census::default(),
            places: Places::default(),
            identities: Identities::default(),
            compiled: BTreeMap::new(),
            handles: HashMap::new(),
            last_handle: 0,
            replaced: Vec::new(),
            ids: PolicyIds::new(capacity.policies),
            ledger: Ledger::default(),
            leftovers: None,
            unclosed: BTreeMap::new(),
            peer_error: None,
            leftover: None,
            unrevised: true,
            retry: None,
        }
    }

    /// Learns what an earlier run left in the maps, after the endpoints that it left were added and before the first
    /// reconcile.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn adopt(&mut self, maps: &impl PolicyMaps) -> Result<(), MapError> {
        self.read(maps)
    }

    /// A Pod was added or changed.
    pub fn apply_pod(&mut self, object: &core::Pod) {
        self.objects.apply_pod(object);
    }

    /// A Pod was deleted.
    pub fn delete_pod(&mut self, name: &ObjectName) {
        self.objects.delete_pod(name);
    }

    /// A Namespace was added or changed.
    pub fn apply_namespace(&mut self, object: &core::Namespace) {
        self.objects.apply_namespace(object);
    }

    /// A Namespace was deleted.
    pub fn delete_namespace(&mut self, name: &str) {
        self.objects.delete_namespace(name);
    }

    /// A Node was added or changed.
    pub fn apply_node(&mut self, object: &core::Node) {
        self.objects.apply_node(object);
    }

    /// A Node was deleted.
    pub fn delete_node(&mut self, name: &str) {
        self.objects.delete_node(name);
    }

    /// A NetworkPolicy was added or changed.
    pub fn apply_network_policy(&mut self, object: &networking::NetworkPolicy) {
        self.objects.apply_network_policy(object);
    }

    /// A NetworkPolicy was deleted.
    pub fn delete_network_policy(&mut self, name: &ObjectName) {
        self.objects.delete_network_policy(name);
    }

    /// A ClusterNetworkPolicy was added or changed.
    pub fn apply_cluster_policy(&mut self, object: &ClusterNetworkPolicy) {
        self.objects.apply_cluster_policy(object);
    }

    /// A ClusterNetworkPolicy was deleted.
    pub fn delete_cluster_policy(&mut self, name: &str) {
        self.objects.delete_cluster_policy(name);
    }

    /// These are all addresses of the node's interfaces: what pods exchange with them no NetworkPolicy forbids.
    pub fn set_local_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.objects.set_local_addresses(addresses);
    }

    /// Every watch has finished its first list. Until then [`Self::reconcile`] does nothing: what is not
    /// yet listed can't be told from what is gone.
    pub fn set_synced(&mut self) {
        self.synced = true;
    }

    /// Whether every watch has finished its first list.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The endpoint at `index` is this pod's, with these addresses.
    pub fn add_endpoint(&mut self, index: u32, pod: PodId, addresses: Vec<IpAddr>) {
        let held = addresses.clone();
        let old = self.endpoints.add(index, pod, addresses);
        self.left(index, old);
        held.into_iter().for_each(|address| self.places.set_held(address, true));
        self.objects.dirty.pods.extend(self.endpoints.get(index).and_then(Endpoint::name));
    }

    /// The endpoint at `index` is gone. The next reconcile closes what is left of it.
    pub fn remove_endpoint(&mut self, index: u32) {
        let old = self.endpoints.remove(index);
        self.left(index, old);
    }

    /// Brings the maps to what the objects ask for: what changed since the last call and, once
    /// [`Self::next_deadline`] has passed, what failed.
    pub fn reconcile(&mut self, now: Instant, maps: &mut impl PolicyMaps) -> Report {
        if !self.synced {
            return Report { pending: self.objects.dirty.len(), ..Report::default() };
        }
        let retrying = self.retry.is_some_and(|retry| retry.at <= now);
        if retrying {
            let tried = self.compiled.values_mut().filter(|compiled| compiled.waiting.is_none());
            tried.for_each(|compiled| compiled.failed = None);
        }
        self.leftover = None;
        self.absorb();
        if retrying {
            self.retry_loads();
            self.touch();
        }
        self.take_over();
        let mut pass = Pass { now, maps, report: Report::default() };
        if self.apply(&mut pass).is_ok() {
            self.sweep(&mut pass);
        }
        self.revise(&mut pass);
        let mut report = pass.report;
        report.pending = self.pending().count();
        self.retry = self.next_retry(now, retrying, &report);
        self.settle_versions();
        report
    }

    /// When to call [`Self::reconcile`] again even if nothing changes; none if nothing is pending.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.retry.map(|retry| retry.at)
    }

    /// Everything in the objects that makes no sense.
    pub fn problems(&self) -> Vec<Problem> {
        self.objects.problems().cloned().collect()
    }

    /// Grows with each change of [`Self::problems`], which costs much more.
    pub fn problems_version(&self) -> u64 {
        self.objects.problems_version()
    }

    /// What is not as its objects ask, as in `NetworkPolicy shop/web` or `endpoint 7`, with the first thing that
    /// failed.
    pub fn pending(&self) -> impl Iterator<Item = (String, &MapError)> {
        let mut failed: BTreeMap<String, &MapError> = BTreeMap::new();
        for compiled in self.compiled.values() {
            let names = compiled.key.policies.iter().map(ToString::to_string);
            let error = compiled.failed.iter();
            failed.extend(error.flat_map(|error| names.clone().map(move |name| (name, error))));
        }
        let endpoints = self.unclosed.iter().map(|(index, error)| (format!("endpoint {index}"), error));
        let peers = self.peer_error.iter().map(|error| ("identities".to_owned(), error));
        let leftover = self.leftover.iter().map(|error| ("removals".to_owned(), error));
        failed.into_iter().chain(endpoints).chain(peers).chain(leftover)
    }

    /// The endpoint at `index` is no longer that pod's.
    fn left(&mut self, index: u32, old: Option<Endpoint>) {
        let Some(old) = old else { return };
        self.leave(index, old.ingress);
        self.leave(index, old.egress);
        self.objects.dirty.pods.extend(old.name());
        for address in old.addresses.into_iter().filter(|address| !self.endpoints.hold(*address)) {
            self.places.set_held(address, false);
        }
    }

    /// Pauses grow while nothing changes; a removal may have made the room that others wait for.
    fn next_retry(&self, now: Instant, retrying: bool, report: &Report) -> Option<Retry> {
        let unrevised = self.synced && self.unrevised;
        if report.pending == 0 && !unrevised && self.places.is_written() {
            return None;
        }
        let made_room = report.applied.removed > 0;
        match self.retry {
            Some(retry) if !retrying && !made_room => Some(retry),
            Some(retry) if !made_room => {
                let pause = (retry.pause * 2).min(LAST_RETRY);
                Some(Retry { at: now + pause, pause })
            }
            _ => Some(Retry { at: now + FIRST_RETRY, pause: FIRST_RETRY }),
        }
    }
}
