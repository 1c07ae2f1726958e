//! A pod that dials one backend in two ways from one port: through a Service, and directly. The backend's answers
//! differ in nothing, so that something else must tell the two flows apart.

use std::net::SocketAddr;

use fairlead_abi::flow_flags;
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::packet::tcp::{ACK, FIN_ACK, RST, SYN};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, age, at, later, serve};

const A: Hook = Hook::FromPod(Pod::A);

/// A client, the Service it uses, and the Service's only backend.
#[derive(Clone, Copy)]
struct Parties {
    client: SocketAddr,
    service: SocketAddr,
    backend: SocketAddr,
    is_local: bool,
}

impl Parties {
    /// In both families, with a backend here and one on the other node.
    fn all() -> Vec<Self> {
        let of = |family: Family, is_local| Self {
            client: at(Pod::A.ip(family), CLIENT_PORT),
            service: at(family.cluster_ip(), SERVICE_PORT),
            backend: at(if is_local { Pod::B.ip(family) } else { family.remote_pod() }, TARGET_PORT),
            is_local,
        };
        FAMILIES.iter().flat_map(|family| [true, false].map(|is_local| of(*family, is_local))).collect()
    }

    /// The client, by the port that it is given when its own is taken.
    fn moved(&self) -> SocketAddr {
        at(self.client.ip(), SNAT_FIRST)
    }

    /// What a packet to the backend comes to.
    fn reaches(&self, packet: Packet) -> Then {
        if self.is_local { Then::ToPod(Pod::B, packet) } else { Then::ToNode2(packet) }
    }

    /// Lets the client begin a flow through the Service.
    fn begin(&self, node: &mut Node, opener: Transport) {
        serve(node, opener, self.service, &[self.backend]);
        let request = Packet::new(opener, self.client, self.service);
        Case::begins("through the Service", A, request.clone(), self.reaches(request.to(self.backend)))
            .check(node);
    }

    /// A packet to `to` leaves the client as one from `from`.
    fn request(&self, node: &Node, transport: Transport, to: SocketAddr, from: SocketAddr) {
        let request = Packet::new(transport, self.client, to);
        let translated = request.clone().from(from).to(self.backend);
        Case::new(format!("to {to}"), A, request, self.reaches(translated)).check(node);
    }

    /// The backend's answer to `to` reaches the client as one from `from`.
    fn answer(&self, node: &Node, transport: Transport, to: SocketAddr, from: SocketAddr) {
        let hook = if self.is_local { Hook::FromPod(Pod::B) } else { Hook::FromWire };
        let answer = Packet::new(transport, self.backend, to);
        let translated = answer.clone().from(from).to(self.client);
        Case::new(format!("answer from {from}"), hook, answer, Then::ToPod(Pod::A, translated)).check(node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backend_dialled_directly_is_told_from_its_service_while_that_flow_lives() {
    let mut node = Node::start();
    for (parties, opener) in
        Parties::all().into_iter().flat_map(|parties| OPENERS.map(|opener| (parties, opener)))
    {
        let Parties { client, service, backend, .. } = parties;
        let [next, answer] = later(opener);
        let closing = if opener == Transport::Udp { 0 } else { flow_flags::CLOSING };
        for flags in [0, closing] {
            parties.begin(&mut node, opener);
            node.edit_flows(|flow| flow.flags |= flags);
            let direct = Packet::new(opener, client, backend);
            let translated = direct.clone().from(parties.moved());
            Case::begins("directly", A, direct, parties.reaches(translated)).check(&node);
            parties.answer(&node, answer, parties.moved(), backend);
            parties.request(&node, next, backend, parties.moved());
            parties.answer(&node, next, parties.moved(), backend);
            parties.request(&node, next, service, client);
            parties.answer(&node, next, client, service);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backend_dialled_directly_after_the_services_connection_has_ended_keeps_the_clients_port() {
    let mut node = Node::start();
    for parties in Parties::all() {
        let Parties { client, service, backend, .. } = parties;
        let [opener, next] = [SYN, ACK].map(Transport::Tcp);
        for (end, rest) in [(FIN_ACK, 62), (RST, 1)] {
            parties.begin(&mut node, opener);
            parties.request(&node, Transport::Tcp(end), service, client);
            assert!(age(&mut node, rest), "the machine has run for a minute");
            let direct = Packet::new(opener, client, backend);
            Case::takes_over("directly", A, direct.clone(), parties.reaches(direct)).check(&node);
            parties.answer(&node, later(opener)[1], client, backend);
            parties.request(&node, next, backend, client);
            parties.answer(&node, next, client, backend);

            let again = Packet::new(opener, client, service);
            let translated = again.clone().from(parties.moved()).to(backend);
            Case::begins("the Service again", A, again, parties.reaches(translated)).check(&node);
            parties.answer(&node, next, parties.moved(), service);
            parties.answer(&node, next, client, backend);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backend_sent_to_directly_after_the_services_flow_fell_silent_keeps_the_clients_port() {
    let mut node = Node::start();
    for parties in Parties::all() {
        let Parties { client, backend, .. } = parties;
        parties.begin(&mut node, Transport::Udp);
        if !age(&mut node, 130) {
            continue;
        }
        let direct = Packet::udp(client, backend);
        Case::takes_over("directly", A, direct.clone(), parties.reaches(direct)).check(&node);
        parties.answer(&node, Transport::Udp, client, backend);
        parties.request(&node, Transport::Udp, backend, client);
    }
}

/// The flow through the Service has lost its port to the direct one, and needs another when it speaks again.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_sent_to_again_after_the_backend_was_sent_to_directly_still_answers_as_the_service() {
    let mut node = Node::start();
    for parties in Parties::all() {
        let Parties { client, service, backend, .. } = parties;
        parties.begin(&mut node, Transport::Udp);
        if !age(&mut node, 130) {
            continue;
        }
        let direct = Packet::udp(client, backend);
        Case::takes_over("directly", A, direct.clone(), parties.reaches(direct)).check(&node);
        let again = Packet::udp(client, service);
        let translated = again.clone().from(parties.moved()).to(backend);
        Case::begins("the Service again", A, again, parties.reaches(translated)).check(&node);
        parties.answer(&node, Transport::Udp, parties.moved(), service);
        parties.answer(&node, Transport::Udp, client, backend);
    }
}

/// Only what could be mistaken is touched: another port of the client or the backend, and segments of connections
/// that are older than the flow through the Service.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_cannot_be_mistaken_for_the_services_flow_begins_none() {
    let mut node = Node::start();
    for (parties, opener) in
        Parties::all().into_iter().flat_map(|parties| OPENERS.map(|opener| (parties, opener)))
    {
        let Parties { client, backend, .. } = parties;
        parties.begin(&mut node, opener);
        let other = |address: SocketAddr| at(address.ip(), address.port() + 1);
        let mut plain =
            vec![Packet::new(opener, other(client), backend), Packet::new(opener, client, other(backend))];
        if opener != Transport::Udp {
            plain.push(Packet::tcp(ACK, client, backend));
            plain.push(Packet::udp(client, backend));
        }
        for packet in plain {
            Case::new("plain", A, packet.clone(), parties.reaches(packet)).check(&node);
        }
    }
}
