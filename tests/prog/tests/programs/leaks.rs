//! Nothing is left behind in the flow table, whatever becomes of flows.

use std::collections::HashMap;

use fairlead_abi::{Config, Counter, Flow, FlowKey, Reason, flow_flags};
use fairlead_prog_tests::case::SHOT;
use fairlead_prog_tests::node::PLACES;
use fairlead_prog_tests::packet::sctp::{ABORT, DATA, INIT, SHUTDOWN, SHUTDOWN_ACK};
use fairlead_prog_tests::packet::tcp::{ACK, FIN_ACK, RST, SYN};
use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{FAMILIES, Family, Hook, Node, Packet, Pod, Transport};

use crate::{NODE_PORT, SERVICE_PORT, TARGET_PORT, at, number};

/// Every entry has its partner, which leads back to it, both have one place, and the place leads to both.
///
/// # Panics
/// When an entry does not.
pub(crate) fn check_table(node: &Node) {
    let flows: HashMap<FlowKey, Flow> = node.flows().into_iter().collect();
    let places = node.places();
    for (key, flow) in &flows {
        let what = format!("{key:?} → {flow:?}");
        let partner_key = leaving(flow, key.protocol).reversed();
        let partner = flows.get(&partner_key).unwrap_or_else(|| panic!("without a partner: {what}"));
        assert_eq!(leaving(partner, key.protocol).reversed(), *key, "its partner's is another: {what}");
        assert_eq!(partner.place, flow.place, "its partner is elsewhere: {what}");
        assert_ne!(
            partner.flags & flow_flags::REPLY,
            flow.flags & flow_flags::REPLY,
            "two of a kind: {what}"
        );
        let forward = if flow.flags & flow_flags::REPLY == 0 { key } else { &partner_key };
        assert_eq!(places.get(flow.place as usize), Some(forward), "its place is another's: {what}");
    }
    assert!(flows.len() <= 2 * PLACES as usize);
}

/// The tuple that the flow's packets leave with.
fn leaving(flow: &Flow, protocol: u8) -> FlowKey {
    FlowKey {
        source: flow.source,
        destination: flow.destination,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        protocol,
        reserved: [0; 3],
    }
}

const ROUNDS: usize = 1000;
/// Packets between two checks.
const PACKETS: usize = 15;
/// How many connections there may be.
const LIMIT: u32 = 128;
/// Backends of each family and protocol.
const BACKENDS: u32 = 4;

/// A backend's id.
fn id(family: Family, protocol: u8, backend: u32) -> u32 {
    u32::from(protocol) * 10 + backend + if family == Family::V4 { 1 } else { 5 }
}

/// What a connection may say.
const TRANSPORTS: [Transport; 12] = [
    Transport::Tcp(SYN),
    Transport::Tcp(SYN),
    Transport::Tcp(ACK),
    Transport::Tcp(FIN_ACK),
    Transport::Tcp(RST),
    Transport::Udp,
    Transport::Udp,
    Transport::Sctp(INIT),
    Transport::Sctp(DATA),
    Transport::Sctp(ABORT),
    Transport::Sctp(SHUTDOWN),
    Transport::Sctp(SHUTDOWN_ACK),
];

/// Two frontends of the same backends; the first's address is the node's.
fn offer(node: &mut Node, random: &mut Random, family: Family, protocol: u8) {
    let ids: Vec<u32> = (0..BACKENDS).map(|backend| id(family, protocol, backend)).collect();
    let some: Vec<u32> = ids.iter().copied().filter(|_| random.below(4) != 0).collect();
    for frontend in [at(family.node(), NODE_PORT), at(family.cluster_ip(), SERVICE_PORT)] {
        node.set_frontend(protocol, frontend, [&some, &ids], 0);
    }
}

/// The address of a backend: local, of the client itself, remote, or the node.
fn address(family: Family, backend: u32) -> std::net::SocketAddr {
    let ip = [Pod::B.ip(family), Pod::A.ip(family), family.remote_pod(), family.node()][backend as usize];
    at(ip, TARGET_PORT)
}

/// A packet of somebody: a client's to a frontend or straight to a backend, or a backend's to whoever it last heard.
fn somebody(random: &mut Random, flows: &[(FlowKey, Flow)]) -> (Hook, Packet) {
    if !flows.is_empty() && random.below(3) == 0 {
        let (key, _) = flows[random.below(flows.len())];
        let same =
            TRANSPORTS.iter().filter(|transport| number(**transport) == key.protocol).collect::<Vec<_>>();
        let from = at(key.source.into(), key.source_port.number());
        let to = at(key.destination.into(), key.destination_port.number());
        return (hook_of(from.ip(), to.ip()), Packet::new(**random.one_of(&same), from, to));
    }
    let family = *random.one_of(&FAMILIES);
    let client = *random.one_of(&[Pod::A.ip(family), Pod::B.ip(family), family.client(), family.node()]);
    let client = at(client, 1000 + random.below(40) as u16);
    let to = match random.below(5) {
        0 => address(family, random.below(BACKENDS as usize) as u32),
        1 | 2 => at(family.node(), NODE_PORT),
        _ => at(family.cluster_ip(), SERVICE_PORT),
    };
    (hook_of(client.ip(), to.ip()), Packet::new(*random.one_of(&TRANSPORTS), client, to))
}

/// Where a packet between these is met.
fn hook_of(source: std::net::IpAddr, destination: std::net::IpAddr) -> Hook {
    for family in FAMILIES {
        for pod in Pod::ALL {
            if source == pod.ip(family) {
                return Hook::FromPod(pod);
            }
        }
        if source == family.node() {
            let to = Pod::ALL.into_iter().find(|pod| destination == pod.ip(family));
            return to.map_or(Hook::ToWire, Hook::ToPod);
        }
    }
    Hook::FromWire
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn no_entry_of_the_flow_table_is_ever_left_behind() {
    let mut random = Random::announced();
    let mut node = Node::start();
    // Few places, and fewer ports to masquerade with, so that both are fought for.
    node.set_config(Config { places: LIMIT, snat_count: 2, ..Node::config() });
    let protocols = [6, 17, 132];
    let everything: Vec<_> =
        FAMILIES.iter().flat_map(|family| protocols.map(|protocol| (*family, protocol))).collect();
    for (family, protocol) in &everything {
        for backend in 0..BACKENDS {
            node.set_backend(id(*family, *protocol, backend), address(*family, backend), 1);
        }
        offer(&mut node, &mut random, *family, *protocol);
    }
    let mut generation = 1;
    let mut most = 0;
    for round in 0..ROUNDS {
        match random.below(14) {
            0..=2 => {
                // A backend goes, or its id gets the next tenant.
                let (family, protocol) = *random.one_of(&everything);
                let backend = random.below(BACKENDS as usize) as u32;
                generation += 1;
                let next = if random.below(3) == 0 { 0 } else { generation };
                node.set_backend(id(family, protocol, backend), address(family, backend), next);
            }
            3 => {
                node.rewind_slots();
                for (family, protocol) in &everything {
                    offer(&mut node, &mut random, *family, *protocol);
                }
            }
            4..=5 => {
                // Some fall silent, for long enough for one state or another.
                let seconds = *random.one_of(&[1, 2, 15, 40, 130, 250, 4000]);
                for (key, mut flow) in node.flows() {
                    if random.below(4) == 0 {
                        // A young machine has no such past.
                        flow.last_seen = flow.last_seen.saturating_sub(seconds * 1_000_000_000);
                        node.set_flow(key, flow);
                    }
                }
            }
            _ => {}
        }
        let flows = node.flows();
        node.inside(|| {
            for _ in 0..PACKETS {
                let (hook, packet) = somebody(&mut random, &flows);
                node.send_inside(hook, &hook.frame(packet).bytes());
            }
        });
        check_table(&node);
        let entries = node.flows().len();
        assert!(entries <= 2 * LIMIT as usize, "round {round}: {entries} entries");
        most = most.max(entries);
    }
    check_table(&node);
    // The test has been where it was to go.
    println!("{most} entries at most");
    let (counters, drops) = (node.counters(), node.drops());
    for counter in [Counter::FlowCreated, Counter::FlowRebalanced, Counter::FlowReclaimed] {
        println!("{}: {}", counter.label(), counters[counter as usize]);
        assert!(counters[counter as usize] > 100, "{}", counter.label());
    }
    for reason in [Reason::FlowTableFull, Reason::NoSnatPort] {
        println!("{}: {}", reason.label(), drops[reason as usize]);
        assert!(drops[reason as usize] > 10, "{}", reason.label());
    }
}

/// As many as there are places, for as often as one likes: what is over is found again.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn places_serve_again_and_again() {
    let mut node = Node::start();
    node.set_config(Config { places: 16, ..Node::config() });
    let family = Family::V4;
    node.set_backend(1, at(Pod::B.ip(family), TARGET_PORT), 1);
    let service = at(family.cluster_ip(), SERVICE_PORT);
    node.set_frontend(6, service, [&[1], &[1]], 0);
    let hook = Hook::FromPod(Pod::A);
    let mut served = 0;
    for port in 1..2000 {
        let client = at(Pod::A.ip(family), port);
        for flags in [SYN, RST] {
            let packet = hook.frame(Packet::tcp(flags, client, service));
            served += usize::from(node.send(hook, &packet.bytes()).code != SHOT);
        }
        node.edit_flows(|flow| flow.last_seen = flow.last_seen.saturating_sub(11_000_000_000));
        assert!(node.flows().len() <= 32);
    }
    assert_eq!(served, 2 * 1999);
    check_table(&node);
}
