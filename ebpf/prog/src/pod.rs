//! Packets that a pod sends.

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Reason, protocol};

use crate::ct::{self, may};
use crate::packet::{self, Packet};
use crate::refuse::{self, Back};
use crate::verdict::Verdict;
use crate::{endpoint, forward, nat, observe, quoted, room};

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

/// From parse to verdict. A packet between two pods that no Service touches costs two look-ups.
#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> Result<Verdict, Reason> {
    let room = room::take()?;
    let Some(packet) = packet::parse(ctx, &mut room.packet)? else {
        return Ok(Verdict::Stack);
    };
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let Some(sender) = endpoint::find(&packet.tuple.source).filter(|sender| sender.ifindex == ifindex) else {
        return without_address(ctx, packet);
    };
    if packet.ttl <= 1 {
        return Ok(Verdict::Stack);
    }
    let is_marked = endpoint::is_translated(sender);
    if !is_marked && let Some(receiver) = endpoint::find(&packet.tuple.destination) {
        return forward::deliver(ctx, packet, receiver);
    }
    if is_marked && quoted::translate(ctx, packet)? {
        return forward::send(ctx, packet);
    }
    let may = if is_marked { may::FIND | may::BEGIN_INSIDE | may::KEEP_APART } else { may::BEGIN_INSIDE };
    match ct::flow_of(ctx, packet, may, &mut room.flow) {
        Ok(Some(flow)) => {
            nat::translate(ctx, packet, flow)?;
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
    let first = packet.tuple.source.words()[0];
    let link_local = !packet.is_v4 && first & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be();
    if packet.tuple.protocol != protocol::ICMPV6 || !link_local && !packet.tuple.source.is_unspecified() {
        return Err(Reason::SpoofedSource);
    }
    let kind: u8 = ctx.load(packet.transport()).map_err(|_| Reason::Malformed)?;
    if !matches!(kind, LISTENER_QUERY..=LISTENER_DONE | ROUTER_SOLICITATION..=REDIRECT | LISTENER_REPORT) {
        return Err(Reason::SpoofedSource);
    }
    observe::count(Counter::ToStack);
    Ok(Verdict::Stack)
}
