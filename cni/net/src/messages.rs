//! Items as rtnetlink's messages have them, and back.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::ROUTE_PROTOCOL;
use crate::attachment::Mac;
use crate::network::{Item, NodeRoute, Table};
use crate::routes::{self, Route};
use crate::vxlan::{Device, Underlay};

/// The interface index of each device of ours that there is.
pub(crate) type Devices = BTreeMap<Underlay, u32>;

/// The number of [`Table::Pods`]: the same as the routes' protocol.
const PODS_TABLE: u8 = ROUTE_PROTOCOL;

/// Where the rules stand among others: after the table of local addresses, before the main one.
const RULE_PRIORITY: u32 = 2500;

/// The route in `message` if it is one to another node.
pub(crate) fn node_route(message: &RouteMessage, devices: &Devices) -> Option<NodeRoute> {
    let header = &message.header;
    if header.protocol != RouteProtocol::from(ROUTE_PROTOCOL) {
        return None;
    }
    let table = match header.table {
        RouteHeader::RT_TABLE_MAIN => Table::Main,
        PODS_TABLE => Table::Pods,
        _ => return None,
    };
    let (mut gateway, mut destination, mut source, mut device) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => device = device_at(*index, devices),
            _ => {}
        }
    }
    let destination = IpNet::new(destination?, header.destination_prefix_length).ok()?;
    Some(NodeRoute { table, destination, gateway: gateway?, device, source })
}

/// The message for a route, by the device of that index if it has one.
pub(crate) fn route_message(route: &NodeRoute, device: Option<u32>) -> RouteMessage {
    let NodeRoute { table, destination, gateway, source, .. } = *route;
    let mut message = routes::route_message(&Route { destination, gateway: Some(gateway) }, device);
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    if table == Table::Pods {
        message.header.table = PODS_TABLE;
    }
    if device.is_some() {
        message.header.flags |= RouteFlags::Onlink;
    }
    message
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// The rule in `message` if it is one of ours.
pub(crate) fn rule(message: &RuleMessage) -> Option<Item> {
    let ours = RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL));
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(source) => Some(*source),
        _ => None,
    });
    if !message.attributes.contains(&ours) || message.header.table != PODS_TABLE {
        return None;
    }
    Some(Item::Rule { source: IpNet::new(source?, message.header.src_len).ok()? })
}

/// The message for the rule about packets from `source`.
pub(crate) fn rule_message(source: IpNet) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if source.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.src_len = source.prefix_len();
    message.header.table = PODS_TABLE;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(source.network()),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ];
    message
}

/// The neighbour or forwarding entry in `message` if it is one of a device of ours and does not age.
pub(crate) fn neighbour(message: &NeighbourMessage, devices: &Devices) -> Option<Item> {
    let device = device_at(message.header.ifindex, devices)?;
    if !matches!(message.header.state, NeighbourState::Permanent) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => address = destination_in(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_in(bytes),
            _ => {}
        }
    }
    let (address, mac) = (address?, mac?);
    Some(match message.header.family {
        AddressFamily::Bridge => Item::Forward { device, mac, remote: address },
        _ => Item::Neighbour { device, address, mac },
    })
}

/// The device that `message` tells of, if it is a VXLAN device with an address of its own.
pub(crate) fn device(message: &LinkMessage, underlay: Underlay) -> Option<Device> {
    let (mut mac, mut mtu, mut infos) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = mac_in(bytes),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            LinkAttribute::LinkInfo(info) => {
                infos = info.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(infos)) => Some(infos),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let (mut vni, mut port, mut source) = (None, None, None);
    let mut is_ready = message.header.flags.contains(LinkFlags::Up);
    for info in infos? {
        match info {
            InfoVxlan::Id(id) => vni = Some(*id),
            InfoVxlan::Port(number) => port = Some(*number),
            InfoVxlan::Local(v4) => source = Some(IpAddr::V4(*v4)),
            InfoVxlan::Local6(v6) => source = Some(IpAddr::V6(*v6)),
            InfoVxlan::Learning(learning) => is_ready &= !learning,
            _ => {}
        }
    }
    Some(Device { underlay, vni: vni?, port: port?, source: source?, mac: mac?, mtu: mtu?, is_ready })
}

/// The address in a neighbour's destination. That of a forwarding entry comes as bytes, whose number tells the family.
fn destination_in(destination: &NeighbourAddress) -> Option<IpAddr> {
    match destination {
        NeighbourAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        NeighbourAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        },
        _ => None,
    }
}

fn device_at(index: u32, devices: &Devices) -> Option<Underlay> {
    devices.iter().find_map(|(underlay, found)| (*found == index).then_some(*underlay))
}

fn mac_in(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Devices {
        [(Underlay::V4, 7)].into()
    }

    #[test]
    fn a_route_reads_as_it_was_written() {
        let route = |text: &str, device| NodeRoute {
            table: Table::Pods,
            destination: text.parse().expect("range"),
            gateway: "10.244.2.0".parse().expect("address"),
            device,
            source: Some("192.0.2.1".parse().expect("address")),
        };
        for route in [route("198.51.100.2/32", Some(Underlay::V4)), route("10.244.2.0/24", None)] {
            let message = route_message(&route, route.device.map(|_| 7));
            assert_eq!(node_route(&message, &devices()), Some(route));
        }
    }

    #[test]
    fn a_forwarding_entry_reads_whatever_the_family_of_its_remote_end() {
        for (remote, bytes) in
            [("192.0.2.2", vec![192, 0, 2, 2]), ("::102", [vec![0; 14], vec![1, 2]].concat())]
        {
            let mac = Mac([2, 0, 0, 0, 0, 1]);
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Bridge;
            message.header.ifindex = 7;
            message.header.state = NeighbourState::Permanent;
            message.attributes = vec![
                NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
                NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)),
            ];
            let remote = remote.parse().expect("address");
            assert_eq!(
                neighbour(&message, &devices()),
                Some(Item::Forward { device: Underlay::V4, mac, remote })
            );
        }
    }

    #[test]
    fn a_rule_reads_as_it_was_written_and_others_rules_are_not_ours() {
        for source in ["10.244.1.0/24", "fd00:1::/64"] {
            let source: IpNet = source.parse().expect("range");
            let mut message = rule_message(source);
            assert_eq!(rule(&message), Some(Item::Rule { source }));
            message.attributes.pop();
            assert_eq!(rule(&message), None);
        }
    }
}
