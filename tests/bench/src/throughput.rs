//! One TCP connection and large writes: what the path does to segments that the kernel keeps large.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use crate::cell::{Order, Sample};

/// Bytes per write.
const CHUNK: usize = 256 << 10;

/// Sends until the order's time is up and then waits until the server has counted the last byte; the
/// warm-up is sent too, since a window opens within a millisecond here and only whole streams can be counted.
pub(crate) fn run(order: &Order) -> io::Result<Sample> {
    let chunk = vec![0x5a; CHUNK];
    let mut stream = TcpStream::connect(order.target)?;
    let started = Instant::now();
    while started.elapsed() < order.warm_up + order.measured {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut counted = [0; 8];
    stream.read_exact(&mut counted)?;
    let operations = u64::from_be_bytes(counted);
    Ok(Sample {
        operations,
        operations_in_all: operations,
        seconds: started.elapsed().as_secs_f64(),
        ..Sample::default()
    })
}
