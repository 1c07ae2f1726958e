//! Packets to frontends that the node itself sends past the socket hooks.

use std::net::SocketAddr;

use fairlead_abi::{Reason, frontend_flags};
use fairlead_prog_tests::packet::tcp::SYN;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, later, number, serve, serve_with};

const OUT: Hook = Hook::ToWire;

/// A process of the node, a Service, and two backends.
#[derive(Clone, Copy)]
struct Parties {
    process: SocketAddr,
    service: SocketAddr,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Parties {
    fn new(family: Family) -> Self {
        Self {
            process: at(family.node(), CLIENT_PORT),
            service: at(family.cluster_ip(), SERVICE_PORT),
            local: at(Pod::B.ip(family), TARGET_PORT),
            remote: at(family.remote_pod(), TARGET_PORT),
        }
    }

    /// What the process's packet to the Service comes to, and where the backend's answer is met.
    fn reaches(&self, backend: SocketAddr, packet: Packet) -> (Then, Hook) {
        let packet = packet.to(backend);
        if backend == self.local {
            (Then::IntoPod(Pod::B, packet), Hook::FromPod(Pod::B))
        } else {
            (Then::PassedToNode2(packet), Hook::FromWire)
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_node_reaches_a_backend_and_hears_the_service_answer() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let parties = Parties::new(family);
        let [next, answer] = later(opener);
        for backend in [parties.local, parties.remote] {
            serve(&mut node, opener, parties.service, &[backend]);
            let request = Packet::new(opener, parties.process, parties.service).hops(1);
            let (then, hook) = parties.reaches(backend, request.clone());
            Case::begins("first", OUT, request, then).check(&node);
            assert_eq!(node.is_marked(Pod::B), backend == parties.local, "the backend, where it is here");
            let reply = Packet::new(answer, backend, parties.process).payload(b"welcome");
            let translated = reply.clone().from(parties.service);
            Case::new("answer", hook, reply, Then::ToStack(translated)).check(&node);
            let request = Packet::new(next, parties.process, parties.service).payload(&[9; 1001]);
            let (then, _) = parties.reaches(backend, request.clone());
            Case::new("next", OUT, request, then).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_of_the_node_whose_backend_is_gone_gets_another() {
    let mut node = Node::start();
    for family in FAMILIES {
        let parties = Parties::new(family);
        let request = Packet::udp(parties.process, parties.service);
        for (gone, successor) in [(parties.local, parties.remote), (parties.remote, parties.local)] {
            serve(&mut node, Transport::Udp, parties.service, &[gone]);
            Case::begins("first", OUT, request.clone(), parties.reaches(gone, request.clone()).0)
                .check(&node);
            node.set_backend(2, successor, 1);
            node.set_frontend(number(Transport::Udp), parties.service, [&[2], &[2]], 0);
            node.set_backend(1, gone, 0);
            let (then, hook) = parties.reaches(successor, request.clone());
            Case::rebalances("next", OUT, request.clone(), then.clone()).check(&node);
            Case::new("after", OUT, request.clone(), then).check(&node);
            let reply = Packet::udp(successor, parties.process);
            let translated = reply.clone().from(parties.service);
            Case::new("answer", hook, reply, Then::ToStack(translated)).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_of_the_node_to_a_service_is_refused_by_none_and_dropped_by_a_local_policy() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let Parties { process, service, .. } = Parties::new(family);
        let request = Packet::new(opener, process, service);
        let refused = if opener == Transport::Tcp(SYN) { Then::Reset } else { Then::Refused };
        for (flags, then) in
            [(0, refused), (frontend_flags::HAS_ENDPOINTS, Then::Dropped(Reason::NoLocalEndpoint))]
        {
            serve_with(&mut node, opener, service, &[], flags);
            Case::new("nobody", OUT, request.clone(), then).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_node_only_forwards_is_not_translated() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let Parties { service, local, remote, .. } = Parties::new(family);
        serve(&mut node, opener, service, &[local, remote]);
        for source in
            [Pod::A.ip(family), Pod::B.ip(family), family.remote_pod(), family.client(), family.stranger()]
        {
            for hook in [OUT, Hook::ToPod(Pod::A)] {
                let packet = Packet::new(opener, at(source, CLIENT_PORT), service);
                Case::new("forwarded", hook, packet, Then::Passed).check(&node);
            }
        }
    }
}

/// Towards a pod, only answers are looked for: no frontend is there.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_node_sends_to_a_pod_plainly_is_not_translated() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let parties = Parties::new(family);
        serve(&mut node, opener, parties.service, &[parties.local]);
        let request = Packet::new(opener, parties.process, parties.service);
        Case::begins("marks the pod", OUT, request.clone(), parties.reaches(parties.local, request).0)
            .check(&node);
        let port = parties.process.port() + 1;
        for packet in [
            Packet::new(opener, at(parties.process.ip(), port), parties.local),
            Packet::new(opener, parties.process, at(parties.local.ip(), port)),
        ] {
            Case::new("plain", Hook::ToPod(Pod::B), packet, Then::Passed).check(&node);
        }
    }
}
