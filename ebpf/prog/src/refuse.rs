//! Refusing a packet for a Service without endpoints, or for a port that its Service has not, so that the client's connect() fails at once.
//!
//! The answer is port unreachable, but for a SYN it is RST. An ICMP error may be back while connect() still holds
//! its socket: a veth pair is crossed within the call that sends. The kernel ignores errors for a socket in use,
//! so that the client would notice only when it sends its SYN again, a second later. A segment is queued for the
//! socket instead.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Reason, event_flags, protocol};

use crate::packet::{Ethernet, Fragment, Packet, at};
use crate::verdict::{self, Verdict};
use crate::{events, icmp, observe, quoted, reset};

/// Where the answer goes.
#[derive(Clone, Copy)]
pub(crate) enum Back {
    /// Out of the interface that the packet came in by.
    Out,
    /// Up to the node's own stack, which sent the packet.
    Up,
}

impl Back {
    /// The flags of the helper that sends it there.
    #[inline(always)]
    pub(crate) fn flags(self) -> u32 {
        match self {
            Self::Out => 0,
            Self::Up => BPF_F_INGRESS,
        }
    }
}

/// Answers the packet, if the reason is one that its sender is told at once; else it is dropped.
#[inline(always)]
pub(crate) fn refuse(
    ctx: &TcContext,
    packet: &Packet,
    reason: Reason,
    back: Back,
) -> Result<Verdict, Reason> {
    if !matches!(reason, Reason::NoEndpoint | Reason::UnknownPort) {
        return Err(reason);
    }
    Ok(Verdict::Done(fairlead_refuse(ctx.skb.skb, packet, reason as u32, back.flags())))
}

/// Out of line as a global function: the verifier walks it once, by itself, and its callers go on with one state
/// where the ways through it had many; nor do they hold its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_refuse(skb: *mut __sk_buff, packet: *const Packet, reason: u32, flags: u32) -> i32 {
    let reason = Reason::numbered(reason);
    // SAFETY: the caller passes a packet of its own; the verifier wants to see that it is there.
    match unsafe { packet.as_ref() } {
        Some(packet) => verdict::code(answer(&TcContext::new(skb), packet, reason, flags)),
        None => verdict::code(Err(reason)),
    }
}

#[inline(always)]
fn answer(ctx: &TcContext, packet: &Packet, reason: Reason, flags: u32) -> Result<Verdict, Reason> {
    // No error is sent about an error, nor about a fragment that is not the first (RFC 1122, section 3.2.2).
    if packet.fragment == Fragment::Later || packet.is_icmp() && !quoted::is_question(ctx, packet)? {
        return Err(reason);
    }
    if packet.tuple.protocol == protocol::TCP && packet.tcp.opens() {
        reset::refuse(ctx, packet, reason)?;
    } else {
        icmp::answer(ctx, packet, icmp::Error::UNREACHABLE, reason)?;
    }
    observe::count(Counter::Rejected);
    send_back(ctx, packet, reason, flags)
}

/// Sends the answer that has been made of a packet to where that came from.
#[inline(always)]
pub(crate) fn send_back(
    ctx: &TcContext,
    packet: &Packet,
    reason: Reason,
    flags: u32,
) -> Result<Verdict, Reason> {
    // SAFETY: `at` has checked the bounds.
    let frame = unsafe { &mut *at::<Ethernet>(ctx, 0)? };
    let (source, destination) = (frame.source, frame.destination);
    frame.source = destination;
    frame.destination = source;
    observe::drop(reason);
    events::tell_of(&packet.tuple, reason, event_flags::REFUSED);
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave; the helper
    // takes numbers only.
    Ok(Verdict::Done(unsafe { bpf_redirect((*ctx.skb.skb).ifindex, u64::from(flags)) } as i32))
}
