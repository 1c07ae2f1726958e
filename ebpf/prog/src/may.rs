//! What [`crate::ct::flow_of`] may do about a packet, by where that is met.

/// Find a flow that is known.
pub(crate) const FIND: u32 = 1;
/// Begin a flow from inside the cluster, if the destination is a frontend.
pub(crate) const BEGIN_INSIDE: u32 = 2;
/// Begin a flow from outside the cluster, if the destination is a frontend.
pub(crate) const BEGIN_OUTSIDE: u32 = 4;
/// Begin a flow for what is for no frontend but would be taken for part of another flow.
pub(crate) const KEEP_APART: u32 = 8;
/// Begin a flow of the node itself, whose packets are on their way out.
pub(crate) const BEGIN_AWAY: u32 = 16;
/// Ask the policies of local pods. Without it the packet is the node's own, and so is the flow that it begins.
pub(crate) const JUDGE: u32 = 32;
/// Let what is in no flow pass unasked: policies have no say in it.
pub(crate) const PASS_PLAIN: u32 = 64;
/// Begin a flow for what the node sends to a pod whose answers policies might not admit.
pub(crate) const ENTER: u32 = 128;
/// Believe an ICMP error only of the quoted packet's receiver: pods are no routers.
pub(crate) const OWN_SOURCE: u32 = 256;
/// Believe nobody who claims to be the node: the packet came over an uplink.
pub(crate) const OUTSIDE: u32 = 1024;
/// Begin a flow to the outside, whose packets leave with the node's address.
pub(crate) const LEAVE: u32 = 2048;
/// Remember a datagram from the outside, whose answers leave with the pod's.
pub(crate) const REMEMBER: u32 = 4096;
/// Remember what the node's stack forwards to a pod, whose answers are the stack's to forward too.
pub(crate) const STACK: u32 = 8192;
/// Masquerade what would be answered past this node, since client and backend are behind one interface.
pub(crate) const BESIDE: u32 = 16_384;
/// Begin none: the packet's tuple is that of another flow's answers.
pub(crate) const ANOTHER: u32 = 512;
