//! Fresh IP headers for packets that the programs answer with: from the packet's receiver to its sender.

use aya_ebpf::programs::TcContext;
use fairlead_abi::Reason;
use fairlead_flow::checksum;

use crate::packet::{ETHERNET, Ipv4, Ipv6, Packet, at};

const TTL: u8 = 64;
const DO_NOT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// Writes an IPv4 header for `length` bytes of `protocol`.
#[inline(always)]
pub(crate) fn write_v4(ctx: &TcContext, packet: &Packet, protocol: u8, length: usize) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { &mut *at::<Ipv4>(ctx, ETHERNET)? };
    *header = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: ((size_of::<Ipv4>() + length) as u16).to_be(),
        // One that is never fragmented needs none (RFC 6864, section 4.1).
        identification: 0,
        fragment: DO_NOT_FRAGMENT,
        ttl: TTL,
        protocol,
        checksum: 0,
        source: packet.tuple.destination.v4_word(),
        destination: packet.tuple.source.v4_word(),
    };
    // SAFETY: a header is twenty bytes, which are initialised.
    let words: &[u16; size_of::<Ipv4>() / 2] = unsafe { &*core::ptr::from_ref(header).cast() };
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    header.checksum = !checksum::fold(sum);
    Ok(())
}

/// Writes an IPv6 header for `length` bytes of `protocol`.
#[inline(always)]
pub(crate) fn write_v6(ctx: &TcContext, packet: &Packet, protocol: u8, length: usize) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { &mut *at::<Ipv6>(ctx, ETHERNET)? };
    *header = Ipv6 {
        version_class_label: 0x6000_0000_u32.to_be(),
        payload_length: (length as u16).to_be(),
        next_header: protocol,
        hop_limit: TTL,
        source: packet.tuple.destination.words(),
        destination: packet.tuple.source.words(),
    };
    Ok(())
}

/// The sum of the pseudo-header of `length` bytes of `protocol`: both addresses, length and protocol (RFC 9293,
/// section 3.1; RFC 8200, section 8.1).
#[inline(always)]
pub(crate) fn pseudo(packet: &Packet, protocol: u8, length: usize) -> u64 {
    let mut sum = u64::from((length as u16).to_be()) + u64::from(u16::from(protocol).to_be());
    let (source, destination) = (packet.tuple.source, packet.tuple.destination);
    if packet.is_v4 {
        return sum + u64::from(source.v4_word()) + u64::from(destination.v4_word());
    }
    for word in [source.words(), destination.words()].as_flattened() {
        sum += u64::from(*word);
    }
    sum
}
