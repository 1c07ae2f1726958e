//! The overlay's devices: a VXLAN device (RFC 7348) for each family of the network under it, at most.
//!
//! Nothing is learned and nothing is flooded: who is behind which Ethernet address follows from the Nodes, whose
//! names make these addresses, so that no node has to tell another anything.

use std::net::{IpAddr, Ipv6Addr};

use crate::attachment::{Mac, digest};

/// The VXLAN network identifier where none is asked for.
pub const DEFAULT_VNI: u32 = 4250;

/// The UDP port where none is asked for: the one that IANA has assigned.
pub const DEFAULT_PORT: u16 = 4789;

/// The family of the network under an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Underlay {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Underlay {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The device's name on every node.
    #[must_use]
    pub const fn ifname(self) -> &'static str {
        match self {
            Self::V4 => "fairlead-vxlan",
            Self::V6 => "fairlead-vxlan6",
        }
    }

    /// How many bytes of each packet are not the inner packet's: IP, UDP and VXLAN headers, and the inner Ethernet
    /// header.
    #[must_use]
    pub const fn header(self) -> u32 {
        match self {
            Self::V4 => 20 + 8 + 8 + 14,
            Self::V6 => 40 + 8 + 8 + 14,
        }
    }

    /// Whether `address` is of the family.
    #[must_use]
    pub const fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == matches!(self, Self::V4)
    }
}

/// What a device has to be like.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// The family of the network under it, which names it.
    pub underlay: Underlay,
    /// The VXLAN network identifier, of 24 bits.
    pub vni: u32,
    /// The UDP port at all ends.
    pub port: u16,
    /// The address that its packets come from.
    pub source: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up, and learns nothing from what it hears.
    pub is_ready: bool,
}

/// The Ethernet address at which a node's devices hear.
#[must_use]
pub fn mac_of(node: &str) -> Mac {
    let [a, b, c, d, e, ..] = digest(node.bytes()).to_be_bytes();
    // Locally administered.
    Mac([0x02, a, b, c, d, e])
}

/// The link-local address that stands for a device with this Ethernet address as a next hop (RFC 4291, appendix A).
///
/// Being link-local it is on the link wherever routes lead at the time.
#[must_use]
pub fn next_hop_v6(Mac([a, b, c, d, e, f]): Mac) -> Ipv6Addr {
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_ethernet_address_is_its_own_for_ever() {
        assert_eq!(mac_of("node-a"), mac_of("node-a"));
        assert_ne!(mac_of("node-a"), mac_of("node-b"));
        assert_eq!(mac_of("node-a").0[0], 2, "locally administered, and of one machine");
    }

    #[test]
    fn the_next_hop_is_the_link_local_address_of_the_ethernet_address() {
        let hop = next_hop_v6(Mac([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]));
        assert_eq!(hop.to_string(), "fe80::11:22ff:fe33:4455");
    }
}
