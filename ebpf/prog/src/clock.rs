//! The clock that flows and affinities are timed by.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// A second, in the clock's unit.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Nanoseconds of the monotonic clock, to the last tick (kernel 5.11).
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper takes nothing and only reads the clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}
