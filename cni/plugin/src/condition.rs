//! The Node's condition NetworkUnavailable: whether this node is ready for pods, as the scheduler is to know.
//!
//! It follows from the state of this node alone. That another node can't be reached keeps no pod from running here, and
//! is no reason to have all nodes tainted because of one.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::timeout;

const TYPE: &str = "NetworkUnavailable";

/// How long the API server may take to note the condition; the next pass tries again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether this node is ready for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// It is.
    Ready,
    /// It is not: the reason in one word, and in a sentence.
    NotReady(&'static str, String),
}

impl Readiness {
    fn parts(&self) -> (&'static str, &'static str, &str) {
        match self {
            Self::Ready => {
                ("False", "FairleadIsUp", "the ways to other nodes and the CNI plugin are in place")
            }
            Self::NotReady(reason, message) => ("True", reason, message),
        }
    }

    /// The condition that says so, unless `now` does.
    fn condition(&self, now: Option<&NodeCondition>) -> Option<NodeCondition> {
        let (status, reason, message) = self.parts();
        let unchanged = now.filter(|now| now.status == status);
        let says_so = |now: &&NodeCondition| {
            now.reason.as_deref() == Some(reason) && now.message.as_deref() == Some(message)
        };
        if unchanged.filter(says_so).is_some() {
            return None;
        }
        let time = Some(Time(Timestamp::now()));
        let since = unchanged.and_then(|now| now.last_transition_time.clone());
        Some(NodeCondition {
            type_: TYPE.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: time.clone(),
            last_transition_time: since.or(time),
        })
    }
}

/// The condition that a Node has.
pub(crate) fn of(node: &Node) -> Option<NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == TYPE).cloned()
}

/// Notes in the API whether the node is ready, unless the condition that it has says so.
pub(crate) async fn note(
    client: &Client,
    node: &str,
    readiness: &Readiness,
    now: Option<&NodeCondition>,
) -> Result<()> {
    let Some(condition) = readiness.condition(now) else { return Ok(()) };
    let (status, reason, message) = readiness.parts();
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    let nodes = Api::<Node>::all(client.clone());
    let parameters = PatchParams::default();
    let patched = nodes.patch_status(node, &parameters, &patch);
    let what = || format!("set the condition {TYPE} of Node {node}");
    timeout(PATIENCE, patched).await.with_context(what)?.with_context(what)?;
    tracing::info!("{TYPE} is {status}, {reason}: {message}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_written_only_when_it_differs_and_remembers_since_when_it_holds() {
        let first = Readiness::Ready.condition(None).expect("to be written");
        assert_eq!((first.status.as_str(), first.type_.as_str()), ("False", TYPE));
        assert_eq!(Readiness::Ready.condition(Some(&first)), None);

        let broken = Readiness::NotReady("NoPodCIDRs", "the Node has none".into());
        let second = broken.condition(Some(&first)).expect("to be written");
        assert_eq!(second.status, "True");
        let began = Some(Time(Timestamp::UNIX_EPOCH));
        let second = NodeCondition { last_transition_time: began.clone(), ..second };
        let other = Readiness::NotReady("NotInstalled", "no room".into());
        let third = other.condition(Some(&second)).expect("to be written");
        assert_eq!(third.last_transition_time, began);
        assert_ne!(third.last_heartbeat_time, began);
    }
}
