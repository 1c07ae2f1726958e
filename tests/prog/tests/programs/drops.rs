//! What is told of packets that are dropped or refused for another reason than a policy: events.

use std::net::SocketAddr;

use fairlead_abi::{Counter, DropEvent, FlowKey, Reason, event_flags, frontend_flags, policies};
use fairlead_prog_tests::packet::tcp::{RST, SYN};
use fairlead_prog_tests::{FAMILIES, Family, Hook, Node, Packet, Pod, Transport};

use crate::policy_drops::{event, tuple};
use crate::policy_plain::{A, POLICY};
use crate::{CLIENT_PORT, NODE_PORT, SERVICE_PORT, TARGET_PORT, at, code, every, number, serve, serve_with};

/// What is told of a packet of this tuple.
fn told(node: &Node, hook: Hook, tuple: FlowKey, reason: Reason, flags: u32) -> DropEvent {
    let interface = node.interface(hook);
    DropEvent { tuple, reason: reason as u32, interface, flags, ..DropEvent::default() }
}

/// Sends the packet, and compares what is told of its drop.
fn check(
    node: &mut Node,
    hook: Hook,
    opener: Transport,
    [from, to]: [SocketAddr; 2],
    (reason, flags): (Reason, u32),
) {
    node.quiet();
    code(node, hook, &Packet::new(opener, from, to));
    let expected = told(node, hook, tuple(number(opener), from, to), reason, flags);
    assert_eq!(event(node), expected, "{hook:?}: {opener:?} from {from} to {to}");
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_refused_packet_is_told_with_what_it_was_before_it_became_an_answer() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, opener, service, &[]);
        let client = at(Pod::A.ip(family), CLIENT_PORT);
        let refused = (Reason::NoEndpoint, event_flags::REFUSED);
        check(&mut node, A, opener, [client, service], refused);
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        serve(&mut node, opener, service, &[]);
        check(&mut node, Hook::FromWire, opener, [client, service], refused);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_that_no_endpoint_here_may_have_is_told_as_dropped() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        serve_with(&mut node, opener, service, &[], frontend_flags::HAS_ENDPOINTS);
        check(&mut node, Hook::FromWire, opener, [client, service], (Reason::NoLocalEndpoint, 0));
        serve_with(
            &mut node,
            opener,
            service,
            &[at(Pod::B.ip(family), TARGET_PORT)],
            frontend_flags::GUARDED,
        );
        check(&mut node, Hook::FromWire, opener, [client, service], (Reason::SourceNotAllowed, 0));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_spoofed_packet_is_told_with_the_interface_that_brought_it() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let server = at(family.client(), SERVICE_PORT);
        check(&mut node, A, opener, [at(Pod::B.ip(family), CLIENT_PORT), server], (Reason::SpoofedSource, 0));
        let own = [at(family.node(), CLIENT_PORT), at(Pod::B.ip(family), TARGET_PORT)];
        check(&mut node, Hook::FromWire, opener, own, (Reason::SpoofedSource, 0));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_stray_reset_to_a_service_is_told() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        serve(&mut node, Transport::Tcp(SYN), service, &[]);
        check(&mut node, A, Transport::Tcp(RST), [client, service], (Reason::StrayReset, 0));
    }
}

/// Not with the tuple of the packet before.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_that_can_not_be_read_is_told_without_a_tuple() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(Pod::B.ip(family), TARGET_PORT));
        let packet = A.frame(Packet::new(opener, client, server));
        node.send(A, &packet.bytes());
        node.quiet();
        let cut = packet.bytes()[..packet.transport_offset() + 2].to_vec();
        let Some(_) = node.inside(|| node.try_send_inside(A, &cut)) else { continue };
        let expected = told(&node, A, FlowKey::default(), Reason::Malformed, 0);
        assert_eq!(event(&mut node), expected, "{family:?} {opener:?}");
    }
}

/// What the stack forwards to an interface of which nothing is known yet is told, and no policy is named.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_for_an_interface_that_no_pod_has_yet_is_told() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let ends = [at(family.client(), CLIENT_PORT), at(family.nowhere(), TARGET_PORT)];
        check(&mut node, Hook::Through(Pod::B), opener, ends, (Reason::PolicyUnknown, 0));
        assert_eq!(node.policy_drops(policies::CLOSED), 0);
    }
}

/// A policy's drop is told by the policy, and once.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn one_packet_has_one_event() {
    let mut node = Node::start();
    for (family, opener) in every() {
        node.reset();
        node.set_isolation(Pod::A, policies::OPEN, POLICY);
        let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.client(), SERVICE_PORT));
        code(&node, A, &Packet::new(opener, client, server));
        let event = event(&mut node);
        assert_eq!((event.reason, event.interface), (Reason::PolicyEgress as u32, 0));
    }
}

/// Who floods a Service without endpoints keeps no pod from being told of what its policies drop, nor other reasons.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_reason_has_twenty_events_in_a_second_and_the_rest_is_counted() {
    let mut node = Node::start();
    let family = Family::V4;
    let service = at(family.cluster_ip(), SERVICE_PORT);
    serve(&mut node, Transport::Udp, service, &[]);
    let lost = |node: &Node| node.counters()[Counter::EventLost as usize];
    node.quiet();
    let before = lost(&node);
    for port in 1..=80 {
        code(&node, A, &Packet::udp(at(Pod::A.ip(family), port), service));
    }
    let events = node.events().len() as u64;
    // A second may end meanwhile.
    assert!(events == 20 || events == 40, "{events} events");
    assert_eq!(lost(&node) - before, 80 - events);
    assert_eq!(node.drops()[Reason::NoEndpoint as usize], 80);
    node.set_isolation(Pod::A, policies::OPEN, POLICY);
    code(&node, A, &Packet::udp(at(Pod::A.ip(family), CLIENT_PORT), at(family.client(), SERVICE_PORT)));
    code(&node, A, &Packet::udp(at(Pod::B.ip(family), CLIENT_PORT), at(family.client(), SERVICE_PORT)));
    let reasons: Vec<u32> = node.events().iter().map(|event| event.reason).collect();
    assert_eq!(reasons, [Reason::PolicyEgress as u32, Reason::SpoofedSource as u32]);
}
