//! `/healthz` and `/livez`, as kube-proxy answers them.
//!
//! Healthy is an agent whose maps have once held everything, and which is not late with an update. `/healthz`
//! adds that the node may get traffic: it is how load balancers choose nodes. `/livez` is for the kubelet,
//! which is not to restart the agent because its Node is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::agent::Agent;
use crate::progress::Progress;

/// How long an update may wait before the agent counts as stuck.
const OVERDUE: Duration = Duration::from_secs(60);

/// The body of an answer, with kube-proxy's fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// When the maps were last brought up to date; now if all is well.
    pub last_updated: String,
    /// Now.
    pub current_time: String,
    /// Whether the node may get traffic; absent from `/livez`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// Whether the agent does its work.
    pub healthy: bool,
    /// The same by address family, which are programmed together.
    pub status: BTreeMap<&'static str, FamilyHealth>,
}

/// The health of one address family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyHealth {
    /// When the maps were last brought up to date.
    pub last_updated: String,
    /// Whether the agent does its work.
    pub healthy: bool,
}

/// Whether the agent does its work.
pub fn is_alive(progress: &Progress, now: SystemTime) -> bool {
    let waited = progress.queued_since.and_then(|since| now.duration_since(since).ok());
    progress.first_programmed.is_some() && waited.unwrap_or_default() < OVERDUE
}

/// Serves both, and counts the answers.
pub fn router(agent: Arc<Agent>) -> Router {
    let (healthz, livez) = (Arc::clone(&agent), agent);
    Router::new()
        .route("/healthz", get(async move || healthz.answers().healthz(&healthz.progress())))
        .route("/livez", get(async move || livez.answers().livez(&livez.progress())))
}

/// How often each was answered with which status.
#[derive(Debug, Default)]
pub struct Answers {
    counts: std::sync::Mutex<BTreeMap<(&'static str, u16), u64>>,
}

impl Answers {
    /// The counts, by what was asked and the status.
    pub fn counts(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn healthz(&self, progress: &Progress) -> Response {
        let now = SystemTime::now();
        let eligible = progress.node_eligible;
        self.respond("healthz", is_alive(progress, now) && eligible, body(progress, now, Some(eligible)))
    }

    fn livez(&self, progress: &Progress) -> Response {
        let now = SystemTime::now();
        self.respond("livez", is_alive(progress, now), body(progress, now, None))
    }

    fn respond(&self, asked: &'static str, good: bool, body: Health) -> Response {
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *counts.entry((asked, status.as_u16())).or_default() += 1;
        (status, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], axum::Json(body)).into_response()
    }
}

/// The answer's body. Like kube-proxy's, it says of an agent to which all is well that it is up to date now.
fn body(progress: &Progress, now: SystemTime, node_eligible: Option<bool>) -> Health {
    let healthy = is_alive(progress, now);
    let finished = stamp(progress.last_finished.unwrap_or(SystemTime::UNIX_EPOCH));
    let family = FamilyHealth { last_updated: finished.clone(), healthy };
    Health {
        last_updated: if healthy && node_eligible != Some(false) { stamp(now) } else { finished },
        current_time: stamp(now),
        node_eligible,
        healthy,
        status: BTreeMap::from([("IPv4", family.clone()), ("IPv6", family)]),
    }
}

/// RFC 3339.
pub(crate) fn stamp(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| String::new(), |stamp| stamp.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_healthy_before_the_first_programming() {
        let now = SystemTime::now();
        let mut progress = Progress::default();
        assert!(!is_alive(&progress, now));
        progress.first_programmed = Some(now);
        assert!(is_alive(&progress, now));
    }

    #[test]
    fn an_agent_that_is_late_with_an_update_is_not_healthy() {
        let now = SystemTime::now();
        let progress =
            Progress { first_programmed: Some(now), queued_since: Some(now), ..Progress::default() };
        assert!(is_alive(&progress, now + Duration::from_secs(59)));
        assert!(!is_alive(&progress, now + Duration::from_secs(61)));
    }

    #[test]
    fn a_node_that_may_get_no_traffic_fails_healthz_but_not_livez() {
        let now = SystemTime::now();
        let answers = Answers::default();
        let progress = Progress { first_programmed: Some(now), ..Progress::default() };
        assert_eq!(answers.healthz(&progress).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answers.livez(&progress).status(), StatusCode::OK);
        let eligible = Progress { node_eligible: true, ..progress };
        assert_eq!(answers.healthz(&eligible).status(), StatusCode::OK);
        assert_eq!(answers.counts()[&("healthz", 503)], 1);
        assert_eq!(answers.counts()[&("healthz", 200)], 1);
    }

    #[test]
    fn the_body_has_kube_proxys_fields() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_699_999_990);
        let now = then + Duration::from_secs(10);
        let progress =
            Progress { first_programmed: Some(then), last_finished: Some(then), ..Progress::default() };
        let value = serde_json::to_value(body(&progress, now, Some(true))).expect("written");
        let family = serde_json::json!({"lastUpdated": "2023-11-14T22:13:10Z", "healthy": true});
        let expected = serde_json::json!({
            "lastUpdated": "2023-11-14T22:13:20Z", "currentTime": "2023-11-14T22:13:20Z", "nodeEligible": true,
            "healthy": true, "status": {"IPv4": family, "IPv6": family},
        });
        assert_eq!(value, expected);
        let ineligible = body(&progress, now, Some(false));
        assert_eq!((ineligible.last_updated.as_str(), ineligible.healthy), ("2023-11-14T22:13:10Z", true));
    }
}
