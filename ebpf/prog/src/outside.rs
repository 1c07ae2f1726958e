//! What pods exchange with the outside, where nobody knows the way to a pod: their packets leave with the node's address.
//!
//! Flows that a pod begins are masqueraded ([`crate::ct`] enters them). An answer to whoever reached the pod by its own
//! address must not be: of connections it does not look like a first packet; of datagrams, whoever came first is
//! remembered.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LpmTrie;
use aya_ebpf::maps::lpm_trie::Key;
use fairlead_abi::{Address, egress};

use crate::config;
use crate::packet::Packet;

#[map]
static EGRESS: LpmTrie<Address, u32> = LpmTrie::pinned(65_536, 0);

/// Whether the address is one to which pods' packets leave with the node's. Out of line for the stack's sake.
#[inline(never)]
pub(crate) fn is(address: &Address) -> bool {
    EGRESS.get(&Key::new(Address::BITS, *address)).is_some_and(|source| *source == egress::NODE)
}

/// Gives a pod's echo request to the outside its identifier for a source port: what tells it from others of the node.
#[inline(always)]
pub(crate) fn name_request(packet: &mut Packet) {
    if packet.is_icmp() && packet.tcp.opens() && is(&packet.tuple.destination) {
        packet.tuple.source_port = packet.echo;
    }
}

/// Gives an echo reply to the node its identifier for a destination port: it may be for a pod.
#[inline(always)]
pub(crate) fn name_reply(packet: &mut Packet) {
    if packet.is_icmp() && !packet.tcp.opens() && config::is_node_address(packet.tuple.destination) {
        packet.tuple.destination_port = packet.echo;
    }
}
