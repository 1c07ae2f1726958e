//! The watches of the API: each a stream of lists and events that survives whatever the API server does.
//!
//! Every object is handed on trimmed and at once, also those of a list: they are what the API holds, and a list that
//! breaks off takes nothing back. What a complete list does not hold any more is handed on as deleted at its end.
//! While the API can't be reached nothing is handed on, so nothing changes.

mod follow;
mod list;
mod objects;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fairlead_core::model::ObjectName;
use kube::Client;
use serde::{Deserialize, Serialize};

use crate::health::stamp;
use crate::host_ports;
use follow::{Optional, Watch};

pub use objects::{
    ClusterNetworkPolicy, EndpointSlice, Namespace, NetworkPolicy, Node, Pod, SOCKET_LB_ANNOTATION,
    STATIC_POD_ANNOTATION, Service, ServiceCidr, TRIGGER_ANNOTATION,
};

/// A change of what the API holds of one kind.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// The object was added or changed.
    Apply(Box<K>),
    /// The object is in a list: changed or not.
    Found(Box<K>),
    /// The object was deleted, or is in a list no more.
    Delete(ObjectName),
    /// A list is complete.
    Listed,
}

/// What the watches deliver for Services.
#[derive(Clone, Debug)]
pub enum Update {
    /// Of Services.
    Service(Change<Service>),
    /// Of EndpointSlices.
    Slice(Change<EndpointSlice>),
    /// Of Nodes.
    Node(Change<Node>),
    /// Of ServiceCIDRs.
    ServiceCidr(Change<ServiceCidr>),
    /// The node's interfaces have these addresses; what depends on interfaces is to be tried again.
    Interfaces(Vec<IpAddr>),
    /// Other ports of the node lead to a pod. No watch delivers it, but the agent's socket.
    HostPorts(host_ports::Change),
}

/// What the watches deliver for policies.
#[derive(Clone, Debug)]
pub enum PolicyUpdate {
    /// Of Pods, everywhere in the cluster.
    Pod(Change<Pod>),
    /// Of Namespaces.
    Namespace(Change<Namespace>),
    /// Of NetworkPolicies.
    NetworkPolicy(Change<NetworkPolicy>),
    /// Of ClusterNetworkPolicies.
    ClusterPolicy(Change<ClusterNetworkPolicy>),
    /// Of Nodes.
    Node(Change<Node>),
    /// The node's interfaces have these addresses.
    Interfaces(Vec<IpAddr>),
}

/// How a watch is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchState {
    /// Whether the first list is done.
    pub listed: bool,
    /// Whether the last answer of the API server was a good one.
    pub connected: bool,
    /// How many events and objects of lists have come.
    pub events: u64,
    /// How often the stream broke.
    pub failures: u64,
    /// Why it broke last.
    pub last_error: Option<String>,
    /// When the API server last said anything by it, bookmarks included.
    #[serde(skip)]
    pub heard: Option<SystemTime>,
    /// The same for readers; RFC 3339.
    #[serde(default)]
    pub last_heard: Option<String>,
}

/// How each watch is doing, by kind.
#[derive(Debug, Default)]
pub struct Watches(Mutex<BTreeMap<&'static str, WatchState>>);

impl Watches {
    /// All of them.
    pub fn states(&self) -> BTreeMap<String, WatchState> {
        let shown = |state: &WatchState| WatchState { last_heard: state.heard.map(stamp), ..state.clone() };
        self.lock().iter().map(|(kind, state)| ((*kind).to_owned(), shown(state))).collect()
    }

    fn update(&self, kind: &'static str, change: impl FnOnce(&mut WatchState)) {
        change(self.lock().entry(kind).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, WatchState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows Services, EndpointSlices, Nodes and, if asked, ServiceCIDRs for as long as `send` takes what they deliver.
pub async fn follow_all(
    client: &Client,
    watches: &Watches,
    service_cidrs: bool,
    send: impl Fn(Update) -> bool,
) {
    let send = &send;
    let watch = |kind| Watch { client, watches, kind, selector: None, optional: None };
    let services = watch("Service").follow(move |change| send(Update::Service(change)));
    let slices = watch("EndpointSlice").follow(move |change| send(Update::Slice(change)));
    let nodes = watch("Node").follow(move |change| send(Update::Node(change)));
    let cidrs = async {
        if service_cidrs {
            // The kind came with Kubernetes 1.33: without it, ClusterIPs are where Services say.
            let optional = Optional { pause: Duration::from_secs(300), or_forbidden: true };
            let watch = Watch { optional: Some(optional), ..watch("ServiceCIDR") };
            watch.follow(move |change| send(Update::ServiceCidr(change))).await;
        }
    };
    futures::join!(services, slices, nodes, cidrs);
}

/// Follows Pods, Namespaces and policies for as long as `send` takes what they deliver. Nodes come by [`follow_all`].
pub async fn follow_policies(client: &Client, watches: &Watches, send: impl Fn(PolicyUpdate) -> bool) {
    let send = &send;
    let watch = |kind| Watch { client, watches, kind, selector: None, optional: None };
    let pods = watch("Pod").follow(move |change| send(PolicyUpdate::Pod(change)));
    let namespaces = watch("Namespace").follow(move |change| send(PolicyUpdate::Namespace(change)));
    let policies = watch("NetworkPolicy").follow(move |change| send(PolicyUpdate::NetworkPolicy(change)));
    // The kind comes with a CustomResourceDefinition that not every cluster has.
    let optional = Optional { pause: Duration::from_secs(10), or_forbidden: false };
    let cluster = Watch { optional: Some(optional), ..watch("ClusterNetworkPolicy") };
    let cluster = cluster.follow(move |change| send(PolicyUpdate::ClusterPolicy(change)));
    futures::join!(pods, namespaces, policies, cluster);
}

/// Follows the Pods of a node for as long as `send` takes what they deliver.
pub async fn follow_pods(client: &Client, watches: &Watches, node: &str, send: impl Fn(Change<Pod>) -> bool) {
    let selector = Some(format!("spec.nodeName={node}"));
    Watch { client, watches, kind: "Pod (sockets)", selector, optional: None }.follow(send).await;
}
