//! What the programs must know about their node.

use crate::{Address, layout};

/// The node's own addresses and limits. One entry, rewritten whole when the Node object changes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The node's primary IPv4 address: the source of masqueraded packets. `::` if it has none.
    pub node_v4: Address,
    /// The node's primary IPv6 address: the source of masqueraded packets. `::` if it has none.
    pub node_v6: Address,
    /// Cookie of the host's network namespace, whose processes may not bind NodePorts.
    pub host_netns: u64,
    /// First port of the range that masqueraded flows use, in the host's byte order.
    pub snat_first: u16,
    /// How many ports that range has; a power of two.
    pub snat_count: u16,
    /// How many elements [`crate::maps::PLACES`] has: how many connections there may be. A power of two.
    pub places: u32,
    /// What holds for the time being: [`config_flags`], which only the agent sets, and clears.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}
layout!(Config, 56 { node_v4, node_v6, host_netns, snat_first, snat_count, places, flags, reserved });

/// Bits of [`Config::flags`].
pub mod config_flags {
    /// Connection tracking still has connections to Services: what is in no flow and begins none is left to the stack.
    pub const DRAINING: u32 = 1;
    /// Fairlead is about to go: what begins is left to the stack, where rules of others are.
    pub const LEAVING: u32 = 2;
    /// How far the handover from another generation of maps has come, for the programs that stand before the other's:
    /// nothing is theirs yet.
    pub const HANDOVER: u32 = 3 << 30;
    /// Theirs are flows that their table knows, and connections that begin. Datagrams of others are left, and noted.
    pub const HANDOVER_CONNECTIONS: u32 = 1 << 30;
    /// And datagrams that begin a flow to a frontend, but those that were noted.
    pub const HANDOVER_SERVICES: u32 = 2 << 30;
    /// And all other datagrams, but those that were noted.
    pub const HANDOVER_ALL: u32 = 3 << 30;
}
