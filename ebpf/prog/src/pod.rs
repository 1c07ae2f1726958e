//! Packets that a pod sends.

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Address, Counter, Reason, flow_flags, protocol};

use crate::packet::{self, Packet};
use crate::refuse::{self, Back};
use crate::room::{self, Room};
use crate::verdict::Verdict;
use crate::{ct, endpoint, forward, may, nat, observe, outside, policy, quoted};

/// The first of three ICMPv6 types of multicast listener discovery, version 1.
const LISTENER_QUERY: u8 = 130;
/// The last of them.
const LISTENER_DONE: u8 = 132;
/// The report of version 2.
const LISTENER_REPORT: u8 = 143;
/// The first of five ICMPv6 types of neighbour discovery.
const ROUTER_SOLICITATION: u8 = 133;
/// The last of them.
const REDIRECT: u8 = 137;

/// From parse to verdict. A packet between two pods that no Service and no policy touches costs two look-ups.
#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> Result<Verdict, Reason> {
    let Room { packet, findings } = room::take()?;
    let Some(packet) = packet::parse(ctx, packet)? else {
        return Ok(Verdict::Stack);
    };
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let Some(sender) = endpoint::find(&packet.tuple.source).filter(|sender| sender.ifindex == ifindex) else {
        return without_address(ctx, packet);
    };
    let receiver = endpoint::find(&packet.tuple.destination);
    let is_idle = policy::is_idle(Some(sender), receiver);
    let ends_here = packet.ttl <= 1;
    if ends_here && is_idle {
        return Ok(Verdict::Stack);
    }
    let is_marked = endpoint::is_translated(sender);
    if !is_marked
        && !ends_here
        && let Some(receiver) = receiver
        && (is_idle || policy::goes_on(Some(sender), Some(receiver), packet))
    {
        return forward::deliver(ctx, packet, receiver);
    }
    if !is_idle && is_discovery(ctx, packet) {
        observe::count(Counter::ToStack);
        return Ok(Verdict::Stack);
    }
    let mut may = may::JUDGE | if is_idle { may::PASS_PLAIN } else { 0 };
    if is_marked {
        may |= may::FIND | may::KEEP_APART;
    }
    // A local pod's address is no frontend.
    if !ends_here && receiver.is_none() {
        may |= may::BEGIN_INSIDE | may::LEAVE;
        outside::name_request(packet);
    }
    if quoted::settle(ctx, packet, may | may::OWN_SOURCE, &mut findings.trial)? {
        return forward::send(ctx, packet);
    }
    match ct::flow_of(ctx, packet, may, findings) {
        // A router's to answer, but for the node's own, which its stack hears.
        Ok(_) if ends_here => Ok(Verdict::Stack),
        Ok(Some(flow)) if flow.flags & flow_flags::STACK != 0 => {
            observe::count(Counter::ToStack);
            Ok(Verdict::Stack)
        }
        Ok(Some(flow)) => {
            nat::follow(ctx, packet, flow)?;
            forward::send(ctx, packet)
        }
        Ok(None) => forward::send(ctx, packet),
        Err(reason) => refuse::refuse(ctx, packet, reason, Back::Out),
    }
}

/// A packet whose source is not the pod's own address. Only neighbour and multicast listener discovery
/// (RFC 4861, RFC 3810) may have one, and only the node itself hears it.
#[inline(always)]
fn without_address(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    let source = packet.tuple.source;
    if packet.tuple.protocol != protocol::ICMPV6 || !is_link_local(source) && !source.is_unspecified() {
        return Err(Reason::SpoofedSource);
    }
    let kind: u8 = ctx.load(packet.transport()).map_err(|_| Reason::Malformed)?;
    if !is_kind_of_discovery(kind) {
        return Err(Reason::SpoofedSource);
    }
    observe::count(Counter::ToStack);
    Ok(Verdict::Stack)
}

/// Whether it is a message of discovery that goes no further than the link: no policy keeps a pod from finding its
/// next hop.
#[inline(always)]
fn is_discovery(ctx: &TcContext, packet: &Packet) -> bool {
    let destination = packet.tuple.destination;
    let is_many = destination.words()[0] & 0xff00_0000_u32.to_be() == 0xff00_0000_u32.to_be();
    packet.tuple.protocol == protocol::ICMPV6
        && !packet.is_v4
        && (is_many || is_link_local(destination))
        && ctx.load(packet.transport()).is_ok_and(is_kind_of_discovery)
}

#[inline(always)]
fn is_kind_of_discovery(kind: u8) -> bool {
    matches!(kind, LISTENER_QUERY..=LISTENER_DONE | ROUTER_SOLICITATION..=REDIRECT | LISTENER_REPORT)
}

/// Whether the address is one of fe80::/10 (RFC 4291, section 2.5.6).
#[inline(always)]
fn is_link_local(address: Address) -> bool {
    address.words()[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
}
