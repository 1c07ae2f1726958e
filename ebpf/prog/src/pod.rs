//! Packets that a pod sends.

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Reason, protocol};

use crate::lb::Client;
use crate::packet::{self, Packet};
use crate::verdict::Verdict;
use crate::{ct, endpoint, forward, host, icmp, nat, observe};

/// From parse to verdict. A packet between two pods that no Service touches costs two look-ups.
#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> Result<Verdict, Reason> {
    let Some(mut packet) = packet::parse(ctx)? else {
        return Ok(Verdict::Stack);
    };
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let Some(sender) = endpoint::find(&packet.tuple.source).filter(|sender| sender.ifindex == ifindex) else {
        return without_address(&packet);
    };
    if packet.ttl <= 1 {
        return Ok(Verdict::Stack);
    }
    let known = if endpoint::is_translated(sender) { ct::find(&packet) } else { None };
    if known.is_none()
        && let Some(receiver) = endpoint::find(&packet.tuple.destination)
    {
        return forward::deliver(ctx, &packet, receiver);
    }
    let flow = match known {
        Some(flow) => Ok(Some(flow)),
        None => host::begin(&packet, Client::Inside),
    };
    match flow {
        Ok(Some(flow)) => {
            nat::translate(ctx, &mut packet, &flow)?;
            forward::send(ctx, &packet)
        }
        Ok(None) => forward::route(ctx, &packet),
        Err(Reason::NoEndpoint) => icmp::refuse(ctx, &packet, Reason::NoEndpoint),
        Err(reason) => Err(reason),
    }
}

/// A packet whose source is not the pod's own address. Only neighbour and multicast listener discovery
/// (RFC 4861, RFC 3810) may have one, and only the node itself hears it.
#[inline(always)]
fn without_address(packet: &Packet) -> Result<Verdict, Reason> {
    let first = packet.tuple.source.words()[0];
    let link_local = !packet.is_v4 && first & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be();
    let unspecified = packet.tuple.source.is_unspecified();
    if packet.tuple.protocol == protocol::ICMPV6 && (link_local || unspecified) {
        observe::count(Counter::ToStack);
        return Ok(Verdict::Stack);
    }
    Err(Reason::SpoofedSource)
}
