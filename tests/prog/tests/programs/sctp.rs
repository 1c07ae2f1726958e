//! What SCTP has of its own: a checksum over the whole packet, and chunks that say what its flags say in TCP.

use std::net::SocketAddr;

use fairlead_abi::{Flow, Reason, flow_flags};
use fairlead_prog_tests::case::REDIRECT;
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::packet::sctp::{ABORT, DATA, INIT, SHUTDOWN, SHUTDOWN_ACK};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport, sums};

use crate::{CLIENT_PORT, NODE_PORT, SERVICE_PORT, TARGET_PORT, at, code, serve};

const A: Hook = Hook::FromPod(Pod::A);
const B: Hook = Hook::FromPod(Pod::B);
const WIRE: Hook = Hook::FromWire;

fn sctp(chunk: u8, from: SocketAddr, to: SocketAddr) -> Packet {
    Packet::new(Transport::Sctp(chunk), from, to)
}

/// A pod, a Service and its backend, whose association has begun.
struct Association {
    client: SocketAddr,
    service: SocketAddr,
    backend: SocketAddr,
}

impl Association {
    fn begin(node: &mut Node, family: Family) -> Self {
        let client = at(Pod::A.ip(family), CLIENT_PORT);
        let (service, backend) = (at(family.cluster_ip(), SERVICE_PORT), at(Pod::B.ip(family), TARGET_PORT));
        let association = Self { client, service, backend };
        serve(node, Transport::Sctp(INIT), service, &[backend]);
        let (init, then) = association.request(INIT);
        Case::begins("INIT", A, init, then).check(node);
        association
    }

    fn request(&self, chunk: u8) -> (Packet, Then) {
        let packet = sctp(chunk, self.client, self.service);
        (packet.clone(), Then::ToPod(Pod::B, packet.to(self.backend)))
    }

    fn answer(&self, chunk: u8) -> (Packet, Then) {
        let packet = sctp(chunk, self.backend, self.client);
        (packet.clone(), Then::ToPod(Pod::A, packet.from(self.service)))
    }

    /// The flags of both entries.
    fn flags(&self, node: &Node) -> [Option<u32>; 2] {
        [self.request(DATA).0, self.answer(DATA).0]
            .map(|packet| node.flow(&packet).map(|flow: Flow| flow.flags))
    }
}

/// The checksum covers every byte, so its change depends on how many follow the ports.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_checksum_is_exact_whatever_the_length() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        let (backend, masked) = (at(Pod::B.ip(family), TARGET_PORT), at(family.node(), SNAT_FIRST));
        serve(&mut node, Transport::Sctp(INIT), service, &[backend]);
        assert_eq!(code(&node, WIRE, &sctp(INIT, client, service)), REDIRECT);
        for length in (0..=130).chain([255, 256, 511, 512, 513, 1023, 1024, 1025, 1399, 1400]) {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 31 + 7) as u8).collect();
            let what = || format!("{length} bytes");
            let request = sctp(DATA, client, service).payload(&bytes);
            let translated = request.clone().from(masked).to(backend);
            Case::new(what(), WIRE, request, Then::ToPod(Pod::B, translated)).check(&node);
            let answer = sctp(DATA, backend, masked).payload(&bytes);
            let translated = answer.clone().from(service).to(client);
            Case::new(what(), B, answer, Then::ToGateway(translated)).check(&node);
        }
    }
}

/// A short packet is filled up to the least that Ethernet carries; what fills it is no part of the packet.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_fills_a_short_frame_has_no_part_in_the_checksum() {
    let mut node = Node::start();
    for family in FAMILIES {
        let association = Association::begin(&mut node, family);
        for length in 0..10 {
            let (request, _) = association.request(DATA);
            let mut frame = A.frame(request.payload(&vec![7; length])).bytes();
            frame.extend([0xee; 9]);
            let outcome = node.send(A, &frame);
            assert_eq!((outcome.code, outcome.packet.len()), (REDIRECT, frame.len()));
            assert_eq!(sums::hold(&outcome.packet), Some(true), "{family:?}, {length} bytes");
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_end_of_an_association_is_noted_on_both_entries() {
    use flow_flags::{ANSWERED, CLOSED, CLOSING, FIN, REPLY, RESET};
    let mut node = Node::start();
    for family in FAMILIES {
        let association = Association::begin(&mut node, family);
        let check = |node: &Node, hook, (packet, then)| Case::new("chunk", hook, packet, then).check(node);
        check(&node, A, association.request(ABORT));
        assert_eq!(association.flags(&node), [Some(RESET), Some(REPLY | RESET)], "ABORT");
        check(&node, A, association.request(DATA));
        assert_eq!(association.flags(&node), [Some(0), Some(REPLY)], "an ABORT that nobody believed");

        check(&node, A, association.request(SHUTDOWN));
        assert_eq!(association.flags(&node), [Some(CLOSING | FIN), Some(REPLY | CLOSING)], "SHUTDOWN");
        check(&node, B, association.answer(SHUTDOWN_ACK));
        let ended = CLOSING | CLOSED | FIN | ANSWERED;
        let [forward, reply] = association.flags(&node).map(Option::unwrap_or_default);
        assert_eq!(forward & ended, ended, "both have said so");
        assert_eq!(reply & ended, ended, "both have said so");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_association_stays_with_its_backend_and_only_a_new_one_gets_another() {
    let mut node = Node::start();
    for family in FAMILIES {
        let association = Association::begin(&mut node, family);
        let successor = at(family.remote_pod(), TARGET_PORT);
        node.set_backend(2, successor, 1);
        node.set_frontend(fairlead_abi::protocol::SCTP, association.service, [&[2], &[2]], 0);
        let (again, then) = association.request(INIT);
        Case::new("INIT, sent again", A, again, then).check(&node);
        node.set_backend(1, association.backend, 0);
        let (data, then) = association.request(DATA);
        Case::new("mid-flow", A, data, then).check(&node);
        let (init, _) = association.request(INIT);
        let translated = init.clone().to(successor);
        Case::rebalances("INIT", A, init, Then::ToNode2(translated)).check(&node);
    }
}

/// Eight bytes of it: what every transport protocol can tell its flow by (RFC 792).
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_association_with_a_service_that_has_nobody_is_refused() {
    let mut node = Node::start();
    for family in FAMILIES {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, Transport::Sctp(INIT), service, &[]);
        for chunk in [INIT, DATA] {
            let packet = sctp(chunk, at(Pod::A.ip(family), CLIENT_PORT), service);
            let (kind, code) = if family == Family::V4 { (3, 3) } else { (1, 4) };
            let refusal = packet.error(kind, code, 20);
            Case::new("refused", A, packet, Then::Answered(Reason::NoEndpoint, refusal)).check(&node);
        }
    }
}

/// Its checksum covers what only the later ones bring, so that it can't be changed to fit.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_first_fragment_is_dropped() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        serve(&mut node, Transport::Sctp(INIT), service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        let first = sctp(DATA, client, service).fragment(0, true).payload(&[1; 48]);
        let dropped = || Then::Dropped(Reason::NotForwarded);
        Case::new("of a new flow", A, first.clone(), dropped()).check(&node);
        let opener = sctp(INIT, client, service);
        assert_eq!(code(&node, A, &opener), REDIRECT, "the flow begins");
        Case::new("of one that is known", A, first, dropped()).check(&node);
    }
}
