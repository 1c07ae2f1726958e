//! What policies drop, told to user space: a count for each policy, and an event for each packet, as far as somebody
//! may want to read it.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use fairlead_abi::{Counter, DropEvent, event_flags};

use crate::clock::SECOND;
use crate::{endpoint, observe};

#[map]
static EVENTS: RingBuf = RingBuf::pinned(256 * 1024, 0);

#[map]
static POLICY_DROPS: PerCpuArray<u64> = PerCpuArray::pinned(2048, 0);

/// For each endpoint's index, as far as it counts here, the second in which it last had an event, and how many since.
#[map]
static EVENT_RATES: Array<Rate> = Array::with_max_entries(RATES, 0);

/// How many elements there are, a power of two. Beyond that, pods share one.
const RATES: u32 = 4096;

/// How many events an endpoint may have in a second. Programs on several CPUs may count the same one.
const LIMIT: u32 = 10;

#[derive(Clone, Copy)]
struct Rate {
    second: u32,
    events: u32,
}

/// Tells of a packet that a policy dropped, all but when.
#[inline(always)]
pub(crate) fn tell(event: &mut DropEvent) {
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
    // SAFETY: the helper takes nothing and only reads the clock.
    event.time = unsafe { bpf_ktime_get_ns() };
    if !may_tell(event) || EVENTS.output::<DropEvent>(&*event, 0).is_err() {
        observe::count(Counter::EventLost);
    }
    0
}

/// Whether the pod whose policy it was may have another event in this second.
#[inline(always)]
fn may_tell(event: &DropEvent) -> bool {
    let is_egress = event.flags & event_flags::EGRESS != 0;
    let subject = if is_egress { &event.tuple.source } else { &event.tuple.destination };
    let Some(endpoint) = endpoint::find(subject) else {
        return false;
    };
    let Some(rate) = EVENT_RATES.get_ptr_mut(endpoint.index & (RATES - 1)) else {
        return false;
    };
    let second = (event.time / SECOND) as u32;
    // SAFETY: the pointer is to an element of an array, which stays; a racing write can only give a wrong count.
    let rate = unsafe { &mut *rate };
    if rate.second != second {
        *rate = Rate { second, events: 0 };
    }
    if rate.events >= LIMIT {
        return false;
    }
    rate.events += 1;
    true
}
