//! This node's own place in the network: the addresses and MTUs of its interfaces, and the subnets that they are on.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};

use crate::netlink::cause;
use crate::vxlan::Underlay;

/// An address of an interface of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// The interface's name.
    pub ifname: String,
    /// The interface's MTU in bytes.
    pub mtu: u32,
}

/// Where this node is, but for loopback and overlays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The addresses of its interfaces.
    pub addresses: Vec<LocalAddress>,
    /// The subnets that it has a link to: routes without a gateway, whoever made them. An address need not be on the
    /// subnet that its prefix length says; one that DHCPv6 has given is on none.
    pub subnets: Vec<IpNet>,
}

impl Here {
    /// Asks the kernel. IPv6 addresses that it has not yet found to be unique are left out: none of them can be a
    /// route's source.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub(crate) async fn read(handle: &Handle) -> io::Result<Self> {
        let interfaces = interfaces(handle).await?;
        let mut here = Self::default();
        let mut addresses = std::pin::pin!(handle.address().get().execute());
        while let Some(message) = addresses.try_next().await.map_err(cause)? {
            let interface = interfaces.get(&message.header.index);
            if let (Some(address), Some((ifname, mtu))) = (usable(&message), interface) {
                here.addresses.push(LocalAddress { address, ifname: ifname.clone(), mtu: *mtu });
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut routes = std::pin::pin!(handle.route().get(request).execute());
            while let Some(message) = routes.try_next().await.map_err(cause)? {
                let subnet = subnet(&message).filter(|(_, index)| interfaces.contains_key(index));
                here.subnets.extend(subnet.map(|(subnet, _)| subnet));
            }
        }
        Ok(here)
    }

    /// Whether one of the interfaces has the address.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.find(address).is_some()
    }

    /// Whether the address is another's on a subnet of one of the interfaces.
    #[must_use]
    pub fn is_connected(&self, address: IpAddr) -> bool {
        !self.has(address) && self.subnets.iter().any(|subnet| subnet.contains(&address))
    }

    /// The MTU in bytes of the interface that has the address.
    #[must_use]
    pub fn mtu(&self, address: IpAddr) -> Option<u32> {
        self.find(address).map(|local| local.mtu)
    }

    fn find(&self, address: IpAddr) -> Option<&LocalAddress> {
        self.addresses.iter().find(|local| local.address == address)
    }
}

/// Name and MTU of each interface that leads somewhere, by its index.
async fn interfaces(handle: &Handle) -> io::Result<BTreeMap<u32, (String, u32)>> {
    let mut interfaces = BTreeMap::new();
    let mut links = std::pin::pin!(handle.link().get().execute());
    while let Some(link) = links.try_next().await.map_err(cause)? {
        let (mut name, mut mtu) = (None, None);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::Mtu(bytes) => mtu = Some(bytes),
                _ => {}
            }
        }
        interfaces.extend(name.zip(mtu).map(|found| (link.header.index, found)));
    }
    let is_overlay = |name: &str| Underlay::ALL.iter().any(|underlay| underlay.ifname() == name);
    interfaces.retain(|_, (name, _)| name != "lo" && !is_overlay(name));
    Ok(interfaces)
}

/// The address in `message`, if a route can have it as its source.
fn usable(message: &AddressMessage) -> Option<IpAddr> {
    if message.header.flags.intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed) {
        return None;
    }
    // Where both are, LOCAL is the interface's own and ADDRESS the other end's.
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// The subnet that the route in `message` has a link to, and the link's interface, if it is such a route.
fn subnet(message: &RouteMessage) -> Option<(IpNet, u32)> {
    let RouteHeader { table, kind, destination_prefix_length, .. } = message.header;
    let is_gateway = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    };
    if table != RouteHeader::RT_TABLE_MAIN
        || kind != RouteType::Unicast
        || message.attributes.iter().any(is_gateway)
    {
        return None;
    }
    let (mut subnet, mut interface) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => subnet = Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => subnet = Some(IpAddr::V6(*v6)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    Some((IpNet::new(subnet?, destination_prefix_length).ok()?, interface?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_is_who_shares_a_subnet_and_not_the_node_itself() {
        let address = |text: &str| text.parse().expect("address");
        let local = |text| LocalAddress { address: address(text), ifname: "eth0".into(), mtu: 1500 };
        let here = Here {
            addresses: vec![local("192.0.2.1"), local("2001:db8::1"), local("203.0.113.1")],
            subnets: vec!["192.0.2.0/24".parse().expect("subnet"), "2001:db8::/64".parse().expect("subnet")],
        };
        assert!(here.is_connected(address("192.0.2.2")) && here.is_connected(address("2001:db8::2")));
        for other in ["192.0.2.1", "198.51.100.2", "2001:db8:1::2", "203.0.113.1", "203.0.113.2"] {
            assert!(!here.is_connected(address(other)), "{other}");
        }
        assert!(here.has(address("203.0.113.1")) && !here.has(address("192.0.2.2")));
    }
}
