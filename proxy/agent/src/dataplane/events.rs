//! What the programs tell of packets that they dropped ([`fairlead_abi::maps::EVENTS`]). Kernel 5.8.

use std::io;
use std::time::{Duration, SystemTime};

use aya::maps::{MapData, RingBuf};
use fairlead_abi::DropEvent;
use tokio::io::unix::AsyncFd;

use super::sys;

/// The ring of events, which one reader at a time may empty.
pub struct DropEvents(AsyncFd<RingBuf<MapData>>);

impl DropEvents {
    /// Over the ring. Called on a thread of the runtime that is to wait for it.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor, which stays open, and the same, for as long as the ring lives.
        Ok(Self(unsafe { AsyncFd::register(ring) }?))
    }

    /// Waits for events, and takes all that have come, each with the time of day at which it was.
    ///
    /// # Errors
    /// When the ring can't be waited for.
    pub async fn take(&mut self) -> io::Result<Vec<(SystemTime, DropEvent)>> {
        let mut ready = self.0.readable_mut().await?;
        let ring = ready.get_inner_mut();
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            let event = sys::value_of::<DropEvent>(&item);
            events.extend(event.map(|event| (wall_clock(event.time), event)));
        }
        ready.clear_ready();
        Ok(events)
    }
}

/// The time of day that was when the monotonic clock showed so many nanoseconds.
fn wall_clock(monotonic: u64) -> SystemTime {
    let ago = Duration::from_nanos(sys::coarse_clock().saturating_sub(monotonic));
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_monotonic_clock_shows_now_is_now() {
        let off = SystemTime::now().duration_since(wall_clock(sys::coarse_clock())).unwrap_or_default();
        assert!(off < Duration::from_secs(5), "{off:?}");
        let before = wall_clock(sys::coarse_clock().saturating_sub(60_000_000_000));
        assert!(before < SystemTime::now() - Duration::from_secs(50) || sys::coarse_clock() < 60_000_000_000);
    }
}
