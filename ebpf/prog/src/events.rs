//! What is dropped or refused, told to user space: a count for each policy, and an event for each packet, as far as
//! somebody may want to read it.
//!
//! Who may have how many events in a second: of what policies drop each pod ten, since their packets say whose they are;
//! of every other reason the node twenty, since whoever floods it chooses what they say. The rest is counted.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use fairlead_abi::{Counter, DropEvent, FlowKey, Reason, event_flags};

use crate::clock::SECOND;
use crate::{endpoint, observe, room};

#[map]
static EVENTS: RingBuf = RingBuf::pinned(256 * 1024, 0);

#[map]
static POLICY_DROPS: PerCpuArray<u64> = PerCpuArray::pinned(2048, 0);

/// The second in which the last event was told, and how many since: for each endpoint's index, as far as it counts here,
/// and then for each reason.
#[map]
static EVENT_RATES: Array<Rate> = Array::with_max_entries(PODS + Reason::COUNT, 0);

/// For how many pods there are elements, a power of two. Beyond that, pods share one.
const PODS: u32 = 4096;

/// How many events a pod may have in a second. Programs on several CPUs may count the same one.
const OF_POD: u32 = 10;

/// How many events there may be in a second for a reason that is no policy.
const OF_REASON: u32 = 20;

#[derive(Clone, Copy)]
struct Rate {
    second: u32,
    events: u32,
}

/// Tells of a packet that a policy dropped, all but when.
#[inline(always)]
pub(crate) fn tell(event: &mut DropEvent, reason: Reason) {
    event.reason = reason as u32;
    fairlead_tell(event);
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_tell(event: *mut DropEvent) -> i32 {
    // SAFETY: the caller passes an event of its own; the verifier wants to see that it is there.
    let Some(event) = (unsafe { event.as_mut() }) else {
        return 0;
    };
    observe::add_one(&POLICY_DROPS, event.policy);
    let is_egress = event.flags & event_flags::EGRESS != 0;
    let subject = if is_egress { &event.tuple.source } else { &event.tuple.destination };
    event.time = now();
    let may_tell = endpoint::find(subject)
        .is_some_and(|endpoint| is_within(endpoint.index & (PODS - 1), OF_POD, event.time));
    if !may_tell || EVENTS.output::<DropEvent>(&*event, 0).is_err() {
        observe::count(Counter::EventLost);
    }
    0
}

/// Counts the packet that a program at an interface has just dropped, and tells of it. What a policy dropped it has told of
/// itself.
#[inline(always)]
pub(crate) fn dropped(reason: Reason) {
    fairlead_dropped(core::ptr::null(), reason as u32, 0);
}

/// Tells of a packet of this tuple, or with [`event_flags::SOCKET`] of one that was never sent.
#[inline(always)]
pub(crate) fn tell_of(tuple: &FlowKey, reason: Reason, flags: u32) {
    fairlead_dropped(tuple, reason as u32, flags);
}

/// Without a tuple, the packet is the one that was parsed last, and is counted. Out of line as a global function: the verifier walks it
/// once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_dropped(tuple: *const FlowKey, reason: u32, flags: u32) -> i32 {
    if tuple.is_null() {
        let reason = Reason::numbered(reason);
        observe::drop(reason);
        if matches!(reason, Reason::PolicyIngress | Reason::PolicyEgress | Reason::PolicyUnknown) {
            return 0;
        }
    }
    let time = now();
    if reason >= Reason::COUNT || !is_within(PODS + reason, OF_REASON, time) {
        observe::count(Counter::EventLost);
        return 0;
    }
    let Some(packet) = room::last_packet() else {
        return 0;
    };
    // SAFETY: the caller passes a tuple of its own, or none.
    let tuple = unsafe { tuple.as_ref() }.unwrap_or(&packet.tuple);
    let interface = if flags & event_flags::SOCKET == 0 { packet.interface } else { 0 };
    let Some(mut event) = EVENTS.reserve::<DropEvent>(0) else {
        observe::count(Counter::EventLost);
        return 0;
    };
    event.write(DropEvent {
        time,
        tuple: *tuple,
        reason,
        interface,
        policy: 0,
        identity: 0,
        verdict: 0,
        flags,
    });
    event.submit(0);
    0
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and only reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether there may be another event of this element in this second, which it then counts.
#[inline(always)]
fn is_within(element: u32, limit: u32, time: u64) -> bool {
    let Some(rate) = EVENT_RATES.get_ptr_mut(element) else {
        return false;
    };
    let second = (time / SECOND) as u32;
    // SAFETY: the pointer is to an element of an array, which stays; a racing write can only give a wrong count.
    let rate = unsafe { &mut *rate };
    if rate.second != second {
        *rate = Rate { second, events: 0 };
    }
    if rate.events >= limit {
        return false;
    }
    rate.events += 1;
    true
}
