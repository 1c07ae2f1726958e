//! Flows: which packets are translated, and to what.
//!
//! Only flows to Services are in the table. Each has two entries, made together by [`open`]: the client's packets
//! find the forward one, the backend's packets the reply one. What is over is removed by [`crate::places`].

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Address, Backend, Counter, Flow, FlowKey, Reason, flow_flags, protocol};

use crate::lb::{self, Choice, Client};
use crate::packet::{Fragment, Packet};
use crate::table::{self, Claim};
use crate::verdict::Outcome;
use crate::{clock, config, connected, endpoint, fragment, observe, places, service};

/// No element of the array of places.
const NO_PLACE: u32 = u32::MAX;

/// How stale `last_seen` may grow before a packet writes it anew.
const REFRESH: u64 = 500_000_000;

/// What [`flow_of`] may do.
pub(crate) mod may {
    /// Find a flow that is known.
    pub(crate) const FIND: u32 = 1;
    /// Begin a flow from inside the cluster, if the destination is a frontend.
    pub(crate) const BEGIN_INSIDE: u32 = 2;
    /// Begin a flow from outside the cluster, if the destination is a frontend.
    pub(crate) const BEGIN_OUTSIDE: u32 = 4;
    /// Begin a flow for what is for no frontend but would be taken for part of another flow.
    pub(crate) const KEEP_APART: u32 = 8;
    /// Begin a flow of the node itself, whose packets are on their way out.
    pub(crate) const BEGIN_AWAY: u32 = 16;
}

/// The flow that the packet belongs to, or begins, as far as it [`may`]. It lies in `room`.
#[inline(always)]
pub(crate) fn flow_of<'room>(
    ctx: &TcContext,
    packet: &Packet,
    may: u32,
    room: &'room mut MaybeUninit<Flow>,
) -> Result<Option<&'room Flow>, Reason> {
    let found = Outcome(fairlead_flow(ctx.skb.skb, packet, room.as_mut_ptr(), may)).is_something()?;
    // SAFETY: `fairlead_flow` has filled it in if it says so.
    Ok(found.then(|| unsafe { room.assume_init_ref() }))
}

/// Out of line as a global function: the verifier walks it once, by itself, and its callers go on with one state
/// where the ways through it had many; nor do they hold its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_flow(skb: *mut __sk_buff, packet: *const Packet, flow: *mut Flow, may: u32) -> i32 {
    // SAFETY: the caller passes a packet of its own; the verifier wants to see that it and the room are there.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return Outcome::NOTHING.0;
    };
    // SAFETY: as above. A flow is integers only: whatever lies in the room is one.
    let Some(flow) = (unsafe { flow.as_mut() }) else {
        return Outcome::NOTHING.0;
    };
    let found = if may & may::FIND != 0 { find(packet, flow) } else { Found::None };
    if found == Found::Flow {
        return Outcome::SOMETHING.0;
    }
    let mut place = NO_PLACE;
    if found == Found::Stale {
        // Whatever takes its place, no packet may find it again.
        place = flow.place;
        table::forget(&packet.tuple, flow);
    }
    let mut room = MaybeUninit::uninit();
    let mut chosen = choose(packet, may, &mut room);
    if chosen == Outcome::from(Reason::StaleService) {
        // It was read while it was written: what has been written since is whole.
        chosen = choose(packet, may, &mut room);
    }
    chosen = match chosen {
        Outcome::NOTHING if may & may::KEEP_APART != 0 => keep_apart(packet, &mut room),
        chosen => chosen,
    };
    if chosen != Outcome::SOMETHING {
        return chosen.0;
    }
    flow.place = place;
    // SAFETY: whoever has chosen has filled it in.
    let opened = open(skb, packet, unsafe { room.assume_init_ref() }, flow);
    if opened.is_ok() {
        let anew = found == Found::Stale;
        observe::count(if anew { Counter::FlowRebalanced } else { Counter::FlowCreated });
    }
    Outcome::of(opened).0
}

/// Out of line for the stack's sake.
#[inline(never)]
fn choose(packet: &Packet, may: u32, room: &mut MaybeUninit<Choice>) -> Outcome {
    let client = match may & (may::BEGIN_OUTSIDE | may::BEGIN_AWAY) {
        may::BEGIN_OUTSIDE => Client::Outside,
        may::BEGIN_AWAY => Client::Leaving,
        _ => Client::Inside,
    };
    if may & (may::BEGIN_INSIDE | may::BEGIN_OUTSIDE | may::BEGIN_AWAY) == 0 {
        return Outcome::NOTHING;
    }
    match lb::pick(packet, client, room) {
        Ok(true) => Outcome::SOMETHING,
        Ok(false) => Outcome::NOTHING,
        Err(reason) => Outcome::from(reason),
    }
}

/// What a look into the table finds.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No entry.
    None,
    /// The packet's flow.
    Flow,
    /// A flow whose backend is gone, or whose connection has ended: the packet is balanced anew.
    Stale,
}

/// Fills in the flow that this packet belongs to, and notes it as seen. A later fragment belongs to the flow of
/// its first.
///
/// Out of line for the stack's sake.
#[inline(never)]
fn find(packet: &Packet, flow: &mut Flow) -> Found {
    if packet.fragment == Fragment::Later {
        return if fragment::find(packet, flow) { Found::Flow } else { Found::None };
    }
    let Some(entry) = table::entry(&packet.tuple) else {
        return Found::None;
    };
    // SAFETY: the pointer is to a live element; all fields are integers, so that a racing write, or the
    // element's reuse, can only give a stale value, never an invalid one.
    *flow = unsafe { *entry };
    if flow.flags & flow_flags::REPLY == 0 && is_stale(packet, flow) {
        return Found::Stale;
    }
    let seen = clock::now();
    let is_due = seen.wrapping_sub(flow.last_seen) > REFRESH;
    let told = ending(packet, flow.flags) | progress(packet, flow.flags, is_due);
    let own = if packet.tcp.closes() { flow_flags::FIN } else { 0 };
    let flags = flow.flags & !flow_flags::RESET | told | own;
    if flags != flow.flags || is_due {
        // SAFETY: as above.
        unsafe {
            (*entry).flags = flags;
            (*entry).last_seen = seen;
        }
    }
    if flags != flow.flags {
        tell_partner(packet, flow, told, seen);
    }
    if packet.fragment == Fragment::First {
        flow.last_seen = seen;
        fragment::remember(packet, flow);
    }
    Found::Flow
}

/// What the segment says about the end of its connection, whose entry had these flags before: a FIN that comes
/// after one from the other side is the second.
#[inline(always)]
fn ending(packet: &Packet, before: u32) -> u32 {
    if packet.tcp.resets() {
        return flow_flags::RESET;
    }
    if !packet.tcp.closes() {
        return 0;
    }
    let first = before & (flow_flags::CLOSING | flow_flags::FIN) != flow_flags::CLOSING;
    if first { flow_flags::CLOSING } else { flow_flags::CLOSING | flow_flags::CLOSED }
}

/// How far the flow, whose entry had these flags before, has come: the backend's first packet makes it an answered
/// one, the client's next a confirmed one. A client may send two datagrams before it hears of an answer; one that goes
/// on when the entry is due to be refreshed has heard it.
#[inline(always)]
fn progress(packet: &Packet, before: u32, is_due: bool) -> u32 {
    if before & flow_flags::REPLY != 0 {
        return flow_flags::ANSWERED;
    }
    let goes_on = !packet.tcp.opens() && !packet.tcp.resets();
    let heard = packet.tuple.protocol != protocol::UDP || is_due;
    if before & flow_flags::ANSWERED != 0 && goes_on && heard { flow_flags::CONFIRMED } else { 0 }
}

/// Whether the flow must choose a backend anew. A datagram never goes to a backend that is gone; a connection stays
/// with the backend that knows it, to the end, and only a new one may take its place.
#[inline(always)]
fn is_stale(packet: &Packet, flow: &Flow) -> bool {
    if packet.tuple.protocol != protocol::UDP && !packet.tcp.opens() {
        return false;
    }
    let over = flow.flags & (flow_flags::CLOSING | flow_flags::RESET) != 0;
    over || service::generation(flow.backend) != flow.generation
}

/// Tells the entry of the other direction that the connection was answered, was confirmed, or ends, or that an RST was
/// not believed.
#[inline(always)]
fn tell_partner(packet: &Packet, flow: &Flow, told: u32, seen: u64) {
    let partner = table::leaving(flow, packet.tuple.protocol).reversed();
    if let Some(entry) = table::entry(&partner) {
        // SAFETY: as in `find`.
        unsafe {
            (*entry).flags = (*entry).flags & !flow_flags::RESET | told;
            (*entry).last_seen = seen;
        }
    }
}

/// Enters a new flow to the chosen backend, in both directions, and leaves the forward one in `flow`, which holds
/// the reply one before: the stack has no room for two.
#[inline(always)]
fn open(skb: *mut __sk_buff, packet: &Packet, choice: &Choice, flow: &mut Flow) -> Result<(), Reason> {
    let config = config::get()?;
    let backend = choice.backend.address;
    // A backend that is the node itself answers through the node's stack, where the reply is seen anyhow,
    // and would refuse a packet that claims to come from its own address. A pod that reaches itself must
    // not see its own address either.
    let masquerade = backend == packet.tuple.source || choice.masquerade && !config::is_node_address(backend);
    let mut reply = FlowKey {
        source: backend,
        destination: packet.tuple.source,
        source_port: choice.backend.port,
        destination_port: packet.tuple.source_port,
        protocol: packet.tuple.protocol,
        reserved: [0; 3],
    };
    if masquerade {
        reply.destination = config::node_address(config, packet.tuple.source)?;
    }
    if flow.place == NO_PLACE {
        flow.place = places::take(&packet.tuple, config.places)?;
    }
    flow.last_seen = clock::now();
    flow.source = packet.tuple.destination;
    flow.destination = packet.tuple.source;
    flow.source_port = packet.tuple.destination_port;
    flow.destination_port = packet.tuple.source_port;
    flow.backend = choice.id;
    flow.generation = choice.backend.generation;
    flow.flags = flow_flags::REPLY;
    // A client that keeps its address keeps its port too, unless another flow of its own has it: to another frontend
    // of the same backend, or plainly to the backend itself.
    let plainly = || choice.id != service::NO_BACKEND && connected::has(skb, &reply);
    let kept = !masquerade && !plainly() && table::claim(&reply, flow, Claim::Left);
    if !kept && !table::claim_port(skb, &mut reply, flow, masquerade)? {
        return Err(Reason::NoSnatPort);
    }
    flow.source = reply.destination;
    flow.destination = reply.source;
    flow.source_port = reply.destination_port;
    flow.destination_port = reply.source_port;
    flow.flags = 0;
    if !table::enter(&packet.tuple, flow) {
        table::remove(&reply);
        return Err(Reason::FlowTableFull);
    }
    mark(flow, &packet.tuple.source);
    if packet.fragment == Fragment::First {
        fragment::remember(packet, flow);
    }
    Ok(())
}

/// Fills in the choice for a packet that is for no frontend, where the answers to it would be taken for those of
/// a flow to a Service: one of the same client port whose backend is this packet's destination. It is its own
/// backend, and gets another port if that flow still lives. Out of line for the stack's sake.
#[inline(never)]
fn keep_apart(packet: &Packet, choice: &mut MaybeUninit<Choice>) -> Outcome {
    let begins = packet.tcp.opens() || packet.tuple.protocol == protocol::UDP;
    if !begins || !packet.has_ports() {
        return Outcome::NOTHING;
    }
    let answer = packet.tuple.reversed();
    if table::look_up(&answer).is_none_or(|held| held.flags & flow_flags::REPLY == 0) {
        return Outcome::NOTHING;
    }
    let itself = Backend {
        address: packet.tuple.destination,
        port: packet.tuple.destination_port,
        ..Backend::default()
    };
    choice.write(Choice { id: service::NO_BACKEND, backend: itself, masquerade: false });
    Outcome::SOMETHING
}

/// Both ends of the flow, where they are local pods, must consult the table from now on.
#[inline(always)]
fn mark(forward: &Flow, client: &Address) {
    endpoint::mark_translated(client);
    endpoint::mark_translated(&forward.destination);
}
