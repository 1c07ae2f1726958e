//! Keys of the maps that find the longest prefix.

use std::fmt;
use std::net::IpAddr;

use fairlead_abi::{Address, SourceRange};
use ipnet::IpNet;

/// How many bits of a mapped address come before those of the IPv4 one.
const MAPPED_BITS: u32 = 96;
/// How many bits of a source range come before its address.
const SERVICE_BITS: u32 = 32;

/// A key of [`fairlead_abi::maps::SOURCE_RANGES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRangeKey {
    /// How many bits of `range` count: 32 of the Service's id, and those of the address.
    pub prefix_len: u32,
    /// Service and address.
    pub range: SourceRange,
}

impl SourceRangeKey {
    /// The key that admits the clients in `range` to the Service port `service`.
    pub fn new(service: u32, range: IpNet) -> Self {
        let RangeKey { prefix_len, address } = RangeKey::from(range);
        Self { prefix_len: SERVICE_BITS + prefix_len, range: SourceRange { service, address } }
    }

    /// The clients that it admits.
    pub fn clients(&self) -> RangeKey {
        let prefix_len = self.prefix_len.saturating_sub(SERVICE_BITS);
        RangeKey { prefix_len, address: self.range.address }
    }
}

/// A range of addresses: a key of [`fairlead_abi::maps::SERVICE_CIDRS`] and of [`fairlead_abi::maps::PEERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeKey {
    /// How many bits of `address` count, of 128.
    pub prefix_len: u32,
    /// The first address of the range.
    pub address: Address,
}

impl RangeKey {
    /// Whether the range holds this address. As in the maps, IPv4 addresses are IPv6 ones.
    pub fn contains(&self, address: Address) -> bool {
        let bits = |address: Address| {
            let words = address.words().map(u32::from_be);
            words.into_iter().fold(0, |bits, word| bits << 32 | u128::from(word))
        };
        let differing = bits(self.address) ^ bits(address);
        differing.leading_zeros() >= self.prefix_len.min(128)
    }
}

impl From<IpNet> for RangeKey {
    fn from(range: IpNet) -> Self {
        let skipped = if range.addr().is_ipv4() { MAPPED_BITS } else { 0 };
        Self { prefix_len: skipped + u32::from(range.prefix_len()), address: range.network().into() }
    }
}

impl fmt::Display for RangeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = IpAddr::from(self.address);
        let skipped = if address.is_ipv4() { MAPPED_BITS } else { 0 };
        write!(f, "{address}/{}", self.prefix_len.saturating_sub(skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_both_families_hold_their_addresses_and_are_written_as_people_write_them() {
        for (range, inside, outside) in [
            ("10.96.0.0/12", "10.111.255.255", "10.112.0.0"),
            ("192.0.2.1/32", "192.0.2.1", "192.0.2.2"),
            ("fd00:10::/112", "fd00:10::ffff", "fd00:10::1:0"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
        ] {
            let key = RangeKey::from(range.parse::<IpNet>().expect("a range"));
            let contains = |text: &str| key.contains(text.parse::<IpAddr>().expect("an address").into());
            assert_eq!((contains(inside), contains(outside)), (true, false), "{range}");
            assert_eq!(key.to_string(), range);
        }
    }

    #[test]
    fn a_source_ranges_prefix_covers_the_service() {
        let key = SourceRangeKey::new(7, "10.0.0.0/8".parse().expect("a range"));
        assert_eq!((key.prefix_len, key.range.service), (32 + 96 + 8, 7));
        assert_eq!(key.clients().to_string(), "10.0.0.0/8");
    }
}
