//! Addresses and ports as they stand on the wire.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::layout;

/// An IPv6 address, or an IPv4 one mapped into `::ffff:0:0/96` (RFC 4291, section 2.5.5.2).
///
/// Held in network byte order, so that the four words can be copied to and from a packet as they are.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address([u32; 4]);
layout!(Address, 16);

impl Address {
    /// How many bits it has: those that count of a key that is looked up.
    pub const BITS: u32 = 128;

    /// `::`, which no pod and no Service has.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The IPv4 address whose four bytes, as they stand in memory, are `word`.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), word])
    }

    /// The IPv6 address whose sixteen bytes, as they stand in memory, are `words`.
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The last four bytes as they stand in memory: the whole of an IPv4 address.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        self.0[3]
    }

    /// All sixteen bytes as they stand in memory.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// Whether this is `::`.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(address.octets().chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self(words)
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            return Ipv4Addr::from(address.v4_word().to_ne_bytes()).into();
        }
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// A TCP, UDP or SCTP port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(u16);
layout!(Port, 2);

impl Port {
    /// From a number in the host's byte order.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The number in the host's byte order.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From two bytes as they stand in a packet.
    #[inline(always)]
    pub const fn from_wire(bytes: u16) -> Self {
        Self(bytes)
    }

    /// The two bytes as they stand in a packet.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }
}

impl core::fmt::Debug for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.number().fmt(f)
    }
}

/// IP protocol numbers (IANA).
pub mod protocol {
    /// RFC 792.
    pub const ICMP: u8 = 1;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
    /// RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// RFC 9260.
    pub const SCTP: u8 = 132;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_mapped_into_ipv6_and_back() {
        let address = Address::from(Ipv4Addr::new(10, 0, 0, 1));
        assert!(address.is_v4());
        assert_eq!(IpAddr::from(address), IpAddr::from(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(address, Address::from(IpAddr::from(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped())));
    }

    #[test]
    fn an_ipv6_address_keeps_its_bytes() {
        let v6: Ipv6Addr = "fd00:1:2::3".parse().expect("a valid address");
        assert!(!Address::from(v6).is_v4());
        assert_eq!(IpAddr::from(Address::from(v6)), IpAddr::from(v6));
    }

    #[test]
    fn a_port_stands_in_memory_as_on_the_wire() {
        assert_eq!(Port::new(0x1234).wire().to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Port::from_wire(Port::new(443).wire()).number(), 443);
    }
}
