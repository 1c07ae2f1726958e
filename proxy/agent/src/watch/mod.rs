//! The watches of the API: each a stream of lists and events that survives whatever the API server does.
//!
//! Every object is handed on trimmed and at once, also those of a list: they are what the API holds, and a list that
//! breaks off takes nothing back. What a complete list does not hold any more is handed on as deleted at its end.
//! While the API can't be reached nothing is handed on, so nothing changes.

mod objects;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fairlead_core::model::ObjectName;
use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::errors::chain;

pub use objects::{
    EndpointSlice, Node, Pod, SOCKET_LB_ANNOTATION, STATIC_POD_ANNOTATION, Service, ServiceCidr,
    TRIGGER_ANNOTATION,
};

/// How long to wait before an API server is asked again for a kind that it does not have.
const ABSENT: Duration = Duration::from_secs(300);

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
    Interfaces(Vec<std::net::IpAddr>),
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
    client: Client,
    watches: &Watches,
    service_cidrs: bool,
    send: impl Fn(Update) -> bool,
) {
    let send = &send;
    let services =
        follow(Watch::of(&client, watches, "Service"), move |change| send(Update::Service(change)));
    let slices =
        follow(Watch::of(&client, watches, "EndpointSlice"), move |change| send(Update::Slice(change)));
    let nodes = follow(Watch::of(&client, watches, "Node"), move |change| send(Update::Node(change)));
    let cidrs = async {
        if service_cidrs {
            // The kind came with Kubernetes 1.33: without it, ClusterIPs are where Services say.
            let watch = Watch { optional: true, ..Watch::of(&client, watches, "ServiceCIDR") };
            follow(watch, move |change| send(Update::ServiceCidr(change))).await;
        }
    };
    futures::join!(services, slices, nodes, cidrs);
}

/// Follows the Pods of a node for as long as `send` takes what they deliver.
pub async fn follow_pods(client: Client, watches: &Watches, node: &str, send: impl Fn(Change<Pod>) -> bool) {
    let selector = Some(format!("spec.nodeName={node}"));
    follow(Watch { selector, ..Watch::of(&client, watches, "Pod") }, send).await;
}

/// What is watched, and where it is noted how that goes.
struct Watch<'a, K> {
    api: Api<K>,
    watches: &'a Watches,
    kind: &'static str,
    /// Which objects, by their fields; all if there is none.
    selector: Option<String>,
    /// Whether an API server that does not have, or not give, this kind is taken for one that holds no object of it.
    optional: bool,
}

impl<'a, K: Resource<DynamicType = ()>> Watch<'a, K> {
    fn of(client: &Client, watches: &'a Watches, kind: &'static str) -> Self {
        Self { api: Api::all(client.clone()), watches, kind, selector: None, optional: false }
    }
}

async fn follow<K>(watch: Watch<'_, K>, send: impl Fn(Change<K>) -> bool)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let Watch { api, watches, kind, selector, optional } = watch;
    watches.update(kind, |_| {});
    let config = watcher::Config { field_selector: selector, ..watcher::Config::default() };
    let mut stream = pin!(watcher(api, config).default_backoff());
    let mut known = Known::default();
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
                if !known.step(event, &send) {
                    return;
                }
            }
            Err(e) if optional && is_absent(&e) => {
                watches.update(kind, |state| {
                    if !state.listed {
                        tracing::info!("watch of {kind}: the API server does not offer it: taken as none");
                    }
                    state.listed = true;
                    state.last_error = Some(chain(&e));
                });
                if !known.step(Event::Init, &send) || !known.step(Event::InitDone, &send) {
                    return;
                }
                tokio::time::sleep(ABSENT).await;
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

/// Whether the API server answered that it has no such kind, or that the agent may not see it, which an older set of
/// its permissions says.
fn is_absent(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return false;
    };
    matches!(cause, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

/// The objects that there are, by name, and those that a list under way has shown.
#[derive(Debug, Default)]
struct Known {
    all: HashSet<ObjectName>,
    listing: Option<HashSet<ObjectName>>,
}

impl Known {
    /// Hands on what an event means. False if nobody takes it any more.
    fn step<K: Resource>(&mut self, event: Event<K>, send: impl Fn(Change<K>) -> bool) -> bool {
        match event {
            Event::Apply(object) => {
                self.all.insert(name_of(&object));
                send(Change::Apply(Box::new(object)))
            }
            Event::Delete(object) => {
                let name = name_of(&object);
                self.all.remove(&name);
                send(Change::Delete(name))
            }
            Event::Init => {
                self.listing = Some(HashSet::new());
                true
            }
            Event::InitApply(object) => {
                let name = name_of(&object);
                self.all.insert(name.clone());
                self.listing.get_or_insert_default().insert(name);
                send(Change::Found(Box::new(object)))
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                let gone: Vec<ObjectName> = self.all.difference(&listed).cloned().collect();
                self.all = listed;
                gone.into_iter().all(|name| send(Change::Delete(name))) && send(Change::Listed)
            }
        }
    }
}

fn name_of(object: &impl Resource) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn pod(name: &str) -> Pod {
        let object = serde_json::json!({"metadata": {"namespace": "default", "name": name}});
        serde_json::from_value(object).expect("a Pod")
    }

    /// What the events are handed on as.
    fn handed_on(known: &mut Known, events: Vec<Event<Pod>>) -> Vec<String> {
        let seen = RefCell::new(Vec::new());
        for event in events {
            let taken = known.step(event, |change| {
                seen.borrow_mut().push(match change {
                    Change::Apply(pod) => format!("+{}", pod.name_any()),
                    Change::Found(pod) => format!("={}", pod.name_any()),
                    Change::Delete(name) => format!("-{}", name.name),
                    Change::Listed => "listed".to_owned(),
                });
                true
            });
            assert!(taken);
        }
        seen.into_inner()
    }

    #[test]
    fn what_a_complete_list_does_not_hold_is_gone() {
        let mut known = Known::default();
        let first =
            vec![Event::Init, Event::InitApply(pod("a")), Event::InitApply(pod("b")), Event::InitDone];
        assert_eq!(handed_on(&mut known, first), ["=a", "=b", "listed"]);
        let between = vec![Event::Apply(pod("c")), Event::Delete(pod("b"))];
        assert_eq!(handed_on(&mut known, between), ["+c", "-b"]);
        let second = vec![Event::Init, Event::InitApply(pod("c")), Event::InitDone];
        assert_eq!(handed_on(&mut known, second), ["=c", "-a", "listed"]);
    }

    #[test]
    fn a_list_that_broke_off_takes_nothing_back() {
        let mut known = Known::default();
        let whole =
            vec![Event::Init, Event::InitApply(pod("a")), Event::InitApply(pod("b")), Event::InitDone];
        handed_on(&mut known, whole);
        let broken = vec![Event::Init, Event::InitApply(pod("new"))];
        assert_eq!(handed_on(&mut known, broken), ["=new"]);
        let again = vec![Event::Init, Event::InitApply(pod("b")), Event::InitDone];
        let mut changes = handed_on(&mut known, again);
        changes[1..3].sort();
        assert_eq!(changes, ["=b", "-a", "-new", "listed"]);
    }

    #[test]
    fn an_api_server_without_the_kind_is_told_from_one_that_fails() {
        let error = |code| {
            let status = kube::core::Status::failure("no", "No").with_code(code);
            watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
        };
        assert!(is_absent(&error(404)) && is_absent(&error(403)));
        assert!(!is_absent(&error(500)) && !is_absent(&watcher::Error::NoResourceVersion));
    }
}
