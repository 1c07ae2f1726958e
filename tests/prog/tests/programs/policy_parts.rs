//! Policies on what does not say all of its tuple itself: fragments, and ICMP errors.

use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{Counter, Reason, policies, protocol, verdicts};
use fairlead_prog_tests::packet::tcp::{ACK, SYN};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::policy_plain::{A, B, PEER, POLICY, ROW, echo};
use crate::{CLIENT_PORT, SERVICE_PORT, TARGET_PORT, at, later, serve};

const WIRE: Hook = Hook::FromWire;
/// A policy that admits nothing.
const STRICT: u32 = POLICY + 2;

fn judged(case: Case) -> Case {
    case.counting(Counter::PolicyJudged)
}

/// Admits `PEER` at this port of the protocol, and nobody and nothing else.
fn admit_port(node: &mut Node, peer: IpAddr, protocol: u8, port: u16) {
    node.set_policy(POLICY, verdicts::DENY_NETWORK);
    node.set_identity(peer, PEER);
    node.set_cell(POLICY, PEER, ROW);
    node.set_row(ROW, verdicts::DENY_NETWORK);
    node.set_ports(ROW, protocol, port, 16, verdicts::ALLOW);
}

/// A datagram in two parts.
fn parts(source: SocketAddr, destination: SocketAddr) -> [Packet; 2] {
    let datagram = Packet::udp(source, destination).identification(7).payload(&[1; 64]);
    [datagram.clone().fragment(0, true), datagram.fragment(9, false)]
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn later_fragments_follow_their_first() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.remote_pod(), TARGET_PORT));
        for ingress in [policies::OPEN, STRICT] {
            node.reset();
            node.set_isolation(Pod::A, ingress, POLICY);
            admit_port(&mut node, server.ip(), protocol::UDP, TARGET_PORT);
            let [first, second] = parts(client, server);
            let denied = || Then::Dropped(Reason::PolicyEgress);
            judged(Case::new("its first not seen", A, second.clone(), denied())).check(&node);
            judged(Case::begins("first", A, first.clone(), Then::ToNode2(first.clone()))).check(&node);
            Case::new("second", A, second.clone(), Then::ToNode2(second.clone())).check(&node);
            // Admitted by policies as they were.
            node.revise();
            judged(Case::new("after a change", A, second.clone(), denied())).check(&node);
            judged(Case::new("first", A, first.clone(), Then::ToNode2(first))).check(&node);
            Case::new("second", A, second.clone(), Then::ToNode2(second)).check(&node);

            let [first, second] = parts(client, at(server.ip(), TARGET_PORT + 1));
            let [first, second] = [first.identification(8), second.identification(8)];
            node.forget_flows();
            judged(Case::new("denied", A, first, denied())).check(&node);
            judged(Case::new("denied", A, second, denied())).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn fragments_of_a_service_are_judged_by_its_backend() {
    let mut node = Node::start();
    for family in FAMILIES {
        node.reset();
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let backend = at(Pod::B.ip(family), TARGET_PORT);
        serve(&mut node, Transport::Udp, service, &[backend]);
        node.set_isolation(Pod::B, POLICY, STRICT);
        admit_port(&mut node, client.ip(), protocol::UDP, TARGET_PORT);
        let [first, second] = parts(client, service);
        let there = |packet: &Packet| Then::ToPod(Pod::B, packet.clone().to(backend));
        judged(Case::begins("first", A, first.clone(), there(&first))).check(&node);
        Case::new("second", A, second.clone(), there(&second)).check(&node);
        let [first, second] = parts(backend, client);
        let back = |packet: &Packet| Then::ToPod(Pod::A, packet.clone().from(service));
        Case::new("answer", B, first.clone(), back(&first)).check(&node);
        Case::new("answer's second", B, second.clone(), back(&second)).check(&node);
    }
}

/// More extension headers than are walked hide the protocol from the programs, but not from the receiver.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_hides_behind_extension_headers_passes_only_where_everything_does() {
    let mut node = Node::start();
    let family = Family::V6;
    let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.remote_pod(), TARGET_PORT));
    node.set_isolation(Pod::A, policies::OPEN, POLICY);
    node.set_identity(server.ip(), PEER);
    node.set_cell(POLICY, PEER, ROW);
    node.set_row(ROW, verdicts::ALLOW);
    node.set_ports(ROW, protocol::TCP, 22, 16, verdicts::DENY_ADMIN);
    let plain = Packet::tcp(SYN, client, at(server.ip(), 22));
    let hidden = (0..4).fold(plain.clone(), |packet, _| packet.extension(60, 1));
    for packet in [plain, hidden.clone()] {
        let case = Case::new("denied", A, packet, Then::Dropped(Reason::PolicyEgress));
        judged(case).check(&node);
    }
    node.set_cell(POLICY, PEER, verdicts::ALLOW);
    judged(Case::new("all is admitted", A, hidden.clone(), Then::ToNode2(hidden))).check(&node);
}

/// No place in the flow table says that it is taken by a flow of protocol 0.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_protocol_of_number_zero_has_no_flow() {
    let mut node = Node::start();
    node.set_policy(POLICY, verdicts::ALLOW);
    node.set_isolation(Pod::A, STRICT, POLICY);
    let family = Family::V4;
    let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.remote_pod(), TARGET_PORT));
    let packet = Packet::new(Transport::Bare(0), client, server);
    judged(Case::new("admitted", A, packet.clone(), Then::ToNode2(packet))).check(&node);
}

/// The types of errors: unreachable, too big, time exceeded.
fn errors(family: Family) -> [(u8, u8); 3] {
    if family == Family::V4 { [(3, 3), (3, 4), (11, 0)] } else { [(1, 4), (2, 0), (3, 0)] }
}

/// An error from `from` to `to` about a packet.
fn error((kind, code): (u8, u8), from: IpAddr, to: IpAddr, about: &Packet) -> Packet {
    Packet::icmp(kind, code, from, to).rest(1400).payload(&about.quote(8))
}

/// The router on the way, or the server itself, tells an isolated client.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_reaches_an_isolated_pod_if_the_packet_it_quotes_might_have_left_it() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.remote_pod(), TARGET_PORT));
        node.reset();
        node.set_isolation(Pod::A, STRICT, POLICY);
        admit_port(&mut node, server.ip(), protocol::TCP, TARGET_PORT);
        for kind in errors(family) {
            for from in [server.ip(), family.client()] {
                let about = Packet::tcp(ACK, client, server);
                let packet = error(kind, from, client.ip(), &about);
                let then = Then::ToPod(Pod::A, packet.clone());
                judged(Case::new("about an allowed packet", WIRE, packet.clone(), then)).check(&node);
                for about in [
                    Packet::tcp(ACK, client, at(server.ip(), TARGET_PORT + 1)),
                    Packet::udp(client, server),
                    Packet::tcp(ACK, client, at(family.client(), TARGET_PORT)),
                    Packet::tcp(ACK, at(Pod::B.ip(family), CLIENT_PORT), server),
                ] {
                    let packet = error(kind, from, client.ip(), &about);
                    let denied = Then::Dropped(Reason::PolicyIngress);
                    judged(Case::new("about another", WIRE, packet, denied)).check(&node);
                }
                let denied = Then::Dropped(Reason::PolicyIngress);
                let packet = packet.payload(&[]);
                judged(Case::new("about nothing", WIRE, packet, denied)).check(&node);
                node.quiet();
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_isolated_pod_tells_of_errors_those_who_might_have_sent_to_it() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, server) = (at(family.remote_pod(), CLIENT_PORT), at(Pod::B.ip(family), TARGET_PORT));
        node.reset();
        node.set_isolation(Pod::B, POLICY, STRICT);
        admit_port(&mut node, client.ip(), protocol::UDP, TARGET_PORT);
        for kind in errors(family) {
            let about = Packet::udp(client, server);
            let packet = error(kind, server.ip(), client.ip(), &about);
            judged(Case::new("allowed", B, packet.clone(), Then::ToNode2(packet))).check(&node);
            let denied = || Then::Dropped(Reason::PolicyEgress);
            for (what, to, about) in [
                ("another port", client.ip(), Packet::udp(client, at(server.ip(), TARGET_PORT + 1))),
                ("to somebody else", family.client(), about.clone()),
                ("as a router", client.ip(), Packet::udp(client, at(Pod::A.ip(family), TARGET_PORT))),
            ] {
                let packet = error(kind, server.ip(), to, &about);
                judged(Case::new(what, B, packet, denied())).check(&node);
            }
            node.quiet();
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_about_a_flow_passes_as_long_as_the_flow_does() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let server = at(family.remote_pod(), TARGET_PORT);
        for dialled in [server, service] {
            for opener in [Transport::Tcp(SYN), Transport::Udp, echo(family, true)] {
                if let (Transport::Icmp(..), true) = (opener, dialled == service) {
                    continue;
                }
                node.reset();
                serve(&mut node, opener, service, &[server]);
                node.set_isolation(Pod::A, STRICT, POLICY);
                node.set_policy(POLICY, verdicts::ALLOW);
                let request = Packet::new(opener, client, dialled);
                let seen = request.clone().to(server);
                judged(Case::begins("request", A, request.clone(), Then::ToNode2(seen.clone()))).check(&node);
                let about = Packet::new(
                    if opener == Transport::Tcp(SYN) { later(opener)[0] } else { opener },
                    client,
                    server,
                );
                let packet = error(errors(family)[1], family.client(), client.ip(), &about);
                let told = error(errors(family)[1], family.client(), client.ip(), &about.clone().to(dialled));
                let case = |what: &str, then| {
                    let case = Case::new(what, WIRE, packet.clone(), then);
                    if dialled == service { case.counting(Counter::ErrorTranslated) } else { case }
                };
                case("an error", Then::ToPod(Pod::A, told.clone())).check(&node);
                node.revise();
                judged(case("after a change", Then::ToPod(Pod::A, told.clone()))).check(&node);
                node.set_policy(POLICY, verdicts::DENY_NETWORK);
                node.revise();
                let denied = Then::Dropped(Reason::PolicyEgress);
                judged(Case::new("revoked", WIRE, packet.clone(), denied)).check(&node);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_of_the_nodes_own_stack_reaches_every_pod() {
    let mut node = Node::start();
    node.set_isolation(Pod::A, policies::CLOSED, policies::CLOSED);
    for family in FAMILIES {
        let client = at(Pod::A.ip(family), CLIENT_PORT);
        let about = Packet::tcp(ACK, client, at(family.client(), TARGET_PORT));
        let packet = error(errors(family)[1], family.node(), client.ip(), &about);
        Case::new("too big", Hook::ToPod(Pod::A), packet, Then::Passed).check(&node);
    }
}
