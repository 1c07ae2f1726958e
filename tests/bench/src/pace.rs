//! The clock of a load that runs in batches: warm-up, measurement, end.

use std::io;
use std::time::Instant;

use crate::cell::{IN_FLIGHT, Order, Sample};

/// Repeats `batch`, which tries [`IN_FLIGHT`] operations and returns how many succeeded, until the order's
/// time is up. The clock is read once per batch.
pub(crate) fn repeat(order: &Order, mut batch: impl FnMut() -> io::Result<u64>) -> io::Result<Sample> {
    let mut sample = Sample::default();
    let warm_from = Instant::now();
    loop {
        sample.operations_in_all += batch()?;
        if warm_from.elapsed() >= order.warm_up {
            break;
        }
    }
    let started = Instant::now();
    loop {
        let done = batch()?;
        sample.operations += done;
        sample.lost += IN_FLIGHT as u64 - done;
        let elapsed = started.elapsed();
        if elapsed >= order.measured {
            sample.operations_in_all += sample.operations;
            sample.seconds = elapsed.as_secs_f64();
            return Ok(sample);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use super::*;
    use crate::cell::Cell;

    fn order(warm_up: Duration, measured: Duration) -> Order {
        Order { cell: Cell::Udp, target: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), warm_up, measured }
    }

    #[test]
    fn the_warm_up_counts_for_processor_time_only() {
        let mut batches = 0;
        let sample = repeat(&order(Duration::ZERO, Duration::ZERO), || {
            batches += 1;
            Ok(IN_FLIGHT as u64 - 1)
        })
        .unwrap();
        assert_eq!(batches, 2);
        assert_eq!((sample.operations, sample.lost, sample.operations_in_all), (15, 1, 30));
    }

    #[test]
    fn a_batch_that_fails_ends_the_measurement() {
        let refused = || Err(io::ErrorKind::ConnectionRefused.into());
        let error = repeat(&order(Duration::ZERO, Duration::from_secs(3600)), refused).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
