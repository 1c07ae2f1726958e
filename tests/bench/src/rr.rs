//! Request and response on open TCP connections: the life of a long connection.
//!
//! [`one`] keeps a single request in flight and times each: the latency that a caller sees, and its
//! inverse as a rate. [`many`] keeps one in flight on each of [`IN_FLIGHT`] connections, in lockstep, for
//! the rate that the path allows when neither side waits.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::cell::{IN_FLIGHT, MESSAGE, Order, Sample};
use crate::pace;
use crate::stats::percentile;

/// Latencies kept per run, more than a processor can make in ten seconds; later ones are not recorded.
const LATENCIES: usize = 1 << 21;

/// One connection, one request in flight, blocking calls.
pub(crate) fn one(order: &Order) -> io::Result<Sample> {
    let mut stream = open(order.target)?;
    let mut message = [0; MESSAGE];
    // Written once, so that no page is first touched while the clock runs.
    let mut latencies = vec![1_u32; LATENCIES];
    let mut sample = Sample::default();
    let warm = Instant::now();
    while warm.elapsed() < order.warm_up {
        exchange(&mut stream, &mut message)?;
        sample.operations_in_all += 1;
    }
    let started = Instant::now();
    let mut before = started;
    while before - started < order.measured {
        exchange(&mut stream, &mut message)?;
        let after = Instant::now();
        if let Some(latency) = latencies.get_mut(sample.operations as usize) {
            *latency = nanoseconds(after - before);
        }
        before = after;
        sample.operations += 1;
    }
    sample.seconds = (before - started).as_secs_f64();
    sample.operations_in_all += sample.operations;
    latencies.truncate(sample.operations as usize);
    sample.p50 = percentile(&mut latencies, 50.0);
    sample.p99 = percentile(&mut latencies, 99.0);
    Ok(sample)
}

/// [`IN_FLIGHT`] connections: a request is sent on each, then an answer received on each.
pub(crate) fn many(order: &Order) -> io::Result<Sample> {
    let mut streams = (0..IN_FLIGHT).map(|_| open(order.target)).collect::<io::Result<Vec<_>>>()?;
    let mut message = [0; MESSAGE];
    pace::repeat(order, || {
        for stream in &mut streams {
            stream.write_all(&message)?;
        }
        for stream in &mut streams {
            stream.read_exact(&mut message)?;
        }
        Ok(IN_FLIGHT as u64)
    })
}

fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, message: &mut [u8; MESSAGE]) -> io::Result<()> {
    stream.write_all(message)?;
    stream.read_exact(message)
}

fn nanoseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}
