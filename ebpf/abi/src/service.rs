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
layout!(FrontendKey, 20 { address, port, protocol, reserved });

impl FrontendKey {
    /// The key that stands for the whole address: what is sent to a port of it that has no frontend.
    #[inline(always)]
    pub const fn whole(address: Address) -> Self {
        Self { address, port: Port::new(0), protocol: 0, reserved: 0 }
    }

    /// What [`Frontend::check`] holds of the frontend at this key: never 0.
    #[inline(always)]
    pub const fn check(&self) -> u32 {
        let [a, b, c, d] = self.address.words();
        let rest = (self.port.wire() as u32) << 16 | (self.protocol as u32) << 8;
        // Odd constants keep equal words from cancelling each other.
        let mixed = a
            ^ b.wrapping_mul(0x9e37_79b1)
            ^ c.wrapping_mul(0x85eb_ca6b)
            ^ d.wrapping_mul(0xc2b2_ae35)
            ^ rest;
        mixed | 1
    }
}

/// A contiguous run of [`crate::maps::SLOTS`]: the backends that one kind of client may get.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Region {
    /// First slot.
    pub base: u32,
    /// How many slots; 0: no backend.
    pub len: u32,
}
layout!(Region, 8 { base, len });

/// Where a frontend's new flows go. Written in one step, after all that it refers to. 40 bytes.
///
/// The ids in a region's slots ascend, so that a program finds out by bisection whether a backend is in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// What came with this layout.
    #[cfg(feature = "next-layout")]
    pub added: u32,
    /// Id of the Service port behind this frontend, the same for all its frontends; 0 only with
    /// [`frontend_flags::WHOLE`].
    pub service: u32,
    /// [`frontend_flags`].
    pub flags: u32,
    /// Backends for clients inside the cluster: pods and nodes.
    pub internal: Region,
    /// Backends for clients outside the cluster.
    pub external: Region,
    /// The Maglev table of the external backends, whose ids are in no order and come many times; of length 0
    /// where a backend is chosen at random.
    pub maglev: Region,
    /// For how many seconds a client keeps its backend (sessionAffinity: ClientIP); 0: not at all.
    pub affinity: u32,
    /// [`FrontendKey::check`] of its own key. The kernel may reuse an element while a program reads it; one that
    /// finds another key's check has read another frontend's value.
    pub check: u32,
}
#[cfg(not(feature = "next-layout"))]
layout!(Frontend, 40 { service, flags, internal, external, maglev, affinity, check });
#[cfg(feature = "next-layout")]
layout!(Frontend, 44 { added, service, flags, internal, external, maglev, affinity, check });

/// Bits of [`Frontend::flags`].
pub mod frontend_flags {
    /// Flows from outside the cluster keep their source address (externalTrafficPolicy: Local); without
    /// it they are masqueraded.
    pub const KEEP_SOURCE: u32 = 1;
    /// The Service has endpoints, though perhaps none that this node's clients may use: an empty region
    /// then means drop, not reject.
    pub const HAS_ENDPOINTS: u32 = 2;
    /// Only clients in [`crate::maps::SOURCE_RANGES`] may use it (loadBalancerSourceRanges).
    pub const GUARDED: u32 = 4;
    /// It is a NodePort, which no process of the node may bind.
    pub const NODE_PORT: u32 = 8;
    /// It stands for every port of a ClusterIP that has no frontend ([`FrontendKey::whole`]): they refuse.
    pub const WHOLE: u32 = 16;
}

/// A range of addresses that may use a Service port's guarded frontends: the data of a longest-prefix key, whose
/// prefix covers the service and a part of the address. 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange {
    /// [`Frontend::service`].
    pub service: u32,
    /// The client's address, or the range's first.
    pub address: Address,
}
layout!(SourceRange, 20 { service, address });

/// Bits of a value of [`crate::maps::SERVICE_CIDRS`].
pub mod cidr_flags {
    /// An address in it that no Service has is dropped: the range is the cluster's ServiceCIDR. Without it the
    /// range only says where ClusterIPs are, so that other packets need not be looked up.
    pub const DROP: u32 = 1;
}

/// Whom a Service port remembers. 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The client.
    pub client: Address,
    /// [`Frontend::service`].
    pub service: u32,
}
layout!(AffinityKey, 20 { client, service });

/// Which backend a client had, and when it last began a flow. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Nanoseconds of the monotonic clock.
    pub last_used: u64,
    /// The backend's id.
    pub backend: u32,
    /// Its generation.
    pub generation: u32,
}
layout!(Affinity, 16 { last_used, backend, generation });

/// A target that flows are translated to. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backend {
    /// The endpoint's address.
    #[cfg(not(feature = "next-layout"))]
    pub address: Address,
    /// The endpoint's port.
    pub port: Port,
    /// Zero.
    pub reserved: u16,
    /// A number that no other tenant of any id has had, or 0 if the id never had one. An id whose tenant is gone has a
    /// number of its own, and no port: so the highest number that was ever given stands in the map, and none is given twice.
    pub generation: u32,
    /// The endpoint's address.
    #[cfg(feature = "next-layout")]
    pub address: Address,
}
layout!(Backend, 24 { address, port, reserved, generation });

impl Backend {
    /// What stands at an id whose tenant is gone.
    pub const fn vacated(generation: u32) -> Self {
        Self { address: Address::UNSPECIFIED, port: Port::new(0), reserved: 0, generation }
    }

    /// Whether the id has a tenant.
    #[inline(always)]
    pub const fn has_tenant(&self) -> bool {
        self.generation != 0 && self.port.wire() != 0
    }
}
