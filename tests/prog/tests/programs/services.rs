//! Pods that dial a cluster address.

use fairlead_abi::{Flow, Port, flow_flags, protocol};
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::packet::tcp::{ACK, SYN};
use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, NODE_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, later, number, serve, timeless};

const A: Hook = Hook::FromPod(Pod::A);
const B: Hook = Hook::FromPod(Pod::B);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_a_local_backend_and_hears_the_service_answer() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let backend = at(Pod::B.ip(family), TARGET_PORT);
        serve(&mut node, opener, service, &[backend]);
        let [next, answer] = later(opener);

        let request = Packet::new(opener, client, service);
        let translated = request.clone().to(backend);
        Case::begins("first", A, request.clone(), Then::ToPod(Pod::B, translated)).check(&node);
        assert!(node.is_marked(Pod::A) && node.is_marked(Pod::B), "both ends are marked");

        let reply = Packet::new(answer, backend, client).payload(b"welcome");
        let translated = reply.clone().from(service);
        Case::new("answer", B, reply.clone(), Then::ToPod(Pod::A, translated)).check(&node);

        let request = Packet::new(next, client, service).payload(&[9; 1001]);
        let translated = request.clone().to(backend);
        Case::new("next", A, request.clone(), Then::ToPod(Pod::B, translated)).check(&node);

        // A datagram that follows at once may not have waited for the answer.
        let went_on = if opener == Transport::Udp { 0 } else { flow_flags::CONFIRMED };
        let forward = Flow {
            source: client.ip().into(),
            source_port: Port::new(CLIENT_PORT),
            destination: backend.ip().into(),
            destination_port: Port::new(TARGET_PORT),
            backend: 1,
            generation: 1,
            flags: flow_flags::ANSWERED | went_on,
            ..Flow::default()
        };
        assert_eq!(timeless(node.flow(&request)), Some(forward));
        let backward = Flow {
            source: service.ip().into(),
            source_port: Port::new(SERVICE_PORT),
            destination: client.ip().into(),
            destination_port: Port::new(CLIENT_PORT),
            flags: flow_flags::REPLY | flow_flags::ANSWERED | went_on,
            ..forward
        };
        assert_eq!(timeless(node.flow(&reply)), Some(backward));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_a_remote_backend_and_the_wire_brings_the_services_answer() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let backend = at(family.remote_pod(), TARGET_PORT);
        serve(&mut node, opener, service, &[backend]);
        let [next, answer] = later(opener);
        let request = Packet::new(opener, client, service);
        Case::begins("first", A, request.clone(), Then::ToNode2(request.to(backend))).check(&node);
        assert!(node.is_marked(Pod::A) && !node.is_marked(Pod::B), "only the client is here");
        let reply = Packet::new(answer, backend, client);
        let translated = reply.clone().from(service);
        Case::new("answer", Hook::FromWire, reply, Then::ToPod(Pod::A, translated)).check(&node);
        let request = Packet::new(next, client, service);
        Case::new("next", A, request.clone(), Then::ToNode2(request.to(backend))).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backend_that_is_the_node_itself_answers_as_the_service() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), 443));
        let backend = at(family.node(), 6443);
        serve(&mut node, opener, service, &[backend]);
        let request = Packet::new(opener, client, service);
        Case::begins("request", A, request.clone(), Then::ToStack(request.to(backend))).check(&node);
        let reply = Packet::new(later(opener)[1], backend, client);
        let translated = reply.clone().from(service);
        Case::new("answer", Hook::ToPod(Pod::A), reply, Then::PassedAs(translated)).check(&node);
        let unrelated = Packet::new(opener, at(family.node(), 6444), client);
        Case::new("another port", Hook::ToPod(Pod::A), unrelated, Then::Passed).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_itself_through_its_service() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let (backend, masked) = (at(Pod::A.ip(family), TARGET_PORT), at(family.node(), SNAT_FIRST));
        serve(&mut node, opener, service, &[backend]);
        let request = Packet::new(opener, client, service);
        let translated = request.clone().from(masked).to(backend);
        Case::begins("request", A, request, Then::ToPod(Pod::A, translated)).check(&node);
        let reply = Packet::new(later(opener)[1], backend, masked);
        let translated = reply.clone().from(service).to(client);
        Case::new("answer", A, reply, Then::ToPod(Pod::A, translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_a_node_port_of_its_own_node_with_its_own_address() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.node(), NODE_PORT));
        let backend = at(Pod::B.ip(family), TARGET_PORT);
        serve(&mut node, opener, service, &[backend]);
        let request = Packet::new(opener, client, service);
        let translated = request.clone().to(backend);
        Case::begins("request", A, request, Then::ToPod(Pod::B, translated)).check(&node);
        let reply = Packet::new(later(opener)[1], backend, client);
        let translated = reply.clone().from(service);
        Case::new("answer", B, reply, Then::ToPod(Pod::A, translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn only_the_frontends_own_address_port_and_protocol_are_translated() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        serve(&mut node, Transport::Udp, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        let echo = if family == Family::V4 { 8 } else { 128 };
        for packet in [
            Packet::tcp(SYN, client, service),
            Packet::udp(client, at(service.ip(), SERVICE_PORT + 1)),
            Packet::udp(client, at(family.other_cluster_ip(), SERVICE_PORT)),
            Packet::udp(client, at(service.ip(), 0)),
            Packet::icmp(echo, 0, client.ip(), service.ip()),
        ] {
            Case::new("not the frontend", A, packet.clone(), Then::ToGateway(packet)).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn every_backend_gets_flows_and_each_flow_keeps_its_own() {
    let mut node = Node::start();
    for family in FAMILIES {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        let backends: Vec<_> = (0..8).map(|n| at(Pod::B.ip(family), TARGET_PORT + n)).collect();
        serve(&mut node, Transport::Udp, service, &backends);
        let mut flows = [0; 8];
        let port_of = |bytes: &[u8], start: usize| u16::from_be_bytes([bytes[start + 2], bytes[start + 3]]);
        node.inside(|| {
            for port in 1000..1300 {
                let packet = A.frame(Packet::udp(at(Pod::A.ip(family), port), service));
                let chosen = [0; 3].map(|_| {
                    port_of(&node.send_inside(A, &packet.bytes()).packet, packet.transport_offset())
                });
                assert_eq!(chosen, [chosen[0]; 3], "port {port}");
                flows[usize::from(chosen[0] - TARGET_PORT)] += 1;
            }
        });
        // Each expects 37; fewer than 8 happens less than once in 10¹⁰ runs.
        assert!(flows.iter().all(|count| *count >= 8), "{flows:?}");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_udp_checksum_that_is_none_stays_none() {
    let mut node = Node::start();
    let (client, service) = (at(Pod::A.ip(Family::V4), CLIENT_PORT), at(Family::V4.cluster_ip(), 53));
    let backend = at(Pod::B.ip(Family::V4), 5353);
    serve(&mut node, Transport::Udp, service, &[backend]);
    let request = Packet::new(Transport::UdpWithoutChecksum, client, service);
    Case::begins("request", A, request.clone(), Then::ToPod(Pod::B, request.to(backend))).check(&node);
    let reply = Packet::new(Transport::UdpWithoutChecksum, backend, client);
    let translated = reply.clone().from(service);
    Case::new("answer", B, reply, Then::ToPod(Pod::A, translated)).check(&node);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn options_and_extension_headers_are_stepped_over() {
    let mut node = Node::start();
    for opener in OPENERS {
        let (client, service) =
            (at(Pod::A.ip(Family::V4), CLIENT_PORT), at(Family::V4.cluster_ip(), SERVICE_PORT));
        let backend = at(Pod::B.ip(Family::V4), TARGET_PORT);
        for words in 1..=10 {
            serve(&mut node, opener, service, &[backend]);
            let request = Packet::new(opener, client, service).options(&vec![1; words * 4]);
            Case::begins("options", A, request.clone(), Then::ToPod(Pod::B, request.to(backend)))
                .check(&node);
        }
        let (client, service) =
            (at(Pod::A.ip(Family::V6), CLIENT_PORT), at(Family::V6.cluster_ip(), SERVICE_PORT));
        let backend = at(Pod::B.ip(Family::V6), TARGET_PORT);
        let request = Packet::new(opener, client, service);
        for request in [
            request.clone().extension(0, 1),
            request.clone().extension(60, 32),
            request.clone().extension(0, 1).extension(60, 2).extension(60, 1),
            request.clone().extension(0, 4).fragment(0, true).extension(60, 1),
            request.clone().fragment(0, true),
            request.clone().fragment(0, false),
        ] {
            // A first fragment's checksum covers what only the later ones bring.
            if number(opener) == protocol::SCTP && request.is_fragment() {
                continue;
            }
            serve(&mut node, opener, service, &[backend]);
            Case::begins("extensions", A, request.clone(), Then::ToPod(Pod::B, request.to(backend)))
                .check(&node);
        }
        serve(&mut node, opener, service, &[backend]);
        let request = (0..5).fold(request, |request, _| request.extension(60, 1));
        Case::new("one too many", A, request.clone(), Then::ToGateway(request)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_first_fragment_to_a_service_is_translated() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let backend = at(Pod::B.ip(family), TARGET_PORT);
        serve(&mut node, Transport::Udp, service, &[backend]);
        let first = Packet::udp(client, service).fragment(0, true).payload(&[1; 72]);
        Case::begins("first", A, first.clone(), Then::ToPod(Pod::B, first.to(backend))).check(&node);
    }
}

/// They have no port to find the Service by.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn later_fragments_follow_their_first_to_its_backend() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let backends = [Pod::B, Pod::A].map(|pod| at(pod.ip(family), TARGET_PORT));
        serve(&mut node, Transport::Udp, service, &backends[..1]);
        let first = Packet::udp(client, service).fragment(0, true).payload(&[1; 64]);
        let translated = first.clone().to(backends[0]);
        Case::begins("first", A, first, Then::ToPod(Pod::B, translated)).check(&node);
        let later = Packet::udp(client, service).fragment(9, false).payload(&[2; 64]);
        let translated = later.clone().to(backends[0]);
        Case::new("later", A, later, Then::ToPod(Pod::B, translated)).check(&node);
        let answer = Packet::udp(backends[0], client).fragment(0, true).payload(&[3; 64]);
        let named = answer.clone().from(service);
        Case::new("first of the answer", B, answer, Then::ToPod(Pod::A, named)).check(&node);
        let later = Packet::udp(backends[0], client).fragment(9, false).payload(&[4; 64]);
        let named = later.clone().from(service);
        Case::new("later of the answer", B, later, Then::ToPod(Pod::A, named)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn pods_that_take_part_in_a_service_still_talk_plainly() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (a, b) = (at(Pod::A.ip(family), CLIENT_PORT), at(Pod::B.ip(family), TARGET_PORT));
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, Transport::Udp, service, &[b]);
        let request = Packet::udp(a, service);
        Case::begins("request", A, request.clone(), Then::ToPod(Pod::B, request.to(b))).check(&node);
        let (a, b) = (at(a.ip(), 7), at(b.ip(), 7));
        for (hook, packet, pod) in [
            (A, Packet::udp(a, b), Pod::B),
            (B, Packet::tcp(ACK, b, a), Pod::A),
            (Hook::FromWire, Packet::udp(at(family.remote_pod(), 7), a), Pod::A),
            (Hook::FromWire, Packet::tcp(SYN, at(family.remote_pod(), 7), b), Pod::B),
        ] {
            Case::new("plain", hook, packet.clone(), Then::ToPod(pod, packet)).check(&node);
        }
        let packet = Packet::udp(a, at(family.client(), 7));
        Case::new("plain, outside", A, packet.clone(), Then::ToGateway(packet)).check(&node);
    }
}

/// Exactness over many sums: every combination of carries is met sooner or later.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn checksums_are_exact_whatever_the_packet_says() {
    let mut random = Random::announced();
    let mut node = Node::start();
    for family in FAMILIES {
        for opener in OPENERS {
            for _ in 0..150 {
                let mut port = || 1 + random.below(65_535) as u16;
                let client = at(Pod::A.ip(family), port());
                let (service, backend) = (at(family.cluster_ip(), port()), at(Pod::B.ip(family), port()));
                let masked = port();
                node.set_snat_ports(masked, 1);
                serve(&mut node, opener, service, &[backend]);
                let mut packet = |from, to| {
                    let length = random.below(600);
                    let packet = Packet::new(opener, from, to).payload(&random.bytes(length));
                    packet.tos(random.number() as u8).identification(random.number() as u16)
                };
                let request = packet(client, service);
                let translated = request.clone().to(backend);
                Case::begins("request", A, request, Then::ToPod(Pod::B, translated)).check(&node);
                let reply = packet(backend, client);
                let translated = reply.clone().from(service);
                Case::new("answer", B, reply, Then::ToPod(Pod::A, translated)).check(&node);

                let client = at(family.client(), client.port());
                let request = packet(client, service);
                let translated = request.clone().from(at(family.node(), masked)).to(backend);
                Case::begins("outside", Hook::FromWire, request, Then::ToPod(Pod::B, translated))
                    .check(&node);
                let reply = packet(backend, at(family.node(), masked));
                let translated = reply.clone().from(service).to(client);
                Case::new("answer", B, reply, Then::ToGateway(translated)).check(&node);
            }
        }
    }
}
