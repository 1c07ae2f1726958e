//! What is told of packets that policies drop: events and counts.

use std::net::SocketAddr;

use fairlead_abi::{
    Counter, DropEvent, FlowKey, Port, Reason, event_flags, identities, policies, protocol, verdicts,
};
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then};

use crate::policy_plain::{A, B, PEER, POLICY};
use crate::{CLIENT_PORT, NODE_PORT, SERVICE_PORT, TARGET_PORT, at, code, every, later, number, serve};

/// The tuple of a packet.
pub(crate) fn tuple(protocol: u8, source: SocketAddr, destination: SocketAddr) -> FlowKey {
    FlowKey {
        source: source.ip().into(),
        destination: destination.ip().into(),
        source_port: Port::new(source.port()),
        destination_port: Port::new(destination.port()),
        protocol,
        reserved: [0; 3],
    }
}

/// The only event that there is, without its time.
pub(crate) fn event(node: &mut Node) -> DropEvent {
    let events = node.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_ne!(events[0].time, 0);
    DropEvent { time: 0, ..events[0] }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_event_names_the_tuple_the_policy_the_identity_and_the_verdict() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(Pod::B.ip(family), TARGET_PORT));
        let tuple = tuple(number(opener), client, server);
        for verdict in [verdicts::DENY_NETWORK, verdicts::DENY_ADMIN, verdicts::DENY_BASELINE] {
            for (is_egress, flags) in [(true, event_flags::EGRESS), (false, 0)] {
                node.reset();
                let (subject, peer) = if is_egress { (Pod::A, server) } else { (Pod::B, client) };
                let (ingress, egress) =
                    if is_egress { (policies::OPEN, POLICY) } else { (POLICY, policies::OPEN) };
                node.set_isolation(subject, ingress, egress);
                node.set_policy(POLICY, verdicts::ALLOW);
                node.set_identity(peer.ip(), PEER);
                node.set_cell(POLICY, PEER, verdict);
                assert_eq!(node.policy_drops(POLICY), 0);
                code(&node, A, &Packet::new(opener, client, server));
                let reason = if is_egress { Reason::PolicyEgress } else { Reason::PolicyIngress } as u32;
                let (policy, identity) = (POLICY, PEER);
                let expected =
                    DropEvent { time: 0, tuple, reason, interface: 0, policy, identity, verdict, flags };
                assert_eq!(event(&mut node), expected);
                assert_eq!(node.policy_drops(POLICY), 1);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_event_of_a_closed_pod_names_no_policy_and_the_peers_whole_number() {
    let mut node = Node::start();
    for family in FAMILIES {
        node.reset();
        node.set_isolation(Pod::A, policies::OPEN, policies::CLOSED);
        node.set_identity(family.node(), PEER | identities::OWN_NODE);
        let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.node(), SERVICE_PORT));
        code(&node, A, &Packet::udp(client, server));
        let event = event(&mut node);
        assert_eq!(event.tuple, tuple(protocol::UDP, client, server));
        assert_eq!((event.policy, event.identity), (policies::CLOSED, PEER | identities::OWN_NODE));
        assert_eq!((event.flags, node.policy_drops(policies::CLOSED)), (event_flags::EGRESS, 1));
    }
}

/// To a Service: its backend. Of a masqueraded client: its own address, on the way back too.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_event_names_who_began_the_flow_and_who_serves_it() {
    let mut node = Node::start();
    for (family, opener) in every() {
        node.reset();
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        let (backend, masked) = (at(Pod::B.ip(family), TARGET_PORT), at(family.node(), SNAT_FIRST));
        serve(&mut node, opener, service, &[backend]);
        node.set_isolation(Pod::B, POLICY, policies::OPEN);
        node.set_policy(POLICY, verdicts::ALLOW);
        code(&node, Hook::FromWire, &Packet::new(opener, client, service));
        assert_eq!(node.events(), []);
        node.set_policy(POLICY, verdicts::DENY_NETWORK);
        node.revise();
        let [onward, answer] = later(opener);
        for (hook, packet, flags) in [
            (Hook::FromWire, Packet::new(onward, client, service), 0),
            (B, Packet::new(answer, backend, masked), event_flags::REPLY),
        ] {
            code(&node, hook, &packet);
            let event = event(&mut node);
            assert_eq!(event.tuple, tuple(number(opener), client, backend));
            assert_eq!((event.policy, event.flags), (POLICY, flags));
        }
    }
}

/// Who is flooded learns of it, and so do others.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_has_ten_events_in_a_second_and_the_rest_is_counted() {
    let mut node = Node::start();
    for pod in Pod::ALL {
        node.set_isolation(pod, policies::OPEN, POLICY);
    }
    let family = Family::V4;
    let lost = |node: &Node| node.counters()[Counter::EventLost as usize];
    let flood = |node: &Node, pod: Pod| {
        for _ in 0..40 {
            let packet = Packet::udp(at(pod.ip(family), CLIENT_PORT), at(family.client(), SERVICE_PORT));
            code(node, Hook::FromPod(pod), &packet);
        }
    };
    let before = lost(&node);
    flood(&node, Pod::A);
    let events = node.events().len() as u64;
    // A second may end meanwhile.
    assert!(events == 10 || events == 20, "{events} events");
    assert_eq!(lost(&node) - before, 40 - events);
    flood(&node, Pod::B);
    assert!(node.events().len() >= 10, "another pod has its own");
    assert_eq!(node.policy_drops(POLICY), 80);
    assert_eq!(node.drops()[Reason::PolicyEgress as usize], 80);
}

/// Nobody reads: the ring buffer fills up, and packets are dropped all the same.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn events_that_nobody_reads_are_counted_as_lost() {
    let mut node = Node::start();
    node.set_isolation(Pod::A, policies::OPEN, POLICY);
    let packet = Packet::udp(at(Pod::A.ip(Family::V4), CLIENT_PORT), at(Family::V4.client(), SERVICE_PORT));
    let mut lost = 0;
    for _ in 0..5000 {
        let before = node.counters()[Counter::EventLost as usize];
        node.forget_event_rates();
        code(&node, A, &packet);
        lost += node.counters()[Counter::EventLost as usize] - before;
    }
    let events = node.events().len() as u64;
    assert!(events > 3000 && lost > 0 && events + lost == 5000, "{events} events, {lost} lost");
    let case = Case::new("again", A, packet, Then::Dropped(Reason::PolicyEgress));
    node.quiet();
    case.counting(Counter::PolicyJudged).check(&node);
}
