//! Packets that arrive from outside the node.

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Reason, flow_flags};

use crate::packet;
use crate::refuse::{self, Back};
use crate::room::{self, Room};
use crate::verdict::Verdict;
use crate::{config, ct, endpoint, forward, may, nat, observe, outside, policy, quoted};

/// `PACKET_OTHERHOST` of if_packet.h: a frame for another machine, which the switch has flooded. One with a VLAN's tag is
/// for another interface.
const OTHER_HOST: u32 = 3;

/// From parse to verdict. Only what a local pod or a Service claims is ours; all else is left to the node's
/// stack.
#[inline(always)]
pub(crate) fn from_wire(ctx: &TcContext) -> Result<Verdict, Reason> {
    let Room { packet, findings } = room::take()?;
    let Some(packet) = packet::parse(ctx, packet)? else {
        return Ok(Verdict::Stack);
    };
    if packet.ttl <= 1 || is_for_another(ctx) {
        return Ok(Verdict::Stack);
    }
    // The kernel would call it martian.
    if config::is_node_address(packet.tuple.source) || endpoint::find(&packet.tuple.source).is_some() {
        return Err(Reason::SpoofedSource);
    }
    let receiver = endpoint::find(&packet.tuple.destination);
    let is_idle = policy::is_idle(None, receiver);
    if let Some(receiver) = receiver
        && !endpoint::is_translated(receiver)
        && (is_idle || policy::goes_on(None, Some(receiver), packet))
        && !(packet.is_datagram() && outside::is(&packet.tuple.source))
    {
        return forward::deliver(ctx, packet, receiver);
    }
    let mut may = may::FIND | may::JUDGE | may::OUTSIDE | if is_idle { may::PASS_PLAIN } else { 0 };
    if receiver.is_none() {
        may |= may::BEGIN_OUTSIDE;
        outside::name_reply(packet);
    } else {
        may |= may::REMEMBER;
    }
    if quoted::settle(ctx, packet, may, &mut findings.trial)? {
        return forward::send(ctx, packet);
    }
    match ct::flow_of(ctx, packet, may, findings) {
        Ok(Some(flow)) if flow.flags & flow_flags::STACK != 0 => {
            observe::count(Counter::ToStack);
            Ok(Verdict::Stack)
        }
        Ok(Some(flow)) => {
            nat::follow(ctx, packet, flow)?;
            forward::send(ctx, packet)
        }
        Ok(None) if receiver.is_some() => forward::send(ctx, packet),
        Ok(None) => Ok(Verdict::Stack),
        Err(reason) => refuse::refuse(ctx, packet, reason, Back::Out),
    }
}

/// Whether the frame is for another machine or interface.
#[inline(always)]
pub(crate) fn is_for_another(ctx: &TcContext) -> bool {
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    unsafe { (*ctx.skb.skb).pkt_type == OTHER_HOST || (*ctx.skb.skb).vlan_present != 0 }
}
