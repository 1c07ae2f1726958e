//! The RST that answers a SYN which finds nobody (RFC 9293, section 3.5.2).

use core::mem::offset_of;

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Reason, protocol};
use fairlead_flow::checksum::{self, Difference};

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
    let header = if packet.is_v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    if packet.transport() != ETHERNET + header {
        return Err(reason);
    }
    // SAFETY: the helper checks the length; pointers into the packet are derived anew afterwards.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, (ETHERNET + header + TCP) as u32, 0) } != 0 {
        return Err(reason);
    }
    if packet.is_v4 {
        turn_v4(ctx)?;
        write::<{ ETHERNET + size_of::<Ipv4>() }>(ctx, packet, sequence)
    } else {
        turn_v6(ctx)?;
        write::<{ ETHERNET + size_of::<Ipv6>() }>(ctx, packet, sequence)
    }
}

#[inline(always)]
fn turn_v4(ctx: &TcContext) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { &mut *at::<Ipv4>(ctx, ETHERNET)? };
    let length = ((size_of::<Ipv4>() + TCP) as u16).to_be();
    header.checksum = Difference::NONE.half(header.total_length, length).apply(header.checksum);
    header.total_length = length;
    // The sum does not mind the order.
    core::mem::swap(&mut header.source, &mut header.destination);
    Ok(())
}

#[inline(always)]
fn turn_v6(ctx: &TcContext) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { &mut *at::<Ipv6>(ctx, ETHERNET)? };
    header.payload_length = (TCP as u16).to_be();
    core::mem::swap(&mut header.source, &mut header.destination);
    Ok(())
}

/// Writes the segment at `PLACE`, with a whole checksum: the receiver is the other end of the veth pair, which
/// takes one that it was told to complete as it is.
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
    let mut total = sum as u32 as u64;
    total += u64::from((TCP as u16).to_be()) + u64::from(u16::from(protocol::TCP).to_be());
    let addresses = if packet.is_v4 {
        u64::from(packet.tuple.source.v4_word()) + u64::from(packet.tuple.destination.v4_word())
    } else {
        sum_of(packet.tuple.source.words()) + sum_of(packet.tuple.destination.words())
    };
    let checksum = !checksum::fold(total + addresses);
    // SAFETY: `at` has checked the bounds.
    unsafe { *at::<u16>(ctx, PLACE + offset_of!(Tcp, checksum))? = checksum };
    Ok(())
}

#[inline(always)]
fn sum_of(words: [u32; 4]) -> u64 {
    u64::from(words[0]) + u64::from(words[1]) + u64::from(words[2]) + u64::from(words[3])
}
