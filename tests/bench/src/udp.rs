//! Small UDP requests and their answers, [`IN_FLIGHT`] at a time from one socket.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::cell::{IN_FLIGHT, MESSAGE, Order, Sample};
use crate::pace;

/// How long an answer is waited for before what is in flight counts as lost.
const PATIENCE: Duration = Duration::from_millis(100);

/// Sends a batch, receives its answers, and so on until the order's time is up. Each datagram begins with
/// its batch's number, so that a late answer is not taken for one to a later batch.
pub(crate) fn run(order: &Order) -> io::Result<Sample> {
    let any = match order.target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(order.target)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut batch = 0_u64;
    pace::repeat(order, || {
        batch += 1;
        exchange(&socket, batch)
    })
}

/// Sends one batch and returns how many of its requests were answered.
fn exchange(socket: &UdpSocket, batch: u64) -> io::Result<u64> {
    let mut message = [0; MESSAGE];
    message[..8].copy_from_slice(&batch.to_be_bytes());
    for _ in 0..IN_FLIGHT {
        socket.send(&message)?;
    }
    let mut answered = 0;
    while answered < IN_FLIGHT as u64 {
        match socket.recv(&mut message) {
            Ok(_) if message[..8] == batch.to_be_bytes() => answered += 1,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(answered)
}
