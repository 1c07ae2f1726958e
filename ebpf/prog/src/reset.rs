//! The RST that answers a SYN which finds nobody (RFC 9293, section 3.5.2).

use core::mem::offset_of;

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Reason, protocol};
use fairlead_flow::checksum;

use crate::header;
use crate::packet::{ETHERNET, Ipv4, Ipv6, Packet, TCP, at};

/// Data offset of five words, no reserved bits.
const OFFSET: u8 = 5 << 4;
const RST_ACK: u8 = 0x14;

/// A TCP header without options (RFC 9293, section 3.1).
#[repr(C)]
struct Tcp {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledgement: u32,
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// Turns a SYN into the RST that answers it, its frame apart.
#[inline(always)]
pub(crate) fn refuse(ctx: &TcContext, packet: &Packet, reason: Reason) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let sequence = unsafe { (*at::<Tcp>(ctx, packet.transport())?).sequence };
    let length = if packet.is_v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    if packet.transport() != ETHERNET + length {
        return Err(reason);
    }
    // SAFETY: the helper checks the length; pointers into the packet are derived anew afterwards.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, (ETHERNET + length + TCP) as u32, 0) } != 0 {
        return Err(reason);
    }
    if packet.is_v4 {
        header::write_v4(ctx, packet, protocol::TCP, TCP)?;
        write::<{ ETHERNET + size_of::<Ipv4>() }>(ctx, packet, sequence)
    } else {
        header::write_v6(ctx, packet, protocol::TCP, TCP)?;
        write::<{ ETHERNET + size_of::<Ipv6>() }>(ctx, packet, sequence)
    }
}

/// Writes the segment at `PLACE`.
///
/// Its checksum field is to hold the pseudo-header's sum where the device completes it, and a whole checksum where
/// not, which only the kernel knows. So it is given the sum, and the kernel's helper, which does nothing in the
/// first case, the difference: the segment, once the pseudo-header, and once more to outweigh the sum, which the
/// helper takes for the complement that a checksum is.
#[inline(always)]
fn write<const PLACE: usize>(ctx: &TcContext, packet: &Packet, sequence: u32) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let segment = unsafe { &mut *at::<Tcp>(ctx, PLACE)? };
    *segment = Tcp {
        source: packet.tuple.destination_port.wire(),
        destination: packet.tuple.source_port.wire(),
        sequence: 0,
        acknowledgement: u32::from_be(sequence).wrapping_add(1).to_be(),
        offset: OFFSET,
        flags: RST_ACK,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    // SAFETY: the helper reads the segment's twenty bytes, whose bounds `at` has checked.
    let sum = unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, core::ptr::from_mut(segment).cast(), TCP as u32, 0)
    };
    let pseudo = header::pseudo(packet, protocol::TCP, TCP);
    segment.checksum = checksum::fold(pseudo);
    let difference = checksum::fold(2 * pseudo + (sum as u32 as u64));
    ctx.l4_csum_replace(PLACE + offset_of!(Tcp, checksum), 0, u64::from(difference), 0)
        .map_err(|_| Reason::NotForwarded)
}
