//! Pods sending plainly: to each other, to other nodes, outside; what they may not send; and what the wire
//! brings for them.

use std::net::IpAddr;

use fairlead_abi::Reason;
use fairlead_prog_tests::case::REDIRECT;
use fairlead_prog_tests::packet::checksum;
use fairlead_prog_tests::packet::sctp::{DATA, INIT};
use fairlead_prog_tests::packet::tcp::{ACK, SYN};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, SERVICE_PORT, TARGET_PORT, at, code, serve};

const A: Hook = Hook::FromPod(Pod::A);

/// Packets of every kind, from one address to another.
pub(crate) fn kinds(source: IpAddr, destination: IpAddr) -> Vec<Packet> {
    let (source, destination) = (at(source, CLIENT_PORT), at(destination, SERVICE_PORT));
    let echo = if source.is_ipv4() { 8 } else { 128 };
    let mut kinds = vec![
        Packet::tcp(SYN, source, destination),
        Packet::tcp(ACK, source, destination).payload(&[7; 1200]),
        Packet::udp(source, destination),
        Packet::new(Transport::UdpWithoutChecksum, source, destination).payload(&[]),
        Packet::icmp(echo, 0, source.ip(), destination.ip()),
        Packet::new(Transport::Bare(47), source, destination),
        Packet::new(Transport::Sctp(INIT), source, destination),
        Packet::new(Transport::Sctp(DATA), source, destination).payload(&[3; 1001]),
        Packet::udp(source, destination).fragment(0, true).payload(&[1; 64]),
        Packet::udp(source, destination).fragment(9, false).payload(&[1; 64]),
        Packet::udp(source, destination).tos(0xb8).identification(0x1234),
    ];
    if source.is_ipv4() {
        kinds.push(Packet::udp(source, destination).options(&[1; 4]));
        kinds.push(Packet::tcp(SYN, source, destination).options(&[1; 40]));
    } else {
        kinds.push(Packet::udp(source, destination).extension(0, 1));
        kinds.push(Packet::tcp(SYN, source, destination).extension(0, 1).extension(60, 3).extension(60, 1));
        kinds.push((0..7).fold(Packet::udp(source, destination), |packet, _| packet.extension(60, 1)));
    }
    kinds
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_a_pod_of_its_node_and_no_flow_is_kept() {
    let node = Node::start();
    for family in FAMILIES {
        for packet in kinds(Pod::A.ip(family), Pod::B.ip(family)) {
            Case::new("to a neighbour", A, packet.clone(), Then::ToPod(Pod::B, packet)).check(&node);
        }
    }
    assert!(!node.is_marked(Pod::A) && !node.is_marked(Pod::B));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_the_other_node_the_gateway_and_its_own_node() {
    let node = Node::start();
    for family in FAMILIES {
        for packet in kinds(Pod::A.ip(family), family.remote_pod()) {
            Case::new("to the other node", A, packet.clone(), Then::ToNode2(packet)).check(&node);
        }
        for packet in kinds(Pod::A.ip(family), family.client()) {
            Case::new("to the outside", A, packet.clone(), Then::ToGateway(packet)).check(&node);
        }
        for packet in kinds(Pod::A.ip(family), family.stranger()) {
            Case::new("to someone on the link", A, packet.clone(), Then::ToStranger(packet)).check(&node);
        }
        for packet in kinds(Pod::A.ip(family), family.node()) {
            Case::new("to the node itself", A, packet.clone(), Then::ToStack(packet)).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_wire_brings_for_a_pod_is_delivered() {
    let node = Node::start();
    for family in FAMILIES {
        for packet in kinds(family.remote_pod(), Pod::B.ip(family)) {
            Case::new("from a remote pod", Hook::FromWire, packet.clone(), Then::ToPod(Pod::B, packet))
                .check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_wire_brings_for_nobody_here_is_left_to_the_stack() {
    let node = Node::start();
    for family in FAMILIES {
        for destination in [family.node(), family.remote_pod(), family.client(), family.cluster_ip()] {
            for packet in kinds(family.client(), destination) {
                Case::new("not ours", Hook::FromWire, packet, Then::Passed).check(&node);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_node_sends_passes_untouched() {
    let node = Node::start();
    for family in FAMILIES {
        for packet in kinds(family.node(), Pod::A.ip(family)) {
            Case::new("to a pod", Hook::ToPod(Pod::A), packet, Then::Passed).check(&node);
        }
        for packet in kinds(family.node(), family.client()) {
            Case::new("outside", Hook::ToWire, packet, Then::Passed).check(&node);
        }
        for packet in kinds(Pod::A.ip(family), family.client()) {
            Case::new("forwarded", Hook::ToWire, packet, Then::Passed).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_cannot_send_from_an_address_that_is_not_its_own() {
    let node = Node::start();
    let spoofed = || Then::Dropped(Reason::SpoofedSource);
    for family in FAMILIES {
        for source in [Pod::B.ip(family), family.remote_pod(), family.node(), family.client()] {
            for packet in kinds(source, family.node()) {
                Case::new("spoofed", A, packet, spoofed()).check(&node);
            }
            for packet in kinds(source, Pod::B.ip(family)) {
                Case::new("spoofed, to a neighbour", A, packet, spoofed()).check(&node);
            }
        }
    }
    for source in ["0.0.0.0", "255.255.255.255", "127.0.0.1"] {
        let packet = Packet::udp(at(source.parse().expect("an address"), 68), at(Family::V4.node(), 67));
        Case::new(format!("from {source}"), A, packet, spoofed()).check(&node);
    }
    for source in ["::", "::1", "fe80::1", "ff02::1"] {
        let packet = Packet::udp(at(source.parse().expect("an address"), 546), at(Family::V6.node(), 547));
        Case::new(format!("from {source}"), A, packet, spoofed()).check(&node);
    }
    let echo = Packet::icmp(128, 0, Pod::B.ip(Family::V6), Family::V6.node());
    Case::new("ICMPv6 from another's address", A, echo, spoofed()).check(&node);
}

/// A mapped IPv4 address in an IPv6 header is not the pod that has the IPv4 address.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_ipv4_address_in_an_ipv6_header_is_nobodys() {
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
        IpAddr::V6(_) => ip,
    };
    let mut node = Node::start();
    let (a, b) = (mapped(Pod::A.ip(Family::V4)), mapped(Pod::B.ip(Family::V4)));
    let service = mapped(Family::V4.cluster_ip());
    let backend = at(Pod::B.ip(Family::V4), TARGET_PORT);
    serve(&mut node, Transport::Udp, at(Family::V4.cluster_ip(), SERVICE_PORT), &[backend]);
    for (hook, source, destination) in [
        (A, a, b),
        (A, a, service),
        (A, a, Family::V6.client()),
        (Hook::FromWire, Family::V6.client(), b),
        (Hook::FromWire, mapped(Family::V4.client()), b),
        (Hook::FromWire, Family::V6.client(), service),
    ] {
        let packet = Packet::udp(at(source, CLIENT_PORT), at(destination, SERVICE_PORT));
        assert_ne!(code(&node, hook, &packet), REDIRECT, "{hook:?}: {source} to {destination}");
        assert_eq!(node.flows(), [], "{hook:?}: {source} to {destination}");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn neighbour_and_listener_discovery_reach_the_node() {
    let node = Node::start();
    let own = Pod::A.ip(Family::V6);
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    for (what, kind, source, destination) in [
        ("router solicitation", 133, ip("fe80::a"), ip("ff02::2")),
        ("duplicate address detection", 135, ip("::"), ip("ff02::1:ff00:2")),
        ("neighbour solicitation", 135, own, ip("ff02::1:ff00:1")),
        ("neighbour solicitation, unicast", 135, own, ip("fe80::1")),
        ("neighbour advertisement", 136, own, ip("fe80::1")),
        ("neighbour advertisement", 136, ip("fe80::a"), ip("ff02::1")),
    ] {
        let packet = Packet::icmp(kind, 0, source, destination).hops(255);
        Case::new(what, A, packet.clone(), Then::ToStack(packet)).check(&node);
    }
    let report = Packet::icmp(143, 0, ip("fe80::a"), ip("ff02::16")).hops(1).extension(0, 1);
    Case::new("listener report", A, report.clone(), Then::ToStack(report)).check(&node);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn of_icmpv6_only_discovery_may_come_from_a_link_local_address() {
    let node = Node::start();
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    for kind in 0..=u8::MAX {
        // Listener discovery is 130 to 132 and 143 (RFC 2710, RFC 3810), neighbour discovery 133 to 137 (RFC 4861).
        let is_discovery = matches!(kind, 130..=137 | 143);
        for source in [ip("fe80::a"), ip("febf:ffff::1"), ip("::")] {
            for destination in [Family::V6.node(), ip("ff02::1"), Pod::B.ip(Family::V6), Family::V6.client()]
            {
                let packet = Packet::icmp(kind, 0, source, destination);
                let discovery = Then::ToStack(packet.clone());
                let then = if is_discovery { discovery } else { Then::Dropped(Reason::SpoofedSource) };
                Case::new(format!("type {kind}"), A, packet, then).check(&node);
            }
        }
        for source in [ip("fec0::a"), ip("fe7f::a"), ip("ff02::1"), ip("::1"), Pod::B.ip(Family::V6)] {
            let packet = Packet::icmp(kind, 0, source, Family::V6.node());
            Case::new(format!("type {kind}"), A, packet, Then::Dropped(Reason::SpoofedSource)).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn broadcast_and_multicast_are_not_sent_to_the_gateway() {
    let node = Node::start();
    let source = at(Pod::A.ip(Family::V4), CLIENT_PORT);
    for destination in ["255.255.255.255", "224.0.0.251", "239.1.2.3", "192.0.2.255"] {
        let packet = Packet::udp(source, at(destination.parse().expect("an address"), 5353));
        Case::new(format!("to {destination}"), A, packet.clone(), Then::ToStack(packet)).check(&node);
    }
    let packet = Packet::udp(
        at(Pod::A.ip(Family::V6), CLIENT_PORT),
        at("ff0e::fb".parse().expect("an address"), 5353),
    );
    Case::new("to ff0e::fb", A, packet.clone(), Then::ToStack(packet)).check(&node);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_with_no_hop_left_is_the_stacks() {
    let node = Node::start();
    for family in FAMILIES {
        for hops in [0, 1] {
            for destination in [Pod::B.ip(family), family.remote_pod(), family.client()] {
                for packet in kinds(Pod::A.ip(family), destination) {
                    Case::new("from a pod", A, packet.hops(hops), Then::Passed).check(&node);
                }
            }
            for packet in kinds(family.client(), Pod::B.ip(family)) {
                Case::new("from the wire", Hook::FromWire, packet.hops(hops), Then::Passed).check(&node);
            }
        }
        for packet in kinds(Pod::A.ip(family), Pod::B.ip(family)) {
            let packet = packet.hops(2);
            Case::new("two are enough", A, packet.clone(), Then::ToPod(Pod::B, packet)).check(&node);
        }
        for packet in kinds(Pod::B.ip(family), Pod::A.ip(family)) {
            Case::new("spoofed", A, packet.hops(1), Then::Dropped(Reason::SpoofedSource)).check(&node);
        }
    }
}

/// A checksum of 0xffff would be 0, so RFC 1624 asks that it is written so.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_header_checksum_that_becomes_zero_is_zero() {
    let node = Node::start();
    let packet = Packet::udp(at(Pod::A.ip(Family::V4), CLIENT_PORT), at(Pod::B.ip(Family::V4), SERVICE_PORT));
    let becomes_zero = (0..=u16::MAX)
        .map(|identification| packet.clone().identification(identification))
        .find(|packet| checksum_field(&packet.clone().a_hop_on()) == 0)
        .expect("some identification gives every checksum");
    assert_eq!(checksum(&becomes_zero.clone().a_hop_on().bytes()[14..34]), 0);
    Case::new("to zero", A, becomes_zero.clone(), Then::ToPod(Pod::B, becomes_zero)).check(&node);
}

fn checksum_field(packet: &Packet) -> u16 {
    let bytes = packet.bytes();
    u16::from_be_bytes([bytes[24], bytes[25]])
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_too_large_for_the_uplink_is_the_stacks() {
    let node = Node::start();
    for family in FAMILIES {
        let packet = Packet::udp(at(Pod::A.ip(family), CLIENT_PORT), at(family.client(), SERVICE_PORT));
        let packet = packet.payload(&[0; 1600]);
        Case::new("too large", A, packet.clone(), Then::ToStack(packet)).check(&node);
    }
}
