//! Packets that the node's own stack sends, and those that it forwards to a pod.
//!
//! Host processes are connected to backends by the socket hooks. What remains are replies of backends that
//! are the node itself (hostNetwork pods), and packets that host processes send to frontends after all:
//! from connected UDP sockets, which no hook would see when their backend goes, and from raw ones. No policy keeps the
//! node from its pods: how would it know whether they live?

use core::mem::MaybeUninit;

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Flow, Reason, flow_flags, policies, protocol};

use crate::packet::{self, Packet};
use crate::refuse::{self, Back};
use crate::room::{self, Room};
use crate::verdict::Verdict;
use crate::{config, ct, endpoint, events, forward, may, nat, policy, quoted, sock};

/// A packet on its way to a local pod: perhaps a reply of a backend that is the node itself, perhaps one that must not
/// be taken for part of another flow, perhaps one of somebody else, which the stack has forwarded.
#[inline(always)]
pub(crate) fn to_pod(ctx: &TcContext) -> Result<Verdict, Reason> {
    if forward::is_settled(ctx) {
        return Ok(Verdict::Stack);
    }
    let Room { packet, findings } = room::take()?;
    let Some(packet) = packet::parse(ctx, packet)? else {
        return Ok(Verdict::Stack);
    };
    let receiver = endpoint::find(&packet.tuple.destination);
    let is_marked = receiver.is_some_and(endpoint::is_translated);
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let (arrived, interface) = unsafe { ((*ctx.skb.skb).ingress_ifindex, (*ctx.skb.skb).ifindex) };
    let mut may;
    // Only what comes from where backends are, or from elsewhere, may be part of a flow to a Service.
    let mut may_serve = true;
    if arrived == 0 {
        may = if is_marked { may::FIND } else { 0 };
        if receiver.is_some_and(|receiver| policy::of(receiver).egress != policies::OPEN) {
            may |= may::ENTER;
        }
        if config::is_node_address(packet.tuple.source) {
            let sender = sender(ctx, packet);
            if sender.is_left(packet) {
                return refuse::refuse(ctx, packet, Reason::NoEndpoint, Back::Up);
            }
            may |= if is_marked { sender.may_keep_apart() } else { 0 };
        } else if may & may::ENTER == 0 {
            // Not a reply of a backend.
            return Ok(Verdict::Stack);
        } else {
            may_serve = false;
        }
    } else {
        // Until it is known who has the interface, nobody but the node reaches it.
        let receiver = receiver.filter(|receiver| receiver.ifindex == interface);
        let Some(receiver) = receiver else {
            events::tell_of(&packet.tuple, Reason::PolicyUnknown, 0);
            return Err(Reason::PolicyUnknown);
        };
        let is_idle = policy::is_idle(None, Some(receiver));
        if is_idle && !is_marked && !packet.may_begin() {
            return Ok(Verdict::Stack);
        }
        may = may::FIND | may::JUDGE | may::STACK | if is_idle { may::PASS_PLAIN } else { 0 };
    }
    if may == 0 || may_serve && quoted::settle(ctx, packet, may, &mut findings.trial)? {
        return Ok(Verdict::Stack);
    }
    match ct::flow_of(ctx, packet, may, findings) {
        Ok(Some(flow)) if may_serve => nat::follow(ctx, packet, flow)?,
        Ok(_) => {}
        // What can't be entered passes all the same, though its answer may not.
        Err(_) if may & may::ENTER != 0 => {}
        Err(reason) => return Err(reason),
    }
    Ok(Verdict::Stack)
}

/// A packet on its way out of the node: perhaps such a reply, perhaps one to a frontend.
#[inline(always)]
pub(crate) fn to_wire(ctx: &TcContext) -> Result<Verdict, Reason> {
    if forward::is_settled(ctx) {
        return Ok(Verdict::Stack);
    }
    let Room { packet, findings } = room::take()?;
    let Some(packet) = own(ctx, packet)? else {
        return Ok(Verdict::Stack);
    };
    let sender = sender(ctx, packet);
    if sender.is_left(packet) {
        return refuse::refuse(ctx, packet, Reason::NoEndpoint, Back::Up);
    }
    let may = may::FIND | may::BEGIN_AWAY | sender.may_keep_apart();
    if quoted::settle(ctx, packet, may, &mut findings.trial)? {
        return forward::emit(ctx, packet);
    }
    let flow = match ct::flow_of(ctx, packet, may, findings) {
        Ok(Some(flow)) if flow.flags & flow_flags::STACK == 0 => flow,
        Ok(_) => return Ok(Verdict::Stack),
        Err(reason) => return refuse::refuse(ctx, packet, reason, Back::Up),
    };
    nat::follow(ctx, packet, flow)?;
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
