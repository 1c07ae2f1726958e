//! Flows that are translated, or that policies admit replies to.

use crate::{Address, Port, layout};

/// A packet's tuple as it arrives, before translation. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The sender.
    pub source: Address,
    /// The receiver.
    pub destination: Address,
    /// The sender's port.
    pub source_port: Port,
    /// The receiver's port.
    pub destination_port: Port,
    /// An IP protocol number, see [`crate::protocol`].
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}
layout!(FlowKey, 40 { source, destination, source_port, destination_port, protocol, reserved });

impl FlowKey {
    /// The tuple of a packet that answers this one.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            reserved: self.reserved,
        }
    }
}

/// What a matching packet's tuple becomes. A connection has two entries: one for the client's packets (forward) and one
/// for the backend's (reply, [`flow_flags::REPLY`]). One that is entered for policies' sake alone has no backend, 0, and
/// its packets leave as they came. The ports of protocols that have none are 0. 72 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// When a packet last matched, in nanoseconds of the monotonic clock, to half a second.
    #[cfg(not(feature = "next-layout"))]
    pub last_seen: u64,
    /// The sender that the packet leaves with.
    pub source: Address,
    /// The receiver that the packet leaves with.
    pub destination: Address,
    /// The sender's port that the packet leaves with.
    pub source_port: Port,
    /// The receiver's port that the packet leaves with.
    pub destination_port: Port,
    /// The backend's id.
    pub backend: u32,
    /// The backend's generation when the flow was made; a datagram of the client, or the first packet of a new
    /// connection, that finds another one is balanced anew.
    pub generation: u32,
    /// [`flow_flags`].
    pub flags: u32,
    /// Where in [`crate::maps::PLACES`] the connection is entered.
    pub place: u32,
    /// [`PolicyState::revision`](crate::PolicyState::revision) when policies last admitted it.
    pub revision: u32,
    /// Of a datagram flow that connection tracking has ([`flow_flags::TRACKED`]): until when it does, if nothing more comes,
    /// in seconds of the monotonic clock. Else 0.
    pub deadline: u32,
    /// Zero.
    pub reserved: u32,
    /// When a packet last matched, in nanoseconds of the monotonic clock, to half a second.
    #[cfg(feature = "next-layout")]
    pub last_seen: u64,
    /// What came with this layout.
    #[cfg(feature = "next-layout")]
    pub added: u64,
}
#[cfg(not(feature = "next-layout"))]
layout!(Flow, 72 {
    last_seen, source, destination, source_port, destination_port, backend, generation, flags, place, revision, deadline, reserved,
});
#[cfg(feature = "next-layout")]
layout!(Flow, 80 {
    source, destination, source_port, destination_port, backend, generation, flags, place, revision, deadline, reserved, last_seen,
    added,
});

impl Flow {
    /// The tuple that its packets, of this protocol, leave with.
    #[inline(always)]
    pub const fn leaving(&self, ip_protocol: u8) -> FlowKey {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: ip_protocol,
            reserved: [0; 3],
        }
    }

    /// Whether what answers its packets arrives with the tuple `key`.
    #[inline(always)]
    pub fn leads_to(&self, key: &FlowKey) -> bool {
        self.destination == key.source
            && self.destination_port == key.source_port
            && self.source == key.destination
            && self.source_port == key.destination_port
    }
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// The entry is for packets from the backend.
    pub const REPLY: u32 = 1;
    /// A FIN passed, in either direction.
    pub const CLOSING: u32 = 2;
    /// An RST passed, in either direction, and nothing since.
    pub const RESET: u32 = 4;
    /// A FIN passed in this entry's direction.
    pub const FIN: u32 = 8;
    /// A FIN passed in each direction.
    pub const CLOSED: u32 = 16;
    /// The backend answered.
    pub const ANSWERED: u32 = 32;
    /// The client went on after the answer: neither the client nor the answer was forged.
    pub const CONFIRMED: u32 = 64;
    /// The node's own stack began it: no policy has a say in it.
    pub const NODE: u32 = 128;
    /// The node's own stack has it, perhaps translated by others: its packets are left to the stack, in both directions.
    pub const STACK: u32 = 256;
    /// The kernel's connection tracking translates it. The agent has entered it, under the tuples that packets arrive with,
    /// and removes it when connection tracking does; it has no place.
    pub const TRACKED: u32 = 512;
}

/// The fragments of one datagram (RFC 791, section 3.2; RFC 8200, section 4.5). 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The sender.
    pub source: Address,
    /// The receiver.
    pub destination: Address,
    /// The datagram's identification as it stands in the packet.
    pub identification: u32,
    /// An IP protocol number, see [`crate::protocol`].
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}
layout!(FragmentKey, 40 { source, destination, identification, protocol, reserved });
