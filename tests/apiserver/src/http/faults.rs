//! Faults on demand: what tests do to the server to see how clients bear it, at `/-/`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::response::Response;
use http::Method;
use serde_json::json;

use super::{Api, Parameters, answer, refusal};
use crate::resource;
use crate::status::ApiError;

/// What tests and the end of the server do to running requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Control {
    /// Watches end and requests are refused, as if the server were away.
    pub(crate) outage: bool,
    /// Watches end, because the server does.
    pub(crate) stopping: bool,
    /// How often all watches were ended.
    pub(crate) breaks: u64,
    /// Watches tell everything twice.
    pub(crate) duplicate: bool,
    /// The kinds of CustomResourceDefinitions are unknown, as where nobody installed these.
    pub(crate) undefined: bool,
    /// How late watches of each kind are, by its plural name.
    pub(crate) delays: BTreeMap<&'static str, Duration>,
}

impl Control {
    /// Whether a watch that began when `breaks` had been made is over.
    pub(crate) fn ends(&self, breaks: u64) -> bool {
        self.outage || self.stopping || self.breaks != breaks
    }
}

/// Does what `/-/<fault>` asks for.
pub(super) fn order(api: &Api, method: &Method, fault: &str, query: &Parameters) -> Response {
    let change = |change: &dyn Fn(&mut Control)| api.control.send_modify(|control| change(control));
    match (method, fault) {
        (&Method::POST, "compact") => api.cluster.compact(),
        (&Method::POST, "outage") => change(&|control| control.outage = true),
        (&Method::DELETE, "outage") => change(&|control| control.outage = false),
        (&Method::POST, "break") => change(&|control| control.breaks += 1),
        (&Method::POST, "duplicate") => change(&|control| control.duplicate = true),
        (&Method::DELETE, "duplicate") => change(&|control| control.duplicate = false),
        (&Method::POST, "undefine") => change(&|control| {
            control.undefined = true;
            control.breaks += 1;
        }),
        (&Method::DELETE, "undefine") => change(&|control| control.undefined = false),
        (&Method::POST, "delay") => {
            let Some(delay) = query.get("ms").and_then(|ms| ms.parse().ok()).map(Duration::from_millis)
            else {
                return refusal(&ApiError::bad_request("say how late watches shall be, as in ?ms=100"));
            };
            let kind = query.get("kind");
            let meant =
                resource::ALL.into_iter().map(|r| r.plural).filter(|p| kind.is_none_or(|kind| kind == p));
            let delays: Vec<_> = meant.map(|plural| (plural, delay)).collect();
            change(&|control| control.delays.extend(delays.iter().copied()));
        }
        _ => return refusal(&ApiError::no_such_path()),
    }
    answer(200, &json!({}))
}
