//! Datagrams sent at a steady pace until they begin, or cease, to be answered: how the moment is found at which a
//! change of policies takes effect.
//!
//! That moment is when the first datagram was sent that met the new rules, so it is found up to [`INTERVAL`] late and
//! never early.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::cell::MESSAGE;
use crate::named::now;

/// The pause between two datagrams.
const INTERVAL: Duration = Duration::from_micros(200);
/// How long nothing is answered until that counts as the end of answers, and not as a server that waits for its turn.
const SILENCE: Duration = Duration::from_millis(250);
/// Longest wait for a change.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a datagram's number, at its beginning.
const NUMBER: usize = size_of::<u64>();

/// Sends datagrams to an echoing server from a new socket; returns when the first one was sent that was answered, or
/// else the first one of those that are not answered any more.
///
/// # Errors
/// When there is no such change for ten seconds.
pub(crate) fn until(target: SocketAddr, answered: bool) -> io::Result<Duration> {
    let own: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0))?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    let mut sent = Vec::new();
    // The number of the first answer, and of the last one so far.
    let mut answers: Option<(usize, usize)> = None;
    let deadline = now()? + PATIENCE;
    loop {
        let at = now()?;
        if at > deadline {
            let what = if answered { "nothing is answered" } else { "answers go on" };
            return Err(io::Error::new(ErrorKind::TimedOut, what));
        }
        let mut message = [0; MESSAGE];
        message[..NUMBER].copy_from_slice(&(sent.len() as u64).to_be_bytes());
        sent.push(at);
        // An error tells of an earlier datagram, or of none: it was not answered, which is what counts.
        let _ = socket.send(&message);
        thread::sleep(INTERVAL);
        while let Some(number) = receive(&socket) {
            let first = answers.map_or(number, |(first, _)| first);
            answers = Some((first, number));
        }
        let Some((first, last)) = answers else { continue };
        if answered {
            return Ok(sent[first]);
        }
        if at > sent[last] + SILENCE {
            return Ok(sent[last + 1]);
        }
    }
}

/// The number of the next answer that has come.
fn receive(socket: &UdpSocket) -> Option<usize> {
    let mut message = [0; MESSAGE];
    let length = socket.recv(&mut message).ok()?;
    let number = message[..length].first_chunk::<NUMBER>()?;
    usize::try_from(u64::from_be_bytes(*number)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_and_the_end_of_answers_are_dated_by_the_datagrams_that_met_them() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = server.local_addr().unwrap();
        let begin = now().unwrap();
        let ending = begin + Duration::from_millis(100);
        thread::spawn(move || {
            let mut message = [0; MESSAGE];
            while now().unwrap() < ending {
                let (length, client) = server.recv_from(&mut message).unwrap();
                server.send_to(&message[..length], client).unwrap();
            }
            // Open, so that nobody is told that nobody listens.
            thread::sleep(PATIENCE);
        });
        let first = until(target, true).unwrap();
        assert!(first >= begin && first < ending, "{first:?}");
        let last = until(target, false).unwrap();
        assert!(last + INTERVAL >= ending, "{last:?} before {ending:?}");
    }
}
