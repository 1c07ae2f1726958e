//! ICMP and ICMPv6 errors about packets of translated flows (RFC 792; RFC 4443, section 3).
//!
//! Such an error quotes the packet as its sender saw it: translated. Whoever it is for knows the flow by another
//! tuple. An answer to the quoted packet would be translated by the flow table, so the error is given the receiver
//! that the answer would get, and the quotation the tuple that such an answer would then belong to.

use core::ops::Range;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Address, Counter, DropEvent, Flow, FlowKey, Port, Reason, protocol};
use fairlead_flow::checksum::Difference;

use crate::about::{self, About};
use crate::nat::{ECHO_IDENTIFIER, ICMP_CHECKSUM, TCP_CHECKSUM, UDP_CHECKSUM};
use crate::packet::{ECHO_REQUEST, ECHO_REQUEST_V6, ETHERNET, FRAGMENT, Ipv4, Ipv6, Packet, at, is_of_ports};
use crate::verdict::Outcome;
use crate::{config, observe, table};

/// Length of an ICMP header.
pub(crate) const ICMP: usize = 8;
/// Where it has its checksum.
const CHECKSUM: usize = 2;
/// The bits of an IPv4 header's fragment field that hold the offset, as they stand in memory.
const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();
/// Destination unreachable, time exceeded, parameter problem (RFC 792).
const ERRORS_V4: [u8; 3] = [3, 11, 12];
/// Source quench and redirect (RFC 792): no question either, and not for another to hear.
const OTHER_ERRORS_V4: [u8; 2] = [4, 5];
/// The first type of ICMPv6 that is no error (RFC 4443, section 2.1).
const INFORMATION_V6: u8 = 128;

/// Whether this ICMP message may be answered with an error: whether it is none itself.
#[inline(always)]
pub(crate) fn is_question(ctx: &TcContext, packet: &Packet) -> Result<bool, Reason> {
    let kind: u8 = ctx.load(packet.transport()).map_err(|_| Reason::Malformed)?;
    if !packet.is_v4 {
        return Ok(!is_error_v6(kind));
    }
    Ok(!is_error_v4(kind) && !OTHER_ERRORS_V4.contains(&kind))
}

/// Whether an ICMP message of this type quotes a packet.
#[inline(always)]
pub(crate) fn is_error_v4(kind: u8) -> bool {
    ERRORS_V4.contains(&kind)
}

/// Whether an ICMPv6 message of this type quotes a packet.
#[inline(always)]
pub(crate) fn is_error_v6(kind: u8) -> bool {
    kind < INFORMATION_V6
}

/// Whether what follows the quoted header is a transport header.
#[inline(always)]
pub(crate) fn is_whole_v4(header: &Ipv4) -> bool {
    header.version_ihl == 0x45 && header.fragment & FRAGMENT_OFFSET == 0
}

/// Translates the packet, if it is an error about a packet of a translated flow, for whom it is meant, and asks the
/// policies about that flow, as far as the caller may. Answers whether the packet goes on as it is now: another one is to
/// be seen as any packet is.
#[inline(always)]
pub(crate) fn settle(
    ctx: &TcContext,
    packet: &mut Packet,
    may: u32,
    trial: &mut DropEvent,
) -> Result<bool, Reason> {
    match about::of(ctx, packet, may, trial)? {
        About::TRANSLATED => Outcome(fairlead_quoted(ctx.skb.skb, packet)).is_something(),
        about => Ok(about == About::PLAIN),
    }
}

/// Out of line as a global function: the verifier walks it once, by itself, and its callers go on with one state
/// where the ways through it had many; nor do they hold its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_quoted(skb: *mut __sk_buff, packet: *mut Packet) -> i32 {
    // SAFETY: the caller passes a packet of its own; the verifier wants to see that it is there.
    let Some(packet) = (unsafe { packet.as_mut() }) else {
        return Outcome::NOTHING.0;
    };
    let ctx = TcContext::new(skb);
    let done = if packet.is_v4 { translate_v4(&ctx, packet) } else { translate_v6(&ctx, packet) };
    match done {
        Ok(true) => {
            observe::count(Counter::ErrorTranslated);
            Outcome::SOMETHING.0
        }
        // What can't be read is for others to judge.
        Ok(false) | Err(_) => Outcome::NOTHING.0,
    }
}

/// Whether an ICMP message of this protocol and type is an echo request.
#[inline(always)]
fn is_echo_request(ip_protocol: u8, kind: u8) -> bool {
    matches!((ip_protocol, kind), (protocol::ICMP, ECHO_REQUEST) | (protocol::ICMPV6, ECHO_REQUEST_V6))
}

/// The protocol of a quoted IPv6 packet, and where its transport header begins; none where that is in another fragment. A
/// packet too big has often been cut already, by its sender.
#[inline(always)]
pub(crate) fn transport_v6(
    ctx: &TcContext,
    inner: usize,
    header: &Ipv6,
) -> Result<Option<(u8, usize)>, Reason> {
    let transport = inner + size_of::<Ipv6>();
    if header.next_header != FRAGMENT {
        return Ok(Some((header.next_header, transport)));
    }
    let [next, _, high, low]: [u8; 4] = read(ctx, transport)?;
    let is_first = u16::from_be_bytes([high, low]) >> 3 == 0;
    Ok(is_first.then_some((next, transport + 8)))
}

/// Reads a header at a place that varies: through the helper, since the verifier loses track of such pointers.
#[inline(always)]
pub(crate) fn read<T>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    ctx.load(offset).map_err(|_| Reason::Malformed)
}

/// Writes it back.
#[inline(always)]
fn write<T>(ctx: &TcContext, offset: usize, header: &T) -> Result<(), Reason> {
    ctx.store(offset, header, 0).map_err(|_| Reason::Malformed)
}

/// The answer that the flow table would be asked about, were the quoted packet answered.
#[inline(always)]
pub(crate) fn answer_to(
    source: Address,
    destination: Address,
    ip_protocol: u8,
    transport: [u16; 4],
) -> FlowKey {
    let [first, second, third, _] = transport.map(Port::from_wire);
    let [kind, _] = transport[0].to_ne_bytes();
    let [source_port, destination_port] = if is_of_ports(ip_protocol) {
        [first, second]
    } else if is_echo_request(ip_protocol, kind) && config::is_node_address(source) {
        // A pod's to the outside: see `outside`.
        [third, Port::default()]
    } else {
        [Port::default(); 2]
    };
    FlowKey {
        source: destination,
        destination: source,
        source_port: destination_port,
        destination_port: source_port,
        protocol: ip_protocol,
        reserved: [0; 3],
    }
}

#[inline(always)]
fn translate_v4(ctx: &TcContext, packet: &mut Packet) -> Result<bool, Reason> {
    let icmp = packet.transport();
    let inner = icmp + ICMP;
    if !is_error_v4(read(ctx, icmp)?) {
        return Ok(false);
    }
    let mut header: Ipv4 = read(ctx, inner)?;
    if !is_whole_v4(&header) {
        return Ok(false);
    }
    let transport = inner + size_of::<Ipv4>();
    // SAFETY: `at` has checked the bounds.
    let length = u16::from_be(unsafe { &*at::<Ipv4>(ctx, ETHERNET)? }.total_length);
    let end = ETHERNET + length as usize;
    let (source, destination) =
        (Address::from_v4_word(header.source), Address::from_v4_word(header.destination));
    let key = answer_to(source, destination, header.protocol, read(ctx, transport)?);
    let Some(flow) = table::look_up(&key) else {
        return Ok(false);
    };
    let addresses = Difference::NONE.address(source, flow.destination).address(destination, flow.source);
    header.source = flow.destination.v4_word();
    header.destination = flow.source.v4_word();
    header.checksum = addresses.apply(header.checksum);
    write(ctx, inner, &header)?;
    // What the quotation's header gains its checksum loses, so the message's own does not see it.
    let growth = translate_transport(ctx, transport..end, &key, flow, addresses)?;
    write_checksum(ctx, icmp, growth)?;

    address(packet, flow, destination);
    // SAFETY: `at` has checked the bounds.
    let outer = unsafe { &mut *at::<Ipv4>(ctx, ETHERNET)? };
    let addresses = Difference::NONE
        .word(outer.source, packet.tuple.source.v4_word())
        .word(outer.destination, packet.tuple.destination.v4_word());
    outer.source = packet.tuple.source.v4_word();
    outer.destination = packet.tuple.destination.v4_word();
    outer.checksum = addresses.apply(outer.checksum);
    Ok(true)
}

#[inline(always)]
fn translate_v6(ctx: &TcContext, packet: &mut Packet) -> Result<bool, Reason> {
    let icmp = packet.transport();
    let inner = icmp + ICMP;
    if !is_error_v6(read(ctx, icmp)?) {
        return Ok(false);
    }
    let mut header: Ipv6 = read(ctx, inner)?;
    let Some((ip_protocol, transport)) = transport_v6(ctx, inner, &header)? else {
        return Ok(false);
    };
    // SAFETY: `at` has checked the bounds.
    let length = u16::from_be(unsafe { &*at::<Ipv6>(ctx, ETHERNET)? }.payload_length);
    let end = ETHERNET + size_of::<Ipv6>() + length as usize;
    let (source, destination) =
        (Address::from_v6_words(header.source), Address::from_v6_words(header.destination));
    // Here, a mapped address would pass for the IPv4 address that it stands for.
    if source.is_v4() || destination.is_v4() {
        return Ok(false);
    }
    let key = answer_to(source, destination, ip_protocol, read(ctx, transport)?);
    let Some(flow) = table::look_up(&key) else {
        return Ok(false);
    };
    let addresses = Difference::NONE.address(source, flow.destination).address(destination, flow.source);
    header.source = flow.destination.words();
    header.destination = flow.source.words();
    write(ctx, inner, &header)?;
    let growth = translate_transport(ctx, transport..end, &key, flow, addresses)?;

    let before = (packet.tuple.source, packet.tuple.destination);
    address(packet, flow, destination);
    // The message's checksum covers the outer addresses too (RFC 4443, section 2.3).
    let growth = growth
        .and(addresses)
        .address(before.0, packet.tuple.source)
        .address(before.1, packet.tuple.destination);
    write_checksum(ctx, icmp, growth)?;
    // SAFETY: `at` has checked the bounds.
    let outer = unsafe { &mut *at::<Ipv6>(ctx, ETHERNET)? };
    outer.source = packet.tuple.source.words();
    outer.destination = packet.tuple.destination.words();
    Ok(true)
}

/// Addresses the error to whom it is meant for. One that the quoted packet's receiver itself sent comes from the
/// address that it answers by; a router's keeps the router's.
#[inline(always)]
fn address(packet: &mut Packet, flow: &Flow, receiver: Address) {
    packet.tuple.destination = flow.destination;
    if packet.tuple.source == receiver {
        packet.tuple.source = flow.source;
    }
}

/// Gives the quoted transport header, as much of it as lies in these bytes, the ports that belong to the translated
/// quotation, and its checksum the change. Returns by how much the sum of all this grows.
#[inline(always)]
fn translate_transport(
    ctx: &TcContext,
    quoted: Range<usize>,
    answer: &FlowKey,
    flow: &Flow,
    addresses: Difference,
) -> Result<Difference, Reason> {
    let transport = quoted.start;
    if !is_of_ports(answer.protocol) {
        return name_echo(ctx, transport, answer, flow, addresses);
    }
    write(ctx, transport, &[flow.destination_port.wire(), flow.source_port.wire()])?;
    let growth = Difference::NONE
        .half(answer.destination_port.wire(), flow.destination_port.wire())
        .half(answer.source_port.wire(), flow.source_port.wire());
    let place = match answer.protocol {
        protocol::TCP => TCP_CHECKSUM,
        protocol::UDP => UDP_CHECKSUM,
        // SCTP's can't be computed from a part.
        _ => return Ok(growth),
    };
    // What follows the packet in its frame is no part of it.
    if transport + place + size_of::<u16>() > quoted.end {
        return Ok(growth);
    }
    let old: u16 = read(ctx, transport + place)?;
    if old == 0 && answer.protocol == protocol::UDP {
        return Ok(growth);
    }
    let new = growth.and(addresses).apply(old);
    write(ctx, transport + place, &new)?;
    Ok(growth.half(old, new))
}

/// Gives a quoted echo request the identifier that its sender knows, and its checksum the change. Returns by how much the
/// sum of all this grows. Nothing else that has no ports is changed.
#[inline(always)]
fn name_echo(
    ctx: &TcContext,
    transport: usize,
    answer: &FlowKey,
    flow: &Flow,
    addresses: Difference,
) -> Result<Difference, Reason> {
    if !matches!(answer.protocol, protocol::ICMP | protocol::ICMPV6) {
        return Ok(Difference::NONE);
    }
    write(ctx, transport + ECHO_IDENTIFIER, &flow.destination_port.wire())?;
    let growth = Difference::NONE.half(answer.destination_port.wire(), flow.destination_port.wire());
    let old: u16 = read(ctx, transport + ICMP_CHECKSUM)?;
    let covered = if answer.protocol == protocol::ICMPV6 { growth.and(addresses) } else { growth };
    let new = covered.apply(old);
    write(ctx, transport + ICMP_CHECKSUM, &new)?;
    Ok(growth.half(old, new))
}

/// Brings the message's checksum to the growth of what it covers.
#[inline(always)]
fn write_checksum(ctx: &TcContext, icmp: usize, growth: Difference) -> Result<(), Reason> {
    let old = read(ctx, icmp + CHECKSUM)?;
    write(ctx, icmp + CHECKSUM, &growth.apply(old))
}
