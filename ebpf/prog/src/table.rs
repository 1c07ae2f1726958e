//! The flow table: its entries, how reply entries are claimed, and how flows are removed.
//!
//! A plain hash, which evicts nobody: see [`crate::places`]. What a flow is, and when it begins, is [`crate::ct`]'s.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use fairlead_abi::{Counter, Flow, FlowKey, Reason};
use fairlead_flow::{life, snat};

use crate::{config, connected, lent, observe};

#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::pinned(65_536, 0);

/// The translation of packets with the tuple `key`, whether or not any has come.
#[inline(always)]
pub(crate) fn look_up(key: &FlowKey) -> Option<&'static Flow> {
    // SAFETY: the element is live; all fields are integers, so that a racing write, or the element's reuse, can only
    // give a stale value, never an invalid one.
    unsafe { FLOWS.get(lent::key(key)?) }
}

/// The same, to be changed.
#[inline(always)]
pub(crate) fn entry(key: &FlowKey) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(lent::key(key)?)
}

/// Enters a forward entry, or replaces the one that is there; false if there is no room.
#[inline(always)]
pub(crate) fn enter(key: &FlowKey, flow: &Flow) -> bool {
    insert(key, flow, 0).is_some()
}

#[inline(always)]
fn insert(key: &FlowKey, flow: &Flow, flags: u64) -> Option<()> {
    FLOWS.insert(lent::key(key)?, lent::value(flow)?, flags).ok()
}

/// Removes an entry, if it is there.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey) {
    if let Some(key) = lent::key(key) {
        let _ = FLOWS.remove(key);
    }
}

/// Whether the flow's packets, which arrive with the tuple `key`, leave as they came.
#[inline(always)]
pub(crate) fn is_plain(key: &FlowKey, flow: &Flow) -> bool {
    flow.source == key.source
        && flow.destination == key.destination
        && flow.source_port == key.source_port
        && flow.destination_port == key.destination_port
}

/// What becomes of packets that answer those which leave with this tuple, if that is another tuple.
///
/// Out of line for the stack's sake.
#[inline(never)]
pub(crate) fn translation_of_answer(leaving: &FlowKey) -> Option<&'static Flow> {
    let answer = leaving.reversed();
    look_up(&answer).filter(|flow| !is_plain(&answer, flow))
}

/// Enters the first reply key that is free, trying one port of the range after the other, or else the first whose
/// flow may be taken over. A client that keeps its address may have plain connections from a port of the range.
///
/// Out of line, so that the verifier does not carry the callers' state through the search.
#[inline(never)]
pub(crate) fn claim_port(
    skb: *mut __sk_buff,
    reply: &mut FlowKey,
    back: &Flow,
    masquerade: bool,
) -> Result<bool, Reason> {
    let config = config::get()?;
    // SAFETY: the helper takes nothing and returns a number.
    let seed = unsafe { bpf_get_prandom_u32() };
    for attempt in 0..snat::FREE_ATTEMPTS {
        reply.destination_port = snat::candidate(config.snat_first, config.snat_count, seed, attempt);
        if (masquerade || !connected::has(skb, reply)) && claim(reply, back, Claim::Free) {
            return Ok(true);
        }
    }
    for attempt in 0..snat::ATTEMPTS {
        reply.destination_port = snat::candidate(config.snat_first, config.snat_count, seed, attempt);
        if (masquerade || !connected::has(skb, reply)) && claim(reply, back, Claim::Left) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which reply keys may be claimed.
#[derive(Clone, Copy)]
pub(crate) enum Claim {
    /// Those that nobody has.
    Free,
    /// Also those that are this flow's own from before, or have been left.
    Left,
}

/// Enters the reply key if it may be claimed.
#[inline(always)]
pub(crate) fn claim(reply: &FlowKey, back: &Flow, which: Claim) -> bool {
    fairlead_claim(reply, back, which as u32) != 0
}

/// Out of line as a global function: the verifier walks it once, by itself, and not for each port that is tried.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_claim(reply: *const FlowKey, back: *const Flow, which: u32) -> u32 {
    // SAFETY: the caller passes a key and a flow of its own; the verifier wants to see that they are there.
    let (Some(reply), Some(back)) = (unsafe { reply.as_ref() }, unsafe { back.as_ref() }) else {
        return 0;
    };
    if insert(reply, back, u64::from(BPF_NOEXIST)).is_some() {
        return 1;
    }
    if which == Claim::Free as u32 {
        return 0;
    }
    let Some(held) = look_up(reply) else {
        return 0;
    };
    let own = held.destination == back.destination
        && held.destination_port == back.destination_port
        && held.source == back.source
        && held.source_port == back.source_port;
    let claimed = (own || gives_up(reply, held, back.last_seen)) && enter(reply, back);
    u32::from(claimed)
}

/// Whether the flow whose reply entry `held` is at `reply` may be taken over: then its forward entry is removed, so
/// that its client, should it speak again, is balanced anew. One that leads elsewhere by now is left alone.
#[inline(always)]
fn gives_up(reply: &FlowKey, held: &Flow, now: u64) -> bool {
    if !life::may_take_over(held, reply.protocol, now) {
        return false;
    }
    let Some(forward) = lent::another(held.leaving(reply.protocol).reversed()) else {
        return false;
    };
    if let Some(flow) = look_up(forward)
        && flow.leads_to(reply)
    {
        if !life::may_take_over(flow, reply.protocol, now) {
            return false;
        }
        remove(forward);
    }
    true
}

/// Whether what answers the flow, which is at `forward`, would not find it: the reply entry is gone, or another flow's. Of
/// what connection tracking has, that has the answers.
///
/// An agent that is killed while it removes a flow, or carries one over, may leave one half of it.
///
/// Out of line for the stack's sake.
#[inline(never)]
pub(crate) fn is_one_way(forward: &FlowKey, flow: &Flow) -> bool {
    let reply = flow.leaving(forward.protocol).reversed();
    !life::is_tracked(flow) && !look_up(&reply).is_some_and(|back| back.leads_to(forward))
}

/// Removes the flow `held`, which is at `forward`, in both directions; of each entry only what still is of this flow.
#[inline(never)]
pub(crate) fn forget(forward: &FlowKey, held: &Flow) {
    let reply = held.leaving(forward.protocol).reversed();
    if look_up(&reply).is_some_and(|back| back.leads_to(forward)) {
        remove(&reply);
    }
    if look_up(forward).is_some_and(|flow| flow.leads_to(&reply)) {
        remove(forward);
    }
}

/// Whether `place` serves nobody: the flow of the forward key `occupant` is gone, has another place, or is over in
/// both directions, and then is removed. Where places are scarce, it may also have to make way.
#[inline(always)]
pub(crate) fn is_left(occupant: &FlowKey, place: u32, now: u64, scarce: bool) -> bool {
    let is_over = |flow: &Flow| {
        if scarce {
            life::may_make_way(flow, occupant.protocol, now)
        } else {
            life::is_over(flow, occupant.protocol, now)
        }
    };
    let Some(flow) = look_up(occupant) else {
        return true;
    };
    if flow.place != place {
        return true;
    }
    if !is_over(flow) {
        return false;
    }
    let reply = flow.leaving(occupant.protocol).reversed();
    if let Some(back) = look_up(&reply)
        && back.leads_to(occupant)
    {
        if !is_over(back) {
            return false;
        }
        remove(&reply);
    }
    remove(occupant);
    observe::count(Counter::FlowReclaimed);
    true
}
