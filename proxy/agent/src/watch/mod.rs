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

use fairlead_core::model::ObjectName;
use kube::Client;
use serde::{Deserialize, Serialize};

use follow::Watch;

pub use objects::{
    EndpointSlice, Node, Pod, SOCKET_LB_ANNOTATION, STATIC_POD_ANNOTATION, Service, ServiceCidr,
    TRIGGER_ANNOTATION,
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

/// What the watches deliver.
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
}

/// How each watch is doing, by kind.
#[derive(Debug, Default)]
pub struct Watches(Mutex<BTreeMap<&'static str, WatchState>>);

impl Watches {
    /// All of them.
    pub fn states(&self) -> BTreeMap<String, WatchState> {
        self.lock().iter().map(|(kind, state)| ((*kind).to_owned(), state.clone())).collect()
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
    let watch = |kind| Watch { client, watches, kind, selector: None, optional: false };
    let services = watch("Service").follow(move |change| send(Update::Service(change)));
    let slices = watch("EndpointSlice").follow(move |change| send(Update::Slice(change)));
    let nodes = watch("Node").follow(move |change| send(Update::Node(change)));
    let cidrs = async {
        if service_cidrs {
            // The kind came with Kubernetes 1.33: without it, ClusterIPs are where Services say.
            let watch = Watch { optional: true, ..watch("ServiceCIDR") };
            watch.follow(move |change| send(Update::ServiceCidr(change))).await;
        }
    };
    futures::join!(services, slices, nodes, cidrs);
}

/// Follows the Pods of a node for as long as `send` takes what they deliver.
pub async fn follow_pods(client: &Client, watches: &Watches, node: &str, send: impl Fn(Change<Pod>) -> bool) {
    let selector = Some(format!("spec.nodeName={node}"));
    Watch { client, watches, kind: "Pod", selector, optional: false }.follow(send).await;
}
