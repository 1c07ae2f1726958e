//! The Internet checksum and how it changes (RFC 1071, RFC 1624).
//!
//! The checksum is the one's complement of the one's complement sum of a message's 16-bit words. That sum
//! does not depend on the byte order that the words are read in, so everything here works on words as
//! they stand in memory. When a word `old` becomes `new`, the sum grows by `new + !old`; a [`Difference`]
//! collects such growth over any number of words, and is applied to each checksum that covers them.

use fairlead_abi::Address;

/// The growth of a one's complement sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// No growth.
    pub const NONE: Self = Self(0);

    /// With a 32-bit word that changed from `old` to `new`, both as they stand in memory.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + new as u64 + !old as u64)
    }

    /// With a 16-bit word that changed from `old` to `new`, both as they stand in memory.
    #[inline(always)]
    #[must_use]
    pub const fn half(self, old: u16, new: u16) -> Self {
        Self(self.0 + new as u64 + !old as u64)
    }

    /// With an address of either family. The prefix of a mapped IPv4 address never changes, which leaves
    /// the sum as it is, so both families take the same way.
    #[inline(always)]
    #[must_use]
    pub const fn address(self, old: Address, new: Address) -> Self {
        let (old, new) = (old.words(), new.words());
        self.word(old[0], new[0]).word(old[1], new[1]).word(old[2], new[2]).word(old[3], new[3])
    }

    /// With the growth of another sum.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Folded to 32 bits: what the kernel's `bpf_l4_csum_replace` takes when its size is 0.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let twice = (once & 0xffff_ffff) + (once >> 32);
        twice as u32
    }

    /// The checksum that `old` becomes (RFC 1624, equation 3).
    #[inline(always)]
    pub const fn apply(self, old: u16) -> u16 {
        !fold(self.to_u32() as u64 + !old as u64)
    }
}

/// Folds a one's complement sum to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::{IpAddr, Ipv4Addr};
    use std::vec::Vec;

    use super::*;

    fn checksum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]])));
        !fold(words.sum())
    }

    #[test]
    fn an_incremental_change_equals_a_checksum_from_scratch() {
        let mut message: Vec<u8> = (0..64).map(|byte: u8| byte.wrapping_mul(37)).collect();
        for round in 0..1000_u32 {
            let before = checksum(&message);
            let at = (round as usize * 4) % 64;
            let old = u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
            let new = old.wrapping_mul(2_654_435_761).wrapping_add(round);
            message[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            assert_eq!(Difference::NONE.word(old, new).apply(before), checksum(&message), "round {round}");
        }
    }

    #[test]
    fn the_example_of_rfc_1624_holds() {
        let old = Difference::NONE.half(0x5555_u16.to_be(), 0x3285_u16.to_be()).apply(0xdd2f_u16.to_be());
        assert_eq!(u16::from_be(old), 0x0000);
    }

    #[test]
    fn an_ipv4_address_and_its_mapped_form_change_a_sum_alike() {
        let (old, new) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 168, 3, 4));
        let mapped = Difference::NONE.address(IpAddr::from(old).into(), IpAddr::from(new).into());
        let plain = Difference::NONE.word(u32::from_ne_bytes(old.octets()), u32::from_ne_bytes(new.octets()));
        assert_eq!(mapped.apply(0x1234), plain.apply(0x1234));
    }
}
