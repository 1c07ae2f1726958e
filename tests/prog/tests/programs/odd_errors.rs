//! ICMP errors that quote what is no packet of a translated flow, or not quite: they are nobody's to change.

use std::net::IpAddr;

use fairlead_abi::Counter;
use fairlead_prog_tests::case::{REDIRECT, SHOT, UNSPEC};
use fairlead_prog_tests::packet::{ETHERNET, checksum, dump};
use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport, sums};

use crate::errors::{Talk, error, errors};
use crate::{CLIENT_PORT, TARGET_PORT, at, code, every, later};

const B: Hook = Hook::FromPod(Pod::B);

/// A packet of pod B to pod A that arrives as it was sent.
fn untouched(node: &Node, what: &str, packet: Packet) {
    Case::new(what, B, packet.clone(), Then::ToPod(Pod::A, packet)).check(node);
}

/// From the backend to the client, about something.
fn about(family: Family, quoted: &Packet) -> Packet {
    error(errors(family)[0], Pod::B.ip(family), Pod::A.ip(family), quoted, 40)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_about_another_flow_is_left_alone() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let talk = Talk::between_pods(family);
        talk.begin(&mut node, opener);
        let seen = talk.request_seen(later(opener)[0]);
        let (client, backend) = (seen.source, seen.destination);
        for (what, quoted) in [
            ("another client port", seen.clone().from(at(client.ip(), CLIENT_PORT + 1))),
            ("another backend port", seen.clone().to(at(backend.ip(), TARGET_PORT + 1))),
            ("another backend", seen.clone().to(at(family.remote_pod(), TARGET_PORT))),
            ("the packet before its translation", talk.request(opener)),
            ("an echo request", Packet::icmp(8, 0, client.ip(), backend.ip())),
            ("an unknown protocol", Packet::new(Transport::Bare(47), client, backend)),
        ] {
            untouched(&node, what, about(family, &quoted));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_quotation_that_is_not_plain_is_left_alone() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let talk = Talk::between_pods(family);
        talk.begin(&mut node, opener);
        let seen = talk.request_seen(later(opener)[0]);
        // What stands where the ports would be is taken for them by nobody.
        let transport = seen.bytes()[seen.transport_offset()..].to_vec();
        let mut odd = vec![
            ("a later fragment", about(family, &seen.clone().fragment(9, false).payload(&transport))),
            ("a quotation of nothing", about(family, &seen).payload(&[])),
            ("half an IP header", about(family, &seen).payload(&seen.quote(0)[..10])),
            ("an IP header alone", error(errors(family)[0], Pod::B.ip(family), Pod::A.ip(family), &seen, 0)),
            ("half a port", error(errors(family)[0], Pod::B.ip(family), Pod::A.ip(family), &seen, 3)),
            ("a fragment of the error", about(family, &seen).fragment(0, true)),
        ];
        if family == Family::V4 {
            odd.push(("options", about(family, &seen.clone().options(&[1; 8]))));
            let mut quote = seen.quote(40);
            quote[0] = 0x44;
            odd.push(("a header that is too short", about(family, &seen).payload(&quote)));
            quote[0] = 0x65;
            odd.push(("a packet of another version", about(family, &seen).payload(&quote)));
        } else {
            odd.push(("extensions", about(family, &seen.clone().extension(60, 1))));
        }
        for (what, packet) in odd {
            untouched(&node, what, packet);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_message_that_is_no_error_is_left_alone_whatever_it_holds() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let talk = Talk::between_pods(family);
        talk.begin(&mut node, opener);
        let quote = talk.request_seen(opener).quote(20);
        let kinds: &[u8] = match family {
            Family::V4 => &[0, 4, 5, 8, 9, 10, 13, 14, 40],
            Family::V6 => &[128, 129, 130, 138, 255],
        };
        for kind in kinds {
            let message = Packet::icmp(*kind, 0, Pod::B.ip(family), Pod::A.ip(family)).payload(&quote);
            untouched(&node, &format!("type {kind}"), message);
        }
    }
}

/// Where an IPv6 header has a mapped IPv4 address, it is not the IPv4 flow that is meant.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_ipv6_quotation_of_mapped_addresses_is_no_ipv4_flow() {
    let mut node = Node::start();
    for opener in crate::OPENERS {
        // Both pods are marked, by a flow over IPv4.
        let talk = Talk::between_pods(Family::V4);
        talk.begin(&mut node, opener);
        let seen = talk.request_seen(later(opener)[0]);
        let mapped = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
            IpAddr::V6(_) => ip,
        };
        let (from, to) = (seen.source, seen.destination);
        let quoted =
            Packet::new(later(opener)[0], at(mapped(from.ip()), from.port()), at(mapped(to.ip()), to.port()));
        untouched(&node, "mapped", about(Family::V6, &quoted));
    }
}

/// A frame may be longer than the packet in it, as one that was filled up is. The quotation ends with the packet.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_follows_the_packet_in_its_frame_is_no_part_of_the_quotation() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let talk = Talk::between_pods(family);
        talk.begin(&mut node, opener);
        let seen = talk.request_seen(later(opener)[0]);
        for quoted in [4, 7, 8, 16, 17, 18] {
            let says = errors(family)[0];
            let mut sent = B.frame(error(says, Pod::B.ip(family), Pod::A.ip(family), &seen, quoted)).bytes();
            let end = sent.len();
            sent.extend([0xee; 20]);
            let outcome = node.send(B, &sent);
            assert_eq!(outcome.code, REDIRECT);
            assert_eq!(sums::hold(&outcome.packet), Some(true), "{family:?}, {opener:?}, {quoted} bytes");
            assert_eq!(outcome.packet[end..], [0xee; 20], "{family:?}, {opener:?}, {quoted} bytes");
        }
    }
}

/// Before a pod takes part in any flow, nothing that it says is looked at.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_of_a_pod_that_has_no_flow_is_delivered_plainly() {
    let node = Node::start();
    for family in FAMILIES {
        let quoted = Talk::between_pods(family).request_seen(Transport::Udp);
        untouched(&node, "plain", about(family, &quoted));
    }
}

const ROUNDS: usize = 20_000;

/// Quotations that are almost right: whatever is made of them, what was whole before is whole after.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn no_quotation_confuses_the_programs() {
    let mut random = Random::announced();
    let mut node = Node::start();
    let mut translated = 0;
    for (family, opener) in every() {
        let talk = Talk::between_pods(family);
        talk.begin(&mut node, opener);
        for round in 0..ROUNDS / 6 {
            let seen = talk.request_seen(*random.one_of(&later(opener)));
            let says = *random.one_of(&errors(family));
            let mut quote = seen.payload(&random.bytes(random.clone().below(80))).quote(random.below(100));
            for _ in 0..random.below(3) {
                let at = random.below(quote.len());
                quote[at] = *random.one_of(&[0, 0x45, 0x60, 0xff, random.clone().number() as u8]);
            }
            let message = error(says, Pod::B.ip(family), Pod::A.ip(family), &talk.request(opener), 0);
            let sent = B.frame(message.payload(&quote)).bytes();
            let outcome = node.send(B, &sent);
            let what = || {
                format!("round {round}\n{}\n{}", dump(&sent, &outcome.packet), dump(&outcome.packet, &sent))
            };
            assert!([UNSPEC, SHOT, REDIRECT].contains(&outcome.code), "code {}: {}", outcome.code, what());
            assert_eq!(outcome.packet.len(), sent.len(), "{}", what());
            if outcome.code == SHOT {
                continue;
            }
            assert_eq!(sums::hold(&outcome.packet), Some(true), "checksums: {}", what());
            translated += usize::from(outcome.packet[ETHERNET + 8..] != sent[ETHERNET + 8..]);
            let inner =
                |bytes: &[u8]| bytes.get(ETHERNET + 28..ETHERNET + 48).map(|header| checksum(header) == 0);
            if family == Family::V4 && inner(&sent) == Some(true) {
                assert_eq!(inner(&outcome.packet), Some(true), "inner header: {}", what());
            }
        }
    }
    assert!(node.counters()[Counter::ErrorTranslated as usize] > 1000, "most are right");
    assert!(translated > 1000);
}

/// As the kernel's stack answers a closed port, at whichever hook that is met: nothing of it is dropped.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn errors_about_nothing_known_pass_every_hook() {
    let mut node = Node::start();
    for (family, opener) in every() {
        Talk::between_pods(family).begin(&mut node, opener);
        let stray = Packet::udp(at(family.client(), 9), at(family.stranger(), 9));
        for (hook, from, to) in [
            (Hook::ToPod(Pod::A), family.node(), Pod::A.ip(family)),
            (Hook::ToWire, family.node(), family.client()),
            (Hook::FromWire, family.client(), family.node()),
            (Hook::FromWire, family.client(), Pod::A.ip(family)),
            (B, Pod::B.ip(family), family.client()),
        ] {
            let packet = error(errors(family)[0], from, to, &stray, 8);
            assert_ne!(code(&node, hook, &packet), SHOT, "{hook:?}");
        }
        assert_eq!(node.counters()[Counter::ErrorTranslated as usize], 0);
    }
}
