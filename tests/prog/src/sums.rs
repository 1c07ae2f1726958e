//! Checksums, summed from scratch, and whether all of a frame's hold.

use fairlead_abi::protocol;

use crate::packet::ETHERNET;

/// The Internet checksum of `bytes` (RFC 1071), the plain way.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC32c, bit by bit (RFC 9260, appendix A).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// The pseudo-header of `length` bytes of `protocol` between two addresses of either family (RFC 9293, section 3.1;
/// RFC 8200, section 8.1).
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    [addresses, &(length as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

/// Whether every checksum of the frame's packet holds; `None` if that can't be said: of a fragment, of one with
/// extension headers or that is not as long as it says, of a protocol without a checksum.
#[must_use]
pub fn hold(frame: &[u8]) -> Option<bool> {
    let packet = frame.get(ETHERNET..)?;
    let (protocol, addresses, transport, header) = match frame[12..14] {
        [8, 0] => {
            let length = usize::from(packet.first()? & 0x0f) * 4;
            let header = packet.get(..length).filter(|header| header.len() >= 20 && header[0] >> 4 == 4)?;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let is_whole = u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0;
            let transport = packet.get(length..total).filter(|_| is_whole)?;
            (header[9], &header[12..20], transport, checksum(header) == 0)
        }
        [0x86, 0xdd] => {
            let header = packet.get(..40).filter(|header| header[0] >> 4 == 6)?;
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            (header[6], &header[8..40], packet.get(40..40 + length)?, true)
        }
        _ => return None,
    };
    Some(header && transport_holds(protocol, addresses, transport)?)
}

fn transport_holds(number: u8, addresses: &[u8], transport: &[u8]) -> Option<bool> {
    let is_v4 = addresses.len() == 8;
    let pseudo = pseudo_header(addresses, number, transport.len());
    match number {
        protocol::TCP if transport.len() >= 20 => Some(checksum(&[&pseudo, transport].concat()) == 0),
        protocol::UDP if transport.len() >= 8 => {
            let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
            let is_summed = transport[6..8] != [0, 0];
            (is_summed && length == transport.len()).then(|| checksum(&[&pseudo, transport].concat()) == 0)
        }
        protocol::ICMP if is_v4 && transport.len() >= 8 => Some(checksum(transport) == 0),
        protocol::ICMPV6 if !is_v4 && transport.len() >= 8 => {
            Some(checksum(&[&pseudo, transport].concat()) == 0)
        }
        protocol::SCTP if transport.len() >= 12 => {
            let without = [&transport[..8], &[0; 4], &transport[12..]].concat();
            Some(crc32c(&without).to_le_bytes() == transport[8..12])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::packet::{Packet, Transport, tcp};

    #[test]
    fn a_header_from_the_literature_has_its_checksum() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0xb861);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_frame_whose_packet_has_one_wrong_bit_does_not_hold() {
        for [from, to] in [["10.0.0.1:1", "10.0.0.2:2"], ["[fd00::1]:1", "[fd00::2]:2"]] {
            let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().expect("an address"));
            let icmp = if from.is_ipv4() { Transport::Icmp(3, 4) } else { Transport::Icmp(2, 0) };
            for transport in [Transport::Tcp(tcp::SYN), Transport::Udp, Transport::Sctp(1), icmp] {
                let mut frame = Packet::new(transport, from, to).bytes();
                assert_eq!(hold(&frame), Some(true), "{transport:?}");
                *frame.last_mut().expect("a payload") ^= 1;
                assert_eq!(hold(&frame), Some(false), "{transport:?}");
            }
        }
    }
}
