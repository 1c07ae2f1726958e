//! Pods sending plainly: to each other, to other nodes, outside; and what they may not send.

use std::net::SocketAddr;

use fairlead_abi::Reason;
use fairlead_prog_tests::packet::tcp::{ACK, SYN};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

const A: Hook = Hook::FromPod(Pod::A);

fn at(ip: std::net::IpAddr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// Packets of every kind, from one address to another.
fn kinds(source: std::net::IpAddr, destination: std::net::IpAddr) -> Vec<Packet> {
    let (source, destination) = (at(source, 40_000), at(destination, 80));
    let echo = if source.is_ipv4() { 8 } else { 128 };
    vec![
        Packet::tcp(SYN, source, destination),
        Packet::tcp(ACK, source, destination).payload(&[7; 1200]),
        Packet::udp(source, destination),
        Packet::new(Transport::UdpWithoutChecksum, source, destination).payload(&[]),
        Packet::icmp(echo, 0, source.ip(), destination.ip()),
        Packet::new(Transport::Bare(132), source, destination),
        Packet::udp(source, destination).fragment(0, true).payload(&[1; 64]),
        Packet::udp(source, destination).fragment(9, false).payload(&[1; 64]),
        Packet::udp(source, destination).tos(0xb8).identification(0x1234),
    ]
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
