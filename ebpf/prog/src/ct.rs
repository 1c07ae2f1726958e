//! Flows: which packets are translated, and to what, and which are admitted.
//!
//! In the table are flows to Services, those whose replies policies would not admit by themselves, and those of datagrams
//! that policies have a say in, lest the answers be taken for flows when the policies change. Each has two
//! entries, made together by [`enter`]: the client's packets find the forward one, the backend's packets the reply one.
//! What is over is removed by [`crate::places`].
//!
//! Policies are asked about a flow when it begins, before it is entered, so that what they deny fills no table, and
//! again when they have changed. What is in no flow is judged packet by packet.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Address, Backend, Counter, Flow, FlowKey, Reason, config_flags, flow_flags, identities};
use fairlead_flow::life;

use crate::lb::{self, Choice, Client};
use crate::packet::{Fragment, Packet, is_of_ports};
use crate::plain::{self, Entry};
use crate::policy::{self, reading};
use crate::room::Findings;
use crate::table::{self, Claim};
use crate::verdict::Outcome;
use crate::{
    clock, config, connected, endpoint, events, forward, fragment, may, observe, outside, places, say,
    service,
};

/// No element of the array of places.
const NO_PLACE: u32 = u32::MAX;

/// How stale `last_seen` may grow before a packet writes it anew.
const REFRESH: u64 = 500_000_000;

/// The flow that the packet belongs to, or begins, as far as it [`may`]. It lies in `findings`. Without one, the packet
/// passes as it is.
#[inline(always)]
pub(crate) fn flow_of<'room>(
    ctx: &TcContext,
    packet: &Packet,
    may: u32,
    findings: &'room mut Findings,
) -> Result<Option<&'room Flow>, Reason> {
    let skb = ctx.skb.skb;
    let found = Outcome(fairlead_find(packet, findings, may)).number()?;
    if found != Found::Flow as i32 {
        let told = if found == Found::Another as i32 { may | may::ANOTHER } else { may };
        let begun = Outcome(fairlead_begin(skb, packet, findings, told));
        if begun == ANSWER || begun == REMEMBERED {
            // Not entered, the next one is found out about in the same way.
            let how = if begun == ANSWER { open::ANSWER } else { open::REMEMBERED };
            let _ = fairlead_open(skb, packet, findings, how);
            return Ok(None);
        }
        if begun == LEFT {
            findings.flow.flags = flow_flags::STACK;
            return Ok(Some(&findings.flow));
        }
        if !begun.is_something()? {
            return Ok(None);
        }
        let how = if found == Found::Stale as i32 { open::ANEW } else { open::NEW };
        Outcome(fairlead_open(skb, packet, findings, how)).number()?;
        say::flow(&packet.tuple, &findings.flow, how == open::ANEW);
    }
    Ok(Some(&findings.flow))
}

/// What [`fairlead_begin`] says of a packet that is the answer of a server whose connection has no entry.
const ANSWER: Outcome = Outcome(2);

/// What it says of a packet that passes by itself, but is to be remembered as the first of a flow if there is room.
const REMEMBERED: Outcome = Outcome(3);

/// What it says of a packet that belongs to a connection of the stack's.
const LEFT: Outcome = Outcome(4);

/// How [`fairlead_open`] is to enter a flow.
mod open {
    /// As a new one.
    pub(super) const NEW: u32 = 0;
    /// In the place of the one that it has been before.
    pub(super) const ANEW: u32 = 1;
    /// By an answer: the trial's tuple is the client's.
    pub(super) const ANSWER: u32 = 2;
    /// As it is or not at all.
    pub(super) const REMEMBERED: u32 = 3;
}

/// What a look into the table finds.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No entry.
    None,
    /// The packet's flow.
    Flow,
    /// A flow whose backend is gone, or whose connection has ended: the packet is balanced anew.
    Stale,
    /// A flow that was admitted by policies as they were.
    Unsettled,
    /// The answers of another flow, to which a packet that begins one does not belong.
    Another,
}

/// Fills in the flow that this packet belongs to, if policies still admit it, and notes it as seen.
///
/// Out of line as a global function, as those below: the verifier walks each once, by itself, and its callers go on
/// with one state where the ways through it had many; nor do they hold its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_find(packet: *const Packet, findings: *mut Findings, may: u32) -> i32 {
    // SAFETY: the caller passes a packet and findings, its own; the verifier wants to see that they are there.
    let (Some(packet), Some(findings)) = (unsafe { packet.as_ref() }, unsafe { findings.as_mut() }) else {
        return Outcome::from(Reason::Malformed).0;
    };
    let Findings { flow, trial, .. } = findings;
    if may & may::FIND == 0 && packet.fragment != Fragment::Later {
        return Found::None as i32;
    }
    let mut found = find(packet, flow, may);
    if found == Found::Unsettled {
        if packet.fragment == Fragment::Later {
            // It does not say what its flow would be judged by.
            return Found::None as i32;
        }
        if let Err(reason) = policy::readmit(&packet.tuple, flow, trial) {
            return Outcome::from(reason).0;
        }
        found = find(packet, flow, may & !may::JUDGE);
    }
    if found == Found::Stale {
        // Whatever takes its place, no packet may find it again.
        table::forget(&packet.tuple, flow);
    }
    found as i32
}

/// Fills in the choice for a packet that begins a flow, if policies admit that, and what the flow is to say of them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_begin(
    skb: *mut __sk_buff,
    packet: *const Packet,
    findings: *mut Findings,
    may: u32,
) -> i32 {
    // SAFETY: as in `fairlead_find`.
    let (Some(packet), Some(findings)) = (unsafe { packet.as_ref() }, unsafe { findings.as_mut() }) else {
        return Outcome::from(Reason::Malformed).0;
    };
    let Findings { flow, choice, trial, .. } = findings;
    let is_another = may & may::ANOTHER != 0;
    let mut chosen = if is_another { Outcome::NOTHING } else { choose(packet, may, choice) };
    if chosen == Outcome::from(Reason::StaleService) {
        // It was read while it was written: what has been written since is whole.
        chosen = choose(packet, may, choice);
    }
    if chosen == Outcome::SOMETHING && may & may::BESIDE != 0 {
        lead_back(skb, packet, choice);
    }
    if chosen == Outcome::NOTHING && may & may::LEAVE != 0 && !is_another {
        chosen = leave(packet, choice);
    }
    if chosen == Outcome::NOTHING && may & may::KEEP_APART != 0 {
        chosen = keep_apart(packet, choice);
    }
    let is_plain = chosen == Outcome::NOTHING;
    if !is_plain && chosen != Outcome::SOMETHING {
        return chosen.0;
    }
    let revision = policy::state().revision;
    flow.revision = revision;
    flow.deadline = 0;
    flow.flags = if may & may::JUDGE == 0 { flow_flags::NODE } else { 0 }
        | if may & may::STACK != 0 { flow_flags::STACK } else { 0 };
    let mut is_entered = may & may::ENTER != 0 && packet.tcp.opens();
    if may & may::JUDGE != 0 && !(is_plain && may & may::PASS_PLAIN != 0) {
        trial.tuple = packet.tuple;
        trial.flags = 0;
        trial.identity = identities::UNKNOWN;
        if !is_plain {
            // SAFETY: whoever has chosen has filled it in.
            let backend = unsafe { &choice.assume_init_ref().backend };
            trial.tuple.destination = backend.address;
            trial.tuple.destination_port = backend.port;
        }
        let reading = if packet.is_opaque() { reading::OPAQUE } else { reading::WHOLE };
        match policy::judge(trial, reading) {
            // The kernel would call it martian.
            Ok(_) if may & may::OUTSIDE != 0 && trial.identity & identities::OWN_NODE != 0 => {
                return Outcome::from(Reason::SpoofedSource).0;
            }
            Ok(admission) if is_plain && !is_another && plain::is_late_answer(skb, packet, admission) => {
                trial.tuple = packet.tuple.reversed();
                trial.flags = 0;
                // One to a client that is not admitted any more passes as its sender's own, and opens no way back.
                if policy::judge(trial, reading::AGAIN).is_ok() {
                    itself(&trial.tuple, choice);
                    return ANSWER.0;
                }
            }
            Ok(admission) if is_plain && !is_another => match plain::entry_of(packet, admission, trial) {
                Entry::None => {}
                Entry::Needed => is_entered = true,
                Entry::Wanted => {
                    itself(&packet.tuple, choice);
                    return REMEMBERED.0;
                }
            },
            Ok(_) => {}
            Err(reason) => {
                let is_late = is_plain && !is_another && !packet.tcp.opens();
                let admitted = if is_late { plain::answers(skb, packet, trial, reason) } else { Err(reason) };
                let Err(reason) = admitted else {
                    itself(&trial.tuple, choice);
                    return ANSWER.0;
                };
                events::tell(trial, reason);
                return Outcome::from(reason).0;
            }
        }
        if is_plain && packet.fragment == Fragment::First {
            lead(packet, flow);
        }
    }
    if is_plain && is_entered && !is_another {
        itself(&packet.tuple, choice);
        return Outcome::SOMETHING.0;
    }
    if is_plain && !is_another && plain::is_remembered(packet, may) {
        itself(&packet.tuple, choice);
        return REMEMBERED.0;
    }
    chosen.0
}

/// Fills in the choice for a packet to the outside, which is its own backend, and leaves with the node's address. Out of
/// line for the stack's sake.
#[inline(never)]
fn leave(packet: &Packet, choice: &mut MaybeUninit<Choice>) -> Outcome {
    if !packet.may_begin() || !outside::is(&packet.tuple.destination) {
        return Outcome::NOTHING;
    }
    choice.write(Choice { masquerade: true, ..alone(&packet.tuple) });
    Outcome::SOMETHING
}

/// Has the flow to the choice masqueraded if the backend would not answer by way of this node. Out of line for the
/// stack's sake.
#[inline(never)]
fn lead_back(skb: *mut __sk_buff, packet: &Packet, choice: &mut MaybeUninit<Choice>) {
    // SAFETY: whoever has chosen has filled it in.
    let choice = unsafe { choice.assume_init_mut() };
    choice.masquerade |= forward::leads_back(&TcContext::new(skb), &packet.tuple, choice.backend.address);
}

/// Enters the flow to the choice: see [`enter`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_open(
    skb: *mut __sk_buff,
    packet: *const Packet,
    findings: *mut Findings,
    how: u32,
) -> i32 {
    // SAFETY: as in `fairlead_find`.
    let (Some(packet), Some(findings)) = (unsafe { packet.as_ref() }, unsafe { findings.as_mut() }) else {
        return Outcome::from(Reason::Malformed).0;
    };
    let Findings { flow, choice, trial, reply } = findings;
    // SAFETY: whoever has chosen has filled it in.
    let choice = unsafe { choice.assume_init_ref() };
    if how != open::ANEW {
        flow.place = NO_PLACE;
    }
    let is_answer = how == open::ANSWER;
    let passes = is_answer || how == open::REMEMBERED;
    if passes && packet.fragment == Fragment::First {
        lead(packet, flow);
    }
    let key = if is_answer { &trial.tuple } else { &packet.tuple };
    // The client of a flow that is under way has the port that it has. An echo's identifier stands for one.
    let is_fixed = passes || !is_of_ports(key.protocol) && key.source_port.wire() == 0;
    let opened = enter(skb, key, choice, (flow, reply), is_fixed);
    if opened.is_ok() {
        if packet.fragment == Fragment::First && !passes {
            fragment::remember(packet, flow);
        }
        observe::count(if how == open::ANEW { Counter::FlowRebalanced } else { Counter::FlowCreated });
    }
    Outcome::of(opened).0
}

/// Out of line for the stack's sake.
#[inline(never)]
fn choose(packet: &Packet, may: u32, choice: &mut MaybeUninit<Choice>) -> Outcome {
    let client = match may & (may::BEGIN_OUTSIDE | may::BEGIN_AWAY) {
        may::BEGIN_OUTSIDE => Client::Outside,
        may::BEGIN_AWAY => Client::Leaving,
        _ => Client::Inside,
    };
    if may & (may::BEGIN_INSIDE | may::BEGIN_OUTSIDE | may::BEGIN_AWAY) == 0 {
        return Outcome::NOTHING;
    }
    if is_others(packet) && service::is_dialled(&packet.tuple) {
        return LEFT;
    }
    match lb::pick(packet, client, choice) {
        Ok(true) => Outcome::SOMETHING,
        Ok(false) => Outcome::NOTHING,
        Err(reason) => Outcome::from(reason),
    }
}

/// Whether the packet, which is in no flow, is for others to translate, if it dials a frontend: that of a connection which
/// has begun before, while they have some; any packet, when they are to have all.
#[inline(always)]
fn is_others(packet: &Packet) -> bool {
    let is_under_way = life::is_of_connections(packet.tuple.protocol) && !packet.tcp.opens();
    let flag =
        if is_under_way { config_flags::DRAINING | config_flags::LEAVING } else { config_flags::LEAVING };
    packet.has_ports() && config::has(flag)
}

/// Fills in the flow that this packet belongs to, and notes it as seen. A later fragment belongs to the flow of
/// its first.
///
/// Out of line for the stack's sake.
#[inline(never)]
fn find(packet: &Packet, flow: &mut Flow, may: u32) -> Found {
    if packet.fragment == Fragment::Later {
        return match fragment::find(packet, flow) {
            true if may & may::JUDGE == 0 || policy::is_settled(flow) => Found::Flow,
            true => Found::Unsettled,
            false => Found::None,
        };
    }
    let Some(entry) = table::entry(&packet.tuple) else {
        return Found::None;
    };
    // SAFETY: the pointer is to a live element; all fields are integers, so that a racing write, or the
    // element's reuse, can only give a stale value, never an invalid one.
    *flow = unsafe { *entry };
    let seen = clock::now();
    let is_due = seen.wrapping_sub(flow.last_seen) > REFRESH;
    if flow.flags & flow_flags::REPLY == 0 {
        if is_stale(packet, flow, is_due, seen) {
            return Found::Stale;
        }
    } else if flow.backend == service::NO_BACKEND && packet.tcp.opens() {
        return Found::Another;
    }
    if may & may::JUDGE != 0 && !policy::is_settled(flow) {
        return Found::Unsettled;
    }
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
    let is_datagram = !life::is_of_connections(packet.tuple.protocol);
    let goes_on = is_datagram || !packet.tcp.opens() && !packet.tcp.resets();
    let heard = !is_datagram || is_due;
    if before & flow_flags::ANSWERED != 0 && goes_on && heard { flow_flags::CONFIRMED } else { 0 }
}

/// Whether the flow must choose a backend anew. A datagram never goes to a backend that is gone; a connection stays
/// with the backend that knows it, to the end, and only a new one may take its place. Nor does a datagram go on to a
/// plain address that has become a Service's, but for half a second. Nor does a flow go on whose answers would not find it.
#[inline(always)]
fn is_stale(packet: &Packet, flow: &Flow, is_due: bool, now: u64) -> bool {
    let opens = packet.tcp.opens();
    if life::is_of_connections(packet.tuple.protocol) && !opens {
        return false;
    }
    if flow.flags & (flow_flags::CLOSING | flow_flags::RESET) != 0 {
        return true;
    }
    // Connection tracking has forgotten it, and the stack would not know where it goes.
    if flow.deadline != 0 && now > u64::from(flow.deadline) * 1_000_000_000 {
        return true;
    }
    if flow.backend == service::NO_BACKEND {
        let is_plain = flow.flags & flow_flags::TRACKED == 0;
        if is_plain && (is_due || opens) && service::is_dialled(&packet.tuple) {
            return true;
        }
    } else if service::generation(flow.backend) != flow.generation {
        return true;
    }
    (is_due || opens) && table::is_one_way(&packet.tuple, flow)
}

/// Tells the entry of the other direction that the connection was answered, was confirmed, or ends, or that an RST was
/// not believed.
#[inline(always)]
fn tell_partner(packet: &Packet, flow: &Flow, told: u32, seen: u64) {
    let partner = flow.leaving(packet.tuple.protocol).reversed();
    if let Some(entry) = table::entry(&partner) {
        // SAFETY: as in `find`.
        unsafe {
            (*entry).flags = (*entry).flags & !flow_flags::RESET | told;
            (*entry).last_seen = seen;
        }
    }
}

/// Enters a new flow to the chosen backend, in both directions, and leaves the forward one in `flow`, which holds
/// the reply one before: the stack has no room for two. Its place, if it has one, revision and flags are there already.
#[inline(always)]
fn enter(
    skb: *mut __sk_buff,
    key: &FlowKey,
    choice: &Choice,
    (flow, reply): (&mut Flow, &mut FlowKey),
    is_fixed: bool,
) -> Result<(), Reason> {
    let config = config::get()?;
    let backend = choice.backend.address;
    // A backend that is the node itself answers through the node's stack, where the reply is seen anyhow,
    // and would refuse a packet that claims to come from its own address. A pod that reaches itself must
    // not see its own address either.
    let is_plain = choice.id == service::NO_BACKEND;
    let is_hairpin = !is_plain && backend == key.source;
    let masquerade = is_hairpin || choice.masquerade && !config::is_node_address(backend);
    reply.source = backend;
    reply.destination = key.source;
    reply.source_port = choice.backend.port;
    reply.destination_port = key.source_port;
    reply.protocol = key.protocol;
    reply.reserved = [0; 3];
    if masquerade {
        reply.destination = config::node_address(config, key.source)?;
    }
    if flow.place == NO_PLACE {
        flow.place = places::take(key, config.places)?;
    }
    flow.last_seen = clock::now();
    flow.source = key.destination;
    flow.destination = key.source;
    flow.source_port = key.destination_port;
    flow.destination_port = key.source_port;
    flow.backend = choice.id;
    flow.generation = choice.backend.generation;
    flow.flags |= flow_flags::REPLY;
    // A client that keeps its address keeps its port too, unless another flow of its own has it: to another frontend
    // of the same backend, or plainly to the backend itself.
    let plainly = || !is_plain && connected::has(skb, reply);
    let may_keep = if masquerade { is_fixed } else { !plainly() };
    let kept = may_keep && table::claim(reply, flow, Claim::Left);
    if !kept && is_fixed {
        return Err(if masquerade { Reason::NoSnatPort } else { Reason::FlowTableFull });
    }
    if !kept && !table::claim_port(skb, reply, flow, masquerade)? {
        return Err(Reason::NoSnatPort);
    }
    flow.source = reply.destination;
    flow.destination = reply.source;
    flow.source_port = reply.destination_port;
    flow.destination_port = reply.source_port;
    flow.flags &= !flow_flags::REPLY;
    if !table::enter(key, flow) {
        table::remove(reply);
        return Err(Reason::FlowTableFull);
    }
    mark(flow, &key.source);
    Ok(())
}

/// Fills in the choice for a packet that is for no frontend, where the answers to it would be taken for those of
/// a flow to a Service: one of the same client port whose backend is this packet's destination. It is its own
/// backend, and gets another port if that flow still lives. Out of line for the stack's sake.
#[inline(never)]
fn keep_apart(packet: &Packet, choice: &mut MaybeUninit<Choice>) -> Outcome {
    let begins = packet.tcp.opens() || !life::is_of_connections(packet.tuple.protocol);
    if !begins || !packet.has_ports() {
        return Outcome::NOTHING;
    }
    let answer = packet.tuple.reversed();
    let apart = flow_flags::REPLY | flow_flags::TRACKED;
    if table::look_up(&answer).is_none_or(|held| held.flags & apart != flow_flags::REPLY) {
        return Outcome::NOTHING;
    }
    itself(&packet.tuple, choice);
    Outcome::SOMETHING
}

/// Fills in the choice for a packet whose receiver is its own backend.
#[inline(always)]
fn itself(tuple: &FlowKey, choice: &mut MaybeUninit<Choice>) {
    choice.write(alone(tuple));
}

#[inline(always)]
fn alone(tuple: &FlowKey) -> Choice {
    let backend = Backend { address: tuple.destination, port: tuple.destination_port, ..Backend::default() };
    Choice { id: service::NO_BACKEND, backend, masquerade: false }
}

/// Lets the later fragments of a datagram that leaves as it came follow this one. Out of line for the stack's sake.
#[inline(never)]
fn lead(packet: &Packet, flow: &mut Flow) {
    flow.last_seen = clock::now();
    flow.source = packet.tuple.source;
    flow.destination = packet.tuple.destination;
    flow.source_port = packet.tuple.source_port;
    flow.destination_port = packet.tuple.destination_port;
    fragment::remember(packet, flow);
}

/// Both ends of the flow, where they are local pods, must consult the table from now on.
#[inline(always)]
fn mark(forward: &Flow, client: &Address) {
    endpoint::mark_translated(client);
    endpoint::mark_translated(&forward.destination);
}
