//! The server's side: one raw socket per family answers for all its ports.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;

use super::packet::{Malformed, Packet, parameter, push_parameter};
use super::{ANSWER, HEARTBEAT_INFO, INIT_LENGTH, NUMBER, STATE_COOKIE, init, kind, word};
use crate::netns;

/// Starts to serve the ports on all addresses of the calling thread's namespace, until the process ends. `respond`
/// gets a request's sender and text and the number of damaged packets seen, and returns the answer.
///
/// # Errors
/// Without the privilege to open raw sockets.
pub(crate) fn serve<F>(ports: &[u16], respond: F) -> io::Result<()>
where
    F: Fn(SocketAddr, &[u8], u64) -> Vec<u8> + Send + Sync + 'static,
{
    let respond = Arc::new(respond);
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let socket = netns::raw_socket(NUMBER, any)?.into_unconnected();
        let (ports, respond) = (ports.to_vec(), Arc::clone(&respond));
        let mut server =
            Server { ports, respond, peers: HashMap::new(), secret: RandomState::new(), damaged: 0 };
        thread::spawn(move || server.run(&socket, any.is_ipv4()));
    }
    Ok(())
}

/// Client and the port that it dialled.
type Peer = (SocketAddr, u16);

struct Server<F> {
    ports: Vec<u16>,
    respond: Arc<F>,
    /// The tags of those who have begun an association.
    peers: HashMap<Peer, u32>,
    secret: RandomState,
    damaged: u64,
}

impl<F: Fn(SocketAddr, &[u8], u64) -> Vec<u8>> Server<F> {
    fn run(&mut self, socket: &UdpSocket, is_ipv4: bool) {
        let mut buffer = vec![0; 65_536];
        loop {
            // An error here is an ICMP message about an earlier answer: the next request does not care.
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            match Packet::read(netns::payload(&buffer[..length], is_ipv4)) {
                Ok(packet) if self.ports.contains(&packet.destination) => {
                    let client = SocketAddr::new(from.ip(), packet.source);
                    if let Some(answer) = self.answer(client, &packet)
                        && let Err(error) = socket.send_to(&answer.to_bytes(), SocketAddr::new(from.ip(), 0))
                    {
                        tracing::warn!(%client, %error, "answer an SCTP packet");
                    }
                }
                Err(Malformed::Checksum) => {
                    self.damaged += 1;
                    tracing::warn!(%from, damaged = self.damaged, "an SCTP packet with a wrong checksum");
                }
                // Another port's; there may be another server in this namespace.
                Ok(_) | Err(Malformed::Length) => {}
            }
        }
    }

    fn answer(&mut self, client: SocketAddr, packet: &Packet) -> Option<Packet> {
        let peer = (client, packet.destination);
        let own_tag = self.secret.hash_one(peer) as u32 | 1;
        let reply =
            |tag, kind, value| Some(Packet::with(packet.destination, packet.source, tag, kind, value));
        if let Some(value) = packet.chunk(kind::INIT) {
            let tag = word(value).filter(|_| packet.tag == 0 && value.len() >= INIT_LENGTH)?;
            self.peers.insert(peer, tag);
            let mut value = init(own_tag);
            push_parameter(&mut value, STATE_COOKIE, &own_tag.to_be_bytes());
            push_parameter(&mut value, ANSWER, &(self.respond)(client, b"", self.damaged));
            return reply(tag, kind::INIT_ACK, value);
        }
        let Some(&tag) = self.peers.get(&peer).filter(|_| packet.tag == own_tag) else {
            let quiet = [kind::ABORT, kind::SHUTDOWN_COMPLETE];
            if packet.chunks.iter().any(|chunk| quiet.contains(&chunk.kind)) {
                return None;
            }
            // RFC 9260, section 8.4: out of the blue. The flag T says that the tag is the sender's own.
            let mut abort = reply(packet.tag, kind::ABORT, Vec::new())?;
            abort.chunks.iter_mut().for_each(|chunk| chunk.flags = 1);
            return Some(abort);
        };
        let chunk = packet.chunks.first()?;
        match chunk.kind {
            kind::COOKIE_ECHO => reply(tag, kind::COOKIE_ACK, Vec::new()),
            kind::HEARTBEAT => {
                let said = parameter(&chunk.value, HEARTBEAT_INFO)?;
                let mut value = chunk.value.clone();
                value.resize(value.len().next_multiple_of(4), 0);
                push_parameter(&mut value, ANSWER, &(self.respond)(client, said, self.damaged));
                reply(tag, kind::HEARTBEAT_ACK, value)
            }
            kind::SHUTDOWN => reply(tag, kind::SHUTDOWN_ACK, Vec::new()),
            kind::SHUTDOWN_COMPLETE | kind::ABORT => {
                self.peers.remove(&peer);
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::Chunk;
    use super::*;

    #[test]
    fn a_packet_of_no_association_is_aborted_with_the_tag_it_came_with() {
        let respond = Arc::new(|_: SocketAddr, _: &[u8], _: u64| Vec::new());
        let (peers, secret) = (HashMap::new(), RandomState::new());
        let mut server = Server { ports: vec![80], respond, peers, secret, damaged: 0 };
        let client = "10.0.0.1:1000".parse().unwrap();
        let stray = Packet::with(1000, 80, 77, kind::HEARTBEAT, Vec::new());
        let answer = server.answer(client, &stray).unwrap();
        assert_eq!((answer.source, answer.destination, answer.tag), (80, 1000, 77));
        assert_eq!(answer.chunks, [Chunk { kind: kind::ABORT, flags: 1, value: Vec::new() }]);
        let stray = Packet::with(1000, 80, 77, kind::ABORT, Vec::new());
        assert_eq!(server.answer(client, &stray), None, "an ABORT is not answered");
    }
}
