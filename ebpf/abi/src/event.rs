//! What the programs tell of packets that they drop.

use crate::{FlowKey, layout};

/// A packet that was dropped or refused, as [`crate::maps::EVENTS`] brings it. 72 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropEvent {
    /// When, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// The packet's tuple as it stood then, perhaps translated already; all zero where the packet could not be read. Of
    /// a packet that a policy dropped: as it was judged, from who began the flow to who serves it, before masquerading
    /// and after the choice of a backend.
    pub tuple: FlowKey,
    /// The number of a [`crate::Reason`].
    pub reason: u32,
    /// The interface whose program dropped it, by index; 0 where it is not told: by policies and by sockets.
    pub interface: u32,
    /// [`crate::policies`] or the id of the compiled policy that dropped it; 0 where none did.
    pub policy: u32,
    /// The number that the peer had, with [`crate::identities::OWN_NODE`].
    pub identity: u32,
    /// One of [`crate::verdicts`]; of no meaning where `policy` is [`crate::policies::CLOSED`].
    pub verdict: u32,
    /// [`event_flags`].
    pub flags: u32,
}
layout!(DropEvent, 72);

/// Bits of [`DropEvent::flags`].
pub mod event_flags {
    /// The client's egress policy dropped it; without it, the server's ingress policy.
    pub const EGRESS: u32 = 1;
    /// The packet was the server's, on its way back.
    pub const REPLY: u32 = 2;
    /// Its sender was answered: by an RST or an ICMP error.
    pub const REFUSED: u32 = 4;
    /// There was no packet: a process's call failed, and its socket has no port in the tuple.
    pub const SOCKET: u32 = 8;
}
