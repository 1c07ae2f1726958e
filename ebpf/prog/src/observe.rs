//! Counting.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use fairlead_abi::{Counter, Reason};

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::COUNT, 0);

#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(Reason::COUNT, 0);

/// Counts one packet.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    add_one(&COUNTERS, counter as u32);
}

/// Counts one packet that was dropped or refused.
#[inline(always)]
pub(crate) fn drop(reason: Reason) {
    add_one(&DROPS, reason as u32);
}

/// Adds one to this CPU's element.
#[inline(always)]
pub(crate) fn add_one(array: &PerCpuArray<u64>, index: u32) {
    if let Some(value) = array.get_ptr_mut(index) {
        // SAFETY: the pointer is to this CPU's element, and programs at one hook do not preempt each other;
        // a count lost to an interrupting hook is the price of not paying for an atomic.
        unsafe { *value += 1 };
    }
}
