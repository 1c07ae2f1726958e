//! TCP connect, request, response, close: the life of a short connection.
//!
//! [`IN_FLIGHT`] connections go through each step together, by blocking calls in one thread: all connect,
//! all send, all receive, all close. On one processor this keeps client and server busy without an
//! event loop in the client, whose cost would be in every variant and hide their difference.
//!
//! The client closes first. With `reset` it does so by RST (SO_LINGER 0), which leaves no TIME_WAIT
//! anywhere. Without, its own ports stay in TIME_WAIT and are used again while they do, under
//! `tcp_tw_reuse`: what a data plane that tracks connections makes of a new SYN on an old tuple counts.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::cell::{IN_FLIGHT, MESSAGE, Order, Sample};
use crate::pace;

/// Opens and closes connections to the order's target until its time is up.
pub(crate) fn run(order: &Order, reset: bool) -> io::Result<Sample> {
    let mut connections: [Option<TcpStream>; IN_FLIGHT] = [const { None }; IN_FLIGHT];
    let mut message = [0; MESSAGE];
    pace::repeat(order, || {
        for connection in &mut connections {
            *connection = Some(TcpStream::connect(order.target)?);
        }
        for stream in connections.iter_mut().flatten() {
            stream.write_all(&message)?;
        }
        for stream in connections.iter_mut().flatten() {
            stream.read_exact(&mut message)?;
        }
        for connection in &mut connections {
            if let Some(stream) = connection.take()
                && reset
            {
                setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            }
        }
        Ok(IN_FLIGHT as u64)
    })
}
