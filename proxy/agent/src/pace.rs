//! The pace of the loops that keep the maps programmed, each on a thread of its own: updates in, a short pause so that
//! what comes together is done together, work, and again when something failed.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The shortest time between two turns of work.
const MIN_INTERVAL: Duration = Duration::from_millis(3);
/// How many updates are taken up at most before the loop looks whether work is due.
const BATCH: usize = 1024;
/// How long a loop waits when nothing asks for anything.
const IDLE: Duration = Duration::from_secs(3600);

/// What is done at this pace.
pub trait Work<U> {
    /// Takes up updates.
    fn take(&mut self, updates: impl Iterator<Item = U>);

    /// Whether anything that was taken up asks for work.
    fn is_dirty(&self) -> bool;

    /// When there is work even if nothing comes: what failed is to be tried again.
    fn next_deadline(&self) -> Option<Instant>;

    /// Does what there is to do.
    fn work(&mut self, now: Instant);
}

/// Works until nobody can send updates any more.
pub fn run<U>(updates: &Receiver<U>, mut work: impl Work<U>) {
    let mut earliest = Instant::now();
    loop {
        let deadline = if work.is_dirty() { Some(earliest) } else { work.next_deadline() };
        let wait = deadline.map_or(IDLE, |deadline| deadline.saturating_duration_since(Instant::now()));
        match updates.recv_timeout(wait) {
            Ok(update) => work.take(std::iter::once(update).chain(updates.try_iter()).take(BATCH)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        let due = work.next_deadline().is_some_and(|deadline| deadline <= now);
        if due || work.is_dirty() && earliest <= now {
            work.work(now);
            earliest = Instant::now() + MIN_INTERVAL;
        }
    }
}
