//! Session affinity: a client goes on getting the backend that it had.

use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{Affinity, Counter, Frontend, Region, protocol};
use fairlead_prog_tests::{FAMILIES, Family, Hook, Node, Packet, Pod};

use crate::{NODE_PORT, SERVICE_PORT, at, chosen, every, number};

const A: Hook = Hook::FromPod(Pod::A);
const WIRE: Hook = Hook::FromWire;
/// The Service port's id.
const SERVICE: u32 = 7;
/// For how long it remembers.
const SECONDS: u32 = 600;
const SECOND: u64 = 1_000_000_000;
/// The port of the backend with the id 0.
const PORTS: u16 = 10_000;

/// A Service with an address inside and one outside, and sixteen backends.
struct Service {
    family: Family,
    protocol: u8,
    frontends: [SocketAddr; 2],
}

impl Service {
    fn add(node: &mut Node, family: Family, protocol: u8) -> Self {
        node.set_snat_ports(50_000, 1024);
        let frontends = [at(family.cluster_ip(), SERVICE_PORT), at(family.node(), NODE_PORT)];
        let service = Self { family, protocol, frontends };
        for id in 1..=16 {
            service.seat(node, id, 1);
        }
        let region = node.add_region(&(1..=16).collect::<Vec<_>>());
        service.offer(node, region, region, SECONDS);
        service
    }

    /// Gives the id to a backend, which its port tells.
    fn seat(&self, node: &mut Node, id: u32, generation: u32) {
        node.set_backend(id, at(self.family.remote_pod(), PORTS + id as u16), generation);
    }

    fn offer(&self, node: &mut Node, internal: Region, external: Region, affinity: u32) {
        for frontend in self.frontends {
            let value = Frontend { service: SERVICE, internal, external, affinity, ..Frontend::default() };
            node.put_frontend(self.protocol, frontend, value);
        }
    }
}

fn kept(node: &Node) -> u64 {
    node.counters()[Counter::AffinityKept as usize]
}

/// The id of the backend that the client gets.
fn backend(node: &Node, hook: Hook, packet: &Packet) -> u32 {
    u32::from(chosen(node, hook, packet) - PORTS)
}

/// What the Service remembers of the client, as if it were `seconds` older.
fn age(node: &mut Node, client: IpAddr, seconds: u64) -> Affinity {
    let held = node.affinity(client, SERVICE).expect("the client is remembered");
    let aged = Affinity { last_used: held.last_used.wrapping_sub(seconds * SECOND), ..held };
    node.set_affinity(client, SERVICE, aged);
    aged
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_keeps_its_backend_at_every_address_of_the_service() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let service = Service::add(&mut node, family, number(opener));
        for (hook, client) in [(A, Pod::A.ip(family)), (WIRE, family.client())] {
            let before = kept(&node);
            let first = backend(&node, hook, &Packet::new(opener, at(client, 999), service.frontends[0]));
            for port in 1000..1020 {
                for frontend in service.frontends {
                    let packet = Packet::new(opener, at(client, port), frontend);
                    assert_eq!(backend(&node, hook, &packet), first, "{client}:{port} to {frontend}");
                }
            }
            assert_eq!(kept(&node), before + 40);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn each_client_and_each_service_is_remembered_by_itself() {
    for family in FAMILIES {
        let mut node = Node::start();
        let service = Service::add(&mut node, family, protocol::UDP);
        let clients: Vec<IpAddr> = (1..=60_u8)
            .map(|last| match family {
                Family::V4 => [203, 0, 113, last].into(),
                Family::V6 => [0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(last)].into(),
            })
            .collect();
        let first =
            |client: &IpAddr| backend(&node, WIRE, &Packet::udp(at(*client, 1), service.frontends[1]));
        let firsts: Vec<u32> = clients.iter().map(first).collect();
        // All alike happens once in 16 to the 59th runs.
        assert!(firsts.iter().any(|id| *id != firsts[0]), "{firsts:?}");
        for (client, first) in clients.iter().zip(firsts) {
            let remembered = node.affinity(*client, SERVICE).map(|held| (held.backend, held.generation));
            assert_eq!(remembered, Some((first, 1)));
            assert_eq!(node.affinity(*client, SERVICE + 1), None);
        }
        assert_eq!(kept(&node), 0);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_without_affinity_remembers_nobody() {
    for family in FAMILIES {
        let mut node = Node::start();
        let service = Service::add(&mut node, family, protocol::UDP);
        let region = node.add_region(&[3]);
        service.offer(&mut node, region, region, 0);
        let client = Pod::A.ip(family);
        node.set_affinity(client, SERVICE, Affinity { last_used: u64::MAX, backend: 5, generation: 1 });
        assert_eq!(backend(&node, A, &Packet::udp(at(client, 1), service.frontends[0])), 3);
        assert_eq!(node.affinity(family.client(), SERVICE), None);
    }
}

/// The time begins anew with each flow, not with each packet.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn each_new_flow_begins_the_time_anew() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let service = Service::add(&mut node, family, number(opener));
        let client = Pod::A.ip(family);
        let first = Packet::new(opener, at(client, 1), service.frontends[0]);
        let chosen_first = backend(&node, A, &first);
        let aged = age(&mut node, client, u64::from(SECONDS) - 10);
        assert_eq!(backend(&node, A, &first), chosen_first);
        assert_eq!(node.affinity(client, SERVICE), Some(aged), "another packet of the flow");
        let next = Packet::new(opener, at(client, 2), service.frontends[1]);
        assert_eq!(backend(&node, A, &next), chosen_first);
        let renewed = node.affinity(client, SERVICE).expect("it is remembered").last_used;
        assert!(renewed - aged.last_used >= (u64::from(SECONDS) - 10) * SECOND, "another flow");
    }
}

/// With sixteen backends one that is chosen anew may be the same: what is counted and noted tells.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_is_balanced_anew_once_its_time_is_over() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let service = Service::add(&mut node, family, number(opener));
        let client = Pod::A.ip(family);
        let next = |node: &Node, port| {
            let before = kept(node);
            let id = backend(node, A, &Packet::new(opener, at(client, port), service.frontends[0]));
            (id, kept(node) - before)
        };
        next(&node, 1);
        let mut seen = [false; 17];
        for port in 2..100 {
            age(&mut node, client, u64::from(SECONDS) + 2);
            let (id, kept) = next(&node, port);
            assert_eq!(kept, 0, "port {port}");
            seen[id as usize] = true;
            let aged = age(&mut node, client, u64::from(SECONDS) - 10);
            assert_eq!(aged.backend, id, "what was chosen is noted");
            assert_eq!(next(&node, port + 1000), (id, 1), "port {port}");
        }
        assert!(seen.iter().filter(|seen| **seen).count() > 4, "chosen at random: {seen:?}");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_whose_backend_is_gone_is_balanced_anew() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let service = Service::add(&mut node, family, number(opener));
        let client = Pod::A.ip(family);
        let next = |node: &Node, port| {
            backend(node, A, &Packet::new(opener, at(client, port), service.frontends[0]))
        };
        let all: Vec<u32> = (1..=16).collect();
        for (what, port) in [("out of the region", 100), ("vacated", 200), ("given to another", 300)] {
            let first = next(&node, port);
            let others: Vec<u32> = all.iter().copied().filter(|id| *id != first).collect();
            let (fewer, whole) = (node.add_region(&others), node.add_region(&all));
            match what {
                "out of the region" => service.offer(&mut node, fewer, fewer, SECONDS),
                "vacated" => {
                    service.offer(&mut node, fewer, fewer, SECONDS);
                    service.seat(&mut node, first, 0);
                }
                _ => service.seat(&mut node, first, 2),
            }
            let before = kept(&node);
            let second = next(&node, port + 1);
            assert_eq!(kept(&node), before, "{what}");
            if what != "given to another" {
                assert_ne!(second, first, "{what}");
            }
            let noted = node.affinity(client, SERVICE).map(|held| held.backend);
            assert_eq!(noted, Some(second), "{what}: noted");
            assert_eq!(next(&node, port + 2), second, "{what}: kept from now on");
            service.seat(&mut node, first, 1);
            service.seat(&mut node, second, 1);
            service.offer(&mut node, whole, whole, SECONDS);
        }
    }
}

/// A client may be inside and outside at once: a pod of another node that dials a NodePort here, say.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_keeps_its_backend_only_where_it_may_get_it() {
    for (family, opener) in every() {
        let mut node = Node::start();
        let service = Service::add(&mut node, family, number(opener));
        let (internal, external) = (node.add_region(&[1, 2, 3]), node.add_region(&[3, 4, 5]));
        service.offer(&mut node, internal, external, SECONDS);
        let held = |backend| Affinity { last_used: u64::MAX, backend, generation: 1 };
        for (hook, client, own, others) in
            [(A, Pod::A.ip(family), [1, 2, 3], [4, 5]), (WIRE, family.client(), [3, 4, 5], [1, 2])]
        {
            for (port, id) in (1..).zip(own) {
                node.set_affinity(client, SERVICE, held(id));
                let packet = Packet::new(opener, at(client, port), service.frontends[0]);
                assert_eq!(backend(&node, hook, &packet), id, "{hook:?}");
            }
            for (port, id) in (10..).zip(others) {
                node.set_affinity(client, SERVICE, held(id));
                let packet = Packet::new(opener, at(client, port), service.frontends[0]);
                assert!(own.contains(&backend(&node, hook, &packet)), "{hook:?}");
            }
        }
    }
}

/// Regions of every length up to 24, and longer ones around powers of two: each member is found, and whatever lies
/// between, before and after them is not.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn every_member_of_a_region_is_found_and_nobody_else() {
    let mut node = Node::start();
    let family = Family::V4;
    let service = Service::add(&mut node, family, protocol::UDP);
    let client = Pod::A.ip(family);
    for id in 1..=2001 {
        service.seat(&mut node, id, 1);
    }
    let mut port = 0;
    for length in (1..=24).chain([63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 999, 1000]) {
        // A region at the table's beginning, with all even ids.
        node.rewind_slots();
        let members: Vec<u32> = (1..=length).map(|member| 2 * member).collect();
        let region = node.add_region(&members);
        service.offer(&mut node, region, region, SECONDS);
        let step = if length > 24 { 17 } else { 1 };
        let ends = [1, 2, 3, 2 * length - 1, 2 * length, 2 * length + 1];
        for id in (1..=2 * length + 1).step_by(step).chain(ends) {
            port += 1;
            if port % 200 == 0 {
                node.forget_flows();
            }
            node.set_affinity(client, SERVICE, Affinity { last_used: u64::MAX, backend: id, generation: 1 });
            let before = kept(&node);
            let packet = Packet::udp(at(client, 1 + port % 60_000), service.frontends[0]);
            let got = backend(&node, A, &packet);
            assert_eq!(kept(&node) - before, u64::from(id % 2 == 0 && id <= 2 * length), "{id} of {length}");
            assert_eq!(got % 2, 0, "{id} of {length}");
            assert!(got == id || id % 2 == 1, "{id} of {length}");
        }
    }
}
