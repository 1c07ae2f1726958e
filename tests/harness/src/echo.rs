//! Echoes (RFC 792, RFC 4443): requests that are sent, and whose requests arrive.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::netns;
use crate::packet::checksum;

/// Numbers of protocols.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Types of echo messages: the request and the reply, of ICMP and of ICMPv6.
const ECHO: [u8; 2] = [8, 0];
const ECHO_V6: [u8; 2] = [128, 129];

/// What an echo's data begin with, which tells it from all others. Its identifier may be another one on the way, where
/// it is masqueraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoId([u8; 8]);

/// The length of an echo's header.
const HEADER: usize = 8;

impl EchoId {
    /// One that nobody else has, as good as certainly.
    pub fn random() -> Self {
        Self(RandomState::new().build_hasher().finish().to_be_bytes())
    }
}

/// Sends an echo request with its id and `size` bytes of data and waits for its reply, with the same data.
pub(crate) fn send(
    id: EchoId,
    source: Option<IpAddr>,
    target: IpAddr,
    size: usize,
    patience: Duration,
) -> io::Result<()> {
    let (protocol, [request, reply]) = of(target);
    let socket = netns::raw_socket(protocol, target)?;
    if let Some(source) = source {
        socket.bind(source)?;
    }
    let socket = socket.into_connected(target)?;
    let mut message = vec![request, 0, 0, 0];
    message.extend(&id.0[..HEADER - 4]);
    message.extend(id.0);
    message.extend((0..size).map(|n| n as u8));
    if target.is_ipv4() {
        // Of ICMPv6 the kernel computes it.
        let checksum = checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    socket.send(&message)?;
    receive(&socket, target, reply, id, patience, |answer| answer.get(4..) == message.get(4..)).map(drop)
}

/// Sees the echo requests of one family that arrive in a namespace.
#[derive(Debug)]
pub struct EchoWatch {
    socket: UdpSocket,
    like: IpAddr,
}

impl EchoWatch {
    /// Begins to watch, in the calling thread's namespace, for requests of the family of `like`.
    pub(crate) fn begin(like: IpAddr) -> io::Result<Self> {
        let (protocol, _) = of(like);
        Ok(Self { socket: netns::raw_socket(protocol, like)?.into_unconnected(), like })
    }

    /// From whom that request came.
    ///
    /// # Errors
    /// When it has not come within `patience` from now.
    pub fn source_of(&self, id: EchoId, patience: Duration) -> io::Result<IpAddr> {
        let (_, [request, _]) = of(self.like);
        receive(&self.socket, self.like, request, id, patience, |_| true)
    }
}

fn of(like: IpAddr) -> (u8, [u8; 2]) {
    if like.is_ipv4() { (ICMP, ECHO) } else { (ICMPV6, ECHO_V6) }
}

/// Waits for the message of that type and of that echo; returns who sent it.
fn receive(
    socket: &UdpSocket,
    like: IpAddr,
    kind: u8,
    id: EchoId,
    patience: Duration,
    fits: impl Fn(&[u8]) -> bool,
) -> io::Result<IpAddr> {
    let deadline = Instant::now() + patience;
    let mut buffer = vec![0; 65_536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        let message = netns::payload(&buffer[..length], like.is_ipv4());
        if message.first() == Some(&kind)
            && message.get(HEADER..).is_some_and(|data| data.starts_with(&id.0))
            && fits(message)
        {
            return Ok(from.ip());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: run make test"]
    fn whose_echo_arrives_is_seen_and_a_large_one_is_answered_whole() {
        let patience = Duration::from_secs(1);
        let netns = netns::create(&format!("fl-seen-{}", std::process::id())).unwrap();
        for (target, source) in [("127.0.0.1", "127.0.0.9"), ("::1", "::1")] {
            let (target, source): (IpAddr, IpAddr) = (target.parse().unwrap(), source.parse().unwrap());
            let seen = netns.run(|| {
                let (watch, id) = (EchoWatch::begin(target).unwrap(), EchoId::random());
                send(id, Some(source), target, 8000, patience).unwrap();
                watch.source_of(id, patience).unwrap()
            });
            assert_eq!(seen.unwrap(), source);
        }
    }
}
