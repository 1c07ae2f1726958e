//! Packets that are too large for their route after translation, or masqueraded and without any.
//!
//! The kernel would answer them, but not all: it takes a masqueraded packet, which claims to come from the node, for a
//! martian. So the packet is given back the tuple that it came with, and answered with the size that fits (RFC 1191,
//! section 4; RFC 4443, section 3.2), or told that there is no route: its sender never learns of the translation. An IPv4 packet that might be
//! fragmented is answered too.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Reason};

use crate::packet::Fragment;
use crate::refuse::Back;
use crate::verdict::{self, Verdict};
use crate::{config, icmp, nat, observe, refuse, room, table};

/// Answers the packet if it was translated; another one is for the kernel to fragment or answer.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext, mtu: u16, back: Back) -> Result<Verdict, Reason> {
    Ok(Verdict::Done(fairlead_toobig(ctx.skb.skb, u32::from(mtu), back.flags())))
}

/// Refuses a masqueraded packet that no route takes.
#[inline(always)]
pub(crate) fn refuse(ctx: &TcContext, back: Back) -> Result<Verdict, Reason> {
    Ok(Verdict::Done(fairlead_toobig(ctx.skb.skb, 0, back.flags())))
}

/// `mtu` is what fits, 0 where nothing does. Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_toobig(skb: *mut __sk_buff, mtu: u32, flags: u32) -> i32 {
    verdict::code(answer_original(&TcContext::new(skb), mtu, flags))
}

#[inline(always)]
fn answer_original(ctx: &TcContext, mtu: u32, flags: u32) -> Result<Verdict, Reason> {
    let (packet, original) = room::sent()?;
    // A later fragment has no ports to find its flow by; its first has been answered.
    if packet.fragment == Fragment::Later && config::is_node_address(packet.tuple.source) {
        return Err(Reason::TooBig);
    }
    let Some(partner) = table::translation_of_answer(&packet.tuple) else {
        observe::count(Counter::ToStack);
        return Ok(Verdict::Stack);
    };
    original.source = partner.destination;
    original.destination = partner.source;
    original.source_port = partner.destination_port;
    original.destination_port = partner.source_port;
    nat::translate(ctx, packet, original)?;
    let (error, reason) = match mtu {
        0 => (icmp::Error::NO_ROUTE, Reason::NotForwarded),
        _ => (icmp::Error::too_big(mtu as u16), Reason::TooBig),
    };
    icmp::answer(ctx, packet, error, reason)?;
    refuse::send_back(ctx, packet, reason, flags)
}
