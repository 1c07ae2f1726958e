//! Packets, written field by field, with every checksum summed from scratch.
//!
//! The programs change checksums incrementally; a packet that they let out is compared, byte by byte, with
//! the one built here from what it should say, so a checksum that is off by anything shows.

use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{Mac, protocol};

use crate::extension::Extension;
pub use crate::sums::checksum;
use crate::sums::{crc32c, pseudo_header};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// TCP flags (RFC 9293, section 3.1).
pub mod tcp {
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// A segment in the middle of a connection.
    pub const ACK: u8 = 0x10;
    /// Answers a SYN.
    pub const SYN_ACK: u8 = SYN | ACK;
    /// Ends a direction.
    pub const FIN_ACK: u8 = 0x01 | ACK;
    /// Breaks the connection.
    pub const RST: u8 = 0x04;
    /// Answers a SYN that finds nobody.
    pub const RST_ACK: u8 = RST | ACK;
}

/// Types of SCTP chunks (RFC 9260, section 3.2).
pub mod sctp {
    /// Carries what the user sends.
    pub const DATA: u8 = 0;
    /// Opens an association.
    pub const INIT: u8 = 1;
    /// Answers it.
    pub const INIT_ACK: u8 = 2;
    /// Ends an association at once.
    pub const ABORT: u8 = 6;
    /// Says that the sender has nothing more to say.
    pub const SHUTDOWN: u8 = 7;
    /// Answers that, with the same meaning.
    pub const SHUTDOWN_ACK: u8 = 8;
}

/// How many IPv6 extension headers the programs walk.
const WALKED: usize = 3;

/// What stands between the IP header and the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP header without options, with these flags.
    Tcp(u8),
    /// A UDP header.
    Udp,
    /// A UDP header whose checksum field is zero: "none" (RFC 768).
    UdpWithoutChecksum,
    /// An SCTP header and that of a chunk of this type.
    Sctp(u8),
    /// An ICMP or ICMPv6 header of this type and code, its last four bytes [`Packet::rest`].
    Icmp(u8, u8),
    /// No header: the payload itself is of this protocol.
    Bare(u8),
}

/// A packet in an Ethernet frame, of the family of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    macs: (Mac, Mac),
    /// The sender; the port is unused where the transport has none.
    pub source: SocketAddr,
    /// The receiver; the port is unused where the transport has none.
    pub destination: SocketAddr,
    hops: u8,
    tos: u8,
    identification: u16,
    fragment: u16,
    options: Vec<u8>,
    extensions: Vec<Extension>,
    transport: Transport,
    segment: Segment,
    rest: u32,
    payload: Vec<u8>,
}

/// What else a TCP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    sequence: u32,
    acknowledgement: u32,
    window: u16,
}

impl Packet {
    /// A packet with a short payload and 64 hops to go.
    #[must_use]
    pub fn new(transport: Transport, source: SocketAddr, destination: SocketAddr) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "{source} and {destination} are of two families");
        Self {
            macs: ([0; 6], [0; 6]),
            source,
            destination,
            hops: 64,
            tos: 0,
            identification: 0,
            fragment: 0,
            options: Vec::new(),
            extensions: Vec::new(),
            transport,
            segment: Segment { sequence: 1, acknowledgement: 2, window: 0xffff },
            rest: 0,
            payload: b"hello".to_vec(),
        }
    }

    /// A TCP segment.
    #[must_use]
    pub fn tcp(flags: u8, source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(Transport::Tcp(flags), source, destination)
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(Transport::Udp, source, destination)
    }

    /// An ICMP or ICMPv6 message.
    #[must_use]
    pub fn icmp(kind: u8, code: u8, source: IpAddr, destination: IpAddr) -> Self {
        Self::new(Transport::Icmp(kind, code), (source, 0).into(), (destination, 0).into())
    }

    /// The answer that refuses this packet, from its destination: port unreachable, quoting the IP header
    /// and all of the transport header (RFC 792; RFC 4443, section 3.1).
    #[must_use]
    pub fn refusal(&self) -> Self {
        let (kind, code) = if self.is_v4() { (3, 3) } else { (1, 4) };
        self.error(kind, code, self.quoted_transport())
    }

    /// The answer that says that of this packet so many bytes would fit, from its destination: fragmentation needed,
    /// or packet too big (RFC 1191, section 4; RFC 4443, section 3.2).
    #[must_use]
    pub fn too_big(&self, mtu: u16) -> Self {
        let (kind, code) = if self.is_v4() { (3, 4) } else { (2, 0) };
        self.error(kind, code, self.quoted_transport()).rest(mtu.into())
    }

    /// An ICMP error about this packet, from its destination to its source, quoting the IP header and `transport`
    /// bytes of what follows, or zeroes for what it lacks; with a whole header, as the programs make it.
    #[must_use]
    pub fn error(&self, kind: u8, code: u8, transport: usize) -> Self {
        let error = Self::icmp(kind, code, self.destination.ip(), self.source.ip());
        let fragment = self.unfragmented();
        let (source, destination) = self.macs;
        let mut quoted = self.quote(transport);
        quoted.resize(self.transport_offset() - ETHERNET + transport, 0);
        Self { fragment, ..error }.payload(&quoted).frame(destination, source)
    }

    /// The packet's IP header, and `transport` bytes of what follows, or all if that is less.
    #[must_use]
    pub fn quote(&self, transport: usize) -> Vec<u8> {
        let bytes = self.bytes();
        bytes[ETHERNET..bytes.len().min(self.transport_offset() + transport)].to_vec()
    }

    /// How much of the transport header an answer quotes.
    fn quoted_transport(&self) -> usize {
        if matches!(self.transport, Transport::Tcp(_) | Transport::Sctp(..)) { 20 } else { 8 }
    }

    /// The answer that resets the connection that this SYN would open, from its destination (RFC 9293, section
    /// 3.5.2): no payload, no options.
    #[must_use]
    pub fn reset(&self) -> Self {
        let reset = Self::tcp(tcp::RST_ACK, self.destination, self.source);
        let acknowledgement = self.segment.sequence.wrapping_add(1);
        let segment = Segment { sequence: 0, acknowledgement, window: 0 };
        let (source, destination) = self.macs;
        Self { segment, fragment: self.unfragmented(), ..reset }.payload(&[]).frame(destination, source)
    }

    /// The fragment field of an answer to this packet. One that is never fragmented needs no identification
    /// (RFC 6864, section 4.1).
    fn unfragmented(&self) -> u16 {
        if self.is_v4() { 0x4000 } else { 0 }
    }

    /// With these sequence and acknowledgement numbers.
    #[must_use]
    pub fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        self.segment = Segment { sequence, acknowledgement, ..self.segment };
        self
    }

    /// With the frame's sender and receiver.
    #[must_use]
    pub fn frame(mut self, source: Mac, destination: Mac) -> Self {
        self.macs = (source, destination);
        self
    }

    /// In the frame that answers the one of `packet`.
    #[must_use]
    pub fn back_to(self, packet: &Self) -> Self {
        let (source, destination) = packet.macs;
        self.frame(destination, source)
    }

    /// With these last four bytes of an ICMP header.
    #[must_use]
    pub fn rest(mut self, rest: u32) -> Self {
        self.rest = rest;
        self
    }

    /// From another sender.
    #[must_use]
    pub fn from(mut self, source: SocketAddr) -> Self {
        self.source = source;
        self
    }

    /// To another receiver.
    #[must_use]
    pub fn to(mut self, destination: SocketAddr) -> Self {
        self.destination = destination;
        self
    }

    /// With this many hops to go.
    #[must_use]
    pub fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// One hop further.
    #[must_use]
    pub fn a_hop_on(mut self) -> Self {
        self.hops -= 1;
        self
    }

    /// With this payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// With this DSCP and ECN byte.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// With this IPv4 identification.
    #[must_use]
    pub fn identification(mut self, identification: u16) -> Self {
        self.identification = identification;
        self
    }

    /// With these IPv4 options, a multiple of four bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(self.is_v4() && options.len().is_multiple_of(4) && options.len() <= 40);
        self.options = options.to_vec();
        self
    }

    /// With one more IPv6 extension header: hop-by-hop (0), routing (43) or destination options (60), of
    /// `units` times eight bytes.
    #[must_use]
    pub fn extension(mut self, number: u8, units: usize) -> Self {
        assert!(!self.is_v4());
        self.extensions.push(Extension::Units(number, units));
        self
    }

    /// As the fragment that begins `offset` times eight bytes into the datagram. Only the first has a
    /// transport header.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        if self.is_v4() {
            self.fragment = offset | if more { 0x2000 } else { 0 };
        } else {
            self.extensions.push(Extension::Fragment(offset << 3 | u16::from(more)));
        }
        self
    }

    /// Whether the packet is IPv4.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Whether it says to whom it goes, by its protocol and ports, but not whether it begins a flow.
    #[must_use]
    pub fn is_datagram(&self) -> bool {
        let is_bare = matches!(self.transport, Transport::Bare(_));
        let is_udp = matches!(self.transport, Transport::Udp | Transport::UdpWithoutChecksum);
        (is_udp || is_bare) && !self.is_later_fragment() && self.extensions.len() <= WALKED
    }

    /// Whether it opens a connection, or is an echo request.
    #[must_use]
    pub fn opens(&self) -> bool {
        let echo_request = if self.is_v4() { 8 } else { 128 };
        !self.is_later_fragment()
            && match self.transport {
                Transport::Tcp(flags) => flags & tcp::SYN_ACK == tcp::SYN && flags & tcp::RST == 0,
                Transport::Sctp(chunk) => chunk == sctp::INIT,
                Transport::Icmp(kind, _) => kind == echo_request,
                _ => false,
            }
    }

    /// Whether it is only a part of its datagram.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.fragment_field() & 0x3fff != 0
    }

    /// Where the transport header begins in [`Self::bytes`].
    #[must_use]
    pub fn transport_offset(&self) -> usize {
        let extensions = self.extensions.iter().map(Extension::len).sum::<usize>();
        ETHERNET + if self.is_v4() { 20 + self.options.len() } else { 40 + extensions }
    }

    /// The frame as it stands on the wire.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let kind: u16 = if self.is_v4() { 0x0800 } else { 0x86dd };
        let mut bytes = [&self.macs.1[..], &self.macs.0, &kind.to_be_bytes()].concat();
        let transport = self.transport_bytes();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend(self.v4_header(source.octets(), destination.octets(), transport.len()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend(self.v6_headers(source.octets(), destination.octets(), transport.len()));
            }
            _ => unreachable!("checked by `new`"),
        }
        bytes.extend(transport);
        bytes
    }

    fn v4_header(&self, source: [u8; 4], destination: [u8; 4], transport: usize) -> Vec<u8> {
        let length = 20 + self.options.len();
        let mut header = vec![0x40 | (length / 4) as u8, self.tos];
        header.extend(((length + transport) as u16).to_be_bytes());
        header.extend(self.identification.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.hops, self.protocol(), 0, 0]);
        header.extend(source);
        header.extend(destination);
        header.extend(&self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn v6_headers(&self, source: [u8; 16], destination: [u8; 16], transport: usize) -> Vec<u8> {
        let extensions = self.extensions.iter().map(Extension::len).sum::<usize>();
        let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        header.extend(((extensions + transport) as u16).to_be_bytes());
        header.extend([self.extensions.first().map_or(self.protocol(), Extension::number), self.hops]);
        header.extend(source);
        header.extend(destination);
        for (index, extension) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(index + 1).map_or(self.protocol(), Extension::number);
            header.extend(extension.bytes(next));
        }
        header
    }

    fn is_later_fragment(&self) -> bool {
        self.fragment_field() & 0x1fff != 0
    }

    /// The fragment field, of either family, as it stands in an IPv4 header.
    fn fragment_field(&self) -> u16 {
        let field = |extension: &Extension| match extension {
            Extension::Fragment(field) => Some(field >> 3 | (field & 1) << 13),
            Extension::Units(..) => None,
        };
        self.extensions.iter().find_map(field).unwrap_or(self.fragment)
    }

    /// The transport header and the payload.
    fn transport_bytes(&self) -> Vec<u8> {
        if self.is_later_fragment() {
            return self.payload.clone();
        }
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let (mut header, place) = match self.transport {
            Transport::Tcp(flags) => {
                let Segment { sequence, acknowledgement, window } = self.segment;
                let numbers = [sequence.to_be_bytes(), acknowledgement.to_be_bytes()].concat();
                let [high, low] = window.to_be_bytes();
                ([&ports[..], &numbers, &[0x50, flags, high, low, 0, 0, 0, 0]].concat(), 16)
            }
            Transport::Udp | Transport::UdpWithoutChecksum => {
                let length = (8 + self.payload.len()) as u16;
                ([&ports[..], &length.to_be_bytes(), &[0, 0]].concat(), 6)
            }
            Transport::Sctp(chunk) => {
                let [high, low] = (4 + self.payload.len() as u16).to_be_bytes();
                ([&ports[..], &[1, 2, 3, 4, 0, 0, 0, 0, chunk, 0, high, low]].concat(), 8)
            }
            Transport::Icmp(kind, code) => ([&[kind, code, 0, 0][..], &self.rest.to_be_bytes()].concat(), 2),
            Transport::Bare(_) => return self.payload.clone(),
        };
        header.extend(&self.payload);
        if let Transport::Sctp(_) = self.transport {
            let crc = crc32c(&header);
            header[place..place + 4].copy_from_slice(&crc.to_le_bytes());
            return header;
        }
        let sum = match self.transport {
            Transport::UdpWithoutChecksum => 0,
            Transport::Icmp(..) if self.is_v4() => checksum(&header),
            _ => checksum(&[self.pseudo_header(header.len()), header.clone()].concat()),
        };
        // A UDP checksum that comes out as zero is sent as its other form (RFC 768).
        let sum = if self.transport == Transport::Udp && sum == 0 { 0xffff } else { sum };
        header[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn pseudo_header(&self, length: usize) -> Vec<u8> {
        let mut addresses = Vec::new();
        for address in [self.source.ip(), self.destination.ip()] {
            match address {
                IpAddr::V4(v4) => addresses.extend(v4.octets()),
                IpAddr::V6(v6) => addresses.extend(v6.octets()),
            }
        }
        pseudo_header(&addresses, self.protocol(), length)
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp(_) => protocol::TCP,
            Transport::Udp | Transport::UdpWithoutChecksum => protocol::UDP,
            Transport::Sctp(_) => protocol::SCTP,
            Transport::Icmp(..) if self.is_v4() => protocol::ICMP,
            Transport::Icmp(..) => protocol::ICMPV6,
            Transport::Bare(number) => number,
        }
    }
}

/// The bytes in rows of sixteen; with `other`, those that differ are marked.
#[must_use]
pub fn dump(bytes: &[u8], other: &[u8]) -> String {
    let mut text = format!("  {} bytes", bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        if at % 16 == 0 {
            text += &format!("\n  {at:4}:");
        }
        let mark = if other.get(at) == Some(byte) { ' ' } else { '*' };
        text += &format!("{mark}{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_sum_over_a_packet_with_its_checksum_is_zero() {
        let packet = Packet::udp(v4("10.0.0.1:1000"), v4("10.0.0.2:53"));
        let bytes = packet.bytes();
        assert_eq!(bytes.len(), 14 + 20 + 8 + 5);
        assert_eq!(checksum(&bytes[14..34]), 0);
        assert_eq!(checksum(&[packet.pseudo_header(13), bytes[34..].to_vec()].concat()), 0);
    }

    #[test]
    fn a_reset_acknowledges_the_syn_alone_and_says_nothing_else() {
        let syn = Packet::tcp(tcp::SYN, v4("10.0.0.1:1000"), v4("10.0.0.2:80")).numbers(u32::MAX, 7);
        let bytes = syn.tos(0xb8).hops(9).identification(3).reset().bytes();
        assert_eq!(bytes[14..24], [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
        assert_eq!(bytes[26..34], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(bytes[34..50], [0, 80, 3, 232, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x14, 0, 0]);
        assert_eq!(bytes.len(), 54);
    }

    #[test]
    fn extension_headers_are_chained_up_to_the_transport() {
        let packet = Packet::udp(v4("[fd00::1]:1000"), v4("[fd00::2]:53")).extension(0, 2).fragment(0, true);
        let bytes = packet.bytes();
        assert_eq!(packet.transport_offset(), 14 + 40 + 16 + 8);
        assert_eq!((bytes[14 + 6], bytes[54], bytes[54 + 16]), (0, 44, 17));
        assert_eq!(bytes[packet.transport_offset() + 2..][..2], [0, 53]);
    }

    #[test]
    fn a_later_fragment_has_no_transport_header() {
        let packet = Packet::udp(v4("10.0.0.1:1000"), v4("10.0.0.2:53")).payload(&[7; 16]).fragment(4, false);
        assert_eq!(packet.bytes()[34..], [7; 16]);
    }
}
