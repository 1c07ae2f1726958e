//! Rewriting a packet's tuple, with every checksum that covers it.

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Flow, Reason, protocol};
use fairlead_flow::checksum::Difference;
use fairlead_flow::sctp;

use crate::packet::{ETHERNET, Fragment, Ipv4, Ipv6, Packet, at, is_of_ports};

/// `BPF_F_IPV6` (kernel 6.16): IPv6 has no header checksum that would balance a change of its addresses.
const IPV6_ADDRESSES: u64 = 1 << 7;
/// Where a TCP header has its checksum.
pub(crate) const TCP_CHECKSUM: usize = 16;
/// Where a UDP header has its checksum.
pub(crate) const UDP_CHECKSUM: usize = 6;
/// Where an ICMP header has its checksum.
pub(crate) const ICMP_CHECKSUM: usize = 2;
/// Where an echo request or reply has its identifier.
pub(crate) const ECHO_IDENTIFIER: usize = 4;
/// Where an SCTP header has its checksum.
const SCTP_CHECKSUM: usize = 8;

/// Gives the packet the flow's tuple, unless it has that: a protocol without ports is in no other flows.
#[inline(always)]
pub(crate) fn follow(ctx: &TcContext, packet: &mut Packet, flow: &Flow) -> Result<(), Reason> {
    if changes(packet, flow) { translate(ctx, packet, flow) } else { Ok(()) }
}

/// Whether the flow's tuple is another than the packet's. Out of line for the stack's sake.
#[inline(never)]
fn changes(packet: &Packet, flow: &Flow) -> bool {
    let tuple = &packet.tuple;
    let ports = tuple.source_port != flow.source_port || tuple.destination_port != flow.destination_port;
    let has_ports = packet.fragment != Fragment::Later;
    tuple.source != flow.source || tuple.destination != flow.destination || ports && has_ports
}

/// Gives the packet the flow's tuple; of a later fragment, the addresses, which are all that it has. Pointers into
/// the packet are void afterwards.
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
    if !is_of_ports(packet.tuple.protocol) {
        packet.tuple.source_port = flow.source_port;
        packet.tuple.destination_port = flow.destination_port;
        return name_echo(ctx, packet, addresses, ports);
    }
    let old_ports = port_word(packet);
    // SAFETY: `at` has checked the bounds.
    let ports_in_packet = unsafe { &mut *at::<[u16; 2]>(ctx, packet.transport())? };
    *ports_in_packet = [flow.source_port.wire(), flow.destination_port.wire()];
    packet.tuple.source_port = flow.source_port;
    packet.tuple.destination_port = flow.destination_port;
    if packet.tuple.protocol == protocol::SCTP {
        return fix_crc(ctx, packet, old_ports ^ port_word(packet));
    }
    fix_transport_checksum(ctx, packet, addresses, ports)
}

/// Gives an echo request, or a reply, the identifier that stands for a port in its tuple, and its checksum the change.
/// Of a protocol without ports nothing is known that depends on the addresses.
#[inline(always)]
fn name_echo(
    ctx: &TcContext,
    packet: &Packet,
    addresses: Difference,
    ports: Difference,
) -> Result<(), Reason> {
    if !packet.is_icmp() {
        return Ok(());
    }
    // One of the two is 0.
    let identifier = packet.tuple.source_port.wire() | packet.tuple.destination_port.wire();
    let (identifier_at, checksum_at) =
        (packet.transport() + ECHO_IDENTIFIER, packet.transport() + ICMP_CHECKSUM);
    ctx.store(identifier_at, &identifier, 0).map_err(|_| Reason::NotForwarded)?;
    fix_checksum(ctx, packet, checksum_at, 0, if packet.is_v4 { Difference::NONE } else { addresses }, ports)
}

/// Both ports as they stand in the packet.
#[inline(always)]
fn port_word(packet: &Packet) -> u32 {
    let [a, b] = packet.tuple.source_port.wire().to_ne_bytes();
    let [c, d] = packet.tuple.destination_port.wire().to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Brings SCTP's checksum, which covers no address, to what the change of the ports makes of it. One of zero is left:
/// the kernel leaves it to the device, which wants to find that.
#[inline(always)]
fn fix_crc(ctx: &TcContext, packet: &Packet, difference: u32) -> Result<(), Reason> {
    let datagram = if packet.is_v4 {
        // SAFETY: `at` has checked the bounds.
        u16::from_be(unsafe { &*at::<Ipv4>(ctx, ETHERNET)? }.total_length) as usize
    } else {
        // SAFETY: `at` has checked the bounds.
        u16::from_be(unsafe { &*at::<Ipv6>(ctx, ETHERNET)? }.payload_length) as usize + size_of::<Ipv6>()
    };
    let length = (ETHERNET + datagram).wrapping_sub(packet.transport());
    // A first fragment would need the length of the whole, which it does not know.
    if packet.fragment != Fragment::Whole {
        return Err(Reason::NotForwarded);
    }
    let change = fairlead_crc(difference, length as u32);
    // SAFETY: `at` has checked the bounds.
    let checksum = unsafe { &mut *at::<[u16; 2]>(ctx, packet.transport() + SCTP_CHECKSUM)? };
    if *checksum == [0, 0] {
        return Ok(());
    }
    let [a, b, c, d] = change.to_ne_bytes();
    *checksum = [checksum[0] ^ u16::from_ne_bytes([a, b]), checksum[1] ^ u16::from_ne_bytes([c, d])];
    Ok(())
}

/// Out of line as a global function: the verifier walks its half thousand steps once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_crc(difference: u32, length: u32) -> u32 {
    sctp::change(difference, length)
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
    fix_checksum(ctx, packet, packet.transport() + place, mangled, addresses, ports)
}

/// Brings the checksum at `offset`, which covers the addresses, to the change of these and the ports.
#[inline(always)]
fn fix_checksum(
    ctx: &TcContext,
    packet: &Packet,
    offset: usize,
    mangled: u64,
    addresses: Difference,
    ports: Difference,
) -> Result<(), Reason> {
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
        let place = ETHERNET + offset_of!(Ipv6, hop_limit);
        // SAFETY: `at` has checked the bounds.
        let hop_limit = unsafe { *at::<u8>(ctx, place)? } - 1;
        // No header checksum balances the change for a device that has summed up the whole packet.
        let stored = ctx.store(place, &hop_limit, u64::from(BPF_F_RECOMPUTE_CSUM));
        return stored.map_err(|_| Reason::NotForwarded);
    }
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { &mut *at::<Ipv4>(ctx, ETHERNET)? };
    header.ttl -= 1;
    // The time to live is the high byte of its word: the checksum grows by what the word loses.
    let sum = u32::from(header.checksum) + u32::from(0x0100_u16.to_be());
    header.checksum = (sum + u32::from(sum >= 0xffff)) as u16;
    Ok(())
}
