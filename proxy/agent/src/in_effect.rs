//! "Is it programmed?": the version of an object that is in effect on this node, for who asks and for who waits.
//!
//! ```text
//!  loops ── a turn is done ──► Turns ──► wait (agent's socket) ──┐
//!                                                                ├──► Agent::effect ──► fairlead_core::effect
//!  GET /programmed/… (where metrics are served) ─────────────────┘
//! ```
//!
//! It is served where metrics are, on loopback unless the operator says otherwise, and not beside /healthz, which is
//! open to the world for load balancers: whether an object exists, and what is wrong with it, is not for everybody.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fairlead_core::effect::{Effect, State, Wanted};
use fairlead_core::model::ObjectName;
use fairlead_core::policy::PolicyName;
use fairlead_core::stamp::Version;
use fairlead_net::agent::{Awaited, AwaitedKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::agent::{Agent, lock};
use crate::status::ProblemView;

/// How many may wait at once.
const WAITING: usize = 256;
/// The shortest time between two looks for one who waits: turns may follow each other faster.
const PAUSE: Duration = Duration::from_millis(5);

/// Tells of turns of the loops that write the maps, and counts who waits for one.
#[derive(Debug)]
pub struct Turns {
    done: watch::Sender<()>,
    room: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self { done: watch::Sender::new(()), room: Semaphore::new(WAITING) }
    }
}

impl Turns {
    /// A turn is done.
    pub fn tell(&self) {
        self.done.send_replace(());
    }

    /// Hears of turns from now on.
    pub fn hear(&self) -> watch::Receiver<()> {
        self.done.subscribe()
    }

    /// How many wait for an object.
    pub fn waiting(&self) -> usize {
        WAITING - self.room.available_permits()
    }
}

/// An object as `fairlead-proxy wait -o json` and `/programmed` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Its kind and name, as in `Service default/web`.
    pub object: String,
    /// Whether what was asked for is in effect: by default what was last heard of the object.
    pub in_effect: bool,
    /// Its version as the maps hold it; none: they hold nothing of it.
    pub resource_version: Option<String>,
    /// Its version as the API holds it, as far as was heard.
    pub heard_version: Option<String>,
    /// Of a Service: the versions of its EndpointSlices that are in the maps, by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub endpoint_slices: Map<String, Value>,
    /// What is missing; none if it is in effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Parts of it that make no sense, or that another object has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<ProblemView>,
    /// What else is to be said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl View {
    fn new(object: String, effect: Effect, wanted: Wanted) -> Self {
        let missing = effect.meets(wanted).err();
        let shown = |version: Option<Version>| version.map(|version| version.to_string());
        let slices = effect.slices.into_iter();
        Self {
            object,
            in_effect: missing.is_none(),
            resource_version: shown(effect.version),
            heard_version: shown(effect.heard),
            endpoint_slices: slices.map(|(name, version)| (name, shown(version).into())).collect(),
            missing,
            left_out: effect.left_out.into_iter().map(ProblemView::from).collect(),
            note: effect.note,
        }
    }
}

/// An object that can be in effect.
#[derive(Clone, Debug)]
enum Object {
    Service(ObjectName),
    Policy(PolicyName),
    Pod(ObjectName),
}

impl Object {
    fn new(kind: AwaitedKind, namespace: &str, name: &str) -> Self {
        let full = || ObjectName::new(namespace, name);
        match kind {
            AwaitedKind::Service => Self::Service(full()),
            AwaitedKind::NetworkPolicy => Self::Policy(PolicyName::Network(full())),
            AwaitedKind::ClusterNetworkPolicy => Self::Policy(PolicyName::Cluster(name.into())),
            AwaitedKind::Pod => Self::Pod(full()),
        }
    }

    fn label(&self) -> String {
        match self {
            Self::Service(name) => format!("Service {name}"),
            Self::Policy(name) => name.to_string(),
            Self::Pod(name) => format!("Pod {name}"),
        }
    }
}

impl Agent {
    /// How the object and the maps stand to each other. Not for an asynchronous thread.
    fn effect(&self, object: &Object) -> Effect {
        match object {
            Object::Service(name) => lock(&self.reconciler).service_effect(name),
            Object::Policy(name) => self.policies.policy_effect(name),
            Object::Pod(name) => self.policies.pod_effect(name),
        }
    }

    /// Looks after each turn until what is awaited is in effect, or the time is over.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub async fn await_effect(self: Arc<Self>, awaited: Awaited) -> Result<View, String> {
        let Awaited { kind, namespace, name, resource_version, deleted, timeout_ms } = awaited;
        let version = resource_version.map(|text| text.parse()).transpose()?;
        let (object, wanted) = (Object::new(kind, &namespace, &name), Wanted { version, deleted });
        let _place = self.turns.room.try_acquire().map_err(|_| format!("{WAITING} are waiting already"))?;
        let mut turns = self.turns.hear();
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        loop {
            turns.borrow_and_update();
            let (agent, asked) = (Arc::clone(&self), object.clone());
            let looked = tokio::task::spawn_blocking(move || agent.effect(&asked)).await;
            let effect = looked.map_err(|e| format!("the agent failed at it: {e}"))?;
            let view = View::new(object.label(), effect, wanted);
            if view.in_effect || timeout_at(deadline, turns.changed()).await.is_err() {
                return Ok(view);
            }
            sleep(PAUSE).await;
        }
    }
}

/// What may be asked for beside the object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    resource_version: Option<String>,
}

/// Serves `/programmed/<kind>/…` of the agent.
pub fn router(agent: Arc<Agent>) -> Router {
    let of = |kind: AwaitedKind| {
        let agent = Arc::clone(&agent);
        move |Path((namespace, name)): Path<(String, String)>, Query(asked): Query<Asked>| {
            answer(agent, Object::new(kind, &namespace, &name), asked)
        }
    };
    let cluster = Arc::clone(&agent);
    let of_cluster = move |Path(name): Path<String>, Query(asked): Query<Asked>| {
        answer(cluster, Object::new(AwaitedKind::ClusterNetworkPolicy, "", &name), asked)
    };
    Router::new()
        .route("/programmed/services/{namespace}/{name}", get(of(AwaitedKind::Service)))
        .route("/programmed/networkpolicies/{namespace}/{name}", get(of(AwaitedKind::NetworkPolicy)))
        .route("/programmed/clusternetworkpolicies/{name}", get(of_cluster))
        .route("/programmed/pods/{namespace}/{name}", get(of(AwaitedKind::Pod)))
}

async fn answer(agent: Arc<Agent>, object: Object, asked: Asked) -> Response {
    let wanted = match asked.resource_version.map(|text| text.parse()).transpose() {
        Ok(version) => Wanted { version, deleted: false },
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let label = object.label();
    match tokio::task::spawn_blocking(move || agent.effect(&object)).await {
        Ok(effect) => (status(&effect, wanted), axum::Json(View::new(label, effect, wanted))).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// 200 in effect, 404 unknown, 409 refused until somebody changes an object, 503 not now.
fn status(effect: &Effect, wanted: Wanted) -> StatusCode {
    match effect.state {
        _ if effect.meets(wanted).is_ok() => StatusCode::OK,
        State::InEffect if !effect.is_known() => StatusCode::NOT_FOUND,
        State::Refused => StatusCode::CONFLICT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(version: &str, state: State) -> Effect {
        let version = Version::new(version);
        Effect { version, heard: version, state, ..Effect::unknown(true) }
    }

    #[test]
    fn the_status_says_whether_waiting_helps() {
        let any = Wanted::default();
        for (effect, expected) in [
            (at("7", State::InEffect), 200),
            (Effect::unknown(true), 404),
            (Effect::unknown(false), 503),
            (at("7", State::Refused), 409),
            (at("7", State::Failed("full".into())), 503),
            (at("7", State::Waiting("soon".into())), 503),
        ] {
            assert_eq!(status(&effect, any).as_u16(), expected, "{effect:?}");
        }
        let newer = Wanted { version: Version::new("8"), deleted: false };
        assert_eq!(status(&at("7", State::InEffect), newer).as_u16(), 503);
    }

    #[test]
    fn a_view_names_the_version_in_effect_and_what_is_missing() {
        let slices = vec![("web-1".to_owned(), Version::new("9"))];
        let effect = Effect { slices, ..at("7", State::Failed("map full (1)".into())) };
        let view = View::new("Service shop/web".into(), effect, Wanted::default());
        assert_eq!(
            serde_json::to_value(view).expect("written"),
            serde_json::json!({
                "object": "Service shop/web", "inEffect": false, "resourceVersion": "7", "heardVersion": "7",
                "endpointSlices": {"web-1": "9"}, "missing": "map full (1)",
            })
        );
    }
}
