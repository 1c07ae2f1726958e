//! Rewriting a packet's tuple, with every checksum that covers it.

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Flow, Reason, protocol};
use fairlead_flow::checksum::Difference;

use crate::packet::{ETHERNET, Fragment, Ipv4, Ipv6, Packet, at};

/// `BPF_F_IPV6` (kernel 6.16): IPv6 has no header checksum that would balance a change of its addresses.
const IPV6_ADDRESSES: u64 = 1 << 7;
/// Where a TCP header has its checksum.
const TCP_CHECKSUM: usize = 16;
/// Where a UDP header has its checksum.
const UDP_CHECKSUM: usize = 6;

/// Gives the packet the flow's tuple; of a later fragment, the addresses, which are all that it has. Pointers into the packet are void afterwards.
#[inline(always)]
pub(crate) fn translate(ctx: &TcContext, packet: &mut Packet, flow: &Flow) -> Result<(), Reason> {
    let old = &packet.tuple;
    let addresses =
        Difference::NONE.address(old.source, flow.source).address(old.destination, flow.destination);
    let ports = Difference::NONE
        .half(old.source_port.wire(), flow.source_port.wire())
        .half(old.destination_port.wire(), flow.destination_port.wire());
    if packet.is_v4 {
        // SAFETY: `at` has checked the bounds.
        let header = unsafe { &mut *at::<Ipv4>(ctx, ETHERNET)? };
        header.source = flow.source.v4_word();
        header.destination = flow.destination.v4_word();
        header.checksum = addresses.apply(header.checksum);
    } else {
        // SAFETY: `at` has checked the bounds.
        let header = unsafe { &mut *at::<Ipv6>(ctx, ETHERNET)? };
        header.source = flow.source.words();
        header.destination = flow.destination.words();
    }
    packet.tuple.source = flow.source;
    packet.tuple.destination = flow.destination;
    if packet.fragment == Fragment::Later {
        return Ok(());
    }
    // SAFETY: `at` has checked the bounds.
    let ports_in_packet = unsafe { &mut *at::<[u16; 2]>(ctx, packet.transport())? };
    *ports_in_packet = [flow.source_port.wire(), flow.destination_port.wire()];
    packet.tuple.source_port = flow.source_port;
    packet.tuple.destination_port = flow.destination_port;
    fix_transport_checksum(ctx, packet, addresses, ports)
}

/// Leaves the transport checksum to the kernel's helper: only it knows whether the field holds a whole
/// checksum, or just the pseudo-header's part that the device is to complete.
#[inline(always)]
fn fix_transport_checksum(
    ctx: &TcContext,
    packet: &Packet,
    addresses: Difference,
    ports: Difference,
) -> Result<(), Reason> {
    let (place, mangled) = match packet.tuple.protocol {
        protocol::TCP => (TCP_CHECKSUM, 0),
        _ => (UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0)),
    };
    let offset = packet.transport() + place;
    let pseudo = mangled | u64::from(BPF_F_PSEUDO_HDR);
    let sum = u64::from(addresses.to_u32());
    let done = if packet.is_v4 {
        ctx.l4_csum_replace(offset, 0, sum, pseudo)
    } else {
        // A kernel before 6.16 refuses the flag, and does without it.
        let exact = ctx.l4_csum_replace(offset, 0, sum, pseudo | IPV6_ADDRESSES);
        exact.or_else(|_| ctx.l4_csum_replace(offset, 0, sum, pseudo))
    };
    done.map_err(|_| Reason::NotForwarded)?;
    ctx.l4_csum_replace(offset, 0, u64::from(ports.to_u32()), mangled).map_err(|_| Reason::NotForwarded)
}

/// Takes one hop from the packet, as a router does (RFC 1812, section 5.3.1; RFC 8200, section 3).
#[inline(always)]
pub(crate) fn take_hop(ctx: &TcContext, is_v4: bool) -> Result<(), Reason> {
    if !is_v4 {
        // SAFETY: `at` has checked the bounds.
        let hop_limit = unsafe { &mut *at::<u8>(ctx, ETHERNET + offset_of!(Ipv6, hop_limit))? };
        *hop_limit -= 1;
        return Ok(());
    }
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { &mut *at::<Ipv4>(ctx, ETHERNET)? };
    header.ttl -= 1;
    // The time to live is the high byte of its word: the checksum grows by what the word loses.
    let sum = u32::from(header.checksum) + u32::from(0x0100_u16.to_be());
    header.checksum = (sum + u32::from(sum >= 0xffff)) as u16;
    Ok(())
}
