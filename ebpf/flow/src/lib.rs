//! Pure packet arithmetic, shared by the eBPF programs and the tests that run on the host.
#![no_std]

pub mod checksum;
pub mod life;
pub mod maglev;
pub mod sctp;
pub mod snat;
pub mod tcp;
