//! Packets through Fairlead's loaded programs, by BPF_PROG_TEST_RUN: the fixture.
//!
//! A [`Node`] is the programs, loaded into the kernel with their maps pinned in a bpffs of their own, and
//! the map entries that a test gives it. Nothing is attached: packets are handed to the programs directly.

pub mod node;

pub use node::Node;
