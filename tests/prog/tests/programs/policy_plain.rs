//! Policies on packets that no Service touches.

use std::net::IpAddr;

use fairlead_abi::{Cell, CellKey, Config, Counter, Reason, identities, policies, verdicts};
use fairlead_prog_tests::packet::tcp::{ACK, SYN};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::pods::kinds;
use crate::{CLIENT_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, every, later, number};

pub(crate) const A: Hook = Hook::FromPod(Pod::A);
pub(crate) const B: Hook = Hook::FromPod(Pod::B);
const WIRE: Hook = Hook::FromWire;
/// The policy under test.
pub(crate) const POLICY: u32 = policies::FIRST;
/// Another policy.
const OTHER: u32 = policies::FIRST + 1;
/// The peer's identity.
pub(crate) const PEER: u32 = 5;
/// A row that is a table.
pub(crate) const ROW: u32 = 40;

/// What keeps a packet from passing a policy in its direction.
fn denied(is_egress: bool) -> Then {
    Then::Dropped(if is_egress { Reason::PolicyEgress } else { Reason::PolicyIngress })
}

/// A pod under a policy and its peer, a pod here, one elsewhere, or somebody outside.
#[derive(Clone, Copy, Debug)]
struct Side {
    is_egress: bool,
    hook: Hook,
    source: IpAddr,
    destination: IpAddr,
}

impl Side {
    /// Pod A as the subject, in both directions, with every kind of peer.
    fn all(family: Family) -> Vec<Self> {
        let a = Pod::A.ip(family);
        let sends = [Pod::B.ip(family), family.remote_pod(), family.client()].map(|destination| Self {
            is_egress: true,
            hook: A,
            source: a,
            destination,
        });
        let hears = [(B, Pod::B.ip(family)), (WIRE, family.remote_pod()), (WIRE, family.client())]
            .into_iter()
            .chain([family.remote_pod(), family.client()].map(|ip| (Hook::Through(Pod::A), ip)))
            .map(|(hook, source)| Self { is_egress: false, hook, source, destination: a });
        sends.into_iter().chain(hears).collect()
    }

    fn peer(&self) -> IpAddr {
        if self.is_egress { self.destination } else { self.source }
    }

    /// Puts pod A under the policy in this direction only.
    fn isolate(&self, node: &mut Node, policy: u32) {
        let (ingress, egress) =
            if self.is_egress { (policies::OPEN, policy) } else { (policy, policies::OPEN) };
        node.set_isolation(Pod::A, ingress, egress);
    }

    /// What becomes of a packet that passes.
    pub(crate) fn passed(&self, packet: Packet) -> Then {
        let (source, destination) = (self.source, self.destination);
        let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
        match self.hook {
            Hook::Through(_) => Then::Passed,
            _ if destination == Pod::A.ip(family) => Then::ToPod(Pod::A, packet),
            _ if destination == Pod::B.ip(family) => Then::ToPod(Pod::B, packet),
            _ if destination == family.remote_pod() => Then::ToNode2(packet),
            _ => Then::ToGateway(packet),
        }
    }

    /// The packet that a policy admits, where none would be asked about its replies.
    fn admitted(&self, what: &str, packet: Packet) -> Case {
        let then = self.passed(packet.clone());
        // The stack is to forward the answers to what it has forwarded.
        let is_remembered = matches!(self.hook, Hook::Through(_)) && packet.opens();
        let case = if packet.is_datagram() || is_remembered { Case::begins } else { Case::new };
        case(what, self.hook, packet, then).counting(Counter::PolicyJudged)
    }

    /// The packet that a policy drops.
    fn dropped(&self, what: &str, packet: Packet) -> Case {
        self.refused(what, packet, denied(self.is_egress))
    }

    fn refused(&self, what: &str, packet: Packet, then: Then) -> Case {
        Case::new(what, self.hook, packet, then).counting(Counter::PolicyJudged)
    }
}

/// Sends each packet as the first, and takes the events that came of it.
fn check(node: &mut Node, case: Case) {
    case.check(node);
    node.quiet();
    node.forget_flows();
}

/// In a new node every pod is open here; on a real one nothing has been written yet.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_of_which_nothing_is_known_is_closed() {
    for family in FAMILIES {
        for side in Side::all(family) {
            let mut node = Node::start();
            side.isolate(&mut node, policies::CLOSED);
            for packet in kinds(side.source, side.destination) {
                check(&mut node, side.refused("closed", packet, Then::Dropped(Reason::PolicyUnknown)));
            }
            assert_eq!(node.flows(), []);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_policy_admits_all_or_nothing_by_its_row_for_those_it_does_not_name() {
    let mut node = Node::start();
    for family in FAMILIES {
        for side in Side::all(family) {
            side.isolate(&mut node, POLICY);
            for verdict in
                [verdicts::DENY_NETWORK, verdicts::ALLOW, verdicts::DENY_ADMIN, verdicts::DENY_BASELINE]
            {
                node.set_policy(POLICY, verdict);
                let opener = Packet::udp(at(side.source, CLIENT_PORT), at(side.destination, SERVICE_PORT));
                if verdict == verdicts::ALLOW {
                    check(&mut node, side.admitted("allowed", opener));
                } else {
                    check(&mut node, side.dropped("denied", opener));
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_row_that_admits_everything_admits_every_kind_of_packet() {
    let mut node = Node::start();
    for family in FAMILIES {
        for side in Side::all(family) {
            side.isolate(&mut node, POLICY);
            node.set_policy(POLICY, verdicts::ALLOW);
            for packet in kinds(side.source, side.destination) {
                check(&mut node, side.admitted("allowed", packet));
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_peer_is_known_by_the_longest_range_that_covers_it() {
    let mut node = Node::start();
    for family in FAMILIES {
        let wide = if family == Family::V4 { 8 } else { 16 };
        for side in Side::all(family) {
            node.reset();
            side.isolate(&mut node, POLICY);
            let packet = Packet::udp(at(side.source, CLIENT_PORT), at(side.destination, SERVICE_PORT));
            node.set_cell(POLICY, PEER, verdicts::ALLOW);
            node.set_cell(OTHER, PEER + 1, verdicts::ALLOW);
            check(&mut node, side.dropped("of no identity", packet.clone()));
            node.set_peer(side.peer(), wide, PEER);
            check(&mut node, side.admitted("in the range", packet.clone()));
            node.set_identity(side.peer(), PEER + 1);
            check(&mut node, side.dropped("excepted", packet.clone()));
            node.set_cell(POLICY, PEER + 1, verdicts::ALLOW);
            check(&mut node, side.admitted("of another identity", packet));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_row_tells_protocols_and_ranges_of_ports_apart() {
    let mut node = Node::start();
    for (family, opener) in every() {
        for side in Side::all(family) {
            node.reset();
            side.isolate(&mut node, POLICY);
            node.set_identity(side.peer(), PEER);
            node.set_cell(POLICY, PEER, ROW);
            node.set_row(ROW, verdicts::DENY_NETWORK);
            node.set_ports(ROW, number(opener), 8080, 12, verdicts::ALLOW);
            node.set_ports(ROW, number(opener), 8085, 16, verdicts::DENY_ADMIN);
            let to = |port| Packet::new(opener, at(side.source, CLIENT_PORT), at(side.destination, port));
            for port in [8080, 8084, 8086, 8095] {
                check(&mut node, side.admitted("in the range", to(port)));
            }
            for port in [0, 80, 8079, 8085, 8096, u16::MAX] {
                check(&mut node, side.dropped("not in it", to(port)));
            }
            for other in OPENERS.into_iter().filter(|other| *other != opener) {
                let packet = Packet::new(other, at(side.source, CLIENT_PORT), at(side.destination, 8080));
                check(&mut node, side.dropped("of another protocol", packet));
            }
            let echo =
                Packet::icmp(if family == Family::V4 { 8 } else { 128 }, 0, side.source, side.destination);
            check(&mut node, side.dropped("without ports", echo.clone()));
            node.set_row(ROW, verdicts::ALLOW);
            check(&mut node, side.admitted("what no entry covers", echo));
            check(&mut node, side.admitted("what no entry covers", to(80)));
            check(&mut node, side.dropped("what another does", to(8085)));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn both_ends_must_admit_it() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let packet =
            Packet::new(opener, at(Pod::A.ip(family), CLIENT_PORT), at(Pod::B.ip(family), SERVICE_PORT));
        for (egress, ingress, then) in [
            (verdicts::DENY_NETWORK, verdicts::DENY_NETWORK, denied(true)),
            (verdicts::DENY_NETWORK, verdicts::ALLOW, denied(true)),
            (verdicts::ALLOW, verdicts::DENY_NETWORK, denied(false)),
            (verdicts::ALLOW, verdicts::ALLOW, Then::ToPod(Pod::B, packet.clone())),
        ] {
            node.reset();
            node.set_isolation(Pod::A, policies::OPEN, POLICY);
            node.set_isolation(Pod::B, OTHER, policies::OPEN);
            node.set_policy(POLICY, egress);
            node.set_policy(OTHER, ingress);
            let is_entered = packet.is_datagram() && egress == ingress && ingress == verdicts::ALLOW;
            let case = if is_entered { Case::begins } else { Case::new };
            let case = case("from A to B", A, packet.clone(), then);
            check(&mut node, case.counting(Counter::PolicyJudged));
        }
    }
}

/// The kernel reuses elements; one that was given to another key while it was read has that key's check.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_cell_that_is_another_keys_admits_nobody() {
    let mut node = Node::start();
    for family in FAMILIES {
        for side in Side::all(family) {
            node.reset();
            side.isolate(&mut node, POLICY);
            node.set_policy(POLICY, verdicts::ALLOW);
            node.set_identity(side.peer(), PEER);
            let key = CellKey { policy: POLICY, identity: PEER };
            let other = CellKey { policy: OTHER, identity: PEER };
            node.put_cell(key, Cell { row: verdicts::ALLOW, check: other.check() });
            let packet = Packet::udp(at(side.source, CLIENT_PORT), at(side.destination, SERVICE_PORT));
            check(&mut node, side.refused("another's", packet, Then::Dropped(Reason::PolicyUnknown)));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_row_without_entries_and_a_policy_beyond_the_map_admit_nobody() {
    let mut node = Node::start();
    for family in FAMILIES {
        for side in Side::all(family) {
            node.reset();
            node.set_policy(POLICY, ROW);
            let packet = Packet::udp(at(side.source, CLIENT_PORT), at(side.destination, SERVICE_PORT));
            for policy in [POLICY, u32::MAX] {
                side.isolate(&mut node, policy);
                let unknown = Then::Dropped(Reason::PolicyUnknown);
                check(&mut node, side.refused("unknown", packet.clone(), unknown));
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn no_networkpolicy_stands_between_a_pod_and_its_node_but_a_tier_does() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let packet = Packet::new(opener, at(Pod::A.ip(family), CLIENT_PORT), at(family.node(), SERVICE_PORT));
        for (verdict, passes) in [
            (verdicts::DENY_NETWORK, true),
            (verdicts::ALLOW, true),
            (verdicts::DENY_ADMIN, false),
            (verdicts::DENY_BASELINE, false),
        ] {
            node.reset();
            node.set_isolation(Pod::A, policies::OPEN, POLICY);
            node.set_identity(family.node(), PEER | identities::OWN_NODE);
            node.set_cell(POLICY, PEER, verdict);
            let then = if passes { Then::ToStack(packet.clone()) } else { denied(true) };
            let case = if passes && packet.is_datagram() { Case::begins } else { Case::new };
            let first = case("to the node", A, packet.clone(), then);
            check(&mut node, first.counting(Counter::PolicyJudged));
            // A packet with no hop left is the node's too.
            let then = if passes { Then::Passed } else { denied(true) };
            let case = case("to the node", A, packet.clone().hops(1), then);
            check(&mut node, case.counting(Counter::PolicyJudged));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_nodes_own_stack_sends_passes_whatever_the_pods_policies_are() {
    for family in FAMILIES {
        for policy in [policies::CLOSED, POLICY] {
            let mut node = Node::start();
            node.set_policy(POLICY, verdicts::DENY_ADMIN);
            node.set_isolation(Pod::A, policy, policies::OPEN);
            for source in [family.node(), family.stranger()] {
                for packet in kinds(source, Pod::A.ip(family)) {
                    Case::new("to a pod", Hook::ToPod(Pod::A), packet, Then::Passed).check(&node);
                }
            }
            assert_eq!(node.flows(), []);
        }
    }
}

/// Whoever on the wire claims to be the node, by whichever of its addresses, is not believed.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_wire_brings_nothing_from_the_node_itself() {
    let mut node = Node::start();
    for family in FAMILIES {
        node.reset();
        node.set_isolation(Pod::A, POLICY, policies::OPEN);
        node.set_identity(family.stranger(), PEER | identities::OWN_NODE);
        for verdict in [verdicts::DENY_NETWORK, verdicts::ALLOW] {
            node.set_cell(POLICY, PEER, verdict);
            let packet = Packet::udp(at(family.stranger(), CLIENT_PORT), at(Pod::A.ip(family), SERVICE_PORT));
            let case = Case::new("spoofed", WIRE, packet, Then::Dropped(Reason::SpoofedSource));
            check(&mut node, case.counting(Counter::PolicyJudged));
        }
    }
}

/// Its answer may not: there is no room to remember that it is one.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_probe_passes_though_the_flow_table_is_full() {
    let mut node = Node::start();
    for family in FAMILIES {
        node.reset();
        node.set_config(Config { places: 1, ..Node::config() });
        node.set_isolation(Pod::A, POLICY, POLICY);
        let probe = |port| Packet::tcp(SYN, at(family.node(), port), at(Pod::A.ip(family), SERVICE_PORT));
        Case::begins("first", Hook::ToPod(Pod::A), probe(1), Then::Passed).check(&node);
        Case::new("second", Hook::ToPod(Pod::A), probe(2), Then::Passed).check(&node);
    }
}

/// A probe of a pod that may send nothing.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_answers_what_its_node_begins_whatever_its_policies_are() {
    let mut node = Node::start();
    for family in FAMILIES {
        for policy in [policies::CLOSED, POLICY] {
            for opener in [OPENERS[0], OPENERS[2], echo(family, true)] {
                node.reset();
                node.set_policy(POLICY, verdicts::DENY_ADMIN);
                node.set_isolation(Pod::A, policy, policy);
                let (probe, pod) = (at(family.node(), CLIENT_PORT), at(Pod::A.ip(family), SERVICE_PORT));
                let request = Packet::new(opener, probe, pod);
                Case::begins("request", Hook::ToPod(Pod::A), request, Then::Passed).check(&node);
                for transport in [reply(family, opener), next(family, opener)] {
                    let answer = Packet::new(transport, pod, probe);
                    Case::new("answer", A, answer.clone(), Then::ToStack(answer)).check(&node);
                }
                node.revise();
                let answer = Packet::new(reply(family, opener), pod, probe);
                Case::new("after a change", A, answer.clone(), Then::ToStack(answer)).check(&node);
            }
        }
    }
}

/// An echo request or reply.
pub(crate) fn echo(family: Family, is_request: bool) -> Transport {
    Transport::Icmp(
        match (family, is_request) {
            (Family::V4, true) => 8,
            (Family::V4, false) => 0,
            (Family::V6, true) => 128,
            (Family::V6, false) => 129,
        },
        0,
    )
}

/// What answers the opener.
pub(crate) fn reply(family: Family, opener: Transport) -> Transport {
    if let Transport::Icmp(..) = opener { echo(family, false) } else { later(opener)[1] }
}

/// What follows the opener, in either direction but for echo requests.
pub(crate) fn next(family: Family, opener: Transport) -> Transport {
    if let Transport::Icmp(..) = opener { echo(family, false) } else { later(opener)[0] }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn nobody_but_the_node_reaches_an_interface_whose_pod_is_not_known() {
    let node = Node::start();
    for family in FAMILIES {
        for packet in kinds(family.client(), Pod::B.ip(family)) {
            let unknown = Then::Dropped(Reason::PolicyUnknown);
            Case::new("another pod's address", Hook::Through(Pod::A), packet, unknown).check(&node);
        }
        for packet in kinds(family.client(), family.remote_pod()) {
            let unknown = Then::Dropped(Reason::PolicyUnknown);
            Case::new("nobody's address", Hook::Through(Pod::A), packet, unknown).check(&node);
        }
        for packet in kinds(family.node(), family.remote_pod()) {
            Case::new("the node's own", Hook::ToPod(Pod::A), packet, Then::Passed).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn discovery_on_the_link_passes_but_is_no_way_around_a_policy() {
    let mut node = Node::start();
    node.set_isolation(Pod::A, POLICY, POLICY);
    let own = Pod::A.ip(Family::V6);
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    for kind in [130, 131, 132, 133, 134, 135, 136, 137, 143] {
        for destination in [ip("ff02::1:ff00:1"), ip("ff02::2"), ip("fe80::1")] {
            let packet = Packet::icmp(kind, 0, own, destination).hops(255);
            Case::new("discovery", A, packet.clone(), Then::ToStack(packet)).check(&node);
        }
        for destination in [Pod::B.ip(Family::V6), Family::V6.remote_pod()] {
            let packet = Packet::icmp(kind, 0, own, destination).hops(255);
            check(&mut node, Case::new("to a peer", A, packet, denied(true)).counting(Counter::PolicyJudged));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_address_that_is_not_the_pods_is_spoofed_whatever_its_policies_are() {
    let mut node = Node::start();
    node.set_isolation(Pod::A, POLICY, POLICY);
    for family in FAMILIES {
        for packet in kinds(Pod::B.ip(family), family.client()) {
            Case::new("spoofed", A, packet, Then::Dropped(Reason::SpoofedSource)).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn pods_without_policies_are_not_judged_while_others_are_isolated() {
    let mut node = Node::start();
    node.set_isolation(Pod::B, policies::CLOSED, policies::CLOSED);
    for family in FAMILIES {
        for packet in kinds(Pod::A.ip(family), family.remote_pod()) {
            Case::new("to the other node", A, packet.clone(), Then::ToNode2(packet)).check(&node);
        }
        for packet in kinds(family.remote_pod(), Pod::A.ip(family)) {
            Case::new("from it", WIRE, packet.clone(), Then::ToPod(Pod::A, packet)).check(&node);
        }
    }
    assert_eq!((node.flows(), node.is_marked(Pod::A)), (vec![], false));
}

/// A segment in the middle of a connection is judged like its first.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_clients_packets_are_all_judged_alike() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.remote_pod(), TARGET_PORT));
        node.set_isolation(Pod::A, policies::OPEN, POLICY);
        for verdict in [verdicts::ALLOW, verdicts::DENY_NETWORK] {
            node.set_policy(POLICY, verdict);
            for flags in [SYN, ACK] {
                let packet = Packet::tcp(flags, client, server);
                let passes = verdict == verdicts::ALLOW;
                let then = if passes { Then::ToNode2(packet.clone()) } else { denied(true) };
                check(&mut node, Case::new("a segment", A, packet, then).counting(Counter::PolicyJudged));
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_was_admitted_is_believed_until_the_policies_change_and_of_its_own_question_alone() {
    let mut node = Node::start();
    for family in FAMILIES {
        for side in Side::all(family) {
            node.reset();
            side.isolate(&mut node, POLICY);
            node.set_identity(side.peer(), PEER);
            node.set_cell(POLICY, PEER, verdicts::DENY_NETWORK);
            let to = |port| Packet::tcp(ACK, at(side.source, CLIENT_PORT), at(side.destination, port));
            check(&mut node, side.dropped("denied", to(80)));
            assert_eq!(node.admitted(), [], "what is denied is asked about each time");
            node.set_cell(POLICY, PEER, verdicts::ALLOW);
            check(&mut node, side.admitted("admitted", to(80)));
            let [(asked, noted)] = node.admitted()[..] else { panic!("one answer is noted") };

            node.set_cell(POLICY, PEER, verdicts::DENY_NETWORK);
            node.note_admitted(asked, noted);
            check(&mut node, side.admitted("not asked again", to(80)));
            check(&mut node, side.dropped("another port is another question", to(81)));
            node.note_admitted(asked, noted ^ 1);
            check(&mut node, side.dropped("another question's answer", to(80)));
            node.note_admitted(asked, noted);
            node.revise();
            check(&mut node, side.dropped("the policies have changed", to(80)));
        }
    }
}
