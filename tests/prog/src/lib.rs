//! Packets through Fairlead's loaded programs, by BPF_PROG_TEST_RUN: the fixture.
//!
//! A [`Node`] is the programs, loaded into the kernel, and their maps, in a network namespace with two pods
//! and an uplink ([`place`]). Nothing is attached: a test hands a
//! [`Packet`](packet::Packet) to a program directly, and compares what becomes of it with a
//! [`Case`](case::Case): verdict, packet, counters and flow entries, each exactly.

pub mod case;
mod extension;
pub mod node;
pub mod packet;
pub mod place;
mod policy;
pub mod random;
pub mod sums;
mod tables;

pub use case::{Case, Then};
pub use node::{Hook, Node, Outcome};
pub use packet::{Packet, Transport};
pub use place::{FAMILIES, Family, Pod};
