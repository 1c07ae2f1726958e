//! Everything the eBPF programs and user space must agree on: map names, keys and values.
//!
//! Every type here is `repr(C)` with explicit padding, holds no enum, bool or Option, and has its size
//! asserted, because the kernel side and the user side are compiled for different targets and meet only
//! in memory. A change to any of them, or to a map's kind, is a new [`LAYOUT_VERSION`], which is part of
//! the directory that maps and links are pinned under, so that two versions never share a map.
//!
//! | map | kind | key → value | written by |
//! |---|---|---|---|
//! | [`maps::CONFIG`] | array of 1 | 0 → [`Config`] | agent |
//! | [`maps::FRONTENDS`] | hash | [`FrontendKey`] → [`Frontend`] | agent |
//! | [`maps::SLOTS`] | array | slot → backend id | agent |
//! | [`maps::BACKENDS`] | array | backend id → [`Backend`] | agent |
//! | [`maps::ENDPOINTS`] | hash | [`Address`] → [`Endpoint`] | agent, at CNI ADD and DEL |
//! | [`maps::MARKS`] | array | endpoint index → [`marks`] | programs; cleared by the agent |
//! | [`maps::FLOWS`] | hash | [`FlowKey`] → [`Flow`] | programs; expired ones also removed by the agent, which enters those of connection tracking |
//! | [`maps::PLACES`] | array | place → forward [`FlowKey`] | programs |
//! | [`maps::FRAGMENTS`] | LRU hash | [`FragmentKey`] → [`Flow`] of the first fragment | programs |
//! | [`maps::SOCKETS`] | LRU hash | [`SocketKey`] → [`SocketPeer`] | programs |
//! | [`maps::CLIENTS`] | hash | network namespace's cookie → [`SocketClient`] | agent |
//! | [`maps::AFFINITY`] | LRU hash | [`AffinityKey`] → [`Affinity`] | programs |
//! | [`maps::SOURCE_RANGES`] | longest prefix | [`SourceRange`] → 1 | agent |
//! | [`maps::SERVICE_CIDRS`] | longest prefix | [`Address`] → [`cidr_flags`] | agent |
//! | [`maps::EGRESS`] | longest prefix | destination [`Address`] → [`egress`] | agent |
//! | [`maps::ISOLATION`] | array | endpoint index → [`Isolation`] | agent |
//! | [`maps::ISOLATED`] | array | endpoint index → when it came under policies, nanoseconds | agent |
//! | [`maps::POLICIES`] | array | policy → its row for identities without a cell | agent |
//! | [`maps::PEERS`] | longest prefix | [`Address`] → identity, [`identities`] | agent |
//! | [`maps::CELLS`] | hash | [`CellKey`] → [`Cell`] | agent |
//! | [`maps::ROWS`] | longest prefix | [`RowKey`] → [`verdicts`] | agent |
//! | [`maps::POLICY_STATE`] | array of 1 | 0 → [`PolicyState`] | agent |
//! | [`maps::POLICY_DROPS`] | per-CPU array | policy → packets | programs |
//! | [`maps::EVENTS`] | ring buffer | [`DropEvent`] | programs |
//! | [`maps::COUNTERS`] | per-CPU array | [`Counter`] → packets | programs |
//! | [`maps::DROPS`] | per-CPU array | [`Reason`] → packets | programs |
//!
//! Beside them the agent pins [`maps::LAYOUT`], which the programs don't know: what all these look like.
#![no_std]

mod address;
mod config;
mod count;
#[cfg(feature = "user")]
pub mod describe;
pub mod egress;
mod endpoint;
mod event;
mod flow;
mod policy;
mod service;
mod socket;

pub use address::{Address, Port, protocol};
pub use config::{Config, config_flags};
pub use count::{Counter, Reason};
pub use endpoint::{Endpoint, Mac, endpoint_flags, marks};
pub use event::{DropEvent, event_flags};
pub use flow::{Flow, FlowKey, FragmentKey, flow_flags};
pub use policy::{
    Asked, Cell, CellKey, Isolation, PeerKey, PolicyState, RowKey, identities, policies, rows, state_flags,
    verdicts,
};
pub use service::{
    Affinity, AffinityKey, Backend, Frontend, FrontendKey, Region, SourceRange, cidr_flags, frontend_flags,
};
pub use socket::{SocketClient, SocketKey, SocketPeer, socket_flags};

/// The version of every layout in this crate; maps and links are pinned under a directory named after it.
///
/// An agent of another version carries over what the maps hold, by the descriptions of both layouts. So
/// that it can, a field keeps its name as long as it keeps its meaning, a new one says by zero what was so without it, a
/// key loses no field, and a bit of flags is never given another meaning.
#[cfg(not(feature = "next-layout"))]
pub const LAYOUT_VERSION: u32 = 5;
/// As it would be after a change, for tests of upgrades.
#[cfg(feature = "next-layout")]
pub const LAYOUT_VERSION: u32 = 6;

/// Map names, as they stand in the object file and under the pin directory. The kernel keeps 15 characters.
pub mod maps {
    /// [`Config`](crate::Config), one entry at index 0.
    pub const CONFIG: &str = "CONFIG";
    /// [`FrontendKey`](crate::FrontendKey) → [`Frontend`](crate::Frontend).
    pub const FRONTENDS: &str = "FRONTENDS";
    /// Slot number → backend id (`u32`). A frontend's backends are a contiguous [`Region`](crate::Region).
    pub const SLOTS: &str = "SLOTS";
    /// Backend id → [`Backend`](crate::Backend). Id 0 is never used.
    pub const BACKENDS: &str = "BACKENDS";
    /// [`Address`](crate::Address) of a local pod → [`Endpoint`](crate::Endpoint).
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Endpoint index → [`marks`](crate::marks) (`u32`).
    pub const MARKS: &str = "MARKS";
    /// [`FlowKey`](crate::FlowKey) → [`Flow`](crate::Flow).
    pub const FLOWS: &str = "FLOWS";
    /// Place → the forward [`FlowKey`](crate::FlowKey) of the connection that has it; one of protocol 0 is free.
    pub const PLACES: &str = "PLACES";
    /// [`FragmentKey`](crate::FragmentKey) → [`Flow`](crate::Flow).
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`SocketKey`](crate::SocketKey) → [`SocketPeer`](crate::SocketPeer).
    pub const SOCKETS: &str = "SOCKETS";
    /// Cookie of a network namespace (`u64`) → [`SocketClient`](crate::SocketClient).
    pub const CLIENTS: &str = "CLIENTS";
    /// [`AffinityKey`](crate::AffinityKey) → [`Affinity`](crate::Affinity).
    pub const AFFINITY: &str = "AFFINITY";
    /// [`SourceRange`](crate::SourceRange), of which a prefix of 32 + 0–128 bits counts → 1 (`u32`).
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    /// [`Address`](crate::Address), of which a prefix counts → [`cidr_flags`](crate::cidr_flags) (`u32`).
    pub const SERVICE_CIDRS: &str = "SERVICE_CIDRS";
    /// Whose address a pod's packets to a destination leave with: see [`egress`](crate::egress).
    pub const EGRESS: &str = "EGRESS";
    /// Endpoint index → [`Isolation`](crate::Isolation).
    pub const ISOLATION: &str = "ISOLATION";
    /// Endpoint index → when, in nanoseconds of the monotonic clock, the pod last came under a policy in a direction in
    /// which it had been under none (`u64`).
    pub const ISOLATED: &str = "ISOLATED";
    /// Compiled policy → the row (`u32`) of identities that it has no cell for.
    pub const POLICIES: &str = "POLICIES";
    /// [`PeerKey`](crate::PeerKey), of which a prefix counts → identity (`u32`), see
    /// [`identities`](crate::identities).
    pub const PEERS: &str = "PEERS";
    /// [`CellKey`](crate::CellKey) → [`Cell`](crate::Cell).
    pub const CELLS: &str = "CELLS";
    /// [`RowKey`](crate::RowKey), of which a prefix of 32, 40 or 40 + 1–16 bits counts →
    /// [`verdicts`](crate::verdicts) (`u32`).
    pub const ROWS: &str = "ROWS";
    /// [`PolicyState`](crate::PolicyState), one entry at index 0.
    pub const POLICY_STATE: &str = "POLICY_STATE";
    /// Compiled policy → packets that it dropped (`u64`), per CPU.
    pub const POLICY_DROPS: &str = "POLICY_DROPS";
    /// [`DropEvent`](crate::DropEvent)s.
    pub const EVENTS: &str = "EVENTS";
    /// [`Counter`](crate::Counter) → packets (`u64`), per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// [`Reason`](crate::Reason) → packets (`u64`), per CPU.
    pub const DROPS: &str = "DROPS";
    /// Tuples of datagrams that were left to another generation's programs. Not pinned.
    pub const LEFT: &str = "LEFT";
    /// The description of all these maps, one entry at index 0: JSON, and zeroes behind it. The agent's own.
    pub const LAYOUT: &str = "LAYOUT";
}

/// Program names, as they stand in the object file.
pub mod programs {
    /// What the names of all programs begin with.
    pub const PREFIX: &str = "fairlead_";
    /// tc ingress on the host side of a pod's veth: packets that the pod sends.
    pub const FROM_POD: &str = "fairlead_frpod";
    /// tc egress on the host side of a pod's veth: packets that the node's own stack sends to the pod.
    pub const TO_POD: &str = "fairlead_topod";
    /// tc ingress on an uplink: packets that arrive from outside the node.
    pub const FROM_WIRE: &str = "fairlead_frwire";
    /// tc egress on an uplink: packets that the node's own stack sends out.
    pub const TO_WIRE: &str = "fairlead_towire";
    /// tc ingress on an interface behind which are pods that another CNI has wired: packets that they send.
    pub const FROM_PODS: &str = "fairlead_frpods";
    /// cgroup connect4.
    pub const CONNECT4: &str = "fairlead_conn4";
    /// cgroup connect6.
    pub const CONNECT6: &str = "fairlead_conn6";
    /// cgroup sendmsg4.
    pub const SENDMSG4: &str = "fairlead_send4";
    /// cgroup sendmsg6.
    pub const SENDMSG6: &str = "fairlead_send6";
    /// cgroup recvmsg4.
    pub const RECVMSG4: &str = "fairlead_recv4";
    /// cgroup recvmsg6.
    pub const RECVMSG6: &str = "fairlead_recv6";
    /// cgroup getpeername4.
    pub const GETPEERNAME4: &str = "fairlead_peer4";
    /// cgroup getpeername6.
    pub const GETPEERNAME6: &str = "fairlead_peer6";
    /// cgroup post_bind4.
    pub const BIND4: &str = "fairlead_bind4";
    /// cgroup post_bind6.
    pub const BIND6: &str = "fairlead_bind6";
}

/// Names of variables that are set as the programs are loaded.
pub mod globals {
    /// A byte: not 0 for the variant that stands before another generation's programs.
    pub const HANDOVER: &str = "HANDOVER";
    /// A byte, 1 unless it is set at load: whether the hooks of sockets say why they refuse a call, by
    /// `bpf_set_retval` (kernel 5.18), or leave it at EPERM.
    pub const SAYS_WHY: &str = "SAYS_WHY";
    /// A byte, 1 unless it is set at load: whether maps take keys and values from any memory
    /// (kernel 6.2), or they are to be copied first.
    pub const ANY_MEMORY: &str = "ANY_MEMORY";
}

/// Asserts a layout's size at compile time, and, for user space, makes it a value that maps may hold, and describes it:
/// by its fields, which must be all of it.
macro_rules! layout {
    ($type:ty, $size:literal) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);

        // SAFETY: repr(C), Copy, without padding (the size above is the sum of its fields), and any bit
        // pattern is a valid value, since every field is an integer or a wrapper of integers.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
    ($type:ty, $size:literal { $($field:ident),+ $(,)? }) => {
        crate::layout!($type, $size);

        #[cfg(feature = "user")]
        impl crate::describe::Described for $type {
            const FIELDS: &'static [crate::describe::Field] = &[$({
                let (size, fields) = crate::describe::of_field(|whole: &$type| &whole.$field);
                let offset = core::mem::offset_of!($type, $field);
                crate::describe::Field { name: stringify!($field), offset, size, fields }
            }),+];
        }
        #[cfg(feature = "user")]
        const _: () = assert!(crate::describe::total(<$type as crate::describe::Described>::FIELDS) == $size);
    };
}
use layout;
