//! Clients outside of the cluster that dial the node.

use std::collections::HashSet;
use std::net::IpAddr;

use fairlead_abi::{Address, Config, Reason, frontend_flags, protocol};
use fairlead_prog_tests::case::{REDIRECT, UNSPEC};
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::pods::kinds;
use crate::{CLIENT_PORT, NODE_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, serve, serve_with};

const B: Hook = Hook::FromPod(Pod::B);
const WIRE: Hook = Hook::FromWire;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_reaches_a_local_backend_masqueraded() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        let (backend, masked) = (at(Pod::B.ip(family), TARGET_PORT), at(family.node(), SNAT_FIRST));
        serve(&mut node, opener, service, &[backend]);
        let request = Packet::new(opener, client, service);
        let translated = request.clone().from(masked).to(backend);
        Case::begins("first", WIRE, request.clone(), Then::ToPod(Pod::B, translated.clone())).check(&node);
        Case::new("second", WIRE, request, Then::ToPod(Pod::B, translated)).check(&node);
        assert!(node.is_marked(Pod::B) && !node.is_marked(Pod::A));
        let reply = Packet::new(opener, backend, masked);
        let translated = reply.clone().from(service).to(client);
        Case::new("answer", B, reply, Then::ToGateway(translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_reaches_a_remote_backend_and_the_answer_comes_back_through_the_node() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let service = at(family.node(), NODE_PORT);
        let (backend, masked) = (at(family.remote_pod(), TARGET_PORT), at(family.node(), SNAT_FIRST));
        for client in [at(family.client(), CLIENT_PORT), at(family.stranger(), CLIENT_PORT)] {
            serve(&mut node, opener, service, &[backend]);
            let request = Packet::new(opener, client, service);
            let translated = request.clone().from(masked).to(backend);
            Case::begins("request", WIRE, request, Then::ToNode2(translated)).check(&node);
            let reply = Packet::new(opener, backend, masked);
            let translated = reply.clone().from(service).to(client);
            let is_near = client.ip() == family.stranger();
            let then = if is_near { Then::ToStranger(translated) } else { Then::ToGateway(translated) };
            Case::new("answer", WIRE, reply, then).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_that_keeps_the_source_shows_the_client_to_the_backend() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        let backend = at(Pod::B.ip(family), TARGET_PORT);
        serve_with(&mut node, opener, service, &[backend], frontend_flags::KEEP_SOURCE);
        let request = Packet::new(opener, client, service);
        let translated = request.clone().to(backend);
        Case::begins("request", WIRE, request, Then::ToPod(Pod::B, translated)).check(&node);
        let reply = Packet::new(opener, backend, client);
        let translated = reply.clone().from(service);
        Case::new("answer", B, reply, Then::ToGateway(translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backend_that_is_the_node_itself_sees_the_client() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        let backend = at(family.node(), TARGET_PORT);
        serve(&mut node, opener, service, &[backend]);
        let request = Packet::new(opener, client, service);
        let translated = request.clone().to(backend);
        Case::begins("request", WIRE, request, Then::ToStack(translated)).check(&node);
        let reply = Packet::new(opener, backend, client);
        let translated = reply.clone().from(service);
        Case::new("answer", Hook::ToWire, reply, Then::PassedAs(translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_that_is_routed_to_a_cluster_address_is_served() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.cluster_ip(), 80));
        let (backend, masked) = (at(Pod::B.ip(family), TARGET_PORT), at(family.node(), SNAT_FIRST));
        serve(&mut node, opener, service, &[backend]);
        let request = Packet::new(opener, client, service);
        let translated = request.clone().from(masked).to(backend);
        Case::begins("request", WIRE, request, Then::ToPod(Pod::B, translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn clients_inside_and_outside_get_their_own_backends() {
    let mut node = Node::start();
    for family in FAMILIES {
        let service = at(family.node(), NODE_PORT);
        let (local, remote) = (at(Pod::B.ip(family), TARGET_PORT), at(family.remote_pod(), TARGET_PORT));
        node.forget();
        node.set_backend(1, local, 1);
        node.set_backend(2, remote, 1);
        let flags = frontend_flags::KEEP_SOURCE | frontend_flags::HAS_ENDPOINTS;
        node.set_frontend(protocol::UDP, service, [&[2], &[1]], flags);
        let inside = Packet::udp(at(Pod::A.ip(family), CLIENT_PORT), service);
        let translated = inside.clone().to(remote);
        Case::begins("inside", Hook::FromPod(Pod::A), inside, Then::ToNode2(translated)).check(&node);
        let outside = Packet::udp(at(family.client(), CLIENT_PORT), service);
        let translated = outside.clone().to(local);
        Case::begins("outside", WIRE, outside, Then::ToPod(Pod::B, translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn masqueraded_flows_have_ports_of_the_range_each_its_own() {
    let mut node = Node::start();
    node.set_snat_ports(SNAT_FIRST, 1024);
    for family in FAMILIES {
        let service = at(family.node(), NODE_PORT);
        serve(&mut node, Transport::Udp, service, &[at(family.remote_pod(), TARGET_PORT)]);
        let mut ports = HashSet::new();
        for client_port in 1000..1100 {
            let request = WIRE.frame(Packet::udp(at(family.client(), client_port), service));
            let out = node.send(WIRE, &request.bytes()).packet;
            let start = request.transport_offset();
            let port = u16::from_be_bytes([out[start], out[start + 1]]);
            assert!((SNAT_FIRST..SNAT_FIRST + 1024).contains(&port), "port {port}");
            assert!(ports.insert(port), "port {port} came twice");
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn one_port_serves_a_flow_to_each_of_two_backends() {
    let mut node = Node::start();
    for family in FAMILIES {
        let masked = at(family.node(), SNAT_FIRST);
        let [first, second] = [0, 1].map(|n| at(family.node(), NODE_PORT + n));
        let [one, two] = [0, 1].map(|n| at(Pod::B.ip(family), TARGET_PORT + n));
        serve(&mut node, Transport::Udp, first, &[one]);
        node.set_backend(2, two, 1);
        node.set_frontend(protocol::UDP, second, [&[2], &[2]], 0);
        for (service, backend) in [(first, one), (second, two)] {
            let request = Packet::udp(at(family.client(), CLIENT_PORT), service);
            let translated = request.clone().from(masked).to(backend);
            Case::begins("request", WIRE, request, Then::ToPod(Pod::B, translated)).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn without_a_free_port_the_flow_is_dropped_and_those_before_live_on() {
    let mut node = Node::start();
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let (service, backend) = (at(family.node(), NODE_PORT), at(Pod::B.ip(family), TARGET_PORT));
        serve(&mut node, opener, service, &[backend]);
        node.set_snat_ports(SNAT_FIRST, 4);
        let request = |port| WIRE.frame(Packet::new(opener, at(family.client(), port), service));
        let send = |port| node.send(WIRE, &request(port).bytes());
        let before = [1, 2, 3, 4].map(send);
        assert!(before.iter().all(|outcome| outcome.code == REDIRECT), "four flows for four ports");
        Case::new("fifth", WIRE, request(5), Then::Dropped(Reason::NoSnatPort)).check(&node);
        assert_eq!([1, 2, 3, 4].map(send), before, "the four go on as they were");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_without_an_address_of_the_family_masquerades_nothing() {
    let mut node = Node::start();
    let nobody = Config { node_v4: Address::UNSPECIFIED, node_v6: Address::UNSPECIFIED, ..Node::config() };
    node.set_config(nobody);
    for (family, opener) in FAMILIES.iter().flat_map(|family| OPENERS.map(|opener| (*family, opener))) {
        let service = at(family.cluster_ip(), 80);
        serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        let request = Packet::new(opener, at(family.client(), CLIENT_PORT), service);
        Case::new("outside", WIRE, request, Then::Dropped(Reason::NoNodeAddress)).check(&node);
        let request = Packet::new(opener, at(Pod::B.ip(family), CLIENT_PORT), service);
        Case::new("to itself", B, request, Then::Dropped(Reason::NoNodeAddress)).check(&node);
        let request = Packet::new(opener, at(Pod::A.ip(family), CLIENT_PORT), service);
        let translated = request.clone().to(at(Pod::B.ip(family), TARGET_PORT));
        Case::begins("plain", Hook::FromPod(Pod::A), request, Then::ToPod(Pod::B, translated)).check(&node);
    }
}

/// The kernel throws such a packet away as martian; taken past the kernel, it would pass for the node's own.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_wire_brings_nothing_from_this_node_or_its_pods() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (service, backend) = (at(family.node(), SERVICE_PORT), at(Pod::B.ip(family), TARGET_PORT));
        for opener in OPENERS {
            serve(&mut node, opener, service, &[backend]);
            for source in [family.node(), Pod::A.ip(family), Pod::B.ip(family)] {
                for destination in [family.node(), Pod::A.ip(family), Pod::B.ip(family), family.client()] {
                    for packet in kinds(source, destination) {
                        Case::new("spoofed", WIRE, packet, Then::Dropped(Reason::SpoofedSource)).check(&node);
                    }
                }
            }
        }
    }
}

/// A node without an address of a family does not have the unspecified one, from which others ask whether theirs
/// is taken (RFC 4862, section 5.4.2).
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_unspecified_address_is_not_the_nodes() {
    let mut node = Node::start();
    for config in [
        Config { node_v4: Family::V4.node().into(), ..Config::default() },
        Config { node_v6: Family::V6.node().into(), ..Config::default() },
    ] {
        node.set_config(config);
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let solicitation = Packet::icmp(135, 0, ip("::"), ip("ff02::1:ff00:1")).hops(255);
        Case::new("duplicate address detection", WIRE, solicitation, Then::Passed).check(&node);
        let discover = Packet::udp(at(ip("0.0.0.0"), 68), at(ip("255.255.255.255"), 67));
        Case::new("DHCP", WIRE, discover, Then::Passed).check(&node);
    }
}

/// A switch that floods, or an interface in promiscuous mode, shows the node frames for other machines.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_frame_addressed_to_another_machine_is_left_alone() {
    let mut node = Node::start();
    let service = at(Family::V4.cluster_ip(), 80);
    serve(&mut node, Transport::Udp, service, &[at(Pod::B.ip(Family::V4), TARGET_PORT)]);
    let client = at(Family::V4.client(), CLIENT_PORT);
    for destination in [service, at(Pod::B.ip(Family::V4), TARGET_PORT)] {
        let packet = Packet::udp(client, destination).frame([2, 0, 0, 0, 0, 0xfe], [2, 0, 0, 0, 0, 0x77]);
        let outcome = node.send(WIRE, &packet.bytes());
        assert_eq!(outcome.code, UNSPEC, "to {destination}");
        assert_eq!(outcome.packet, packet.bytes(), "to {destination}");
    }
}
