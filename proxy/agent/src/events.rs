//! Events on objects that can't be programmed, told to the API.
//!
//! ```text
//!  loops ── a turn is done ──► gather (what is wrong now) ──► core::events::Teller ──► Recorder ──► API
//!                               │ of what all nodes see, what this one is to tell (core::reporter)
//! ```
//!
//! A task of its own, at most once in [`PAUSE`]: nothing waits for it, and an API that refuses or is away costs an event,
//! not more. What is told at all, how often and when is [`fairlead_core::events`]'.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fairlead_core::events::{Complaints, Event, Reason, Subject, Teller, note};
use fairlead_core::model::{ObjectName, Problem};
use fairlead_core::policy::PolicyName;
use fairlead_core::reporter::reporter;
use fairlead_core::stamp::Uid;
use fairlead_daemon::repeated::Repeated;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{self as api, EventType, Recorder, Reporter};
use tokio::time::{sleep, sleep_until, timeout};

use crate::agent::{Agent, lock};

/// Who tells, as Events name it.
const CONTROLLER: &str = "fairlead.io/fairlead-proxy";
/// What was attempted, as Events name it.
const ACTION: &str = "Program";
/// How long to wait after a turn for what comes with it.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the API may take to take an event.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a recorder is kept after its last event: as long as it goes on with a series.
const KEPT: Duration = Duration::from_secs(360);
/// How long to wait when nothing is to be told.
const IDLE: Duration = Duration::from_secs(3600);

/// How telling goes.
#[derive(Debug, Default)]
pub struct Telling {
    counts: Mutex<BTreeMap<&'static str, u64>>,
    refusals: Repeated,
}

impl Telling {
    /// How many events were told, by how it went.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::from([("sent", 0), ("failed", 0)]);
        counts.extend(self.counts.lock().unwrap_or_else(PoisonError::into_inner).iter());
        counts
    }

    fn note(&self, outcome: Result<(), String>) {
        let result = if outcome.is_ok() { "sent" } else { "failed" };
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(result).or_default() += 1;
        if let Err(why) = outcome {
            self.refusals.warn(&format!("tell the API of an event: {why}"));
        }
    }
}

/// Tells of what is wrong, for ever.
pub async fn follow(agent: Arc<Agent>, client: Client) {
    let mut turns = agent.turns.hear();
    let mut teller = Teller::new(Instant::now());
    let mut recorders = Recorders { client, node: agent.facts.node_name.clone(), all: HashMap::new() };
    loop {
        let deadline = teller.next_deadline().unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            changed = turns.changed() => if changed.is_err() { return },
            () = sleep_until(deadline.into()) => {}
        }
        sleep(PAUSE).await;
        turns.borrow_and_update();
        let asked = Arc::clone(&agent);
        let Ok(Some(complaints)) = tokio::task::spawn_blocking(move || gather(&asked)).await else {
            continue;
        };
        let exists = |subject: &Subject| identify(&agent, subject).is_some();
        let events = tokio::task::block_in_place(|| teller.next(Instant::now(), &complaints, exists));
        for event in events {
            let uid = tokio::task::block_in_place(|| identify(&agent, &event.subject)).unwrap_or_default();
            agent.telling.note(recorders.publish(event, uid).await);
        }
        recorders.forget(Instant::now());
    }
}

/// What is wrong now and this node is to tell; none before every first list is done.
fn gather(agent: &Agent) -> Option<Complaints> {
    let own = agent.facts.node_name.as_str();
    let reconciler = lock(&agent.reconciler);
    if !reconciler.is_synced() || !agent.policies.status().synced {
        return None;
    }
    let mut parts: BTreeMap<(String, Reason), Vec<String>> = BTreeMap::new();
    let mut add = |problem: &Problem, reason| {
        let part = format!("{}: {}", problem.field, problem.message);
        parts.entry((problem.object.clone(), reason)).or_default().push(part);
    };
    reconciler.index().problems().for_each(|problem| add(problem, Reason::FieldsLeftOut));
    reconciler.contested().for_each(|problem| add(problem, Reason::AddressTaken));
    agent.policies.problems().iter().for_each(|problem| add(problem, Reason::FieldsLeftOut));
    let staying = reconciler.index().nodes().filter(|node| !node.leaving);
    let nodes: Vec<String> = staying.map(|node| node.name.clone()).collect();
    parts.retain(|(object, _), _| {
        // A node that the API does not know tells of what no other one can.
        reporter(nodes.iter().map(String::as_str), object).is_none_or(|reporter| reporter == own)
    });
    let failed =
        reconciler.pending().map(|(name, error)| (reconciler.index().label(name), error.to_string()));
    let failed = failed.filter(|(label, _)| label.starts_with("Service "));
    for (label, error) in failed.chain(agent.policies.failed()) {
        let part = format!("node {own}: {error}; it is tried again");
        parts.entry((label, Reason::NotProgrammed)).or_default().push(part);
    }
    drop(reconciler);
    let complaint = |((object, reason), mut parts): ((String, Reason), Vec<String>)| {
        parts.dedup();
        Some(((Subject::labelled(&object)?, reason), note(&parts)))
    };
    Some(parts.into_iter().filter_map(complaint).collect())
}

/// Which object it is; none if the API has no such object.
fn identify(agent: &Agent, subject: &Subject) -> Option<Uid> {
    let Subject { kind, namespace, name } = subject;
    let full = || ObjectName::new(namespace.as_str(), name.as_str());
    match kind.as_str() {
        "Service" => lock(&agent.reconciler).index().service_stamp(&full()).map(|stamp| stamp.uid),
        "EndpointSlice" => lock(&agent.reconciler).index().slice_stamp(&full()).map(|stamp| stamp.uid),
        "NetworkPolicy" => agent.policies.uid(&PolicyName::Network(full())),
        "ClusterNetworkPolicy" => agent.policies.uid(&PolicyName::Cluster(name.as_str().into())),
        "Pod" => agent.policies.pod_uid(&full()),
        // There are few of the others, and they say little by their uid.
        _ => Some(Uid::default()),
    }
}

/// A recorder for each text: one goes on with the series of an event whatever its text has become meanwhile.
struct Recorders {
    client: Client,
    node: String,
    all: HashMap<(Subject, &'static str), Kept>,
}

struct Kept {
    note: String,
    recorder: Recorder,
    used: Instant,
}

impl Recorders {
    async fn publish(&mut self, event: Event, uid: Uid) -> Result<(), String> {
        let Event { subject, reason, note, is_warning } = event;
        let regarding = reference(&subject, uid);
        let key = (subject, reason);
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(self.node.clone()) };
        let fresh = || Kept {
            note: note.clone(),
            recorder: Recorder::new(self.client.clone(), reporter.clone()),
            used: Instant::now(),
        };
        let kept = self.all.entry(key.clone()).or_insert_with(&fresh);
        if kept.note != note {
            *kept = fresh();
        }
        kept.used = Instant::now();
        let event = api::Event {
            type_: if is_warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note),
            action: ACTION.to_owned(),
            secondary: None,
        };
        let published = timeout(PATIENCE, kept.recorder.publish(&event, &regarding)).await;
        let result = match published {
            Ok(result) => result.map_err(|e| crate::errors::chain(&e)),
            Err(_) => Err("it did not answer in time".to_owned()),
        };
        // An event that the API has forgotten is begun anew the next time.
        result.inspect_err(|_| drop(self.all.remove(&key)))
    }

    fn forget(&mut self, now: Instant) {
        self.all.retain(|_, kept| now.saturating_duration_since(kept.used) < KEPT);
    }
}

fn reference(subject: &Subject, uid: Uid) -> ObjectReference {
    let Subject { kind, namespace, name } = subject;
    let api_version = match kind.as_str() {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "NetworkPolicy" | "ServiceCIDR" => "networking.k8s.io/v1",
        "ClusterNetworkPolicy" => "policy.networking.k8s.io/v1alpha2",
        _ => "v1",
    };
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.clone()),
        namespace: (!namespace.is_empty()).then(|| namespace.clone()),
        name: Some(name.clone()),
        uid: (!uid.is_unknown()).then(|| uid.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_refers_to_its_object_where_the_api_has_it() {
        let subject = Subject::labelled("NetworkPolicy shop/web").expect("a label");
        let reference = reference(&subject, Uid::default());
        assert_eq!(reference.api_version.as_deref(), Some("networking.k8s.io/v1"));
        assert_eq!((reference.namespace.as_deref(), reference.name.as_deref()), (Some("shop"), Some("web")));
        assert_eq!(reference.uid, None);
    }

    #[test]
    fn refusals_are_counted() {
        let telling = Telling::default();
        telling.note(Ok(()));
        telling.note(Err("no".into()));
        telling.note(Err("no".into()));
        assert_eq!(telling.counts(), BTreeMap::from([("sent", 1), ("failed", 2)]));
    }
}
