//! Pods and the outside: flows that they begin leave with the node's address, and answers to who reached them by their
//! own with that.

use std::net::SocketAddr;

use fairlead_abi::{Counter, Reason, egress, policies, verdicts};
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::policy_plain::POLICY;
use crate::{CLIENT_PORT, SERVICE_PORT, TARGET_PORT, at, every, later};

const A: Hook = Hook::FromPod(Pod::A);
const WIRE: Hook = Hook::FromWire;
/// Generic routing encapsulation (RFC 2784): a protocol without ports.
const GRE: u8 = 47;
/// What the pods' echo requests are told apart by.
const IDENTIFIER: u16 = 7;

/// A node whose pods leave with its address, but for what goes to the other node's.
fn masquerading() -> impl std::ops::DerefMut<Target = Node> {
    let mut node = Node::start();
    for family in FAMILIES {
        let bits = if family == Family::V4 { 24 } else { 64 };
        node.leave(family.client(), 0, egress::NODE);
        node.leave(family.remote_pod(), bits, egress::POD);
    }
    node
}

fn of(pod: Pod, family: Family) -> SocketAddr {
    at(pod.ip(family), CLIENT_PORT)
}

fn masked(family: Family) -> SocketAddr {
    at(family.node(), SNAT_FIRST)
}

fn echo(is_request: bool, identifier: u16, source: SocketAddr, destination: SocketAddr) -> Packet {
    let [request, reply] = if source.is_ipv4() { [8, 0] } else { [128, 129] };
    let kind = if is_request { request } else { reply };
    Packet::icmp(kind, 0, source.ip(), destination.ip()).rest(u32::from(identifier) << 16 | 3)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_pod_sends_to_the_outside_leaves_with_the_nodes_address_and_answers_find_it() {
    let mut node = masquerading();
    for (family, opener) in every() {
        node.forget();
        let (pod, outside) = (of(Pod::A, family), at(family.client(), SERVICE_PORT));
        let first = Packet::new(opener, pod, outside);
        let then = Then::ToGateway(first.clone().from(masked(family)));
        Case::begins("first", A, first, then).check(&node);
        let [more, answer] = later(opener).map(|transport| Packet::new(transport, pod, outside));
        let then = Then::ToGateway(more.clone().from(masked(family)));
        Case::new("more", A, more, then).check(&node);
        let answer = answer.from(outside).to(masked(family));
        let then = Then::ToPod(Pod::A, answer.clone().to(pod));
        Case::new("answer", WIRE, answer, then).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_echo_request_leaves_with_the_nodes_address_and_an_identifier_of_its_own() {
    let mut node = masquerading();
    for family in FAMILIES {
        node.forget();
        let (pod, outside) = (at(Pod::A.ip(family), 0), at(family.client(), 0));
        let node_ip = at(family.node(), 0);
        let request = echo(true, IDENTIFIER, pod, outside);
        let sent = echo(true, SNAT_FIRST, node_ip, outside);
        Case::begins("request", A, request.clone(), Then::ToGateway(sent.clone())).check(&node);
        let reply = echo(false, SNAT_FIRST, outside, node_ip);
        let heard = echo(false, IDENTIFIER, outside, pod);
        Case::new("reply", WIRE, reply, Then::ToPod(Pod::A, heard)).check(&node);
        let another = echo(false, SNAT_FIRST + 1, outside, node_ip);
        Case::new("the node's own", WIRE, another, Then::Passed).check(&node);

        let kind = if family == Family::V4 { 11 } else { 3 };
        let quoted = sent.a_hop_on();
        let error = |about: &Packet, to: SocketAddr| {
            Packet::icmp(kind, 0, family.stranger(), to.ip()).payload(&about.quote(8))
        };
        let told = error(&request.clone().a_hop_on(), pod);
        Case::new("too far", WIRE, error(&quoted, node_ip), Then::ToPod(Pod::A, told))
            .counting(Counter::ErrorTranslated)
            .check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_protocol_without_ports_leaves_with_the_nodes_address_for_one_pod_at_a_time() {
    let mut node = masquerading();
    for family in FAMILIES {
        node.forget();
        let bare = |source, destination| Packet::new(Transport::Bare(GRE), at(source, 0), at(destination, 0));
        let (outside, node_ip) = (family.client(), family.node());
        let sent = bare(Pod::A.ip(family), outside);
        Case::begins("sent", A, sent, Then::ToGateway(bare(node_ip, outside))).check(&node);
        let then = Then::ToPod(Pod::A, bare(outside, Pod::A.ip(family)));
        Case::new("answer", WIRE, bare(outside, node_ip), then).check(&node);
        let other = bare(Pod::B.ip(family), outside);
        Case::new("another pod's", Hook::FromPod(Pod::B), other, Then::Dropped(Reason::NoSnatPort))
            .check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_pod_sends_to_the_cluster_leaves_with_its_own_address() {
    let node = masquerading();
    for (family, opener) in every() {
        let packet = Packet::new(opener, of(Pod::A, family), at(family.remote_pod(), SERVICE_PORT));
        Case::new("to another pod", A, packet.clone(), Then::ToNode2(packet)).check(&node);
        let request = echo(true, IDENTIFIER, of(Pod::A, family), at(family.remote_pod(), 0));
        Case::new("echo", A, request.clone(), Then::ToNode2(request)).check(&node);
        assert!(!node.is_marked(Pod::A));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_that_is_reached_from_the_outside_by_its_own_address_answers_with_it() {
    let mut node = masquerading();
    for (family, opener) in every() {
        node.forget();
        let (pod, outside) = (at(Pod::A.ip(family), TARGET_PORT), at(family.client(), CLIENT_PORT));
        let first = Packet::new(opener, outside, pod);
        let case = if first.is_datagram() { Case::begins } else { Case::new };
        case("first", WIRE, first.clone(), Then::ToPod(Pod::A, first)).check(&node);
        let [_, answer] = later(opener).map(|transport| Packet::new(transport, pod, outside));
        Case::new("answer", A, answer.clone(), Then::ToGateway(answer)).check(&node);
    }
    for family in FAMILIES {
        let reply = echo(false, IDENTIFIER, of(Pod::A, family), at(family.client(), 0));
        Case::new("echo reply", A, reply.clone(), Then::ToGateway(reply)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_stack_has_forwarded_to_a_pod_is_answered_through_the_stack() {
    let mut node = masquerading();
    for (family, opener) in every() {
        node.forget();
        let (pod, outside) = (at(Pod::A.ip(family), TARGET_PORT), at(family.client(), CLIENT_PORT));
        let first = Packet::new(opener, outside, pod);
        Case::begins("first", Hook::Through(Pod::A), first, Then::Passed).check(&node);
        let [more, answer] = later(opener);
        let more = Packet::new(more, outside, pod);
        Case::new("more", Hook::Through(Pod::A), more, Then::Passed).check(&node);
        let answer = Packet::new(answer, pod, outside);
        Case::new("answer", A, answer.clone(), Then::ToStack(answer)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_packet_to_the_outside_that_no_route_takes_is_answered_to_the_pod() {
    let mut node = masquerading();
    for (family, opener) in every() {
        node.forget();
        let packet = Packet::new(opener, of(Pod::A, family), at(family.nowhere(), SERVICE_PORT));
        let (kind, length) = (if family == Family::V4 { 3 } else { 1 }, opener);
        let quoted = if matches!(length, Transport::Udp) { 8 } else { 20 };
        let answer = packet.error(kind, 0, quoted);
        Case::begins("nowhere", A, packet, Then::Answered(Reason::NotForwarded, answer)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn later_fragments_to_the_outside_follow_their_first() {
    let mut node = masquerading();
    for family in FAMILIES {
        node.forget();
        let (pod, outside) = (of(Pod::A, family), at(family.client(), SERVICE_PORT));
        let first = Packet::udp(pod, outside).fragment(0, true);
        Case::begins("first", A, first.clone(), Then::ToGateway(first.from(masked(family)))).check(&node);
        let more = Packet::udp(pod, outside).fragment(1, false);
        Case::new("more", A, more.clone(), Then::ToGateway(more.from(masked(family)))).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn two_pods_with_one_port_get_two_and_are_refused_when_there_is_none() {
    let mut node = masquerading();
    for (family, opener) in every() {
        node.forget();
        let outside = at(family.client(), SERVICE_PORT);
        let [first, second] = [Pod::A, Pod::B].map(|pod| Packet::new(opener, of(pod, family), outside));
        let then = Then::ToGateway(first.clone().from(masked(family)));
        Case::begins("first", A, first, then).check(&node);
        Case::new("second", Hook::FromPod(Pod::B), second, Then::Dropped(Reason::NoSnatPort)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_policy_judges_what_leaves_by_the_pods_own_address() {
    let mut node = masquerading();
    for (family, opener) in every() {
        node.forget();
        let (pod, outside) = (of(Pod::A, family), at(family.client(), SERVICE_PORT));
        let packet = Packet::new(opener, pod, outside);
        node.set_isolation(Pod::A, policies::OPEN, POLICY);
        node.set_policy(POLICY, verdicts::DENY_NETWORK);
        Case::new("denied", A, packet.clone(), Then::Dropped(Reason::PolicyEgress))
            .counting(Counter::PolicyJudged)
            .check(&node);
        node.quiet();
        node.set_policy(POLICY, verdicts::ALLOW);
        let then = Then::ToGateway(packet.clone().from(masked(family)));
        Case::begins("allowed", A, packet.clone(), then).counting(Counter::PolicyJudged).check(&node);
        let [_, answer] = later(opener).map(|transport| Packet::new(transport, outside, masked(family)));
        let then = Then::ToPod(Pod::A, answer.clone().to(pod));
        Case::new("answer", WIRE, answer, then).check(&node);
        node.set_isolation(Pod::A, policies::OPEN, policies::OPEN);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_about_what_left_with_the_nodes_address_finds_the_pod() {
    let mut node = masquerading();
    for (family, opener) in every() {
        node.forget();
        let (pod, outside) = (of(Pod::A, family), at(family.client(), SERVICE_PORT));
        let first = Packet::new(opener, pod, outside);
        let sent = first.clone().from(masked(family));
        Case::begins("first", A, first.clone(), Then::ToGateway(sent.clone())).check(&node);
        let kind = if family == Family::V4 { 11 } else { 3 };
        // Of SCTP's checksum, which covers the whole packet, nothing can be said by a part.
        let length = if matches!(opener, Transport::Sctp(_)) { 8 } else { 20 };
        let error = |about: &Packet, to: SocketAddr| {
            let quoted = about.clone().a_hop_on().quote(length);
            Packet::icmp(kind, 0, family.stranger(), to.ip()).payload(&quoted)
        };
        let then = Then::ToPod(Pod::A, error(&first, pod));
        Case::new("too far", WIRE, error(&sent, masked(family)), then)
            .counting(Counter::ErrorTranslated)
            .check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_about_a_fragment_that_left_with_the_nodes_address_finds_the_pod() {
    let mut node = masquerading();
    for family in FAMILIES {
        node.forget();
        let (pod, outside) = (of(Pod::A, family), at(family.client(), SERVICE_PORT));
        let first = Packet::udp(pod, outside).fragment(0, true);
        let sent = first.clone().from(masked(family));
        Case::begins("first", A, first.clone(), Then::ToGateway(sent.clone())).check(&node);
        let (kind, code) = if family == Family::V4 { (3, 4) } else { (2, 0) };
        let error = |about: &Packet, to: SocketAddr| {
            let quoted = about.clone().a_hop_on().quote(13);
            Packet::icmp(kind, code, family.stranger(), to.ip()).rest(1300).payload(&quoted)
        };
        let then = Then::ToPod(Pod::A, error(&first, pod));
        Case::new("too big", WIRE, error(&sent, masked(family)), then)
            .counting(Counter::ErrorTranslated)
            .check(&node);
    }
}
