//! The daemon's own garbage collection: at intervals, and never in the way of its other work.

use std::path::PathBuf;
use std::time::Duration;

use fairlead_net::gc::Sweeper;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

/// Sweeps every `period` until the daemon ends; the first time at once.
pub(crate) async fn sweep(data_dir: PathBuf, agent: Option<PathBuf>, period: Duration) {
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
                Ok(removal) => tracing::info!("{removal}"),
                Err(failure) => tracing::error!("{failure}"),
            }),
            Err(error) => tracing::error!(%error, "look for what nobody knows any more"),
        }
    }
}
