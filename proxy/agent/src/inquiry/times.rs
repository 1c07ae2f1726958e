//! How long the agent's own work takes, by the histograms that metrics show.

use serde::{Deserialize, Serialize};

use crate::agent::{Agent, lock};
use fairlead_daemon::exposition::Histogram;

/// The agent's own times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// Reconciles of Services.
    pub reconcile: Percentiles,
    /// From the cause of an endpoint's change until it was programmed.
    pub programming: Percentiles,
    /// Reconciles of policies.
    pub policies: Percentiles,
    /// Sweeps of the flow table.
    pub sweep: Percentiles,
}

/// What most observations are below, in seconds: upper bounds, as fine as the histogram is; none without observations,
/// and beyond its last bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Percentiles {
    /// How many there are.
    pub count: u64,
    /// Half of them.
    pub p50: Option<f64>,
    /// Ninety in a hundred.
    pub p90: Option<f64>,
    /// Ninety-nine in a hundred.
    pub p99: Option<f64>,
}

impl From<&Histogram> for Percentiles {
    fn from(histogram: &Histogram) -> Self {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|part| histogram.quantile(part));
        Self { count: histogram.count(), p50, p90, p99 }
    }
}

/// The agent's times since it started.
pub fn look(agent: &Agent) -> Times {
    let progress = agent.progress();
    Times {
        reconcile: (&progress.durations).into(),
        programming: (&progress.programming).into(),
        policies: (&agent.policies.durations()).into(),
        sweep: (&lock(&agent.sweeps).durations).into(),
    }
}
