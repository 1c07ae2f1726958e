//! The daemon's own garbage collection: at intervals, and never in the way of its other work.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::repeated::Repeated;
use fairlead_net::gc::Sweeper;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::Counts;

/// Sweeps every `period` until the daemon ends; the first time at once.
pub(crate) async fn sweep(data_dir: PathBuf, agent: Option<PathBuf>, period: Duration, counts: Arc<Counts>) {
    let repeated = Repeated::default();
    let mut sweeper = Sweeper::new(data_dir, agent);
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // It asks the kernel and the agent and waits for their answers.
        let swept = spawn_blocking(move || (sweeper.sweep(), sweeper)).await;
        let Ok((outcome, returned)) = swept else {
            tracing::error!("the collection of garbage has panicked, and ends");
            return;
        };
        sweeper = returned;
        match outcome {
            Ok(outcomes) => outcomes.into_iter().for_each(|outcome| match outcome {
                Ok(removal) => {
                    counts.swept(true);
                    tracing::info!("{removal}");
                }
                Err(failure) => {
                    counts.swept(false);
                    repeated.error(&failure);
                }
            }),
            Err(error) => repeated.error(&format!("look for what nobody knows any more: {error}")),
        }
    }
}
