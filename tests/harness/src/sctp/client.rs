//! The client's side of an association.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::packet::{Malformed, Packet, parameter, push_parameter};
use super::{ANSWER, HEARTBEAT_INFO, INIT_LENGTH, NUMBER, STATE_COOKIE, init, kind, word};
use crate::netns;

/// How long to wait before a packet is sent again, RFC 9260's RTO.Initial.
const RESEND: Duration = Duration::from_secs(1);
/// How long to wait for the end of an association that is given up.
const FAREWELL: Duration = Duration::from_millis(100);

/// An established association; dropped, it is shut down.
#[derive(Debug)]
pub(crate) struct Association {
    socket: UdpSocket,
    local_port: u16,
    remote: SocketAddr,
    /// The tag that the server puts into its packets.
    own_tag: u32,
    /// The tag that the server wants in ours.
    peer_tag: u32,
    damaged: u64,
    greeting: Vec<u8>,
}

impl Association {
    /// Opens an association; port 0 takes a random one.
    ///
    /// # Errors
    /// As a connect: refused by an ICMP message or ABORT, or timed out.
    pub(crate) fn open(source: SocketAddr, target: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let socket = netns::raw_socket(NUMBER, target.ip())?;
        if !source.ip().is_unspecified() {
            socket.bind(source.ip())?;
        }
        let socket = socket.into_connected(target.ip())?;
        let random = RandomState::new().build_hasher().finish();
        let port = 32_768 + (random >> 48) as u16 % 28_000;
        let mut association = Self {
            socket,
            local_port: if source.port() == 0 { port } else { source.port() },
            remote: target,
            own_tag: random as u32 | 1,
            peer_tag: 0,
            damaged: 0,
            greeting: Vec::new(),
        };
        association.establish(timeout)?;
        Ok(association)
    }

    fn establish(&mut self, timeout: Duration) -> io::Result<()> {
        let accept = |packet: &Packet| packet.chunk(kind::INIT_ACK).map(<[u8]>::to_vec);
        let ack = self.exchange(kind::INIT, init(self.own_tag), timeout, accept)?;
        let parameters = ack.get(INIT_LENGTH..).unwrap_or_default();
        let malformed = || io::Error::new(ErrorKind::InvalidData, "the INIT ACK has no tag or no cookie");
        self.peer_tag = word(&ack).ok_or_else(malformed)?;
        self.greeting = parameter(parameters, ANSWER).unwrap_or_default().to_vec();
        let cookie = parameter(parameters, STATE_COOKIE).ok_or_else(malformed)?.to_vec();
        let accept = |packet: &Packet| packet.chunk(kind::COOKIE_ACK).map(drop);
        self.exchange(kind::COOKIE_ECHO, cookie, timeout, accept)
    }

    /// The answer that the server put into its INIT ACK.
    #[cfg(test)]
    pub(crate) fn greeting(&self) -> &[u8] {
        &self.greeting
    }

    /// Sends a request and returns the answer.
    ///
    /// # Errors
    /// When none comes in time, or the server or the network refuses.
    pub(crate) fn ask(&mut self, said: &[u8], timeout: Duration) -> io::Result<Vec<u8>> {
        let mut value = Vec::new();
        push_parameter(&mut value, HEARTBEAT_INFO, said);
        self.exchange(kind::HEARTBEAT, value, timeout, |packet| {
            let value = packet.chunk(kind::HEARTBEAT_ACK)?;
            let is_mine = parameter(value, HEARTBEAT_INFO) == Some(said);
            parameter(value, ANSWER).filter(|_| is_mine).map(<[u8]>::to_vec)
        })
    }

    /// The client's address and port.
    ///
    /// # Errors
    /// When the system does not say.
    pub(crate) fn local(&self) -> io::Result<SocketAddr> {
        Ok((self.socket.local_addr()?.ip(), self.local_port).into())
    }

    /// Sends a chunk, again each second, until `accept` takes an answer.
    fn exchange<T>(
        &mut self,
        kind: u8,
        value: Vec<u8>,
        timeout: Duration,
        accept: impl Fn(&Packet) -> Option<T>,
    ) -> io::Result<T> {
        let packet = Packet::with(self.local_port, self.remote.port(), self.peer_tag, kind, value).to_bytes();
        let deadline = Instant::now() + timeout;
        let mut resend = Instant::now();
        loop {
            let now = Instant::now();
            if now >= deadline {
                let text = format!("no answer; {} packets with a wrong checksum", self.damaged);
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
            if now >= resend {
                self.socket.send(&packet)?;
                resend = now + RESEND;
            }
            if let Some(packet) = self.receive(deadline.min(resend))? {
                if packet.chunk(kind::ABORT).is_some() {
                    return Err(io::Error::new(ErrorKind::ConnectionReset, "ABORT"));
                }
                if let Some(answer) = accept(&packet) {
                    return Ok(answer);
                }
            }
        }
    }

    /// The next packet that is this association's, if it comes before `until`.
    fn receive(&mut self, until: Instant) -> io::Result<Option<Packet>> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
        self.socket.set_read_timeout(Some(left))?;
        let mut buffer = vec![0; 65_536];
        let length = match self.socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match Packet::read(netns::payload(&buffer[..length], self.remote.is_ipv4())) {
            Ok(packet) => {
                // An ABORT of someone who knows no association returns the tag that he was sent.
                let tag =
                    packet.tag == self.own_tag || (packet.tag == self.peer_tag && is_reflected(&packet));
                let is_ours = (packet.source, packet.destination) == (self.remote.port(), self.local_port);
                Ok(Some(packet).filter(|_| tag && is_ours))
            }
            Err(Malformed::Checksum) => {
                self.damaged += 1;
                Ok(None)
            }
            Err(Malformed::Length) => Ok(None),
        }
    }
}

impl Drop for Association {
    fn drop(&mut self) {
        if self.peer_tag == 0 {
            return;
        }
        let accept = |packet: &Packet| packet.chunk(kind::SHUTDOWN_ACK).map(drop);
        if self.exchange(kind::SHUTDOWN, 0u32.to_be_bytes().to_vec(), FAREWELL, accept).is_ok() {
            let (source, destination) = (self.local_port, self.remote.port());
            let complete =
                Packet::with(source, destination, self.peer_tag, kind::SHUTDOWN_COMPLETE, Vec::new());
            // Nobody waits for it.
            self.socket.send(&complete.to_bytes()).ok();
        }
    }
}

/// Whether it is an ABORT with the flag T.
fn is_reflected(packet: &Packet) -> bool {
    packet.chunks.iter().any(|chunk| chunk.kind == kind::ABORT && chunk.flags & 1 == 1)
}
