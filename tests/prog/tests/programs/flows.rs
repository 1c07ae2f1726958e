//! What becomes of flows as time goes by: their backends go, their connections end, their ports collide.

use std::net::SocketAddr;

use fairlead_abi::{Flow, Reason, flow_flags};
use fairlead_prog_tests::case::REDIRECT;
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::packet::sctp::INIT;
use fairlead_prog_tests::packet::tcp::{ACK, FIN_ACK, RST, SYN, SYN_ACK};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{
    CLIENT_PORT, NODE_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, age, at, code, every, later, number, serve,
};

const A: Hook = Hook::FromPod(Pod::A);
const B: Hook = Hook::FromPod(Pod::B);
const WIRE: Hook = Hook::FromWire;

/// A client, a Service, its backend, and another backend that may take its place.
#[derive(Clone, Copy)]
struct Parties {
    client: SocketAddr,
    service: SocketAddr,
    backend: SocketAddr,
    successor: SocketAddr,
}

impl Parties {
    fn new(family: Family) -> Self {
        Self {
            client: at(Pod::A.ip(family), CLIENT_PORT),
            service: at(family.cluster_ip(), SERVICE_PORT),
            backend: at(Pod::B.ip(family), TARGET_PORT),
            successor: at(family.remote_pod(), TARGET_PORT),
        }
    }

    /// Lets the client begin a flow.
    fn begin(&self, node: &mut Node, opener: Transport) {
        serve(node, opener, self.service, &[self.backend]);
        let request = Packet::new(opener, self.client, self.service);
        let translated = request.clone().to(self.backend);
        Case::begins("begin", A, request, Then::ToPod(Pod::B, translated)).check(node);
    }

    /// Replaces the backend by its successor, as the agent does: first the Service, then the backend's id.
    fn replace(&self, node: &mut Node, opener: Transport) {
        node.set_backend(2, self.successor, 1);
        node.set_frontend(number(opener), self.service, [&[2], &[2]], 0);
        node.set_backend(1, self.backend, 0);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_whose_backend_is_gone_gets_another() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        parties.begin(&mut node, Transport::Udp);
        parties.replace(&mut node, Transport::Udp);
        let request = Packet::udp(parties.client, parties.service);
        let translated = request.clone().to(parties.successor);
        Case::rebalances("next", A, request.clone(), Then::ToNode2(translated.clone())).check(&node);
        Case::new("after", A, request, Then::ToNode2(translated)).check(&node);
        let reply = Packet::udp(parties.successor, parties.client);
        let translated = reply.clone().from(parties.service);
        Case::new("answer", WIRE, reply, Then::ToPod(Pod::A, translated)).check(&node);
        let late = Packet::udp(parties.backend, parties.client);
        Case::new("late answer", B, late.clone(), Then::ToPod(Pod::A, late)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_from_outside_whose_backend_is_gone_gets_another() {
    let mut node = Node::start();
    for family in FAMILIES {
        let Parties { service, backend, successor, .. } = Parties::new(family);
        let (client, masked) = (at(family.client(), CLIENT_PORT), at(family.node(), SNAT_FIRST));
        serve(&mut node, Transport::Udp, service, &[backend]);
        let request = Packet::udp(client, service);
        let translated = request.clone().from(masked).to(backend);
        Case::begins("first", WIRE, request.clone(), Then::ToPod(Pod::B, translated)).check(&node);
        Parties::new(family).replace(&mut node, Transport::Udp);
        let translated = request.clone().from(masked).to(successor);
        Case::rebalances("next", WIRE, request, Then::ToNode2(translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_never_reaches_the_next_tenant_of_its_backends_id() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        parties.begin(&mut node, Transport::Udp);
        parties.replace(&mut node, Transport::Udp);
        node.set_backend(1, at(family.remote_pod(), 9), 2);
        let request = Packet::udp(parties.client, parties.service);
        let translated = request.clone().to(parties.successor);
        Case::rebalances("next", A, request, Then::ToNode2(translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_whose_answers_would_not_find_it_begins_anew() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let parties = Parties::new(family);
        parties.begin(&mut node, opener);
        age(&mut node, 10);
        node.remove_flows(|flow| flow.flags & flow_flags::REPLY != 0);
        let request = Packet::new(opener, parties.client, parties.service);
        assert_eq!(code(&node, A, &request), REDIRECT);
        assert_eq!(node.flows().len(), 2, "both ways again");
        let reply = Packet::new(later(opener)[1], parties.backend, parties.client);
        let translated = reply.clone().from(parties.service);
        Case::new("answer", B, reply, Then::ToPod(Pod::A, translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_to_a_service_that_lost_all_endpoints_is_refused() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        parties.begin(&mut node, Transport::Udp);
        node.set_frontend(number(Transport::Udp), parties.service, [&[], &[]], 0);
        let request = Packet::udp(parties.client, parties.service);
        let translated = request.clone().to(parties.backend);
        Case::new("still listed", A, request.clone(), Then::ToPod(Pod::B, translated)).check(&node);
        node.set_backend(1, parties.backend, 0);
        Case::loses("gone", A, request, Then::Refused).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_connection_stays_with_its_backend_and_only_a_new_one_gets_another() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        parties.begin(&mut node, Transport::Tcp(SYN));
        parties.replace(&mut node, Transport::Tcp(SYN));
        for flags in [ACK, SYN_ACK] {
            let segment = Packet::tcp(flags, parties.client, parties.service);
            let translated = segment.clone().to(parties.backend);
            Case::new("mid-flow", A, segment, Then::ToPod(Pod::B, translated)).check(&node);
        }
        let again = Packet::tcp(SYN, parties.client, parties.service);
        let translated = again.clone().to(parties.successor);
        Case::rebalances("a SYN", A, again, Then::ToNode2(translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_syn_that_is_sent_again_goes_to_the_same_backend() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        parties.begin(&mut node, Transport::Tcp(SYN));
        node.set_backend(2, parties.successor, 1);
        node.set_frontend(number(Transport::Tcp(SYN)), parties.service, [&[2], &[2]], 0);
        let again = Packet::tcp(SYN, parties.client, parties.service);
        let translated = again.clone().to(parties.backend);
        Case::new("again", A, again, Then::ToPod(Pod::B, translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_end_of_a_connection_is_noted_on_both_entries_whoever_ends_it() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        let request = |flags| Packet::tcp(flags, parties.client, parties.service);
        let reply = |flags| Packet::tcp(flags, parties.backend, parties.client);
        for (flags, noted) in [(FIN_ACK, flow_flags::CLOSING), (RST, flow_flags::RESET)] {
            for (hook, packet, then) in [
                (A, request(flags), Then::ToPod(Pod::B, request(flags).to(parties.backend))),
                (B, reply(flags), Then::ToPod(Pod::A, reply(flags).from(parties.service))),
            ] {
                parties.begin(&mut node, Transport::Tcp(SYN));
                Case::new("end", hook, packet, then).check(&node);
                let flags_of = |packet| node.flow(&packet).map(|flow: Flow| flow.flags);
                // Whose FIN it was is noted on the entry of its direction alone.
                let fin = if flags == FIN_ACK { flow_flags::FIN } else { 0 };
                let answered = flow_flags::ANSWERED;
                let (there, back) = if hook == A { (fin, 0) } else { (answered, fin | answered) };
                assert_eq!(flags_of(request(ACK)), Some(noted | there), "forward, told at {hook:?}");
                let expected = noted | back | flow_flags::REPLY;
                assert_eq!(flags_of(reply(ACK)), Some(expected), "reply, told at {hook:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_connection_is_closed_by_a_fin_from_each_side_and_not_by_two_from_one() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        let request = Packet::tcp(FIN_ACK, parties.client, parties.service);
        let reply = Packet::tcp(FIN_ACK, parties.backend, parties.client);
        let asks = |node: &Node| {
            let then = Then::ToPod(Pod::B, request.clone().to(parties.backend));
            Case::new("the client's FIN", A, request.clone(), then).check(node);
        };
        let answers = |node: &Node| {
            let then = Then::ToPod(Pod::A, reply.clone().from(parties.service));
            Case::new("the backend's FIN", B, reply.clone(), then).check(node);
        };
        let closed = |node: &Node| {
            [&request, &reply].map(|packet| {
                node.flow(packet).is_some_and(|flow: Flow| flow.flags & flow_flags::CLOSED != 0)
            })
        };
        parties.begin(&mut node, Transport::Tcp(SYN));
        asks(&node);
        asks(&node);
        assert_eq!(closed(&node), [false, false], "two FINs of the client");
        answers(&node);
        assert_eq!(closed(&node), [true, true], "one of the backend too");
        parties.begin(&mut node, Transport::Tcp(SYN));
        answers(&node);
        answers(&node);
        assert_eq!(closed(&node), [false, false], "two FINs of the backend");
        asks(&node);
        assert_eq!(closed(&node), [true, true], "one of the client too");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_reset_that_the_peer_ignores_is_forgotten() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        parties.begin(&mut node, Transport::Tcp(SYN));
        let (request, reply) = (
            Packet::tcp(ACK, parties.client, parties.service),
            Packet::tcp(ACK, parties.backend, parties.client),
        );
        code(&node, A, &Packet::tcp(RST, parties.client, parties.service));
        code(&node, A, &request);
        code(&node, B, &reply);
        assert_eq!(node.flow(&request).map(|flow| flow.flags), Some(flow_flags::ANSWERED));
        let reply_flags = flow_flags::REPLY | flow_flags::ANSWERED;
        assert_eq!(node.flow(&reply).map(|flow| flow.flags), Some(reply_flags));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_new_connection_on_the_ports_of_an_ended_one_begins_afresh() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        let syn = Packet::tcp(SYN, parties.client, parties.service);
        let reply = Packet::tcp(SYN_ACK, parties.backend, parties.client);
        for end in [FIN_ACK, RST] {
            parties.begin(&mut node, Transport::Tcp(SYN));
            code(&node, A, &Packet::tcp(end, parties.client, parties.service));
            assert_eq!(code(&node, A, &syn), REDIRECT);
            assert_eq!(node.flows().len(), 2);
            assert_eq!(node.flow(&syn).map(|flow| flow.flags), Some(0));
            assert_eq!(node.flow(&reply).map(|flow| flow.flags), Some(flow_flags::REPLY));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn two_frontends_of_one_backend_are_told_apart_when_the_clients_port_is_the_same() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let Parties { client, service, backend, .. } = Parties::new(family);
        Parties::new(family).begin(&mut node, opener);
        let other = at(family.other_cluster_ip(), SERVICE_PORT);
        node.set_frontend(number(opener), other, [&[1], &[1]], 0);
        let moved = at(client.ip(), SNAT_FIRST);
        let request = Packet::new(opener, client, other);
        let translated = request.clone().from(moved).to(backend);
        Case::begins("to the other", A, request, Then::ToPod(Pod::B, translated)).check(&node);
        for (to, frontend) in [(client, service), (moved, other)] {
            let reply = Packet::new(opener, backend, to);
            let translated = reply.clone().from(frontend).to(client);
            Case::new("answer", B, reply, Then::ToPod(Pod::A, translated)).check(&node);
        }
        let request = Packet::new(opener, client, service);
        let translated = request.clone().to(backend);
        Case::new("to the first", A, request, Then::ToPod(Pod::B, translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_port_is_given_again_when_its_flow_has_ended_or_fallen_silent() {
    const OPEN: u32 = flow_flags::ANSWERED | flow_flags::CONFIRMED;
    let mut node = Node::start();
    for family in FAMILIES {
        for (what, opener, flags, silent, given) in [
            ("live", Transport::Tcp(SYN), OPEN, 3600, false),
            ("opening", Transport::Tcp(SYN), 0, 1, false),
            ("never answered", Transport::Tcp(SYN), 0, 3, true),
            ("never confirmed", Transport::Tcp(SYN), flow_flags::ANSWERED, 3, true),
            ("just closed", Transport::Tcp(SYN), OPEN | flow_flags::CLOSING, 50, false),
            ("closed", Transport::Tcp(SYN), OPEN | flow_flags::CLOSING, 62, true),
            ("closed by both", Transport::Tcp(SYN), OPEN | flow_flags::CLOSING | flow_flags::CLOSED, 1, true),
            ("reset", Transport::Tcp(SYN), OPEN | flow_flags::RESET, 1, true),
            ("forgotten", Transport::Tcp(SYN), OPEN, 86_410, true),
            ("live", Transport::Udp, OPEN, 60, false),
            ("silent", Transport::Udp, OPEN, 130, true),
            ("unanswered", Transport::Udp, 0, 1, false),
            ("never answered", Transport::Udp, 0, 40, true),
            ("live", Transport::Sctp(INIT), OPEN, 200, false),
            ("silent", Transport::Sctp(INIT), OPEN, 220, true),
            ("never answered", Transport::Sctp(INIT), 0, 130, true),
        ] {
            let service = at(family.node(), NODE_PORT);
            let (backend, masked) = (at(Pod::B.ip(family), TARGET_PORT), at(family.node(), SNAT_FIRST));
            serve(&mut node, opener, service, &[backend]);
            let first = Packet::new(opener, at(family.client(), 1), service);
            let translated = first.clone().from(masked).to(backend);
            Case::begins(what, WIRE, first, Then::ToPod(Pod::B, translated)).check(&node);
            node.edit_flows(|flow| {
                flow.flags |= flags;
            });
            if !age(&mut node, silent) {
                continue;
            }
            let second = Packet::new(opener, at(family.client(), 2), service);
            let translated = second.clone().from(masked).to(backend);
            if given {
                // The reply entry is taken over, only the forward one is new.
                Case::takes_over(what, WIRE, second, Then::ToPod(Pod::B, translated)).check(&node);
            } else {
                Case::new(what, WIRE, second, Then::Dropped(Reason::NoSnatPort)).check(&node);
            }
        }
    }
}

/// Its client may speak again after all, and must not get an answer that goes to the port's next owner.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_silent_flow_that_has_lost_its_port_gets_another() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (service, backend) = (at(family.node(), NODE_PORT), at(Pod::B.ip(family), TARGET_PORT));
        let [first, second] = [1, 2].map(|port| Packet::udp(at(family.client(), port), service));
        let masked = |port| at(family.node(), port);
        node.set_snat_ports(SNAT_FIRST, 1);
        serve(&mut node, Transport::Udp, service, &[backend]);
        let translated = first.clone().from(masked(SNAT_FIRST)).to(backend);
        Case::begins("first", WIRE, first.clone(), Then::ToPod(Pod::B, translated)).check(&node);
        if !age(&mut node, 130) {
            continue;
        }
        let translated = second.clone().from(masked(SNAT_FIRST)).to(backend);
        Case::takes_over("second", WIRE, second, Then::ToPod(Pod::B, translated)).check(&node);
        node.set_snat_ports(SNAT_FIRST + 1, 1);
        let translated = first.clone().from(masked(SNAT_FIRST + 1)).to(backend);
        Case::begins("first again", WIRE, first, Then::ToPod(Pod::B, translated)).check(&node);
    }
}
