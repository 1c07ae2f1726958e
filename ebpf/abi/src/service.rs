//! Services as the programs see them: frontends, their regions of slots, and backends.

use crate::{Address, Port, layout};

/// What clients dial. 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// ClusterIP, node address, load balancer address or external address.
    pub address: Address,
    /// The Service's port, or its NodePort.
    pub port: Port,
    /// An IP protocol number, see [`crate::protocol`].
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}
layout!(FrontendKey, 20);

/// A contiguous run of [`crate::maps::SLOTS`]: the backends that one kind of client may get.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Region {
    /// First slot.
    pub base: u32,
    /// How many slots; 0: no backend.
    pub len: u32,
}
layout!(Region, 8);

/// Where a frontend's new flows go. Written in one step, after all that it refers to. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// Id of the Service port behind this frontend, the same for all its frontends; never 0.
    pub service: u32,
    /// [`frontend_flags`].
    pub flags: u32,
    /// Backends for clients inside the cluster: pods and nodes.
    pub internal: Region,
    /// Backends for clients outside the cluster.
    pub external: Region,
}
layout!(Frontend, 24);

/// Bits of [`Frontend::flags`].
pub mod frontend_flags {
    /// Flows from outside the cluster keep their source address (externalTrafficPolicy: Local); without
    /// it they are masqueraded.
    pub const KEEP_SOURCE: u32 = 1;
    /// The Service has endpoints, though perhaps none that this node's clients may use: an empty region
    /// then means drop, not reject.
    pub const HAS_ENDPOINTS: u32 = 2;
}

/// A target that flows are translated to. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub address: Address,
    /// The endpoint's port.
    pub port: Port,
    /// Zero.
    pub reserved: u16,
    /// Changes each time the id gets a new tenant, and is 0 while it has none.
    pub generation: u32,
}
layout!(Backend, 24);
