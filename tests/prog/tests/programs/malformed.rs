//! Packets that are short, wrong or odd: none confuses the programs, none gets further than it should.

use fairlead_abi::Reason;
use fairlead_prog_tests::case::{REDIRECT, SHOT, UNSPEC};
use fairlead_prog_tests::packet::ETHERNET;
use fairlead_prog_tests::packet::tcp::SYN;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Outcome, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, serve};

const A: Hook = Hook::FromPod(Pod::A);
const WIRE: Hook = Hook::FromWire;
const HOOKS: [Hook; 4] = [A, WIRE, Hook::ToPod(Pod::A), Hook::ToWire];

/// How long the transport header is.
fn header(transport: Transport) -> usize {
    match transport {
        Transport::Tcp(_) => 20,
        // The common header, and the first chunk's.
        Transport::Sctp(_) => 16,
        _ => 8,
    }
}

/// Sends what the kernel takes for a packet: at the least, a whole IP header.
fn try_send(node: &Node, hook: Hook, bytes: &[u8]) -> Option<Outcome> {
    let outcome = node.inside(|| node.try_send_inside(hook, bytes));
    assert!(outcome.is_some() || bytes.len() < ETHERNET + 40, "{} bytes are refused", bytes.len());
    outcome
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_cut_off_in_its_transport_header_is_dropped_as_malformed() {
    let node = Node::start();
    for (family, transport) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        for hook in HOOKS {
            let source = if hook == WIRE { family.remote_pod() } else { Pod::A.ip(family) };
            let packet = Packet::new(transport, at(source, 1), at(Pod::B.ip(family), 2));
            let whole = packet.bytes();
            for length in ETHERNET + 1..whole.len() {
                let before = node.drops();
                let cut = hook.frame(packet.clone()).bytes()[..length].to_vec();
                let Some(outcome) = try_send(&node, hook, &cut) else { continue };
                let present = length.saturating_sub(packet.transport_offset());
                let what = format!("{hook:?}, {length} of {} bytes of {packet:?}", whole.len());
                let dropped = node.drops()[Reason::Malformed as usize] - before[Reason::Malformed as usize];
                assert_eq!(outcome.code == SHOT, dropped == 1, "{what}: code {}", outcome.code);
                assert_eq!(dropped == 1, present < header(transport), "{what}: code {}", outcome.code);
                if outcome.code == UNSPEC {
                    assert_eq!(outcome.packet, cut, "{what}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_to_a_service_cut_off_in_its_transport_header_is_dropped_and_begins_no_flow() {
    let mut node = Node::start();
    for (family, transport) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, transport, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        let packet = A.frame(Packet::new(transport, at(Pod::A.ip(family), CLIENT_PORT), service));
        for length in ETHERNET + 1..packet.transport_offset() + header(transport) {
            let Some(outcome) = try_send(&node, A, &packet.bytes()[..length]) else { continue };
            assert_eq!(outcome.code, SHOT, "{length} bytes of {packet:?}");
            assert_eq!(node.flows().len(), 0, "flows after {length} bytes of {packet:?}");
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_to_refuse_is_refused_or_dropped_however_short() {
    let mut node = Node::start();
    for (family, transport) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, transport, service, &[]);
        let packet = A.frame(Packet::new(transport, at(Pod::A.ip(family), CLIENT_PORT), service));
        for length in ETHERNET + 1..packet.bytes().len() {
            let Some(outcome) = try_send(&node, A, &packet.bytes()[..length]) else { continue };
            let whole = length >= packet.transport_offset() + header(transport);
            assert_eq!(outcome.code, if whole { REDIRECT } else { SHOT }, "{length} bytes of {packet:?}");
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_header_that_makes_no_sense_is_dropped() {
    let node = Node::start();
    for (family, first_byte) in [
        (Family::V4, vec![0x44, 0x40, 0x55, 0x65, 0x05, 0xf5]),
        (Family::V6, vec![0x40, 0x50, 0x70, 0x00, 0xf0]),
    ] {
        let packet = Packet::udp(at(Pod::A.ip(family), 1), at(family.client(), 2));
        for byte in first_byte {
            let mut bytes = A.frame(packet.clone()).bytes();
            bytes[ETHERNET] = byte;
            let before = node.drops()[Reason::Malformed as usize];
            let outcome = node.send(A, &bytes);
            assert_eq!(outcome.code, SHOT, "{family:?}, first byte {byte:#x}");
            assert_eq!(
                node.drops()[Reason::Malformed as usize],
                before + 1,
                "{family:?}, first byte {byte:#x}"
            );
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn options_that_reach_beyond_the_packet_are_dropped() {
    let node = Node::start();
    let packet = Packet::udp(at(Pod::A.ip(Family::V4), 1), at(Pod::B.ip(Family::V4), 2)).payload(&[]);
    let mut bytes = A.frame(packet).bytes();
    bytes[ETHERNET] = 0x4f;
    assert_eq!(node.send(A, &bytes).code, SHOT);
    let packet = Packet::udp(at(Pod::A.ip(Family::V6), 1), at(Pod::B.ip(Family::V6), 2)).extension(60, 1);
    let mut bytes = A.frame(packet).bytes();
    bytes[ETHERNET + 40 + 1] = 0xff;
    assert_eq!(node.send(A, &bytes).code, SHOT);
    assert_eq!(node.drops()[Reason::Malformed as usize], 2);
}

/// What follows the header of a fragment other than the first is the middle of something.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_later_fragment_is_not_searched_for_more_headers() {
    let node = Node::start();
    let (source, destination) = (at(Pod::A.ip(Family::V6), 1), at(Pod::B.ip(Family::V6), 2));
    for next in [0, 43, 44, 60] {
        let packet = Packet::new(Transport::Bare(next), source, destination);
        let packet = packet.payload(&[60, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).fragment(100, false);
        Case::new(format!("next header {next}"), A, packet.clone(), Then::ToPod(Pod::B, packet)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_is_not_ip_is_left_to_the_stack() {
    let node = Node::start();
    let ip = Packet::tcp(SYN, at(Pod::A.ip(Family::V4), 1), at(Pod::B.ip(Family::V4), 2));
    for kind in [0x0806_u16, 0x8100, 0x88cc, 0x0003, 0xffff, 0x8864] {
        for hook in HOOKS {
            let mut bytes = hook.frame(ip.clone()).bytes();
            bytes[12..14].copy_from_slice(&kind.to_be_bytes());
            let before = (node.counters(), node.drops());
            let outcome = node.send(hook, &bytes);
            assert_eq!((outcome.code, outcome.packet), (UNSPEC, bytes), "type {kind:#x} at {hook:?}");
            assert_eq!((node.counters(), node.drops()), before, "type {kind:#x} at {hook:?}");
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_unknown_protocol_to_a_cluster_address_is_no_service() {
    let mut node = Node::start();
    for family in FAMILIES {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, Transport::Udp, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        for number in [47, 50, 51, 59, 253, 255] {
            let packet = Packet::new(Transport::Bare(number), at(Pod::A.ip(family), 0), service);
            let packet = packet.payload(&[0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]);
            Case::new(format!("protocol {number}"), A, packet.clone(), Then::ToGateway(packet)).check(&node);
        }
    }
}
