//! Connections of before, which the kernel's connection tracking has: left to the stack at every hook.

use std::net::SocketAddr;

use fairlead_abi::{Config, Counter, Flow, FlowKey, Port, config_flags, flow_flags};
use fairlead_prog_tests::case::{REDIRECT, UNSPEC};
use fairlead_prog_tests::{Case, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, NODE_PORT, SERVICE_PORT, TARGET_PORT, at, every, later, number, serve};

/// What the agent enters for a connection, beside its tuple.
const FLAGS: u32 =
    flow_flags::STACK | flow_flags::TRACKED | flow_flags::NODE | flow_flags::ANSWERED | flow_flags::CONFIRMED;

/// Enters one direction of a connection as the agent does, with the number of its backend.
fn track(node: &mut Node, transport: Transport, from: SocketAddr, to: SocketAddr, backend: u32, flags: u32) {
    let key = FlowKey {
        source: from.ip().into(),
        destination: to.ip().into(),
        source_port: Port::new(from.port()),
        destination_port: Port::new(to.port()),
        protocol: number(transport),
        reserved: [0; 3],
    };
    let flow = Flow {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        backend,
        generation: u32::from(backend != 0),
        flags: FLAGS | flags,
        place: u32::MAX,
        ..Flow::default()
    };
    node.set_flow(key, flow);
}

/// Left to the stack as it came, and counted.
fn left(what: &str, hook: Hook, packet: Packet) -> Case {
    Case::new(what, hook, packet.clone(), Then::PassedAs(packet)).counting(Counter::ToStack)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_clients_packets_to_a_frontend_are_the_stacks_wherever_they_come_from() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, opener, service, &[at(family.remote_pod(), TARGET_PORT)]);
        node.mark(Pod::A);
        let pod = at(Pod::A.ip(family), CLIENT_PORT);
        let stranger = at(family.stranger(), CLIENT_PORT);
        for client in [pod, stranger] {
            track(&mut node, opener, client, service, 0, 0);
        }
        let [next, _] = later(opener);
        left("of a pod", Hook::FromPod(Pod::A), Packet::new(next, pod, service)).check(&node);
        left("of another CNI's", Hook::FromPods, Packet::new(next, stranger, service)).check(&node);
        left("of a client outside", Hook::FromWire, Packet::new(next, stranger, service)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backends_answers_are_the_stacks_where_they_arrive_and_where_they_leave() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let node_port = at(family.node(), NODE_PORT);
        serve(&mut node, opener, node_port, &[at(Pod::A.ip(family), TARGET_PORT)]);
        node.mark(Pod::A);
        let [_, answer] = later(opener);
        let client = at(family.stranger(), CLIENT_PORT);
        let masked = at(family.node(), 40_001);
        let (local, remote) = (at(Pod::A.ip(family), TARGET_PORT), at(family.remote_pod(), TARGET_PORT));
        for (from, to) in [(local, client), (remote, masked), (remote, client)] {
            track(&mut node, opener, from, to, 0, flow_flags::REPLY);
        }
        left("of a pod", Hook::FromPod(Pod::A), Packet::new(answer, local, client)).check(&node);
        left("from another node", Hook::FromWire, Packet::new(answer, remote, masked)).check(&node);
        left("of another CNI's", Hook::FromPods, Packet::new(answer, remote, client)).check(&node);
        // What the stack has translated on its way out.
        let leaving = Packet::new(answer, node_port, client);
        Case::new("leaving", Hook::ToWire, leaving, Then::Passed).check(&node);
        let masqueraded = Packet::new(opener, masked, remote);
        Case::new("masqueraded", Hook::ToWire, masqueraded, Then::Passed).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_whose_backend_is_gone_is_balanced_anew() {
    let mut node = Node::start();
    for (family, opener) in every().filter(|(_, opener)| matches!(opener, Transport::Udp)) {
        let (client, service) = (at(family.stranger(), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        track(&mut node, opener, client, service, 1, 0);
        let packet = Packet::new(opener, client, service);
        left("to a backend that lives", Hook::FromPods, packet.clone()).check(&node);
        node.set_backend(1, at(Pod::B.ip(family), TARGET_PORT), 2);
        let sent = node.send(Hook::FromPods, &Hook::FromPods.frame(packet.clone()).bytes());
        assert_eq!(sent.code, REDIRECT, "{family:?}");
        let flow = node.flow(&packet).expect("a flow");
        assert_eq!((flow.flags & flow_flags::TRACKED, flow.generation), (0, 2));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_that_connection_tracking_has_forgotten_is_balanced_anew() {
    let mut node = Node::start();
    for (family, opener) in every().filter(|(_, opener)| matches!(opener, Transport::Udp)) {
        let (client, service) = (at(family.stranger(), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let packet = Packet::new(opener, client, service);
        for (deadline, is_left) in [(0, true), (u32::MAX, true), (1, false)] {
            serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
            track(&mut node, opener, client, service, 0, 0);
            node.edit_flows(|flow| flow.deadline = deadline);
            let sent = node.send(Hook::FromPods, &Hook::FromPods.frame(packet.clone()).bytes());
            assert_eq!(sent.code, if is_left { UNSPEC } else { REDIRECT }, "{family:?} {deadline}");
            let kept = if is_left { deadline } else { 0 };
            assert_eq!(node.flow(&packet).map(|flow| flow.deadline), Some(kept));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_begins_anew_from_the_port_of_a_connection_that_ends_is_ours() {
    let mut node = Node::start();
    for (family, opener) in every().filter(|(_, opener)| !matches!(opener, Transport::Udp)) {
        let (client, service) = (at(family.stranger(), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        let packet = Packet::new(opener, client, service);
        track(&mut node, opener, client, service, 0, 0);
        left("perhaps again", Hook::FromPods, packet.clone()).check(&node);
        track(&mut node, opener, client, service, 0, flow_flags::CLOSING);
        let sent = node.send(Hook::FromPods, &Hook::FromPods.frame(packet.clone()).bytes());
        assert_eq!(sent.code, REDIRECT, "{family:?} {opener:?}");
        assert_eq!(node.flow(&packet).map(|flow| flow.flags & flow_flags::TRACKED), Some(0));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn while_there_may_be_some_a_packet_of_no_known_connection_to_a_frontend_is_left_to_the_stack() {
    let mut node = Node::start();
    for (family, opener) in every().filter(|(_, opener)| !matches!(opener, Transport::Udp)) {
        let (client, service) = (at(family.stranger(), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let [next, _] = later(opener);
        for hook in [Hook::FromPods, Hook::FromWire] {
            serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
            node.set_config(Config { flags: config_flags::DRAINING, ..Node::config() });
            let packet = Packet::new(next, client, service);
            left("in no flow", hook, packet.clone()).check(&node);
            let first = hook.frame(Packet::new(opener, client, service)).bytes();
            assert_eq!(node.send(hook, &first).code, REDIRECT, "{hook:?}: what begins");
            let later = hook.frame(packet).bytes();
            assert_eq!(node.send(hook, &later).code, REDIRECT, "{hook:?}: what goes on with it");
            node.set_config(Node::config());
            node.forget_flows();
            assert_eq!(node.send(hook, &later).code, REDIRECT, "{hook:?}: balanced when there are none");
        }
        // Of what is to be others' altogether, what begins too, but not what goes on.
        serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        let first = Packet::new(opener, client, service);
        let begun = Hook::FromPods.frame(first.clone().from(at(client.ip(), CLIENT_PORT + 1))).bytes();
        assert_eq!(node.send(Hook::FromPods, &begun).code, REDIRECT);
        node.set_config(Config { flags: config_flags::LEAVING, ..Node::config() });
        left("what begins", Hook::FromPods, first).check(&node);
        assert_eq!(node.send(Hook::FromPods, &begun).code, REDIRECT);
        // A pod's own too, which would be routed past the stack.
        serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        node.set_config(Config { flags: config_flags::DRAINING, ..Node::config() });
        let hook = Hook::FromPod(Pod::A);
        let packet = hook.frame(Packet::new(next, at(Pod::A.ip(family), CLIENT_PORT), service));
        assert_eq!(node.send(hook, &packet.bytes()).code, UNSPEC);
        node.set_config(Node::config());
    }
}
