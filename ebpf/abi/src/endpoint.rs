//! Local pods.

use crate::layout;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A pod on this node: where packets for its address go, and who may send from it. 28 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of the host side of the pod's veth pair.
    pub ifindex: u32,
    /// The endpoint's place in [`crate::maps::MARKS`]; shared by all addresses of one pod.
    pub index: u32,
    /// Address of the pod's end.
    pub pod_mac: Mac,
    /// Address of the host's end.
    pub host_mac: Mac,
    /// The id of the pod's network namespace as the host's knows it (`IFLA_LINK_NETNSID` of `ifindex`), plus one;
    /// 0 if it is not known.
    pub netns: u32,
    /// [`endpoint_flags`].
    pub flags: u32,
}
layout!(Endpoint, 28 { ifindex, index, pod_mac, host_mac, netns, flags });

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// The host's end limits what the pod is sent: packets are to pass its queue.
    pub const SHAPED: u32 = 1;
}

/// Bits that the programs set on an endpoint, in [`crate::maps::MARKS`].
///
/// They keep packets that no Service touched away from the flow table: a pod whose mark is clear takes
/// part in no flow that is there, so neither its packets nor those sent to it can need one.
pub mod marks {
    /// The endpoint is the client or the backend of a flow that is, or was, in the flow table: a translated one, or one
    /// whose replies policies admit by it. Never cleared while the endpoint lives.
    pub const TRANSLATED: u32 = 1;
}
