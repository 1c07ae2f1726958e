//! Addresses of Services beyond their ports: a port that a Service has not, and addresses that no Service has.

use std::net::IpAddr;

use fairlead_abi::{Address, Frontend, FrontendKey, Reason, cidr_flags, frontend_flags};
use fairlead_prog_tests::packet::sctp::DATA;
use fairlead_prog_tests::packet::tcp::{ACK, SYN};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::pods::kinds;
use crate::{CLIENT_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, every, number};

/// Where clients are met: a pod, the wire, the node itself.
const CLIENTS: [Hook; 3] = [Hook::FromPod(Pod::A), Hook::FromWire, Hook::ToWire];

fn client(hook: Hook, family: Family) -> IpAddr {
    match hook {
        Hook::FromWire => family.client(),
        Hook::ToWire => family.node(),
        _ => Pod::A.ip(family),
    }
}

/// What becomes of a packet that is nobody's business, to an address behind the gateway.
fn unclaimed(hook: Hook, packet: &Packet) -> Then {
    if let Hook::FromPod(_) = hook { Then::ToGateway(packet.clone()) } else { Then::Passed }
}

/// Makes the address the ClusterIP of a Service.
fn allocate(node: &mut Node, address: IpAddr) {
    let key = FrontendKey::whole(Address::from(address));
    let flags = frontend_flags::WHOLE;
    node.put_unchecked(key, Frontend { flags, check: key.check(), ..Frontend::default() });
}

/// Makes the range of both families' cluster addresses the cluster's.
fn cover(node: &mut Node, flags: u32) {
    node.cover(Family::V4.cluster_ip(), 16, flags);
    node.cover(Family::V6.cluster_ip(), 112, flags);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_port_that_the_service_has_not_is_refused() {
    for flags in [cidr_flags::DROP, 0] {
        let mut node = Node::start();
        cover(&mut node, flags);
        for family in FAMILIES {
            allocate(&mut node, family.cluster_ip());
            let echo = if family == Family::V4 { 8 } else { 128 };
            for hook in CLIENTS {
                let (from, to) = (at(client(hook, family), CLIENT_PORT), at(family.cluster_ip(), 81));
                let refused = |packet: &Packet| Then::Answered(Reason::UnknownPort, packet.refusal());
                let syn = Packet::tcp(SYN, from, to);
                Case::new("SYN", hook, syn.clone(), Then::Answered(Reason::UnknownPort, syn.reset()))
                    .check(&node);
                for packet in [
                    Packet::tcp(ACK, from, to),
                    Packet::udp(from, to),
                    Packet::udp(from, at(to.ip(), 0)),
                    Packet::new(Transport::Sctp(DATA), from, to),
                    Packet::new(Transport::Bare(47), from, to).payload(&[5; 30]),
                    Packet::icmp(echo, 0, from.ip(), to.ip()).rest(0x1234_0001),
                ] {
                    let then = refused(&packet);
                    Case::new("port", hook, packet, then).check(&node);
                }
            }
        }
    }
}

/// An error is never answered with an error, nor is what does not say to which port it belongs.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn errors_and_later_fragments_to_a_services_address_are_dropped() {
    let mut node = Node::start();
    cover(&mut node, cidr_flags::DROP);
    for family in FAMILIES {
        allocate(&mut node, family.cluster_ip());
        let errors: &[u8] = if family == Family::V4 { &[3, 4, 5, 11, 12] } else { &[1, 2, 3, 4, 127] };
        for hook in CLIENTS {
            let (from, to) = (client(hook, family), family.cluster_ip());
            let later = Packet::udp(at(from, 1), at(to, 2)).fragment(9, false);
            let mut packets = vec![later];
            packets.extend(errors.iter().map(|kind| Packet::icmp(*kind, 0, from, to)));
            for packet in packets {
                Case::new("dropped", hook, packet, Then::Dropped(Reason::UnknownPort)).check(&node);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_ports_that_the_service_has_are_served_all_the_same() {
    for (family, opener) in every() {
        let mut node = Node::start();
        cover(&mut node, cidr_flags::DROP);
        allocate(&mut node, family.cluster_ip());
        let (service, backend) =
            (at(family.cluster_ip(), SERVICE_PORT), at(family.remote_pod(), TARGET_PORT));
        node.set_backend(1, backend, 1);
        node.set_frontend(number(opener), service, [&[1], &[1]], frontend_flags::KEEP_SOURCE);
        for hook in CLIENTS {
            let request = Packet::new(opener, at(client(hook, family), CLIENT_PORT), service);
            let translated = request.clone().to(backend);
            let then = if hook == Hook::ToWire {
                Then::PassedToNode2(translated)
            } else {
                Then::ToNode2(translated)
            };
            Case::begins("served", hook, request, then).check(&node);
        }
        for other in OPENERS.into_iter().filter(|other| *other != opener) {
            let packet = Packet::new(other, at(Pod::A.ip(family), CLIENT_PORT), service);
            let answer = if let Transport::Tcp(_) = other { packet.reset() } else { packet.refusal() };
            let then = Then::Answered(Reason::UnknownPort, answer);
            Case::new("of another protocol", CLIENTS[0], packet, then).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_address_of_the_range_that_no_service_has_is_a_black_hole() {
    let mut node = Node::start();
    cover(&mut node, cidr_flags::DROP);
    for family in FAMILIES {
        allocate(&mut node, family.cluster_ip());
        for hook in CLIENTS {
            for packet in kinds(client(hook, family), family.other_cluster_ip()) {
                Case::new("no Service", hook, packet, Then::Dropped(Reason::NoService)).check(&node);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_address_without_a_service_passes_where_the_range_is_not_the_clusters() {
    let mut node = Node::start();
    for family in FAMILIES {
        let bits = if family == Family::V4 { 32 } else { 128 };
        node.cover(family.cluster_ip(), bits, 0);
        for hook in CLIENTS {
            for packet in kinds(client(hook, family), family.cluster_ip()) {
                let then = unclaimed(hook, &packet);
                Case::new("no Service", hook, packet, then).check(&node);
            }
        }
    }
}

/// The longest range says what becomes of an address; one outside of all ranges is not looked up.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn other_destinations_are_left_alone() {
    let mut node = Node::start();
    cover(&mut node, cidr_flags::DROP);
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    for (family, others) in [
        (Family::V4, ["10.95.255.255", "10.97.0.0", "8.8.8.8"]),
        (Family::V6, ["fd00:95:ffff::1", "fd00:96::1:0", "2001:4860::8888"]),
    ] {
        for (hook, other) in CLIENTS.into_iter().flat_map(|hook| others.map(|other| (hook, ip(other)))) {
            // Even one that has a Service's mark.
            allocate(&mut node, other);
            for packet in kinds(client(hook, family), other) {
                let then = unclaimed(hook, &packet);
                Case::new(format!("to {other}"), hook, packet, then).check(&node);
            }
        }
        let bits = if family == Family::V4 { 32 } else { 128 };
        node.cover(family.other_cluster_ip(), bits, 0);
        let packet = Packet::udp(at(Pod::A.ip(family), 1), at(family.other_cluster_ip(), 2));
        Case::new("excepted", CLIENTS[0], packet.clone(), Then::ToGateway(packet)).check(&node);
    }
}

/// The answer quotes a header without options or extensions only.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_with_options_to_a_port_that_the_service_has_not_is_dropped() {
    let mut node = Node::start();
    cover(&mut node, cidr_flags::DROP);
    for (family, opener) in every() {
        allocate(&mut node, family.cluster_ip());
        let packet = Packet::new(opener, at(Pod::A.ip(family), 1), at(family.cluster_ip(), 2));
        let packet = if family == Family::V4 { packet.options(&[1; 8]) } else { packet.extension(60, 1) };
        Case::new("options", CLIENTS[0], packet, Then::Dropped(Reason::UnknownPort)).check(&node);
    }
}
