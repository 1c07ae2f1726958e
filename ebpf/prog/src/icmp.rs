//! Port unreachable (RFC 792; RFC 4443, section 3.1).

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Reason, protocol};
use fairlead_flow::checksum;

use crate::header;
use crate::packet::{ETHERNET, Ipv4, Ipv6, Packet, TCP, UDP, at};

const IPV4: usize = size_of::<Ipv4>();
const IPV6: usize = size_of::<Ipv6>();
const ICMP: usize = 8;
/// Type and code, destination unreachable and port unreachable.
const UNREACHABLE_V4: [u8; 2] = [3, 3];
/// Type and code, destination unreachable and port unreachable.
const UNREACHABLE_V6: [u8; 2] = [1, 4];

/// An ICMP or ICMPv6 header.
#[repr(C)]
struct Icmp {
    kind: [u8; 2],
    checksum: u16,
    rest: u32,
}

/// Turns the packet into the answer, its frame apart. The whole transport header is quoted: the kernel will not
/// cut a packet off before a checksum that the device is still to complete.
#[inline(always)]
pub(crate) fn refuse(ctx: &TcContext, packet: &Packet, reason: Reason) -> Result<(), Reason> {
    match (packet.is_v4, packet.tuple.protocol) {
        (true, protocol::TCP) => refuse_v4::<{ IPV4 + TCP }>(ctx, packet, reason),
        (true, _) => refuse_v4::<{ IPV4 + UDP }>(ctx, packet, reason),
        (false, protocol::TCP) => refuse_v6::<{ IPV6 + TCP }>(ctx, packet, reason),
        (false, _) => refuse_v6::<{ IPV6 + UDP }>(ctx, packet, reason),
    }
}

/// Cuts the packet off after the part to quote, and makes room for new headers before it.
#[inline(always)]
fn make_room(ctx: &TcContext, quoted: usize, headers: usize) -> Result<(), i64> {
    // SAFETY: the helper checks the length; pointers into the packet are derived anew afterwards.
    let cut = unsafe { bpf_skb_change_tail(ctx.skb.skb, (ETHERNET + quoted) as u32, 0) };
    if cut != 0 {
        return Err(cut);
    }
    ctx.skb.adjust_room(headers as i32, BPF_ADJ_ROOM_MAC, 0)
}

#[inline(always)]
fn refuse_v4<const QUOTED: usize>(ctx: &TcContext, packet: &Packet, reason: Reason) -> Result<(), Reason> {
    if packet.transport() != ETHERNET + IPV4 {
        return Err(reason);
    }
    make_room(ctx, QUOTED, IPV4 + ICMP).map_err(|_| reason)?;
    header::write_v4(ctx, packet, protocol::ICMP, ICMP + QUOTED)?;
    write_icmp::<QUOTED>(ctx, ETHERNET + IPV4, UNREACHABLE_V4, 0)
}

#[inline(always)]
fn refuse_v6<const QUOTED: usize>(ctx: &TcContext, packet: &Packet, reason: Reason) -> Result<(), Reason> {
    if packet.transport() != ETHERNET + IPV6 {
        return Err(reason);
    }
    make_room(ctx, QUOTED, IPV6 + ICMP).map_err(|_| reason)?;
    header::write_v6(ctx, packet, protocol::ICMPV6, ICMP + QUOTED)?;
    let pseudo = header::pseudo(packet, protocol::ICMPV6, ICMP + QUOTED);
    write_icmp::<QUOTED>(ctx, ETHERNET + IPV6, UNREACHABLE_V6, pseudo)
}

/// Writes the ICMP header before the quoted packet; `sum` is what the checksum covers besides.
#[inline(always)]
fn write_icmp<const QUOTED: usize>(
    ctx: &TcContext,
    offset: usize,
    kind: [u8; 2],
    sum: u64,
) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { &mut *at::<Icmp>(ctx, offset)? };
    *header = Icmp { kind, checksum: 0, rest: 0 };
    let quoted = at::<[u8; QUOTED]>(ctx, offset + ICMP)?;
    // SAFETY: the helper reads QUOTED bytes, a multiple of four, whose bounds `at` has checked.
    let quoted_sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, quoted.cast(), QUOTED as u32, 0) };
    let kind = u64::from(u16::from_ne_bytes(kind));
    header.checksum = !checksum::fold(sum + kind + (quoted_sum as u32 as u64));
    Ok(())
}
