//! How far the agent has got with the policies, by its own metrics.

use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_harness::{Node, wait_for};

use super::objects::{POLICIES, TEAMS};

const PATIENCE: Duration = Duration::from_secs(120);

/// What the agent says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    /// Whether it holds every policy, and has programmed all that follows from them.
    pub(crate) is_programmed: bool,
    /// How many seconds it has compiled and programmed since its start.
    pub(crate) worked: f64,
}

impl State {
    /// Asks the node's agent.
    ///
    /// # Errors
    /// When it does not answer, or not with these metrics.
    pub(crate) fn of(node: &Node) -> Result<Self> {
        Self::parse(&node.metrics()?)
    }

    fn parse(metrics: &str) -> Result<Self> {
        let value = |name| sample(metrics, name).with_context(|| format!("no {name} in the agent's metrics"));
        let holds = value("fairlead_policy_objects")? >= f64::from(TEAMS * POLICIES);
        let follows =
            value("fairlead_policies_compiled")? > 0.0 && value("fairlead_policies_pending")? == 0.0;
        Ok(Self {
            is_programmed: value("fairlead_policies_synced")? == 1.0 && holds && follows,
            worked: value("fairlead_policy_reconcile_seconds_sum")?,
        })
    }
}

/// Waits until the running agent has caught up with all that was created; while it is at work it may not answer.
///
/// # Errors
/// When it takes minutes.
pub(crate) fn wait_until_programmed(node: &Node) -> Result<()> {
    wait_for("the programming of all policies", PATIENCE, || {
        Ok(State::of(node).is_ok_and(|state| state.is_programmed).then_some(()))
    })
}

/// The value of a metric without labels.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# TYPE fairlead_policies_synced gauge\n\
        fairlead_policies_synced 1\nfairlead_policy_objects 1000\nfairlead_policies_compiled 180\n\
        fairlead_policies_pending 0\nfairlead_policy_reconcile_seconds_sum 0.25\n";

    #[test]
    fn an_agent_that_is_behind_has_not_programmed_everything() {
        let state = State::parse(METRICS).unwrap();
        assert!(state.is_programmed);
        assert_eq!(state.worked, 0.25);
        for (now, before) in
            [("synced 1", "synced 0"), ("objects 1000", "objects 999"), ("pending 0", "pending 1")]
        {
            assert!(!State::parse(&METRICS.replace(now, before)).unwrap().is_programmed, "{before}");
        }
    }

    #[test]
    fn an_agent_without_the_metrics_is_an_error_that_names_one() {
        let error = State::parse("fairlead_policies_synced 1\n").unwrap_err();
        assert!(error.to_string().contains("fairlead_policy_objects"), "{error}");
    }
}
