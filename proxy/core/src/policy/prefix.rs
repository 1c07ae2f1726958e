//! Ranges of addresses, and what is known by them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::dataplane::RangeKey;

/// Bits of a mapped address.
const ADDRESS_BITS: u8 = 128;
/// Bits before the IPv4 address in a mapped one.
const MAPPED_BITS: u8 = 96;

/// A range of mapped addresses. Ranges come before those that lie in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    first: u128,
    len: u8,
}

impl Prefix {
    /// All IPv4 addresses, to which no IPv6 range applies.
    pub(super) const V4: Self = Self { first: 0xffff << 32, len: MAPPED_BITS };

    fn new(address: u128, len: u8) -> Self {
        let mask = u128::MAX.checked_shl(u32::from(ADDRESS_BITS - len)).unwrap_or(0);
        Self { first: address & mask, len }
    }

    /// How long it is.
    pub(super) fn bits(self) -> u8 {
        self.len
    }

    /// Whether it is an IPv6 range that is wide enough to have the mapped IPv4 addresses in it.
    pub(super) fn may_hold_v4(self) -> bool {
        self.len < MAPPED_BITS
    }

    fn last(self) -> u128 {
        self.first | u128::MAX.checked_shr(u32::from(self.len)).unwrap_or(0)
    }

    /// Whether the other range lies in this one, or is it.
    pub(super) fn covers(self, other: Self) -> bool {
        self.len <= other.len && Self::new(other.first, self.len) == self
    }

    /// The key in the map.
    pub(super) fn key(self) -> RangeKey {
        RangeKey {
            prefix_len: u32::from(self.len),
            address: IpAddr::V6(Ipv6Addr::from_bits(self.first)).into(),
        }
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self { first: bits(address), len: ADDRESS_BITS }
    }
}

impl From<IpNet> for Prefix {
    fn from(range: IpNet) -> Self {
        let skipped = if range.addr().is_ipv4() { MAPPED_BITS } else { 0 };
        Self::new(bits(range.addr()), skipped + range.prefix_len())
    }
}

impl From<RangeKey> for Prefix {
    fn from(key: RangeKey) -> Self {
        Self::new(bits(key.address.into()), key.prefix_len.min(u32::from(ADDRESS_BITS)) as u8)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key().fmt(f)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Prefixes with values, and how long those are that there are.
#[derive(Clone, Debug)]
pub(super) struct Tree<T> {
    /// The value of each.
    pub(super) entries: BTreeMap<Prefix, T>,
    lens: [usize; ADDRESS_BITS as usize + 1],
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), lens: [0; ADDRESS_BITS as usize + 1] }
    }
}

impl<T> Tree<T> {
    pub(super) fn insert(&mut self, prefix: Prefix, value: T) {
        if self.entries.insert(prefix, value).is_none() {
            self.lens[usize::from(prefix.len)] += 1;
        }
    }

    pub(super) fn remove(&mut self, prefix: Prefix) {
        if self.entries.remove(&prefix).is_some() {
            self.lens[usize::from(prefix.len)] -= 1;
        }
    }

    /// The longest prefix around `prefix` that has a value, of those of at most `longest` bits.
    fn around(&self, prefix: Prefix, longest: u8) -> Option<(Prefix, &T)> {
        (0..=longest).rev().filter(|len| self.lens[usize::from(*len)] > 0).find_map(|len| {
            let around = Prefix::new(prefix.first, len);
            self.entries.get(&around).map(|value| (around, value))
        })
    }

    /// The longest prefix around `prefix`, itself included, that has a value.
    pub(super) fn at(&self, prefix: Prefix) -> Option<(Prefix, &T)> {
        self.around(prefix, prefix.len)
    }

    /// The longest prefix around `prefix`, other than itself, that has a value.
    pub(super) fn parent(&self, prefix: Prefix) -> Option<(Prefix, &T)> {
        self.around(prefix, prefix.len.checked_sub(1)?)
    }

    /// Whether any prefix that has a value [may hold IPv4 addresses](Prefix::may_hold_v4).
    pub(super) fn has_any_that_may_hold_v4(&self) -> bool {
        self.lens[..usize::from(MAPPED_BITS)].iter().any(|count| *count > 0)
    }

    /// The prefixes with values that lie in `prefix`, without itself.
    pub(super) fn within(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> {
        let end = Prefix { first: prefix.last(), len: ADDRESS_BITS };
        let within = self.entries.range(prefix..=end).map(|(other, _)| *other);
        within.filter(move |other| *other != prefix)
    }
}
