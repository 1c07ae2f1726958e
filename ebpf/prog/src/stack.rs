//! Packets that the node's own stack sends.
//!
//! Host processes are connected to backends by the socket hooks. What remains are replies of backends that
//! are the node itself (hostNetwork pods), and packets that host processes send to frontends after all:
//! from connected UDP sockets, which no hook would see when their backend goes, and from raw ones.

use core::mem::MaybeUninit;

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Flow, Reason, flow_flags, protocol};

use crate::ct::{self, may};
use crate::packet::{self, Packet};
use crate::refuse::{self, Back};
use crate::verdict::Verdict;
use crate::{config, endpoint, forward, nat, quoted, room, sock};

/// A packet on its way to a local pod: perhaps a reply of a backend that is the node itself.
#[inline(always)]
pub(crate) fn to_pod(ctx: &TcContext) -> Result<Verdict, Reason> {
    let room = room::take()?;
    let Some(packet) = own(ctx, &mut room.packet)? else {
        return Ok(Verdict::Stack);
    };
    if is_left(ctx, packet) {
        return refuse::refuse(ctx, packet, Reason::NoEndpoint, Back::Up);
    }
    let receiver = endpoint::find(&packet.tuple.destination);
    if receiver.is_some_and(endpoint::is_translated)
        && !quoted::translate(ctx, packet)?
        && let Some(flow) = ct::flow_of(ctx, packet, may::FIND, &mut room.flow)?.filter(|flow| is_reply(flow))
    {
        nat::translate(ctx, packet, flow)?;
    }
    Ok(Verdict::Stack)
}

/// A packet on its way out of the node: perhaps such a reply, perhaps one to a frontend.
#[inline(always)]
pub(crate) fn to_wire(ctx: &TcContext) -> Result<Verdict, Reason> {
    let room = room::take()?;
    let Some(packet) = own(ctx, &mut room.packet)? else {
        return Ok(Verdict::Stack);
    };
    if is_left(ctx, packet) {
        return refuse::refuse(ctx, packet, Reason::NoEndpoint, Back::Up);
    }
    if quoted::translate(ctx, packet)? {
        return forward::emit(ctx, packet);
    }
    let flow = match ct::flow_of(ctx, packet, may::FIND | may::BEGIN_AWAY, &mut room.flow) {
        Ok(Some(flow)) => flow,
        Ok(None) => return Ok(Verdict::Stack),
        Err(reason) => return refuse::refuse(ctx, packet, reason, Back::Up),
    };
    nat::translate(ctx, packet, flow)?;
    if is_reply(flow) { Ok(Verdict::Stack) } else { forward::emit(ctx, packet) }
}

/// The packet, if it is the node's own. What is only forwarded has another source.
#[inline(always)]
fn own<'room>(
    ctx: &TcContext,
    room: &'room mut MaybeUninit<Packet>,
) -> Result<Option<&'room mut Packet>, Reason> {
    let packet = packet::parse(ctx, room)?;
    Ok(packet.filter(|packet| config::is_node_address(packet.tuple.source)))
}

/// Whether it is a datagram of a socket that was connected to a backend which is gone.
#[inline(always)]
fn is_left(ctx: &TcContext, packet: &Packet) -> bool {
    packet.tuple.protocol == protocol::UDP
        && sock::is_left(ctx.skb.skb, &packet.tuple.destination, packet.tuple.destination_port)
}

#[inline(always)]
fn is_reply(flow: &Flow) -> bool {
    flow.flags & flow_flags::REPLY != 0
}
