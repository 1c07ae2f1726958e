//! How the loop that keeps the maps programmed is doing: written by [`crate::sync`], read by health, metrics and
//! status.

use std::time::SystemTime;

use crate::watch::Change;
use fairlead_daemon::exposition::Histogram;

/// How the loop is doing.
#[derive(Clone, Debug)]
pub struct Progress {
    /// When the maps first held everything that the first lists asked for, or what of it there was room for.
    pub first_programmed: Option<SystemTime>,
    /// When the last reconcile ended.
    pub last_finished: Option<SystemTime>,
    /// When the oldest update came that no reconcile has taken up.
    pub queued_since: Option<SystemTime>,
    /// When the last update came.
    pub last_queued: Option<SystemTime>,
    /// How long reconciles took, in seconds.
    pub durations: Histogram,
    /// How long it took from the cause of an endpoint's change until it was programmed, in seconds.
    pub programming: Histogram,
    /// How many Services came that changed, ever and since the last reconcile.
    pub service_changes: Changes,
    /// The same for EndpointSlices.
    pub endpoint_changes: Changes,
    /// How many writes have succeeded.
    pub writes: u64,
    /// How many writes have failed.
    pub failed_writes: u64,
    /// How many Services are not as their objects ask.
    pub pending: usize,
    /// Whether the API has the node's own Node object, and nobody is about to delete it.
    pub node_eligible: bool,
}

/// How many changes there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Ever.
    pub total: u64,
    /// Since the last reconcile.
    pub pending: u64,
}

impl Changes {
    /// Notes a change, if it is one of an object.
    pub(crate) fn add<K>(&mut self, change: &Change<K>) {
        let count = u64::from(!matches!(change, Change::Listed));
        self.total += count;
        self.pending += count;
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            first_programmed: None,
            last_finished: None,
            queued_since: None,
            last_queued: None,
            durations: Histogram::exponential(0.001, 2.0, 15),
            programming: Histogram::new(programming_bounds()),
            service_changes: Changes::default(),
            endpoint_changes: Changes::default(),
            writes: 0,
            failed_writes: 0,
            pending: 0,
            node_eligible: false,
        }
    }
}

/// The bounds that kube-proxy's histogram of the same name has.
fn programming_bounds() -> Vec<f64> {
    let seconds = (1..60).map(f64::from);
    let minutes = (0..12).map(|n| 60.0 + 5.0 * f64::from(n));
    let longer = (0..7).map(|n| 120.0 + 30.0 * f64::from(n));
    [0.25, 0.5].into_iter().chain(seconds).chain(minutes).chain(longer).collect()
}
