//! Values of [`crate::maps::EGRESS`]: whose address a pod's packets leave with, by their destination. Where no entry
//! matches, it is the pod's own.

/// The pod's own: the destination is in the cluster, or knows the way to its pods.
pub const POD: u32 = 0;
/// The node's: the flow is masqueraded.
pub const NODE: u32 = 1;
