//! The sweep of the flow table, again and again on a thread of its own, and what the last one found.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::dataplane::flows::{Census, FlowTable, lower_priority};
use crate::errors::chain;
use fairlead_daemon::exposition::Histogram;
use fairlead_daemon::repeated::Repeated;

/// The pause between two sweeps.
const PERIOD: Duration = Duration::from_secs(10);
/// Above this part of all places taken, the agent says so.
const HIGH: f64 = 0.8;

/// What the sweeps found.
#[derive(Clone, Debug)]
pub struct Sweeps {
    /// How many connections there is room for.
    pub places: u32,
    /// What the last sweep found.
    pub census: Census,
    /// Entries that were removed, ever.
    pub removed: u64,
    /// How long sweeps took, in seconds.
    pub durations: Histogram,
}

impl Sweeps {
    /// The part of all places that connections hold which have not ended.
    pub fn pressure(&self) -> f64 {
        (self.census.held() as f64 / f64::from(self.places.max(1))).min(1.0)
    }

    fn note(&mut self, census: Census, took: Duration) {
        let before = self.pressure();
        self.removed += census.removed;
        self.census = census;
        self.durations.observe(took.as_secs_f64());
        let now = self.pressure();
        let (taken, places) = (self.census.held(), self.places);
        if now >= HIGH && before < HIGH {
            tracing::warn!(taken, places, "the flow table is filling up: see --max-flows");
        } else if now < HIGH && before >= HIGH {
            tracing::info!(taken, places, "the flow table has room again");
        }
    }
}

/// Starts the thread, and returns where it notes what it finds.
///
/// # Errors
/// When the thread can't be started.
pub fn start(mut table: FlowTable) -> std::io::Result<Arc<Mutex<Sweeps>>> {
    let sweeps = Arc::new(Mutex::new(Sweeps {
        places: table.places(),
        census: Census::default(),
        removed: 0,
        durations: Histogram::exponential(0.0005, 2.0, 16),
    }));
    let noted = Arc::clone(&sweeps);
    std::thread::Builder::new().name("sweep".into()).spawn(move || {
        lower_priority();
        let repeated = Repeated::default();
        loop {
            let started = Instant::now();
            match table.sweep() {
                Ok(census) => {
                    let mut sweeps = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    sweeps.note(census, started.elapsed());
                }
                Err(e) => repeated.warn(&format!("sweep the flow table: {}", chain(&e))),
            }
            std::thread::sleep(PERIOD);
        }
    })?;
    Ok(sweeps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_the_part_of_the_places_that_live_connections_take() {
        let connections =
            [(("tcp", "established"), 40), (("udp", "opening"), 8), (("tcp", "closed"), 9)].into();
        let census = Census { connections, entries: 96, removed: 3 };
        let durations = Histogram::exponential(1.0, 2.0, 1);
        let mut sweeps = Sweeps { places: 64, census: Census::default(), removed: 1, durations };
        sweeps.note(census, Duration::from_millis(1));
        assert!((sweeps.pressure() - 0.75).abs() < 1e-9);
        assert_eq!((sweeps.removed, sweeps.durations.count()), (4, 1));
    }
}
