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

/// A packet on its way to a local pod: perhaps a reply of a backend that is the node itself, perhaps one that must not
/// be taken for part of another flow.
#[inline(always)]
pub(crate) fn to_pod(ctx: &TcContext) -> Result<Verdict, Reason> {
    if forward::is_settled(ctx) {
        return Ok(Verdict::Stack);
    }
    let room = room::take()?;
    let Some(packet) = own(ctx, &mut room.packet)? else {
        return Ok(Verdict::Stack);
    };
    let sender = sender(ctx, packet);
    if sender.is_left(packet) {
        return refuse::refuse(ctx, packet, Reason::NoEndpoint, Back::Up);
    }
    let receiver = endpoint::find(&packet.tuple.destination);
    if receiver.is_some_and(endpoint::is_translated)
        && !quoted::translate(ctx, packet)?
        && let Some(flow) = ct::flow_of(ctx, packet, may::FIND | sender.may_keep_apart(), &mut room.flow)?
    {
        nat::translate(ctx, packet, flow)?;
    }
    Ok(Verdict::Stack)
}

/// A packet on its way out of the node: perhaps such a reply, perhaps one to a frontend.
#[inline(always)]
pub(crate) fn to_wire(ctx: &TcContext) -> Result<Verdict, Reason> {
    if forward::is_settled(ctx) {
        return Ok(Verdict::Stack);
    }
    let room = room::take()?;
    let Some(packet) = own(ctx, &mut room.packet)? else {
        return Ok(Verdict::Stack);
    };
    let sender = sender(ctx, packet);
    if sender.is_left(packet) {
        return refuse::refuse(ctx, packet, Reason::NoEndpoint, Back::Up);
    }
    if quoted::translate(ctx, packet)? {
        return forward::emit(ctx, packet);
    }
    let may = may::FIND | may::BEGIN_AWAY | sender.may_keep_apart();
    let flow = match ct::flow_of(ctx, packet, may, &mut room.flow) {
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

/// The socket that sent a datagram, by its cookie; 0 for what is no datagram, and for one that no socket of this node
/// sent: one that a program has masqueraded and sent on.
#[derive(Clone, Copy)]
struct Sender(u64);

#[inline(always)]
fn sender(ctx: &TcContext, packet: &Packet) -> Sender {
    Sender(if packet.tuple.protocol == protocol::UDP { sock::cookie_of(ctx) } else { 0 })
}

impl Sender {
    /// Whether it was connected to a backend that is gone.
    #[inline(always)]
    fn is_left(self, packet: &Packet) -> bool {
        self.0 != 0 && sock::is_left(self.0, &packet.tuple.destination, packet.tuple.destination_port)
    }

    /// Its port may have been another socket's, whose flow is still known.
    #[inline(always)]
    fn may_keep_apart(self) -> u32 {
        if self.0 != 0 { may::KEEP_APART } else { 0 }
    }
}

#[inline(always)]
fn is_reply(flow: &Flow) -> bool {
    flow.flags & flow_flags::REPLY != 0
}
