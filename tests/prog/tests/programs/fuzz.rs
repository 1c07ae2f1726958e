//! Random packets, most of them a little wrong.

use std::net::IpAddr;

use fairlead_abi::{
    Counter, Frontend, FrontendKey, cidr_flags, frontend_flags, identities, protocol, state_flags, verdicts,
};
use fairlead_prog_tests::case::{REDIRECT, SHOT, UNSPEC};
use fairlead_prog_tests::packet::sctp::{ABORT, INIT, SHUTDOWN};
use fairlead_prog_tests::packet::tcp::{ACK, FIN_ACK, RST, SYN};
use fairlead_prog_tests::packet::{ETHERNET, checksum, dump};
use fairlead_prog_tests::place::WIDE;
use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{FAMILIES, Family, Hook, Node, Packet, Pod, Transport, sums};

use crate::{NODE_PORT, SERVICE_PORT, TARGET_PORT, at};

const PACKETS: usize = 20_000;
/// After how many packets policies change.
const CHANGE: usize = 200;
const HOOKS: [Hook; 7] = [
    Hook::FromPod(Pod::A),
    Hook::FromPod(Pod::B),
    Hook::FromWire,
    Hook::FromWire,
    Hook::ToPod(Pod::A),
    Hook::Through(Pod::B),
    Hook::ToWire,
];

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn no_packet_confuses_the_programs() {
    let mut random = Random::announced();
    let mut node = Node::start();
    node.set_snat_ports(50_000, 4096);
    add_services(&mut node);
    send(&mut random, &node, PACKETS);
}

/// Flows begin, are judged again, and lose what admitted them.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn no_packet_confuses_the_programs_while_policies_change() {
    let mut random = Random::announced();
    let mut node = Node::start();
    node.set_snat_ports(50_000, 4096);
    add_services(&mut node);
    add_policies(&mut node);
    for round in 0..PACKETS / CHANGE {
        for pod in Pod::ALL {
            let [ingress, egress] = [(); 2].map(|()| random.below(6) as u32);
            node.set_isolation(pod, ingress, egress);
        }
        let flags = if random.below(8) == 0 { state_flags::KEEP } else { 0 };
        node.set_policy_state(round as u32, flags);
        send(&mut random, &node, CHANGE);
        node.events();
    }
    let judged = node.counters()[Counter::PolicyJudged as usize];
    assert!(judged > PACKETS as u64 / 50, "only {judged} packets were judged");
}

/// Policies that admit all, nothing, some ports, and some peers; of those of their number, one is not written.
fn add_policies(node: &mut Node) {
    node.set_policy(2, verdicts::ALLOW);
    node.set_policy(3, verdicts::DENY_NETWORK);
    for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        node.set_ports(8, number, TARGET_PORT, 16, verdicts::ALLOW);
        node.set_ports(8, number, SERVICE_PORT, 12, verdicts::DENY_ADMIN);
    }
    node.set_row(8, verdicts::DENY_NETWORK);
    node.set_policy(4, 8);
    for family in FAMILIES {
        node.set_identity(family.node(), 1 | identities::OWN_NODE);
        node.set_identity(family.remote_pod(), 2);
        node.set_identity(Pod::B.ip(family), 2);
    }
    node.set_cell(4, 2, verdicts::ALLOW);
    node.set_policy(5, 9);
}

/// Sends so many random packets, and checks what comes out as far as that can be said of any.
fn send(random: &mut Random, node: &Node, packets: usize) {
    node.inside(|| {
        for round in 0..packets {
            let hook = *random.one_of(&HOOKS);
            let mut packet = valid(random);
            if random.below(4) == 0 {
                packet = error_about(random, &packet);
            }
            let mut sent = hook.frame(packet).bytes();
            for _ in 0..random.below(4) {
                mutate(random, &mut sent);
            }
            let Some(outcome) = node.try_send_inside(hook, &sent) else {
                assert!(sent.len() < ETHERNET + 40, "refused a whole packet: round {round}, {hook:?}");
                continue;
            };
            let what =
                || format!("round {round}, {hook:?}\n{}\n{}", dump(&sent, &[]), dump(&outcome.packet, &sent));
            assert!([UNSPEC, SHOT, REDIRECT].contains(&outcome.code), "code {}: {}", outcome.code, what());
            if outcome.code == UNSPEC {
                let changed = outcome.packet != sent;
                assert!(!changed || may_change(hook, &sent), "left to the stack, yet changed: {}", what());
                assert_eq!(
                    outcome.packet.len(),
                    sent.len(),
                    "left to the stack, of another length: {}",
                    what()
                );
            }
            if outcome.code != SHOT && sums::hold(&sent) == Some(true) {
                assert_ne!(sums::hold(&outcome.packet), Some(false), "a wrong checksum: {}", what());
            }
            if outcome.code != SHOT && has_valid_v4_header(&sent) {
                assert!(has_valid_v4_header(&outcome.packet), "sent on with a wrong checksum: {}", what());
            }
        }
    });
}

/// Services of both protocols and families, with a local and a remote backend, with none, and with none here.
fn add_services(node: &mut Node) {
    for family in FAMILIES {
        let base = if family == Family::V4 { 1 } else { 3 };
        node.set_backend(base, at(Pod::B.ip(family), TARGET_PORT), 1);
        node.set_backend(base + 1, at(family.remote_pod(), TARGET_PORT), 1);
        let both = [base, base + 1];
        for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
            for frontend in [at(family.cluster_ip(), SERVICE_PORT), at(family.node(), NODE_PORT)] {
                node.set_frontend(number, frontend, [&both, &both], 0);
            }
            node.set_frontend(number, at(family.other_cluster_ip(), SERVICE_PORT), [&[], &[]], 0);
            node.set_frontend(number, at(family.node(), NODE_PORT + 1), [&both, &[]], 2);
            let region = node.add_region(&both);
            let maglev = node.add_region(&[base, base + 1, base, base, base + 1]);
            let flags = frontend_flags::GUARDED;
            let (internal, external, affinity) = (region, region, 600);
            let value =
                Frontend { service: 9, flags, internal, external, maglev, affinity, ..Frontend::default() };
            node.put_frontend(number, at(family.node(), TARGET_PORT), value);
        }
        let (wide, narrow) = if family == Family::V4 { (16, 24) } else { (112, 64) };
        node.cover(family.cluster_ip(), wide, cidr_flags::DROP);
        let whole = FrontendKey::whole(family.cluster_ip().into());
        let flags = frontend_flags::WHOLE;
        node.put_unchecked(whole, Frontend { flags, check: whole.check(), ..Frontend::default() });
        node.admit(9, family.client(), narrow);
        node.admit(9, Pod::A.ip(family), narrow);
    }
}

/// A packet that makes sense: between the parties that there are.
fn valid(random: &mut Random) -> Packet {
    let family = *random.one_of(&FAMILIES);
    let addresses = [
        Pod::A.ip(family),
        Pod::B.ip(family),
        family.node(),
        family.cluster_ip(),
        family.other_cluster_ip(),
        family.remote_pod(),
        family.client(),
        family.stranger(),
    ];
    let ports = [1, SERVICE_PORT, NODE_PORT, NODE_PORT + 1, TARGET_PORT, 50_000, 65_535];
    let transports = [
        Transport::Tcp(SYN),
        Transport::Tcp(ACK),
        Transport::Tcp(FIN_ACK),
        Transport::Tcp(RST),
        Transport::Udp,
        Transport::UdpWithoutChecksum,
        Transport::Icmp(3, 3),
        Transport::Icmp(135, 0),
        Transport::Bare(47),
        Transport::Bare(132),
        Transport::Sctp(INIT),
        Transport::Sctp(ABORT),
        Transport::Sctp(SHUTDOWN),
    ];
    let source = at(*random.one_of(&addresses), *random.one_of(&ports));
    let destination = at(*random.one_of(&addresses), *random.one_of(&ports));
    let length = *random.one_of(&[0, 1, 7, 40, 300, 1300, 1500]);
    let packet = Packet::new(*random.one_of(&transports), source, destination).payload(&random.bytes(length));
    match (random.below(8), packet.is_v4()) {
        (0, true) => packet.options(&vec![1; 4 * (1 + random.below(10))]),
        (0, false) => packet.extension(0, 1 + random.below(3)).extension(60, 1),
        (1, _) => packet.fragment(0, true),
        (2, _) => packet.fragment(1 + random.below(100) as u16, random.below(2) == 0),
        (3, _) => packet.hops(random.below(3) as u8),
        _ => packet,
    }
}

/// An ICMP error about the packet, or the one that it is translated to, from its receiver or another.
fn error_about(random: &mut Random, packet: &Packet) -> Packet {
    let other = valid(random);
    let same = other.is_v4() == packet.is_v4();
    let from = if same && random.below(2) == 0 { other.source } else { packet.destination };
    let about = if same && random.below(2) == 0 { &other } else { packet };
    let kinds: &[u8] = if packet.is_v4() { &[3, 3, 11, 12, 4, 8] } else { &[1, 2, 3, 4, 128] };
    let error = Packet::icmp(*random.one_of(kinds), random.below(6) as u8, from.ip(), packet.source.ip());
    error.rest(random.number() as u32).payload(&about.quote(random.below(60)))
}

/// Changes bytes, mostly of the headers, or the length. The frame keeps enough for the kernel's test run.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    let headers = bytes.len().min(100);
    match random.below(4) {
        0 => {
            let at = random.below(headers);
            bytes[at] ^= 1 << random.below(8);
        }
        1 => {
            let at = random.below(headers);
            bytes[at] = *random.one_of(&[0, 1, 0x7f, 0x80, 0xff]);
        }
        2 => bytes.truncate(ETHERNET + 1 + random.below(bytes.len() - ETHERNET)),
        _ => {
            let count = random.below(40);
            bytes.extend(random.bytes(count));
        }
    }
}

/// Whether the packet may be translated and left to the stack all the same: one that the node itself sends, to a
/// frontend or as a backend, one that a backend sends in answer to the node, one that its stack forwards to a pod which
/// sees it as somebody else's, and a later fragment that is too large
/// for its route, whose flow nobody can tell any more.
fn may_change(hook: Hook, sent: &[u8]) -> bool {
    let is_later_fragment = match sent[12..14] {
        [8, 0] => u16::from_be_bytes([sent[ETHERNET + 6], sent[ETHERNET + 7]]) & 0x1fff != 0,
        _ => sent[ETHERNET + 6] == 44 || sent[ETHERNET + 40] == 44,
    };
    if let Hook::Through(_) = hook {
        return true;
    }
    if is_later_fragment && sent.len() > ETHERNET + usize::from(WIDE) {
        return true;
    }
    let [source, destination] = match sent[12..14] {
        [8, 0] => [12..16, 16..20],
        _ => [8..24, 24..40],
    }
    .map(|place| &sent[ETHERNET + place.start..ETHERNET + place.end]);
    let nodes = FAMILIES.map(|family| match family.node() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    });
    let own = if matches!(hook, Hook::ToPod(_) | Hook::ToWire) { source } else { destination };
    nodes.iter().any(|node| node == own)
}

fn has_valid_v4_header(bytes: &[u8]) -> bool {
    let header = bytes.get(ETHERNET..ETHERNET + 20);
    bytes[12..14] == [8, 0] && header.is_some_and(|header| header[0] == 0x45 && checksum(header) == 0)
}
