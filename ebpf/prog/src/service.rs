//! Services as the agent has written them: frontends, their slots and backends.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use fairlead_abi::{Backend, FlowKey, Frontend, FrontendKey, Reason, Region};

use crate::endpoint;

#[map]
static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);

#[map]
static SLOTS: Array<u32> = Array::pinned(262_144, 0);

#[map]
static BACKENDS: Array<Backend> = Array::pinned(131_072, 0);

/// An id that no backend has; its generation is always 0.
pub(crate) const NO_BACKEND: u32 = 0;

/// How often a region can be halved: as often as a number of slots has bits.
const HALVINGS: u32 = 24;

/// The frontend that the tuple dials, copied into `room`. An address of a local pod is no frontend, whatever Services
/// ask for: most packets to it are delivered without asking.
#[inline(always)]
pub(crate) fn find<'room>(
    tuple: &FlowKey,
    room: &'room mut MaybeUninit<Frontend>,
) -> Result<Option<&'room Frontend>, Reason> {
    let key = key_of(tuple);
    // SAFETY: the value is copied out at once; all fields are integers, so none is invalid, and the element's reuse
    // for another key shows in the check.
    let Some(frontend) = (unsafe { FRONTENDS.get(&key) }) else {
        return Ok(None);
    };
    if endpoint::find(&tuple.destination).is_some() {
        return Ok(None);
    }
    let frontend = room.write(*frontend);
    if frontend.check == key.check() { Ok(Some(frontend)) } else { Err(Reason::StaleService) }
}

/// Whether the tuple dials a frontend.
#[inline(always)]
pub(crate) fn is_dialled(tuple: &FlowKey) -> bool {
    has_flags(&key_of(tuple), 0) && endpoint::find(&tuple.destination).is_none()
}

#[inline(always)]
fn key_of(tuple: &FlowKey) -> FrontendKey {
    FrontendKey {
        address: tuple.destination,
        port: tuple.destination_port,
        protocol: tuple.protocol,
        reserved: 0,
    }
}

/// Whether there is a frontend with all of these flags at the key.
#[inline(always)]
pub(crate) fn has_flags(key: &FrontendKey, flags: u32) -> bool {
    // SAFETY: an integer is read; one that is reused in this moment belongs to another frontend at worst.
    unsafe { FRONTENDS.get(key) }.is_some_and(|frontend| frontend.flags & flags == flags)
}

/// The id of the backend in a slot.
#[inline(always)]
pub(crate) fn slot(number: u32) -> Result<u32, Reason> {
    SLOTS.get(number).copied().ok_or(Reason::StaleService)
}

/// The backend with this id.
#[inline(always)]
pub(crate) fn backend(id: u32) -> Option<&'static Backend> {
    BACKENDS.get(id)
}

/// The present generation of a backend id; 0 if it has no tenant.
#[inline(always)]
pub(crate) fn generation(id: u32) -> u32 {
    BACKENDS.get(id).map_or(0, |backend| backend.generation)
}

/// Whether the backend is in the region, whose ids ascend.
///
/// The verifier would follow both halves of every comparison; both ends are moved by arithmetic instead.
#[inline(always)]
pub(crate) fn holds(region: &Region, id: u32) -> bool {
    let (mut low, mut len) = (region.base, region.len);
    for _ in 0..HALVINGS {
        if len == 0 {
            return false;
        }
        let half = len >> 1;
        let Some(held) = SLOTS.get(low + half) else {
            return false;
        };
        if *held == id {
            return true;
        }
        // All ones if the id is above the middle: ids are far below the sign bit.
        let above = 0_u32.wrapping_sub(held.wrapping_sub(id) >> 31);
        low += (half + 1) & above;
        len = (len - half - 1) & above | half & !above;
    }
    false
}
