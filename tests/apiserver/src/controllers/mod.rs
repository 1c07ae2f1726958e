//! The controllers of a cluster that Fairlead's tests cannot do without: EndpointSlices and Namespace deletion.
//!
//! Each is a task that sleeps until the cluster's revision moves, works off what changed, and sleeps again.

pub(crate) mod endpoint_slices;
mod mirror;
pub(crate) mod namespaces;
pub(crate) mod slices;
