//! NetworkPolicies as the programs see them: whom an address belongs to, and what that means for a local pod.
//!
//! ```text
//! pod ── ISOLATION ──► policy ─┐
//!                              ├─ CELLS ──► row ── ROWS ──► verdict
//! peer's address ── PEERS ──► identity     (no cell: the policy's row in POLICIES)
//! ```
//!
//! A *policy* here is compiled: all that the objects which select a pod say about one direction. An *identity* is the
//! set of selectors and ranges that an address matches. A *row* is what a policy says to one identity, as a table of
//! ports; a cell is written in one step, so that a peer's ports change together.

use crate::{Address, Port, layout};

/// The compiled policies of a local pod: an element of [`crate::maps::ISOLATION`], at
/// [`Endpoint::index`](crate::Endpoint::index). 8 bytes, written and read in one step.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Isolation {
    /// For packets that the pod is sent: [`policies`] or a compiled policy's id.
    pub ingress: u32,
    /// For packets that the pod sends.
    pub egress: u32,
}
layout!(Isolation, 8 { ingress, egress });

/// Ids of policies that are not compiled. An element that nobody has written closes the pod.
pub mod policies {
    /// Nothing is known: nothing passes but what the node itself sends.
    pub const CLOSED: u32 = 0;
    /// No object selects the pod in this direction: everything passes.
    pub const OPEN: u32 = 1;
    /// The first id of a compiled policy: an index into [`crate::maps::POLICIES`].
    pub const FIRST: u32 = 2;
}

/// Numbers of identities, the values of [`crate::maps::PEERS`].
pub mod identities {
    /// Of an address that no entry covers.
    pub const UNKNOWN: u32 = 0;
    /// The first number of an identity that something matches.
    pub const FIRST: u32 = 1;
    /// Set beside the number where the address is the node's own. What a pod exchanges with its own node no
    /// NetworkPolicy forbids (Kubernetes, "Network Policies", on the entities that a pod can communicate with).
    pub const OWN_NODE: u32 = 1 << 31;
}

/// What a policy says to an identity: the key of [`crate::maps::CELLS`]. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellKey {
    /// A compiled policy's id.
    pub policy: u32,
    /// An identity's number, without [`identities::OWN_NODE`].
    pub identity: u32,
}
layout!(CellKey, 8 { policy, identity });

impl CellKey {
    /// What [`Cell::check`] holds of the cell at this key.
    #[inline(always)]
    pub const fn check(&self) -> u32 {
        // Odd constants keep equal words from cancelling each other.
        self.policy.wrapping_mul(0x9e37_79b1) ^ self.identity.wrapping_mul(0x85eb_ca6b)
    }
}

/// The value of [`crate::maps::CELLS`]. 8 bytes, read in one step.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cell {
    /// A row's number: below [`rows::FIRST`] it is a verdict for every packet, else a table in [`crate::maps::ROWS`].
    pub row: u32,
    /// [`CellKey::check`] of its own key. The kernel may reuse an element while a program reads it; one that finds
    /// another key's check has read another cell.
    pub check: u32,
}
layout!(Cell, 8 { row, check });

/// What becomes of a packet, in [`crate::maps::ROWS`] and as the number of a row that says the same to every packet.
pub mod verdicts {
    /// No rule of the NetworkPolicies that isolate the pod allows it.
    pub const DENY_NETWORK: u32 = 0;
    /// It passes.
    pub const ALLOW: u32 = 1;
    /// A rule of the Admin tier denies it.
    pub const DENY_ADMIN: u32 = 2;
    /// A rule of the Baseline tier denies it.
    pub const DENY_BASELINE: u32 = 3;
}

/// Numbers of rows, and how much of a [`RowKey`] counts.
pub mod rows {
    /// The first number of a row that is a table of ports.
    pub const FIRST: u32 = 4;
    /// Bits that cover the row alone: the entry that every row has, for what no other entry covers.
    pub const ROW_BITS: u32 = 32;
    /// Bits that cover a protocol of the row.
    pub const PROTOCOL_BITS: u32 = 40;
    /// Bits that cover one port.
    pub const PORT_BITS: u32 = 56;
}

/// A range of ports in a row: the data of a longest-prefix key of [`crate::maps::ROWS`]. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The row's number.
    pub row: u32,
    /// An IP protocol number, see [`crate::protocol`].
    pub protocol: u8,
    /// Zero, so that the port's bytes, of which a prefix counts, come next.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: u8,
}
layout!(RowKey, 8 { row, protocol, port, reserved });

impl RowKey {
    /// The key of one port; 0 for protocols that have none.
    #[inline(always)]
    pub const fn new(row: u32, protocol: u8, port: Port) -> Self {
        Self { row, protocol, port: port.wire().to_ne_bytes(), reserved: 0 }
    }
}

/// What a policy was asked and said yes to: the key of the programs' own cache of verdicts. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The peer.
    pub peer: Address,
    /// A compiled policy's id.
    pub policy: u32,
    /// The server's port.
    pub port: Port,
    /// An IP protocol number, see [`crate::protocol`].
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}
layout!(Asked, 24);

impl Asked {
    /// A word of its own, in 31 bits, by which a program knows that it has read this key's element.
    #[inline(always)]
    pub const fn check(&self) -> u32 {
        let [a, b, c, d] = self.peer.words();
        let rest = (self.port.wire() as u32) << 16 | (self.protocol as u32) << 8;
        // Odd constants keep equal words from cancelling each other.
        let mixed = a
            ^ b.wrapping_mul(0x9e37_79b1)
            ^ c.wrapping_mul(0x85eb_ca6b)
            ^ d.wrapping_mul(0xc2b2_ae35)
            ^ self.policy.wrapping_mul(0x27d4_eb2f)
            ^ rest;
        mixed >> 1
    }
}

/// What all policies of the node have in common: the element of [`crate::maps::POLICY_STATE`]. 8 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyState {
    /// Grows after each change of the maps of policies. A flow that was judged under another one is judged again.
    pub revision: u32,
    /// [`state_flags`].
    pub flags: u32,
}
layout!(PolicyState, 8 { revision, flags });

/// Bits of [`PolicyState::flags`].
pub mod state_flags {
    /// Flows that were admitted stay so, whatever the policies become (`--policy-established=keep`). Every flow of a
    /// local pod then has entries in the flow table.
    pub const KEEP: u32 = 1;
}

/// An address of which a prefix counts, as [`crate::maps::PEERS`] has it: IPv4 ranges are mapped, so that 96 bits are
/// added to their length.
pub type PeerKey = Address;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_a_row_stand_in_the_order_that_prefixes_are_matched_in() {
        let key = RowKey::new(7, crate::protocol::TCP, Port::new(0x1234));
        assert_eq!(key.port, [0x12, 0x34]);
        assert_eq!(core::mem::offset_of!(RowKey, protocol) * 8, rows::ROW_BITS as usize);
        assert_eq!(core::mem::offset_of!(RowKey, port) * 8, rows::PROTOCOL_BITS as usize);
        assert_eq!(core::mem::offset_of!(RowKey, reserved) * 8, rows::PORT_BITS as usize);
    }

    #[test]
    fn a_pod_of_which_nothing_is_known_is_closed() {
        assert_eq!(Isolation::default(), Isolation { ingress: policies::CLOSED, egress: policies::CLOSED });
    }
}
