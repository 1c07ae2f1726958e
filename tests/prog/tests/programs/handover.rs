//! The variant of the programs that stands before another generation's: what it leaves to it, and what not.

use std::net::SocketAddr;

use fairlead_abi::config_flags::{HANDOVER_ALL, HANDOVER_CONNECTIONS, HANDOVER_SERVICES};
use fairlead_abi::egress;
use fairlead_prog_tests::case::REDIRECT;
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::packet::tcp::SYN;
use fairlead_prog_tests::{FAMILIES, Family, Hook, Node, Packet, Pod, Transport};

use crate::{CLIENT_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, later, serve};

const A: Hook = Hook::FromPod(Pod::A);
const B: Hook = Hook::FromPod(Pod::B);
/// `TC_ACT_UNSPEC`: the next program in the chain goes on with the packet.
const LEFT: i32 = -1;
/// `TC_ACT_OK`: the stack goes on with it, and no other program.
const TO_STACK: i32 = 0;
const STEPS: [u32; 3] = [HANDOVER_CONNECTIONS, HANDOVER_SERVICES, HANDOVER_ALL];

/// The pod's address with that port, the Service's, and its backend's.
fn scene(node: &mut Node, family: Family, transport: Transport, port: u16) -> [SocketAddr; 3] {
    let service = at(family.cluster_ip(), SERVICE_PORT);
    let backend = at(Pod::B.ip(family), TARGET_PORT);
    serve(node, transport, service, &[backend]);
    [at(Pod::A.ip(family), port), service, backend]
}

fn code(node: &Node, hook: Hook, packet: &Packet) -> i32 {
    let bytes = hook.frame(packet.clone()).bytes();
    let outcome = node.send(hook, &bytes);
    assert!(outcome.code != LEFT || outcome.packet == bytes, "what is left is left as it is");
    outcome.code
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn before_the_first_step_everything_is_left() {
    let mut node = Node::start_handover();
    for family in FAMILIES {
        for opener in OPENERS {
            let [client, service, _] = scene(&mut node, family, opener, CLIENT_PORT);
            assert_eq!(code(&node, A, &Packet::new(opener, client, service)), LEFT, "{opener:?}");
        }
    }
    assert!(node.flows().is_empty());
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn connections_begin_from_the_first_step_on_and_go_on_where_they_are_known() {
    let mut node = Node::start_handover();
    for (family, opener) in FAMILIES.into_iter().flat_map(|family| OPENERS.map(|opener| (family, opener))) {
        if opener == Transport::Udp {
            continue;
        }
        for step in STEPS {
            node.reset();
            node.set_step(step);
            let [client, service, backend] = scene(&mut node, family, opener, CLIENT_PORT);
            let [next, answer] = later(opener);
            let unknown = Packet::new(next, client, service);
            assert_eq!(code(&node, A, &unknown), LEFT, "one that is under way: {opener:?}");
            assert_eq!(code(&node, B, &Packet::new(answer, backend, client)), LEFT, "its answer");
            assert_eq!(code(&node, A, &Packet::new(opener, client, service)), REDIRECT, "one that begins");
            assert_eq!(node.flows().len(), 2);
            assert_eq!(code(&node, B, &Packet::new(answer, backend, client)), REDIRECT);
            assert_eq!(code(&node, A, &unknown), REDIRECT, "it is known now");
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_that_was_left_once_is_left_until_its_flow_is_known() {
    let mut node = Node::start_handover();
    for family in FAMILIES {
        node.reset();
        node.set_step(HANDOVER_CONNECTIONS);
        // The port tells the families' tuples apart from those that the other steps note.
        let [early, service, backend] = scene(&mut node, family, Transport::Udp, 41_000);
        let late = at(early.ip(), 41_001);
        assert_eq!(code(&node, A, &Packet::udp(early, service)), LEFT);
        node.set_step(HANDOVER_SERVICES);
        assert_eq!(code(&node, A, &Packet::udp(early, service)), LEFT, "others may have entered it");
        assert_eq!(code(&node, A, &Packet::udp(late, service)), REDIRECT, "nobody has entered it");
        assert_eq!(code(&node, B, &Packet::udp(backend, late)), REDIRECT, "its answer");
        let plain = [at(early.ip(), 41_002), at(backend.ip(), 41_003)];
        assert_eq!(code(&node, A, &Packet::udp(plain[0], plain[1])), LEFT, "it is for no Service");
        node.set_step(HANDOVER_ALL);
        assert_eq!(code(&node, A, &Packet::udp(early, service)), LEFT);
        assert_eq!(code(&node, A, &Packet::udp(plain[0], plain[1])), LEFT);
        assert_eq!(code(&node, B, &Packet::udp(plain[1], plain[0])), LEFT, "its answer was noted with it");
        let other = at(early.ip(), 41_004);
        assert_eq!(code(&node, A, &Packet::udp(other, plain[1])), REDIRECT, "one that nobody was left");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_may_answer_a_datagram_that_was_left_begins_nothing() {
    let mut node = Node::start_handover();
    for family in FAMILIES {
        node.reset();
        node.leave(family.client(), 0, egress::NODE);
        let [_, service, backend] = scene(&mut node, family, Transport::Udp, CLIENT_PORT);
        let outside = at(family.client(), 42_000);
        node.set_step(HANDOVER_CONNECTIONS);
        assert_eq!(code(&node, Hook::FromWire, &Packet::udp(outside, service)), LEFT);
        node.set_step(HANDOVER_SERVICES);
        assert_eq!(code(&node, B, &Packet::udp(backend, outside)), LEFT, "from a port of a backend's");
        node.set_step(HANDOVER_ALL);
        let masked = at(family.node(), SNAT_FIRST);
        assert_eq!(
            code(&node, Hook::FromWire, &Packet::udp(outside, masked)),
            LEFT,
            "to a port of the node's"
        );
        assert!(node.flows().is_empty());
        let own = at(backend.ip(), 42_001);
        assert_eq!(code(&node, B, &Packet::udp(own, outside)), REDIRECT, "what begins now begins here");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_that_is_over_is_not_taken_for_known() {
    let mut node = Node::start_handover();
    node.set_step(HANDOVER_SERVICES);
    for family in FAMILIES {
        let [client, service, backend] = scene(&mut node, family, Transport::Udp, 43_000);
        assert_eq!(code(&node, A, &Packet::udp(client, service)), REDIRECT);
        node.edit_flows(|flow| flow.last_seen = 1);
        assert_eq!(code(&node, B, &Packet::udp(backend, client)), LEFT);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_is_left_unless_it_is_about_a_flow_that_is_known() {
    let mut node = Node::start_handover();
    for family in FAMILIES {
        node.reset();
        node.set_step(HANDOVER_CONNECTIONS);
        let [client, service, backend] = scene(&mut node, family, Transport::Tcp(SYN), CLIENT_PORT);
        let translated = Packet::tcp(SYN, client, backend);
        assert_eq!(code(&node, B, &translated.refusal()), LEFT);
        assert_eq!(code(&node, A, &Packet::tcp(SYN, client, service)), REDIRECT);
        assert_eq!(code(&node, B, &translated.refusal()), REDIRECT);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_goes_to_the_stack_is_not_shown_to_the_programs_behind() {
    let mut node = Node::start_handover();
    node.set_step(HANDOVER_CONNECTIONS);
    for family in FAMILIES {
        let to_the_node = Packet::tcp(SYN, at(family.client(), CLIENT_PORT), at(family.node(), 22));
        assert_eq!(code(&node, Hook::FromWire, &to_the_node), TO_STACK);
    }
}
