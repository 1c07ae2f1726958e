//! Packets to be sent as they are ([`crate::Place::inject`]): by whomever, in whatever state.

use std::net::{IpAddr, SocketAddr};

/// A TCP segment out of nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Flags, as in [`RST`].
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Data.
    pub data: Vec<u8>,
}

/// The flag FIN.
pub const FIN: u8 = 1;
/// The flag SYN.
pub const SYN: u8 = 2;
/// The flag RST.
pub const RST: u8 = 4;
/// The flag ACK.
pub const ACK: u8 = 16;

/// Numbers of protocols.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An IP packet with a TCP segment.
///
/// # Panics
/// When the addresses are of different families.
pub fn tcp(source: SocketAddr, destination: SocketAddr, segment: &Segment) -> Vec<u8> {
    let mut payload = ports(source, destination);
    payload.extend(segment.sequence.to_be_bytes());
    payload.extend(segment.acknowledgement.to_be_bytes());
    payload.extend([5 << 4, segment.flags, 0x20, 0, 0, 0, 0, 0]);
    payload.extend(&segment.data);
    let checksum = transport_checksum(source.ip(), destination.ip(), TCP, &payload);
    payload[16..18].copy_from_slice(&checksum.to_be_bytes());
    ip(source.ip(), destination.ip(), TCP, &payload)
}

/// An IP packet with a UDP datagram.
///
/// # Panics
/// When the addresses are of different families, or the datagram does not fit.
pub fn udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut payload = ports(source, destination);
    payload.extend(length(data.len() + 8).to_be_bytes());
    payload.extend([0, 0]);
    payload.extend(data);
    let checksum = match transport_checksum(source.ip(), destination.ip(), UDP, &payload) {
        0 => !0,
        checksum => checksum,
    };
    payload[6..8].copy_from_slice(&checksum.to_be_bytes());
    ip(source.ip(), destination.ip(), UDP, &payload)
}

/// An IP packet with that payload, of which nothing is computed.
///
/// # Panics
/// When the addresses are of different families, or the payload does not fit.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0];
            header.extend(length(payload.len() + 20).to_be_bytes());
            // Don't fragment.
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let checksum = checksum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length(payload.len()).to_be_bytes());
            header.extend([protocol, 64]);
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => panic!("{source} and {destination} are of different families"),
    };
    packet.extend(payload);
    packet
}

fn ports(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a packet has less than 64 KiB")
}

/// The checksum over pseudo-header and payload, RFC 9293, section 3.1, and RFC 8200, section 8.1.
fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => sum(&source.octets()) + sum(&destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => sum(&source.octets()) + sum(&destination.octets()),
        _ => panic!("{source} and {destination} are of different families"),
    };
    fold(addresses + u32::from(protocol) + u32::from(length(payload.len())) + sum(payload))
}

/// The Internet checksum, RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    fold(sum(bytes))
}

fn sum(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    pairs.map(u32::from).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::{Place, netns};

    #[test]
    #[ignore = "needs root: run make test"]
    fn an_injected_datagram_arrives_from_whomever_it_names() {
        let netns = netns::create(&format!("fl-inject-{}", std::process::id())).unwrap();
        let place = Place::new(netns.clone(), std::path::Path::new("/"));
        for (from, to) in [("127.0.0.9:7", "127.0.0.1:0"), ("[::1]:7", "[::1]:0")] {
            let from: SocketAddr = from.parse().unwrap();
            let socket = netns.run(|| UdpSocket::bind(to)).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let target = socket.local_addr().unwrap();
            place.inject(&udp(from, target, b"odd")).unwrap();
            let mut buffer = [0; 16];
            assert_eq!(socket.recv_from(&mut buffer).unwrap(), (3, from));
            let mut damaged = udp(from, target, b"odd");
            *damaged.last_mut().unwrap() ^= 1;
            place.inject(&damaged).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let lost = socket.recv_from(&mut buffer).unwrap_err();
            assert_eq!(lost.kind(), ErrorKind::WouldBlock, "a wrong checksum is noticed");
        }
    }
}
