//! Probes as packets, and what a packet that came out says of itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use fairlead_prog_tests::packet::{ETHERNET, sctp, tcp};
use fairlead_prog_tests::{Packet, Transport};

use crate::case::Kind;

/// ICMP and ICMPv6 echo requests and replies, by type.
const ECHO_V4: [u8; 2] = [8, 0];
const ECHO_V6: [u8; 2] = [128, 129];

/// A client's first packet.
#[must_use]
pub fn first(kind: Kind, from: SocketAddr, to: SocketAddr) -> Packet {
    match kind {
        Kind::Syn => Packet::tcp(tcp::SYN, from, to),
        Kind::Init => chunk(sctp::INIT, from, to),
        _ => later(kind, from, to),
    }
}

/// Its next one.
#[must_use]
pub fn later(kind: Kind, from: SocketAddr, to: SocketAddr) -> Packet {
    match kind {
        Kind::Syn | Kind::Ack => Packet::tcp(tcp::ACK, from, to),
        Kind::Udp => Packet::udp(from, to),
        Kind::Init => chunk(sctp::DATA, from, to),
        Kind::Echo => echo(0, from.ip(), to.ip()),
    }
}

/// The packet that answers the first.
#[must_use]
pub fn answer(kind: Kind, from: SocketAddr, to: SocketAddr) -> Packet {
    match kind {
        Kind::Syn => Packet::tcp(tcp::SYN_ACK, from, to),
        Kind::Init => chunk(sctp::INIT_ACK, from, to),
        Kind::Echo => echo(1, from.ip(), to.ip()),
        Kind::Ack | Kind::Udp => later(kind, from, to),
    }
}

fn echo(index: usize, from: IpAddr, to: IpAddr) -> Packet {
    let kind = if from.is_ipv4() { ECHO_V4[index] } else { ECHO_V6[index] };
    Packet::icmp(kind, 0, from, to)
}

fn chunk(kind: u8, from: SocketAddr, to: SocketAddr) -> Packet {
    Packet::new(Transport::Sctp(kind), from, to)
}

/// The sender and the receiver of a packet without options and extension headers, as its frame says.
#[must_use]
pub fn tuple(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let packet = frame.get(ETHERNET..)?;
    let (source, destination, rest): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => (address(packet.get(12..16)?)?, address(packet.get(16..20)?)?, packet.get(20..)?),
        6 => (address(packet.get(8..24)?)?, address(packet.get(24..40)?)?, packet.get(40..)?),
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    Some(((source, port(0)?).into(), (destination, port(2)?).into()))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_says_who_sent_it_to_whom() {
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:53"), ("[fd00::1]:1000", "[fd00::2]:53")] {
            let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
            for kind in [Kind::Syn, Kind::Udp, Kind::Init] {
                assert_eq!(tuple(&first(kind, from, to).bytes()), Some((from, to)));
            }
        }
    }
}
