//! Session affinity: a client goes on getting the backend that it had, at every frontend of a Service port.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use fairlead_abi::{Address, Affinity, AffinityKey, Counter, Frontend, Region};

use crate::clock::{self, SECOND};
use crate::{observe, service};

/// A table that is full forgets whoever has been silent longest.
#[map]
static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(65_536, 0);

/// The id of the backend that the client had, if its time is not over and it is still in the region, or
/// [`service::NO_BACKEND`]. The time begins anew.
#[inline(never)]
pub(crate) fn recall(frontend: &Frontend, region: &Region, client: &Address) -> u32 {
    let key = AffinityKey { client: *client, service: frontend.service };
    let Some(entry) = AFFINITY.get_ptr_mut(&key) else {
        return service::NO_BACKEND;
    };
    let now = clock::now();
    // SAFETY: the pointer is to a live element; all fields are integers, so that a racing write, or the element's
    // reuse, can only give a stale value, which is checked below.
    let held = unsafe { *entry };
    let is_over = now.saturating_sub(held.last_used) > u64::from(frontend.affinity) * SECOND;
    if is_over
        || service::generation(held.backend) != held.generation
        || !service::holds(region, held.backend)
    {
        return service::NO_BACKEND;
    }
    // SAFETY: as above.
    unsafe { (*entry).last_used = now };
    observe::count(Counter::AffinityKept);
    held.backend
}

/// Notes which backend the client has been given.
#[inline(never)]
pub(crate) fn note(frontend: &Frontend, client: &Address, backend: u32, generation: u32) {
    let key = AffinityKey { client: *client, service: frontend.service };
    let held = Affinity { last_used: clock::now(), backend, generation };
    // Refused, the client is balanced anew the next time.
    let _ = AFFINITY.insert(&key, &held, 0);
}
