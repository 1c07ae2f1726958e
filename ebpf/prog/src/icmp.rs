//! ICMP and ICMPv6 errors that the programs send (RFC 792, RFC 1191; RFC 4443, section 3).

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

/// What is wrong with a packet, and how ICMP and ICMPv6 say it: type, code and the word that follows the checksum, in
/// the host's byte order.
#[derive(Clone, Copy)]
pub(crate) struct Error {
    v4: [u8; 2],
    v6: [u8; 2],
    rest: u32,
}

impl Error {
    /// Destination unreachable, port unreachable.
    pub(crate) const UNREACHABLE: Self = Self { v4: [3, 3], v6: [1, 4], rest: 0 };

    /// Destination unreachable, no route to it.
    pub(crate) const NO_ROUTE: Self = Self { v4: [3, 0], v6: [1, 0], rest: 0 };

    /// Fragmentation needed, or packet too big: so many bytes of a packet fit.
    #[inline(always)]
    pub(crate) fn too_big(mtu: u16) -> Self {
        Self { v4: [3, 4], v6: [2, 0], rest: mtu as u32 }
    }
}

/// An ICMP or ICMPv6 header.
#[repr(C)]
struct Icmp {
    kind: [u8; 2],
    checksum: u16,
    rest: u32,
}

/// Turns the packet into the answer, its frame apart. The whole transport header is quoted: the kernel will not
/// cut a packet off before a checksum that the device is still to complete; of SCTP's chunk as much as Linux wants to
/// see of an INIT before it believes the error.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext, packet: &Packet, error: Error, reason: Reason) -> Result<(), Reason> {
    match (packet.is_v4, packet.tuple.protocol) {
        (true, protocol::TCP | protocol::SCTP) => answer_v4::<{ IPV4 + TCP }>(ctx, packet, error, reason),
        (true, _) => answer_v4::<{ IPV4 + UDP }>(ctx, packet, error, reason),
        (false, protocol::TCP | protocol::SCTP) => answer_v6::<{ IPV6 + TCP }>(ctx, packet, error, reason),
        (false, _) => answer_v6::<{ IPV6 + UDP }>(ctx, packet, error, reason),
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
fn answer_v4<const QUOTED: usize>(
    ctx: &TcContext,
    packet: &Packet,
    error: Error,
    reason: Reason,
) -> Result<(), Reason> {
    if packet.transport() != ETHERNET + IPV4 {
        return Err(reason);
    }
    make_room(ctx, QUOTED, IPV4 + ICMP).map_err(|_| reason)?;
    header::write_v4(ctx, packet, protocol::ICMP, ICMP + QUOTED)?;
    write_icmp::<QUOTED>(ctx, ETHERNET + IPV4, error.v4, error.rest, 0)
}

#[inline(always)]
fn answer_v6<const QUOTED: usize>(
    ctx: &TcContext,
    packet: &Packet,
    error: Error,
    reason: Reason,
) -> Result<(), Reason> {
    if packet.transport() != ETHERNET + IPV6 {
        return Err(reason);
    }
    make_room(ctx, QUOTED, IPV6 + ICMP).map_err(|_| reason)?;
    header::write_v6(ctx, packet, protocol::ICMPV6, ICMP + QUOTED)?;
    let pseudo = header::pseudo(packet, protocol::ICMPV6, ICMP + QUOTED);
    write_icmp::<QUOTED>(ctx, ETHERNET + IPV6, error.v6, error.rest, pseudo)
}

/// Writes the ICMP header before the quoted packet; `sum` is what the checksum covers besides.
#[inline(always)]
fn write_icmp<const QUOTED: usize>(
    ctx: &TcContext,
    offset: usize,
    kind: [u8; 2],
    rest: u32,
    sum: u64,
) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { &mut *at::<Icmp>(ctx, offset)? };
    let rest = rest.to_be();
    *header = Icmp { kind, checksum: 0, rest };
    let quoted = at::<[u8; QUOTED]>(ctx, offset + ICMP)?;
    // SAFETY: the helper reads QUOTED bytes, a multiple of four, whose bounds `at` has checked.
    let quoted_sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, quoted.cast(), QUOTED as u32, 0) };
    let kind = u64::from(u16::from_ne_bytes(kind));
    header.checksum = !checksum::fold(sum + kind + u64::from(rest) + (quoted_sum as u32 as u64));
    Ok(())
}
