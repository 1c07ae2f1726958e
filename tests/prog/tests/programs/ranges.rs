//! Frontends that only some clients may use (loadBalancerSourceRanges), and values that are not their key's.

use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{Frontend, FrontendKey, Port, Reason, frontend_flags, protocol};
use fairlead_prog_tests::case::SHOT;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then};

use crate::{CLIENT_PORT, SERVICE_PORT, TARGET_PORT, at, chosen, code, every, number};

const A: Hook = Hook::FromPod(Pod::A);
const WIRE: Hook = Hook::FromWire;
/// The guarded Service port's id.
const SERVICE: u32 = 7;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A guarded frontend of [`SERVICE`], with one backend.
fn guard(node: &mut Node, number: u8, frontend: SocketAddr, backend: SocketAddr) {
    node.set_backend(1, backend, 1);
    let region = node.add_region(&[1]);
    let (internal, external) = (region, region);
    let flags = frontend_flags::GUARDED | frontend_flags::KEEP_SOURCE;
    node.put_frontend(
        number,
        frontend,
        Frontend { service: SERVICE, flags, internal, external, ..Frontend::default() },
    );
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_in_the_ranges_is_served_and_another_is_dropped() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let (frontend, backend) =
            (at(family.other_cluster_ip(), SERVICE_PORT), at(Pod::B.ip(family), TARGET_PORT));
        guard(&mut node, number(opener), frontend, backend);
        let rows = match family {
            Family::V4 => {
                node.admit(SERVICE, ip("198.51.100.0"), 24);
                node.admit(SERVICE, ip("203.0.113.5"), 32);
                node.admit(SERVICE, ip("203.0.113.128"), 26);
                node.admit(SERVICE + 1, ip("100.64.0.0"), 10);
                vec![
                    ("198.51.100.0", true),
                    ("198.51.100.255", true),
                    ("198.51.99.255", false),
                    ("198.51.101.0", false),
                    ("203.0.113.5", true),
                    ("203.0.113.4", false),
                    ("203.0.113.127", false),
                    ("203.0.113.128", true),
                    ("203.0.113.191", true),
                    ("203.0.113.192", false),
                    ("100.64.0.1", false),
                ]
            }
            Family::V6 => {
                node.admit(SERVICE, ip("2001:db8:ffff::"), 48);
                node.admit(SERVICE, ip("2001:db8:1::5"), 128);
                node.admit(SERVICE + 1, ip("2001:db8:2::"), 48);
                vec![
                    ("2001:db8:ffff::", true),
                    ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", true),
                    ("2001:db8:fffe:ffff::", false),
                    ("2001:db9::", false),
                    ("2001:db8:1::5", true),
                    ("2001:db8:1::4", false),
                    ("2001:db8:2::1", false),
                ]
            }
        };
        for (client, admitted) in rows {
            let packet = Packet::new(opener, at(ip(client), CLIENT_PORT), frontend);
            let served = Then::ToPod(Pod::B, packet.clone().to(backend));
            if admitted {
                Case::begins(client, WIRE, packet, served).check(&node);
            } else {
                Case::new(client, WIRE, packet, Then::Dropped(Reason::SourceNotAllowed)).check(&node);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn pods_and_the_node_itself_must_be_in_the_ranges_too() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let (frontend, backend) =
            (at(family.other_cluster_ip(), SERVICE_PORT), at(Pod::B.ip(family), TARGET_PORT));
        guard(&mut node, number(opener), frontend, backend);
        let dropped = || Then::Dropped(Reason::SourceNotAllowed);
        let from_pod = Packet::new(opener, at(Pod::A.ip(family), CLIENT_PORT), frontend);
        let from_node = Packet::new(opener, at(family.node(), CLIENT_PORT), frontend);
        Case::new("a pod", A, from_pod.clone(), dropped()).check(&node);
        Case::new("the node", Hook::ToWire, from_node.clone(), dropped()).check(&node);
        let bits = if family == Family::V4 { 32 } else { 128 };
        node.admit(SERVICE, Pod::A.ip(family), bits);
        let served = Then::ToPod(Pod::B, from_pod.clone().to(backend));
        Case::begins("a pod", A, from_pod, served).check(&node);
        Case::new("the node", Hook::ToWire, from_node.clone(), dropped()).check(&node);
        node.admit(SERVICE, family.node(), bits);
        let served = Then::IntoPod(Pod::B, from_node.clone().to(backend));
        Case::begins("the node", Hook::ToWire, from_node, served).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_range_of_all_ipv4_addresses_admits_no_ipv6_client() {
    for family in FAMILIES {
        let mut node = Node::start();
        let frontend = at(family.other_cluster_ip(), SERVICE_PORT);
        guard(&mut node, protocol::UDP, frontend, at(Pod::B.ip(family), TARGET_PORT));
        node.admit(SERVICE, ip("0.0.0.0"), 0);
        let packet = Packet::udp(at(family.client(), CLIENT_PORT), frontend);
        assert_eq!(code(&node, WIRE, &packet) != SHOT, family == Family::V4, "{family:?}");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_frontend_that_is_not_guarded_asks_for_no_range() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let guarded = at(family.other_cluster_ip(), SERVICE_PORT);
        let open = at(family.cluster_ip(), SERVICE_PORT);
        guard(&mut node, number(opener), guarded, at(Pod::B.ip(family), TARGET_PORT));
        let region = node.add_region(&[1]);
        let (internal, external) = (region, region);
        node.put_frontend(
            number(opener),
            open,
            Frontend { service: SERVICE, internal, external, ..Frontend::default() },
        );
        node.admit(SERVICE, Pod::B.ip(family), 8);
        let client = at(family.client(), CLIENT_PORT);
        assert_eq!(code(&node, WIRE, &Packet::new(opener, client, guarded)), SHOT);
        assert_eq!(chosen(&node, WIRE, &Packet::new(opener, client, open)), TARGET_PORT);
    }
}

/// The kernel may give a deleted value's memory to another key while a program reads it.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_that_meets_the_value_of_another_frontend_is_dropped() {
    for (family, opener) in every() {
        let mut node = Node::start();
        node.set_backend(1, at(Pod::B.ip(family), TARGET_PORT), 1);
        let region = node.add_region(&[1]);
        let frontend = Frontend { service: 1, internal: region, external: region, ..Frontend::default() };
        let key = |ip: IpAddr, port, protocol| FrontendKey {
            address: ip.into(),
            port: Port::new(port),
            protocol,
            reserved: 0,
        };
        let own = key(family.cluster_ip(), SERVICE_PORT, number(opener));
        let packet =
            Packet::new(opener, at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        for other in [
            key(family.other_cluster_ip(), SERVICE_PORT, number(opener)),
            key(family.cluster_ip(), SERVICE_PORT + 1, number(opener)),
            key(family.cluster_ip(), SERVICE_PORT, 255),
            FrontendKey::default(),
        ] {
            node.put_unchecked(own, Frontend { check: other.check(), ..frontend });
            Case::new("another's", A, packet.clone(), Then::Dropped(Reason::StaleService)).check(&node);
        }
        node.put_unchecked(own, Frontend { check: 0, ..frontend });
        Case::new("none", A, packet.clone(), Then::Dropped(Reason::StaleService)).check(&node);
        node.put_unchecked(own, Frontend { check: own.check(), ..frontend });
        let translated = packet.clone().to(at(Pod::B.ip(family), TARGET_PORT));
        Case::begins("its own", A, packet, Then::ToPod(Pod::B, translated)).check(&node);
    }
}
