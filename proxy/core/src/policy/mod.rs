//! NetworkPolicies and ClusterNetworkPolicies, compiled to the decision table that the programs look up.

pub mod api;
mod explain;
mod known;
pub mod model;
mod objects;
pub mod selector;
mod view;

use std::net::IpAddr;
use std::time::Instant;

use fairlead_abi::Isolation;
use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};

use crate::dataplane::{MapError, PolicyMaps};
use crate::model::{ObjectName, Problem, Protocol};

use api::ClusterNetworkPolicy;
use objects::Objects;

pub use explain::{Explanation, Party, PartyView, Side};
pub use model::Direction;
pub use view::{
    Applied, Capacity, CompiledView, EndpointState, Failure, PeerView, PodId, PolicyView, Report, RuleView,
};

/// The objects that policies are about, and the state of the maps that follow them.
#[derive(Debug)]
pub struct Engine {
    objects: Objects,
    synced: bool,
}

impl Engine {
    /// Empty maps of this size, on the node of that name; `keep`: flows that were admitted stay so.
    pub fn new(_node_name: impl Into<String>, _capacity: Capacity, _keep: bool) -> Self {
        Self { objects: Objects::default(), synced: false }
    }

    /// Learns what an earlier run left in the maps, after the endpoints that it left were added and before the first
    /// reconcile.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn adopt(&mut self, _maps: &impl PolicyMaps) -> Result<(), MapError> {
        Ok(())
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
    pub fn add_endpoint(&mut self, _index: u32, _pod: PodId, _addresses: Vec<IpAddr>) {}

    /// The endpoint at `index` is gone. The next reconcile closes what is left of it.
    pub fn remove_endpoint(&mut self, _index: u32) {}

    /// Brings the maps to what the objects ask for.
    pub fn reconcile(&mut self, _now: Instant, _maps: &mut impl PolicyMaps) -> Report {
        Report { pending: self.objects.dirty.len(), ..Report::default() }
    }

    /// When to call [`Self::reconcile`] again even if nothing changes; none if nothing is pending.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// Whether the endpoint at `index` is under its policies, as of the last reconcile.
    pub fn endpoint_state(&self, _index: u32) -> EndpointState {
        EndpointState::NotSynced
    }

    /// The policies that the endpoint at `index` should be under now.
    pub fn endpoint_policies(&self, _index: u32) -> Isolation {
        Isolation::default()
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
        std::iter::empty()
    }

    /// Every policy, in order of kind and name.
    pub fn policies(&self) -> Vec<PolicyView> {
        Vec::new()
    }

    /// The objects behind the id of a compiled policy.
    pub fn compiled(&self, _id: u32) -> Option<CompiledView> {
        None
    }

    /// Whom an address belongs to.
    pub fn who(&self, _address: IpAddr) -> PeerView {
        PeerView::default()
    }

    /// What becomes of a flow from `client` to `port` of `server`, and why.
    pub fn why(&self, client: &Party, server: &Party, protocol: Option<Protocol>, port: u16) -> Explanation {
        let view = |party: &Party| match party {
            Party::Pod(name) => PartyView { pod: Some(name.to_string()), ..PartyView::default() },
            Party::Address(address) => PartyView { address: Some(*address), ..PartyView::default() },
        };
        let side = |direction: Direction| Side {
            direction,
            allowed: true,
            policies: Vec::new(),
            decided_by: None,
            reason: String::new(),
            misses: Vec::new(),
        };
        Explanation {
            client: view(client),
            server: view(server),
            protocol,
            port,
            allowed: true,
            egress: side(Direction::Egress),
            ingress: side(Direction::Ingress),
        }
    }
}
