//! Refusing a packet for a Service without endpoints, so that the client's connect() fails at once.
//!
//! The answer is port unreachable, but for a SYN it is RST. An ICMP error may be back while connect() still holds
//! its socket: a veth pair is crossed within the call that sends. The kernel ignores errors for a socket in use,
//! so that the client would notice only when it sends its SYN again, a second later. A segment is queued for the
//! socket instead.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Reason};

use crate::packet::{Ethernet, Packet, at};
use crate::verdict::{self, Verdict};
use crate::{icmp, observe, reset};

/// Answers the packet, out of where it came from.
#[inline(always)]
pub(crate) fn refuse(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    Ok(Verdict::Done(fairlead_refuse(ctx.skb.skb, packet)))
}

/// Out of line as a global function: the verifier walks it once, by itself, and its callers go on with one state
/// where the ways through it had many; nor do they hold its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_refuse(skb: *mut __sk_buff, packet: *const Packet) -> i32 {
    // SAFETY: the caller passes a packet of its own; the verifier wants to see that it is there.
    match unsafe { packet.as_ref() } {
        Some(packet) => verdict::code(answer(&TcContext::new(skb), packet)),
        None => verdict::code(Err(Reason::NoEndpoint)),
    }
}

#[inline(always)]
fn answer(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    let reason = Reason::NoEndpoint;
    if packet.tcp.opens() {
        reset::refuse(ctx, packet, reason)?;
    } else {
        icmp::refuse(ctx, packet, reason)?;
    }
    // SAFETY: `at` has checked the bounds.
    let frame = unsafe { &mut *at::<Ethernet>(ctx, 0)? };
    let (source, destination) = (frame.source, frame.destination);
    frame.source = destination;
    frame.destination = source;
    observe::drop(reason);
    observe::count(Counter::Rejected);
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave; the helper
    // takes numbers only.
    Ok(Verdict::Done(unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) } as i32))
}
