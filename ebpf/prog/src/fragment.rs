//! Fragments of datagrams that are translated, or judged by policies: later ones have no ports, and follow their first.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use fairlead_abi::{Flow, FragmentKey};

use crate::clock::{self, SECOND};
use crate::lent;
use crate::packet::Packet;

/// How long fragments may follow their first: as long as the kernel waits for them (ipfrag_time).
const REASSEMBLY: u64 = 30 * SECOND;

/// Datagrams whose fragments are under way.
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Flow> = LruHashMap::pinned(8_192, 0);

/// Notes the flow of a first fragment. Out of line for the stack's sake.
#[inline(never)]
pub(crate) fn remember(packet: &Packet, flow: &Flow) {
    // Refused, the later fragments pass untranslated, or not at all, and the datagram is lost, as datagrams may be.
    if let Some(flow) = lent::value(flow) {
        let _ = FRAGMENTS.insert(&key(packet), flow, 0);
    }
}

/// Gives the flow of a later fragment, if its first has passed.
#[inline(always)]
pub(crate) fn find(packet: &Packet, flow: &mut Flow) -> bool {
    // SAFETY: the value is copied out at once; a racing write gives a stale tuple at worst.
    let Some(first) = (unsafe { FRAGMENTS.get(&key(packet)) }) else {
        return false;
    };
    *flow = *first;
    clock::now().saturating_sub(flow.last_seen) <= REASSEMBLY
}

#[inline(always)]
fn key(packet: &Packet) -> FragmentKey {
    FragmentKey {
        source: packet.tuple.source,
        destination: packet.tuple.destination,
        identification: packet.identification,
        protocol: packet.tuple.protocol,
        reserved: [0; 3],
    }
}
