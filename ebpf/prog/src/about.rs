//! What an ICMP or ICMPv6 error is about, and whether policies admit it: they do if they admit the flow that it tells
//! of, whichever end began that.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Address, DropEvent, FlowKey, Reason, flow_flags};

use crate::packet::{Fragment, Ipv4, Ipv6, Packet, is_extension};
use crate::policy::{self, reading};
use crate::quoted::{self, ICMP};
use crate::verdict::Outcome;
use crate::{events, may, table};

/// What an error is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct About(i32);

impl About {
    /// Nothing that says more than the packet's own addresses, or no error at all.
    pub(crate) const NOTHING: Self = Self(0);
    /// A flow that is translated.
    pub(crate) const TRANSLATED: Self = Self(1);
    /// A flow whose packets leave as they came.
    pub(crate) const PLAIN: Self = Self(2);
}

/// What the packet is about, as far as the caller [`may`] ask; or why it may not pass.
#[inline(always)]
pub(crate) fn of(ctx: &TcContext, packet: &Packet, may: u32, trial: &mut DropEvent) -> Result<About, Reason> {
    if !packet.is_icmp() || packet.fragment != Fragment::Whole {
        return Ok(About::NOTHING);
    }
    Outcome(fairlead_about(ctx.skb.skb, packet, trial, may)).number().map(About)
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_about(
    skb: *mut __sk_buff,
    packet: *const Packet,
    trial: *mut DropEvent,
    may: u32,
) -> i32 {
    // SAFETY: the caller passes a packet and a trial, its own; the verifier wants to see that they are there.
    let (Some(packet), Some(trial)) = (unsafe { packet.as_ref() }, unsafe { trial.as_mut() }) else {
        return About::NOTHING.0;
    };
    let mut key = FlowKey::default();
    if !read(skb, packet, &mut key) {
        return About::NOTHING.0;
    }
    match ask(packet, &key, trial, may) {
        Ok(about) => about.0,
        Err(reason) => Outcome::from(reason).0,
    }
}

#[inline(always)]
fn ask(packet: &Packet, key: &FlowKey, trial: &mut DropEvent, may: u32) -> Result<About, Reason> {
    let is_judged = may & may::JUDGE != 0;
    let is_free = may & may::PASS_PLAIN != 0;
    // An error is for whoever sent what it quotes (RFC 1122, section 3.2.2; RFC 4443, section 2.2).
    if key.destination != packet.tuple.destination {
        return Ok(About::NOTHING);
    }
    // Whoever may not hear of the packet's sender does not by quoting what others said.
    let is_sincere = may & may::OWN_SOURCE == 0 || key.source == packet.tuple.source;
    if is_judged && !is_free && !is_sincere {
        return Ok(About::NOTHING);
    }
    if let Some(flow) = table::look_up(key) {
        if flow.flags & flow_flags::TRACKED != 0 {
            return Ok(About::NOTHING);
        }
        let is_plain = table::is_plain(key, flow);
        if is_plain && !(is_judged && is_sincere) {
            return Ok(About::NOTHING);
        }
        if is_judged && !policy::is_settled(flow) {
            policy::readmit(key, flow, trial)?;
        }
        return Ok(if is_plain { About::PLAIN } else { About::TRANSLATED });
    }
    if !is_judged || is_free {
        return Ok(About::NOTHING);
    }
    let reading = if is_extension(key.protocol) { reading::OPAQUE } else { reading::WHOLE };
    trial.tuple = key.reversed();
    trial.flags = 0;
    if policy::judge(trial, reading).is_ok() {
        return Ok(About::PLAIN);
    }
    trial.tuple = *key;
    trial.flags = 0;
    if let Err(reason) = policy::judge(trial, reading | reading::AGAIN) {
        events::tell(trial, reason);
        return Err(reason);
    }
    Ok(About::PLAIN)
}

/// Whether it is about a flow that the table knows.
#[inline(always)]
pub(crate) fn is_of_known(ctx: &TcContext, packet: &Packet) -> bool {
    let mut key = FlowKey::default();
    packet.fragment == Fragment::Whole
        && read(ctx.skb.skb, packet, &mut key)
        && table::look_up(&key).is_some()
}

/// Reads the tuple that an answer to the quoted packet would have; false if there is none that can be read.
///
/// Out of line for the stack's sake.
#[inline(never)]
fn read(skb: *mut __sk_buff, packet: &Packet, key: &mut FlowKey) -> bool {
    let ctx = TcContext::new(skb);
    let found = if packet.is_v4 { read_v4(&ctx, packet) } else { read_v6(&ctx, packet) };
    let Ok(Some(found)) = found else {
        return false;
    };
    *key = found;
    true
}

#[inline(always)]
fn read_v4(ctx: &TcContext, packet: &Packet) -> Result<Option<FlowKey>, Reason> {
    let icmp = packet.transport();
    let inner = icmp + ICMP;
    if !quoted::is_error_v4(quoted::read(ctx, icmp)?) {
        return Ok(None);
    }
    let header: Ipv4 = quoted::read(ctx, inner)?;
    if !quoted::is_whole_v4(&header) {
        return Ok(None);
    }
    let ports = quoted::read(ctx, inner + size_of::<Ipv4>())?;
    let (source, destination) =
        (Address::from_v4_word(header.source), Address::from_v4_word(header.destination));
    Ok(Some(quoted::answer_to(source, destination, header.protocol, ports)))
}

#[inline(always)]
fn read_v6(ctx: &TcContext, packet: &Packet) -> Result<Option<FlowKey>, Reason> {
    let icmp = packet.transport();
    let inner = icmp + ICMP;
    if !quoted::is_error_v6(quoted::read(ctx, icmp)?) {
        return Ok(None);
    }
    let header: Ipv6 = quoted::read(ctx, inner)?;
    let Some((ip_protocol, transport)) = quoted::transport_v6(ctx, inner, &header)? else {
        return Ok(None);
    };
    let ports = quoted::read(ctx, transport)?;
    let (source, destination) =
        (Address::from_v6_words(header.source), Address::from_v6_words(header.destination));
    // Here, a mapped address would pass for the IPv4 address that it stands for.
    let is_mapped = source.is_v4() || destination.is_v4();
    Ok((!is_mapped).then(|| quoted::answer_to(source, destination, ip_protocol, ports)))
}
