//! The watches of the API: each a stream of lists and events that survives whatever the API server does.
//!
//! A stream hands every object on trimmed and at once, except during a list, which is collected and handed on
//! whole: what it does not hold is gone. While the API can't be reached nothing is handed on, so nothing changes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::errors::chain;

/// When the change was made that an EndpointSlice's last write is due to.
pub const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A change of what the API holds of one kind.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// The object was added or changed.
    Apply(Box<K>),
    /// The object was deleted.
    Delete(Box<K>),
    /// These are all objects.
    Replace(Vec<K>),
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
    /// Nothing changed, but what depends on the node's interfaces may be tried again.
    Tick,
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

/// Follows Services, EndpointSlices and Nodes for as long as `send` takes what they deliver.
pub async fn follow_all(client: Client, watches: &Watches, send: impl Fn(Update) -> bool) {
    let send = &send;
    let services =
        follow(Api::<Service>::all(client.clone()), watches, "Service", trim_service, move |change| {
            send(Update::Service(change))
        });
    let slices = follow(
        Api::<EndpointSlice>::all(client.clone()),
        watches,
        "EndpointSlice",
        trim_slice,
        move |change| send(Update::Slice(change)),
    );
    let nodes = follow(Api::<Node>::all(client), watches, "Node", trim_node, move |change| {
        send(Update::Node(change))
    });
    futures::join!(services, slices, nodes);
}

async fn follow<K>(
    api: Api<K>,
    watches: &Watches,
    kind: &'static str,
    trim: fn(&mut K),
    send: impl Fn(Change<K>) -> bool,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watches.update(kind, |_| {});
    let mut stream = pin!(watch(api, watcher::Config::default()).modify(trim).default_backoff());
    let mut listing = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                watches.update(kind, |state| {
                    if !state.connected && state.failures > 0 {
                        tracing::info!("watch of {kind}: connected again");
                    }
                    state.connected = true;
                    state.events += u64::from(!matches!(event, Event::Init | Event::InitDone));
                    state.listed |= matches!(event, Event::InitDone);
                });
                if let Some(change) = step(&mut listing, event)
                    && !send(change)
                {
                    return;
                }
            }
            Err(e) => {
                let text = chain(&e);
                watches.update(kind, |state| {
                    if state.connected || state.last_error.as_ref() != Some(&text) {
                        tracing::warn!("watch of {kind}: {text}; it will be tried until it works");
                    }
                    state.connected = false;
                    state.failures += 1;
                    state.last_error = Some(text);
                });
            }
        }
    }
}

/// What an event means, given the objects of a list under way.
fn step<K>(listing: &mut Vec<K>, event: Event<K>) -> Option<Change<K>> {
    match event {
        Event::Apply(object) => Some(Change::Apply(Box::new(object))),
        Event::Delete(object) => Some(Change::Delete(Box::new(object))),
        Event::Init => {
            listing.clear();
            None
        }
        Event::InitApply(object) => {
            listing.push(object);
            None
        }
        Event::InitDone => Some(Change::Replace(std::mem::take(listing))),
    }
}

/// Drops what no part of the agent reads, which is most of an object.
fn trim_meta<K: Resource>(object: &mut K) {
    object.managed_fields_mut().clear();
    object.annotations_mut().retain(|name, _| name == TRIGGER_ANNOTATION);
    object.owner_references_mut().clear();
    object.finalizers_mut().clear();
}

fn trim_service(service: &mut Service) {
    trim_meta(service);
}

fn trim_slice(slice: &mut EndpointSlice) {
    trim_meta(slice);
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.target_ref = None;
        endpoint.deprecated_topology = None;
    }
}

fn trim_node(node: &mut Node) {
    trim_meta(node);
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_in_use = None;
        status.volumes_attached = None;
        status.conditions = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_handed_on_whole_and_only_when_it_is_complete() {
        let mut listing = Vec::new();
        assert!(step(&mut listing, Event::Init).is_none());
        assert!(step(&mut listing, Event::InitApply(1)).is_none());
        assert!(step(&mut listing, Event::InitApply(2)).is_none());
        assert!(matches!(step(&mut listing, Event::InitDone), Some(Change::Replace(all)) if all == [1, 2]));
    }

    #[test]
    fn a_list_that_broke_off_leaves_nothing_in_the_next() {
        let mut listing = Vec::new();
        step(&mut listing, Event::InitApply(1));
        step(&mut listing, Event::Init);
        step(&mut listing, Event::InitApply(2));
        assert!(matches!(step(&mut listing, Event::InitDone), Some(Change::Replace(all)) if all == [2]));
    }

    #[test]
    fn a_trimmed_slice_keeps_its_labels_and_the_time_of_its_cause() {
        let mut slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "web-1", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {TRIGGER_ANNOTATION: "2024-01-01T00:00:00Z", "other": "x"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "a"}}],
        }))
        .expect("a slice");
        trim_slice(&mut slice);
        assert_eq!(slice.annotations().keys().collect::<Vec<_>>(), [TRIGGER_ANNOTATION]);
        assert_eq!(slice.labels().len(), 1);
        assert!(slice.managed_fields().is_empty());
        assert!(slice.endpoints.expect("endpoints")[0].target_ref.is_none());
    }
}
