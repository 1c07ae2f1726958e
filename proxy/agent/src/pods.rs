//! Which pods of the node have their sockets translated (`--socket-lb all`): all but those whose Pod says
//! otherwise by the annotation `fairlead.io/socket-lb: "off"`.
//!
//! A watch of the node's Pods tells, so that a change of the annotation takes effect on running pods. A pod that the
//! CNI plugin registers before the watch has brought its Pod is asked for once; if that fails it is left to the
//! programs at its interface, which are always right, until the watch brings it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fairlead_core::model::ObjectName;
use fairlead_net::agent::PodRef;
use kube::{Api, Client, ResourceExt};
use tokio::runtime::Handle;

use crate::dataplane::endpoints::Endpoints;
use crate::watch::{Change, Pod, SOCKET_LB_ANNOTATION, STATIC_POD_ANNOTATION, Watches, follow_pods};

/// How long a CNI ADD may wait for its Pod.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the API for single Pods.
#[derive(Clone)]
pub struct PodApi {
    client: Client,
    runtime: Handle,
}

impl PodApi {
    /// Over a client of the API. Called on a thread of the runtime that is to talk to it.
    pub fn new(client: Client) -> Self {
        Self { client, runtime: Handle::current() }
    }

    /// The Pod of that name, if there is one. Not for an asynchronous thread.
    ///
    /// # Errors
    /// When the API refuses, or does not answer in time.
    pub fn get(&self, pod: &PodRef, patience: Duration) -> Result<Option<Pod>, String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let asked = async { tokio::time::timeout(patience, api.get_opt(&pod.name)).await };
        match self.runtime.block_on(asked) {
            Ok(answer) => answer.map_err(|e| e.to_string()),
            Err(_) => Err("the API did not answer in time".to_owned()),
        }
    }
}

/// The pods of the node, as far as their sockets are concerned.
pub struct PodSockets {
    api: PodApi,
    known: Mutex<HashMap<ObjectName, Wish>>,
}

/// What a Pod says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    uid: String,
    /// The UID under which the kubelet runs it, if it is a static pod's mirror.
    static_uid: Option<String>,
    translated: bool,
}

impl Wish {
    fn of(pod: &Pod) -> Self {
        let annotation = |name| pod.annotations().get(name).map(String::as_str);
        Self {
            uid: pod.uid().unwrap_or_default(),
            static_uid: annotation(STATIC_POD_ANNOTATION).map(str::to_owned),
            translated: annotation(SOCKET_LB_ANNOTATION) != Some("off"),
        }
    }

    /// What it says of the pod that was registered so; nothing if that is another one of the same name.
    fn for_pod(&self, pod: &PodRef) -> Option<bool> {
        let same = pod.uid.is_empty() || pod.uid == self.uid || self.static_uid.as_ref() == Some(&pod.uid);
        same.then_some(self.translated)
    }
}

impl PodSockets {
    /// None known yet.
    pub fn new(api: PodApi) -> Self {
        Self { api, known: Mutex::default() }
    }

    /// Whether the pod's sockets are to be translated, as far as is known.
    pub fn wanted(&self, pod: &PodRef) -> Option<bool> {
        if pod.name.is_empty() {
            // Not a Pod of the API: nobody can have said otherwise.
            return Some(true);
        }
        let name = ObjectName::new(pod.namespace.as_str(), pod.name.as_str());
        self.lock().get(&name)?.for_pod(pod)
    }

    /// The same, asking the API where it is not known. Not for an asynchronous thread.
    pub fn ask(&self, pod: &PodRef) -> Option<bool> {
        self.wanted(pod).or_else(|| match self.api.get(pod, PATIENCE) {
            Ok(found) => Wish::of(&found?).for_pod(pod),
            Err(why) => {
                tracing::debug!(pod = pod.name, "ask for the Pod: {why}");
                None
            }
        })
    }

    /// Follows the node's Pods and has `endpoints` do as they say, for ever.
    pub async fn follow(&self, node: &str, watches: &Watches, endpoints: &Mutex<Endpoints>) {
        let take = |change| {
            if self.take(change) {
                tokio::task::block_in_place(|| {
                    let endpoints = endpoints.lock().unwrap_or_else(PoisonError::into_inner);
                    endpoints.translate_sockets(|pod| self.wanted(pod));
                });
            }
            true
        };
        follow_pods(&self.api.client, watches, node, take).await;
    }

    /// Notes a change, and returns whether it is one for sockets. A Pod that is gone says nothing about the pod, which
    /// ends by a CNI DEL.
    fn take(&self, change: Change<Pod>) -> bool {
        match change {
            Change::Apply(pod) | Change::Found(pod) => {
                let name = ObjectName::new(pod.namespace().unwrap_or_default(), pod.name_any());
                let wish = Wish::of(&pod);
                self.lock().insert(name, wish.clone()) != Some(wish)
            }
            Change::Delete(name) => {
                self.lock().remove(&name);
                false
            }
            Change::Listed => true,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectName, Wish>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, annotations: serde_json::Value) -> Pod {
        let metadata = json!({"namespace": "shop", "name": "web", "uid": uid, "annotations": annotations});
        serde_json::from_value(json!({ "metadata": metadata })).expect("a Pod")
    }

    fn registered(uid: &str) -> PodRef {
        PodRef { namespace: "shop".into(), name: "web".into(), uid: uid.into() }
    }

    #[test]
    fn a_pod_opts_out_by_its_annotation_alone() {
        let wish = |annotations| Wish::of(&pod("1", annotations)).for_pod(&registered("1"));
        assert_eq!(wish(json!({SOCKET_LB_ANNOTATION: "off"})), Some(false));
        assert_eq!(wish(json!({SOCKET_LB_ANNOTATION: "on"})), Some(true));
        assert_eq!(wish(json!(null)), Some(true));
    }

    #[test]
    fn a_pod_of_the_same_name_says_nothing_about_the_one_before() {
        let wish = Wish::of(&pod("2", json!({})));
        assert_eq!(wish.for_pod(&registered("1")), None);
        assert_eq!(wish.for_pod(&registered("")), Some(true), "the runtime did not say which");
        let mirror = Wish::of(&pod("2", json!({STATIC_POD_ANNOTATION: "1", SOCKET_LB_ANNOTATION: "off"})));
        assert_eq!(mirror.for_pod(&registered("1")), Some(false));
    }

    #[tokio::test]
    async fn what_the_watch_brings_counts_until_it_is_gone() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
        let pods = PodSockets::new(PodApi::new(Client::try_from(config).expect("a client")));
        assert_eq!(pods.wanted(&registered("1")), None);
        let off = pod("1", json!({SOCKET_LB_ANNOTATION: "off"}));
        assert!(pods.take(Change::Found(Box::new(off.clone()))));
        assert!(!pods.take(Change::Apply(Box::new(off))), "nothing changed");
        assert_eq!(pods.wanted(&registered("1")), Some(false));
        assert!(pods.take(Change::Apply(Box::new(pod("1", json!({}))))));
        assert_eq!(pods.wanted(&registered("1")), Some(true));
        assert!(!pods.take(Change::Delete(ObjectName::new("shop", "web"))));
        assert_eq!(pods.wanted(&registered("1")), None);
        assert_eq!(pods.wanted(&PodRef::default()), Some(true));
    }
}
