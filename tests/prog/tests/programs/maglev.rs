//! Backends that clients from outside get by a Maglev table: the same on every node, whatever address they dial.

use std::net::SocketAddr;

use fairlead_abi::{Frontend, Region, protocol};
use fairlead_flow::maglev;
use fairlead_prog_tests::{FAMILIES, Family, Hook, Node, Packet, Pod, Transport};

use crate::{NODE_PORT, SERVICE_PORT, TARGET_PORT, at, chosen, every, number};

const WIRE: Hook = Hook::FromWire;
/// The table's length.
const PLACES: u32 = 251;
const BACKENDS: u32 = 5;

/// The table: by no rule, but with every backend.
fn table() -> Vec<u32> {
    (0..PLACES).map(|place| 1 + (place * 7 + place / 11) % BACKENDS).collect()
}

/// The port of a backend.
fn port(id: u32) -> u16 {
    TARGET_PORT + id as u16
}

/// Whose backend [`table`] names.
fn expected(client: SocketAddr, protocol: u8) -> u16 {
    let port_of = fairlead_abi::Port::new(client.port());
    let place = maglev::hash(client.ip().into(), port_of, protocol) % PLACES;
    port(table()[place as usize])
}

/// Backends, and a frontend with the table; the last backend is one that no client from outside may get.
fn add(node: &mut Node, family: Family, protocol: u8, frontends: &[SocketAddr], affinity: u32) {
    for id in 1..=BACKENDS + 1 {
        node.set_backend(id, at(family.remote_pod(), port(id)), 1);
    }
    let external = node.add_region(&(1..=BACKENDS).collect::<Vec<_>>());
    let internal = node.add_region(&[BACKENDS + 1]);
    let maglev = node.add_region(&table());
    for frontend in frontends {
        let value = Frontend { service: 1, internal, external, maglev, affinity, ..Frontend::default() };
        node.put_frontend(protocol, *frontend, value);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_from_outside_gets_the_backend_of_its_place_at_every_address() {
    for (family, opener) in every() {
        let mut node = Node::start();
        node.set_snat_ports(50_000, 1024);
        let frontends = [at(family.node(), NODE_PORT), at(family.other_cluster_ip(), SERVICE_PORT)];
        add(&mut node, family, number(opener), &frontends, 0);
        let mut seen = [false; BACKENDS as usize];
        for client_port in 2000..2100 {
            let client = at(family.client(), client_port);
            for frontend in frontends {
                let backend = chosen(&node, WIRE, &Packet::new(opener, client, frontend));
                assert_eq!(backend, expected(client, number(opener)), "{client} to {frontend}");
                seen[usize::from(backend - port(1))] = true;
            }
        }
        assert_eq!(seen, [true; BACKENDS as usize], "every backend has its share");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn clients_inside_are_balanced_without_the_table() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let frontend = at(family.node(), NODE_PORT);
        add(&mut node, family, number(opener), &[frontend], 0);
        for client_port in 2000..2050 {
            let client = at(Pod::A.ip(family), client_port);
            let packet = Packet::new(opener, client, frontend);
            assert_eq!(chosen(&node, Hook::FromPod(Pod::A), &packet), port(BACKENDS + 1));
        }
        let service = at(family.cluster_ip(), SERVICE_PORT);
        add(&mut node, family, number(opener), &[service], 0);
        let packet = Hook::ToWire.frame(Packet::new(opener, at(family.node(), 2000), service));
        let out = node.send(Hook::ToWire, &packet.bytes()).packet;
        let start = packet.transport_offset() + 2;
        assert_eq!(u16::from_be_bytes([out[start], out[start + 1]]), port(BACKENDS + 1));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_with_affinity_keeps_the_backend_that_the_table_gave_it_first() {
    for family in FAMILIES {
        let mut node = Node::start();
        node.set_snat_ports(50_000, 1024);
        let frontend = at(family.node(), NODE_PORT);
        add(&mut node, family, protocol::UDP, &[frontend], 60);
        let first = expected(at(family.client(), 2000), protocol::UDP);
        for client_port in 2000..2050 {
            let packet = Packet::udp(at(family.client(), client_port), frontend);
            assert_eq!(chosen(&node, WIRE, &packet), first, "port {client_port}");
        }
    }
}

/// Without endpoints there is no table to look into.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_table_of_a_service_without_endpoints_is_not_looked_at() {
    for family in FAMILIES {
        let mut node = Node::start();
        let frontend = at(family.node(), NODE_PORT);
        let maglev = node.add_region(&table());
        let none = Region::default();
        let value = Frontend { service: 1, internal: none, external: none, maglev, ..Frontend::default() };
        node.put_frontend(protocol::UDP, frontend, value);
        let packet = Packet::new(Transport::Udp, at(family.client(), 2000), frontend);
        let then = fairlead_prog_tests::Then::Refused;
        fairlead_prog_tests::Case::new("nobody", WIRE, packet, then).check(&node);
    }
}
