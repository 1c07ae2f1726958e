//! Services that have nobody to answer.

use fairlead_abi::{Reason, frontend_flags};
use fairlead_prog_tests::packet::tcp::{ACK, FIN_ACK, RST, SYN, SYN_ACK};
use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, NODE_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, number, serve, serve_with};

const A: Hook = Hook::FromPod(Pod::A);
const WIRE: Hook = Hook::FromWire;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_without_endpoints_refuses_at_once() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        for (hook, client, service) in [
            (A, Pod::A.ip(family), at(family.cluster_ip(), SERVICE_PORT)),
            (A, Pod::A.ip(family), at(family.node(), NODE_PORT)),
            (WIRE, family.client(), at(family.node(), NODE_PORT)),
            (WIRE, family.stranger(), at(family.node(), NODE_PORT)),
        ] {
            serve(&mut node, opener, service, &[]);
            let request = Packet::new(opener, at(client, CLIENT_PORT), service);
            let then = if opener == Transport::Tcp(SYN) { Then::Reset } else { Then::Refused };
            for length in [0, 1, 2, 3, 4, 5, 12, 13, 64, 511, 1400] {
                let request = request.clone().payload(&vec![0xa5; length]).identification(length as u16);
                Case::new(format!("{length} bytes"), hook, request, then.clone()).check(&node);
            }
            let request = request.tos(0x2e).hops(3);
            Case::new("marked and far travelled", hook, request, then).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_reset_acknowledges_whatever_number_the_connection_would_begin_with() {
    const ECE_AND_CWR: u8 = 0xc0;
    let mut random = Random::announced();
    let mut node = Node::start();
    for family in FAMILIES {
        let [client_port, service_port] = [(); 2].map(|()| 1 + random.below(65_535) as u16);
        let service = at(family.cluster_ip(), service_port);
        serve(&mut node, Transport::Tcp(SYN), service, &[]);
        let edges = [0, 1, 0xffff, 0x1_0000, 0xffff_fffe, u32::MAX];
        let numbers = edges.into_iter().chain((0..200).map(|_| random.number() as u32)).collect::<Vec<_>>();
        for number in numbers {
            for (hook, client, flags) in [
                (A, Pod::A.ip(family), SYN),
                (A, Pod::A.ip(family), SYN | ECE_AND_CWR),
                (WIRE, family.client(), SYN),
            ] {
                let client = at(client, client_port);
                let syn = Packet::tcp(flags, client, service).numbers(number, random.number() as u32);
                Case::new(format!("sequence number {number}"), hook, syn, Then::Reset).check(&node);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn segments_of_a_connection_that_nobody_knows_are_refused_too() {
    let mut node = Node::start();
    for family in FAMILIES {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, Transport::Tcp(SYN), service, &[]);
        let segment = |flags| Packet::tcp(flags, at(Pod::A.ip(family), CLIENT_PORT), service);
        for flags in [ACK, SYN_ACK, FIN_ACK] {
            Case::new("segment", A, segment(flags), Then::Refused).check(&node);
        }
        Case::new("reset", A, segment(RST), Then::Dropped(Reason::StrayReset)).check(&node);
    }
}

/// The answer quotes a header without options or extensions only: what has some is dropped, with the reason.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_with_options_is_dropped_where_others_are_refused() {
    let mut node = Node::start();
    for opener in OPENERS {
        let service = at(Family::V4.cluster_ip(), SERVICE_PORT);
        serve(&mut node, opener, service, &[]);
        let request = Packet::new(opener, at(Pod::A.ip(Family::V4), CLIENT_PORT), service).options(&[1; 8]);
        Case::new("options", A, request, Then::Dropped(Reason::NoEndpoint)).check(&node);
        let service = at(Family::V6.cluster_ip(), SERVICE_PORT);
        serve(&mut node, opener, service, &[]);
        let request = Packet::new(opener, at(Pod::A.ip(Family::V6), CLIENT_PORT), service).extension(60, 1);
        Case::new("extension", A, request, Then::Dropped(Reason::NoEndpoint)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_whose_endpoints_are_all_elsewhere_drops() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let service = at(family.node(), NODE_PORT);
        serve_with(&mut node, opener, service, &[], frontend_flags::HAS_ENDPOINTS);
        for (hook, client) in [(A, Pod::A.ip(family)), (WIRE, family.client())] {
            let request = Packet::new(opener, at(client, CLIENT_PORT), service);
            Case::new("none here", hook, request, Then::Dropped(Reason::NoLocalEndpoint)).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_frontend_that_leads_nowhere_drops() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        let request = Packet::new(opener, at(Pod::A.ip(family), CLIENT_PORT), service);
        serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        node.set_backend(1, at(Pod::B.ip(family), TARGET_PORT), 0);
        Case::new("vacant", A, request.clone(), Then::Dropped(Reason::StaleService)).check(&node);
        node.set_frontend(number(opener), service, [&[0], &[0]], 0);
        Case::new("id 0", A, request.clone(), Then::Dropped(Reason::StaleService)).check(&node);
        node.set_frontend(number(opener), service, [&[u32::MAX], &[u32::MAX]], 0);
        Case::new("id out of range", A, request, Then::Dropped(Reason::StaleService)).check(&node);
    }
}
