//! Translated packets that are too large for their route: their sender is told, in its own terms, what fits.

use std::net::SocketAddr;

use fairlead_abi::{Reason, frontend_flags};
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::packet::ETHERNET;
use fairlead_prog_tests::place::{NARROW, WIDE};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, NODE_PORT, SERVICE_PORT, TARGET_PORT, at, every, later, serve, serve_with};

const A: Hook = Hook::FromPod(Pod::A);
const B: Hook = Hook::FromPod(Pod::B);
const WIRE: Hook = Hook::FromWire;

/// The packet with as much payload as makes its IP datagram so long.
fn of_length(packet: &Packet, length: u16) -> Packet {
    let headers = packet.clone().payload(&[]).bytes().len() - ETHERNET;
    let payload: Vec<u8> = (0..usize::from(length) - headers).map(|at| (at * 13) as u8).collect();
    packet.clone().payload(&payload)
}

fn too_big(packet: &Packet, mtu: u16) -> Then {
    Then::Answered(Reason::TooBig, packet.too_big(mtu))
}

/// A client, what it dials, and its backend behind the narrow route; with how the backend sees the client.
fn parties(family: Family) -> [(Hook, SocketAddr, SocketAddr, SocketAddr); 2] {
    let inside = at(Pod::A.ip(family), CLIENT_PORT);
    let masked = at(family.node(), SNAT_FIRST);
    [
        (A, inside, at(family.cluster_ip(), SERVICE_PORT), inside),
        (WIRE, at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT), masked),
    ]
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_request_that_is_too_large_for_the_backends_route_is_answered_in_the_clients_terms() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let backend = at(family.narrow_pod(), TARGET_PORT);
        for (hook, client, service, seen) in parties(family) {
            serve(&mut node, opener, service, &[backend]);
            let first = of_length(&Packet::new(opener, client, service), NARROW + 1);
            Case::begins("a first packet", hook, first.clone(), too_big(&first, NARROW)).check(&node);
            let next = Packet::new(later(opener)[0], client, service).tos(0x28).identification(0x4321);
            for length in [NARROW + 1, NARROW + 2, WIDE] {
                let packet = of_length(&next, length).hops(17);
                let then = too_big(&packet, NARROW);
                Case::new(format!("{length} bytes"), hook, packet, then).check(&node);
            }
            for length in [NARROW - 1, NARROW] {
                let packet = of_length(&next, length);
                let then = Then::ToNode2(packet.clone().from(seen).to(backend));
                Case::new(format!("{length} bytes"), hook, packet, then).check(&node);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_answer_that_is_too_large_for_the_clients_route_is_answered_in_the_backends_terms() {
    let mut node = Node::start();
    for (family, opener) in every() {
        for flags in [0, frontend_flags::KEEP_SOURCE] {
            let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
            let backend = at(Pod::B.ip(family), TARGET_PORT);
            let seen = if flags == 0 { at(family.node(), SNAT_FIRST) } else { client };
            serve_with(&mut node, opener, service, &[backend], flags);
            let request = Packet::new(opener, client, service);
            let translated = request.clone().from(seen).to(backend);
            Case::begins("request", WIRE, request, Then::ToPod(Pod::B, translated)).check(&node);
            let answer = Packet::new(later(opener)[1], backend, seen);
            let large = of_length(&answer, WIDE + 1);
            let then = too_big(&large, WIDE);
            Case::new("too large", B, large, then).check(&node);
            let fits = of_length(&answer, WIDE);
            let then = Then::ToGateway(fits.clone().from(service).to(client));
            Case::new("fits", B, fits, then).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_that_nobody_translates_is_the_stacks_to_answer() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let (client, backend) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.narrow_pod(), TARGET_PORT));
        let service = at(family.cluster_ip(), SERVICE_PORT);
        let plain = of_length(&Packet::new(opener, client, backend), NARROW + 1);
        node.forget();
        Case::new("before any flow", A, plain.clone(), Then::ToStack(plain)).check(&node);
        serve(&mut node, opener, service, &[backend]);
        let request = Packet::new(opener, client, service);
        Case::begins("a flow", A, request.clone(), Then::ToNode2(request.to(backend))).check(&node);
        let plain = of_length(&Packet::new(opener, at(client.ip(), 7), backend), NARROW + 1);
        Case::new("beside a flow", A, plain.clone(), Then::ToStack(plain)).check(&node);
    }
}

/// The kernel cuts the packet into segments of a size that it is told; those must fit, not the whole.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn of_a_packet_to_be_segmented_the_segments_must_fit() {
    let mut node = Node::start();
    for (family, opener) in every() {
        if let Transport::Sctp(_) = opener {
            continue;
        }
        let backend = at(family.narrow_pod(), TARGET_PORT);
        let ip = if family == Family::V4 { 20 } else { 40 };
        let transport = if opener == Transport::Udp { 8 } else { 20 };
        let segment = u32::from(NARROW) - ip - transport;
        for (hook, client, service, seen) in parties(family) {
            serve(&mut node, opener, service, &[backend]);
            let packet = of_length(&Packet::new(opener, client, service), 3000);
            let then = Then::ToNode2(packet.clone().from(seen).to(backend));
            Case::begins("fits", hook, packet, then).segmented(segment).check(&node);
            let packet = of_length(&Packet::new(later(opener)[0], client, service), 3000);
            let then = too_big(&packet, NARROW);
            Case::new("does not", hook, packet, then).segmented(segment + 1).check(&node);
        }
    }
}

/// The route that the node's stack knows is the one to the Service's address.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_of_the_node_that_is_too_large_for_the_backends_route_is_answered() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let (process, service) = (at(family.node(), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let backend = at(family.narrow_pod(), TARGET_PORT);
        serve(&mut node, opener, service, &[backend]);
        let fits = of_length(&Packet::new(opener, process, service), NARROW);
        let then = Then::PassedToNode2(fits.clone().to(backend));
        Case::begins("fits", Hook::ToWire, fits, then).check(&node);
        let large = of_length(&Packet::new(later(opener)[0], process, service), NARROW + 1);
        let then = too_big(&large, NARROW);
        Case::new("too large", Hook::ToWire, large, then).check(&node);
    }
}

/// The answer quotes a header without options or extensions only.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_large_packet_with_options_is_dropped() {
    let mut node = Node::start();
    for family in FAMILIES {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, Transport::Udp, service, &[at(family.narrow_pod(), TARGET_PORT)]);
        let packet = Packet::udp(at(Pod::A.ip(family), CLIENT_PORT), service);
        let packet = if family == Family::V4 { packet.options(&[1; 8]) } else { packet.extension(60, 1) };
        let packet = of_length(&packet, NARROW + 1);
        Case::begins("options", A, packet, Then::Dropped(Reason::TooBig)).check(&node);
    }
}
