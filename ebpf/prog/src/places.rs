//! Places: how many connections the flow table may hold, and the end of those that are over.
//!
//! The table is a plain hash that evicts nobody. Each connection has a place in an array that is half as long; a new
//! one looks at places drawn at random until it finds one that is free, or whose connection is over, which it then
//! removes. So whoever opens a connection pays for expiry, a bounded share, and no connection that lives ever makes
//! way: when every place tried is taken, the new one is dropped, and its client will try again. With half of all
//! places taken by live connections that happens to one in four billion, with nine in ten to one in thirty. What
//! makes way early, under such pressure, is a connection that has ended, or whose client never went on after an answer.
//!
//! Two programs that draw one place at the same moment leave one connection without a place. The agent, which sweeps
//! the whole table, finds it when it is over.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use fairlead_abi::{FlowKey, Reason};

use crate::clock;
use crate::table;
use crate::verdict::Outcome;

#[map]
static PLACES: Array<FlowKey> = Array::pinned(32_768, 0);

/// How many places are looked at, and then as many once more, when room is scarce ([`fairlead_flow::life::may_make_way`]).
const TRIES: u32 = 16;

/// Gives the connection of this forward key a place among `places`, a power of two of them.
#[inline(always)]
pub(crate) fn take(key: &FlowKey, places: u32) -> Result<u32, Reason> {
    let mut place = fairlead_place(key, places, 0);
    if place < 0 {
        place = fairlead_place(key, places, 1);
    }
    if place < 0 { Err(Reason::FlowTableFull) } else { Ok(place as u32) }
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_place(key: *const FlowKey, places: u32, scarce: u32) -> i32 {
    // SAFETY: the caller passes a key of its own; the verifier wants to see that it is there.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return Outcome::from(Reason::FlowTableFull).0;
    };
    let now = clock::now();
    for _ in 0..TRIES {
        // SAFETY: the helper takes nothing and returns a number.
        let place = unsafe { bpf_get_prandom_u32() } & places.wrapping_sub(1);
        let Some(occupant) = PLACES.get_ptr_mut(place) else {
            continue;
        };
        // SAFETY: the pointer is to an element of an array, which stays; all fields are integers, so that a racing
        // write can only give a key that nobody has.
        let occupant = unsafe { &mut *occupant };
        if occupant.protocol != 0 && !table::is_left(occupant, place, now, scarce != 0) {
            continue;
        }
        *occupant = *key;
        return place as i32;
    }
    Outcome::from(Reason::FlowTableFull).0
}
