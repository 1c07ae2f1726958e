//! Policies and flows: which replies pass, what Services make of it, and what becomes of flows when policies change.

use std::net::SocketAddr;

use fairlead_abi::{Counter, Reason, identities, policies, state_flags, verdicts};
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::packet::sctp::DATA;
use fairlead_prog_tests::packet::tcp::{ACK, RST, SYN, SYN_ACK};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::policy_plain::{A, B, PEER, POLICY, ROW, echo, next, reply};
use crate::{
    CLIENT_PORT, NODE_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, age, at, every, later, number, serve,
    serve_with,
};

const WIRE: Hook = Hook::FromWire;
/// A policy that admits everything.
const LENIENT: u32 = POLICY + 1;
/// A policy that admits nothing.
const STRICT: u32 = POLICY + 2;

/// Both families with all openers, echo requests too.
fn all() -> impl Iterator<Item = (Family, Transport)> {
    every().chain(FAMILIES.map(|family| (family, echo(family, true))))
}

/// A client and a server, by where their packets are met and where they come out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    pub(crate) from: Hook,
    pub(crate) back: Hook,
}

impl Pair {
    pub(crate) fn inside(family: Family) -> Self {
        let (client, server) = (at(Pod::A.ip(family), CLIENT_PORT), at(Pod::B.ip(family), TARGET_PORT));
        Self { client, server, from: A, back: B }
    }

    pub(crate) fn outward(family: Family) -> Self {
        let server = at(family.remote_pod(), TARGET_PORT);
        Self { server, back: WIRE, ..Self::inside(family) }
    }

    pub(crate) fn inward(family: Family) -> Self {
        let client = at(family.remote_pod(), CLIENT_PORT);
        Self { client, from: WIRE, ..Self::inside(family) }
    }

    pub(crate) fn request(&self, transport: Transport) -> Packet {
        Packet::new(transport, self.client, self.server)
    }

    pub(crate) fn answer(&self, transport: Transport) -> Packet {
        Packet::new(transport, self.server, self.client)
    }

    pub(crate) fn arrives(&self, packet: Packet) -> Then {
        let other = if packet.destination == self.server { self.back } else { self.from };
        match other {
            Hook::FromPod(pod) => Then::ToPod(pod, packet),
            _ => Then::ToNode2(packet),
        }
    }
}

fn strict_and_lenient(node: &mut Node) {
    node.set_policy(STRICT, verdicts::DENY_NETWORK);
    node.set_policy(LENIENT, verdicts::ALLOW);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn replies_pass_and_have_an_entry_where_a_policy_would_stop_them_and_datagrams_where_one_is_asked() {
    let mut node = Node::start();
    for (family, opener) in all() {
        // The policies of A and B, in pairs of ingress and egress; whether one is asked, and whether one would be about
        // replies.
        let open = policies::OPEN;
        for (pair, [a, b], is_asked, is_guarded) in [
            (Pair::outward(family), [(open, open), (open, open)], false, false),
            (Pair::inward(family), [(open, open), (open, open)], false, false),
            (Pair::inside(family), [(open, open), (open, open)], false, false),
            (Pair::outward(family), [(open, LENIENT), (open, open)], true, false),
            (Pair::outward(family), [(STRICT, open), (open, open)], false, true),
            (Pair::outward(family), [(STRICT, LENIENT), (open, open)], true, true),
            (Pair::inward(family), [(open, open), (LENIENT, open)], true, false),
            (Pair::inward(family), [(open, open), (open, STRICT)], false, true),
            (Pair::inward(family), [(open, open), (LENIENT, STRICT)], true, true),
            (Pair::inside(family), [(open, LENIENT), (LENIENT, open)], true, false),
            (Pair::inside(family), [(STRICT, LENIENT), (LENIENT, open)], true, true),
            (Pair::inside(family), [(open, LENIENT), (LENIENT, STRICT)], true, true),
            (Pair::inside(family), [(STRICT, open), (open, STRICT)], false, true),
        ] {
            node.reset();
            strict_and_lenient(&mut node);
            node.set_isolation(Pod::A, a.0, a.1);
            node.set_isolation(Pod::B, b.0, b.1);
            let what = format!("{pair:?} under {a:?} and {b:?}");
            let judged = |case: Case| if is_asked { case.counting(Counter::PolicyJudged) } else { case };
            let request = pair.request(opener);
            let then = pair.arrives(request.clone());
            let is_entered = is_guarded || is_asked && request.is_datagram();
            let case = if is_entered { Case::begins } else { Case::new };
            judged(case(what.clone(), pair.from, request.clone(), then.clone())).check(&node);
            for transport in [reply(family, opener), next(family, opener)] {
                let answer = pair.answer(transport);
                let then = pair.arrives(answer.clone());
                Case::new(what.clone(), pair.back, answer, then).check(&node);
            }
            let case = Case::new(what, pair.from, request, then);
            if is_entered { case.check(&node) } else { judged(case).check(&node) }
        }
    }
}

/// What the entry admits is that flow alone.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn whoever_is_no_part_of_the_flow_is_judged_beside_it() {
    let mut node = Node::start();
    for (family, opener) in every() {
        node.reset();
        strict_and_lenient(&mut node);
        node.set_isolation(Pod::A, STRICT, LENIENT);
        let pair = Pair::outward(family);
        let request = pair.request(opener);
        let then = pair.arrives(request.clone());
        Case::begins("request", pair.from, request, then).counting(Counter::PolicyJudged).check(&node);
        let other = |address: SocketAddr| at(address.ip(), address.port() + 1);
        let answer = pair.answer(later(opener)[1]);
        for packet in [
            answer.clone().from(other(pair.server)),
            answer.clone().to(other(pair.client)),
            answer.clone().from(at(family.client(), TARGET_PORT)),
            // The server begins one, from the very port that it answers from.
            if opener == Transport::Udp { answer.to(other(pair.client)) } else { pair.answer(opener) },
        ] {
            let then = Then::Dropped(Reason::PolicyIngress);
            let case = Case::new("another", WIRE, packet, then).counting(Counter::PolicyJudged);
            case.check(&node);
            node.quiet();
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_echo_request_is_nobodys_answer() {
    let mut node = Node::start();
    for family in FAMILIES {
        node.reset();
        strict_and_lenient(&mut node);
        node.set_isolation(Pod::A, STRICT, LENIENT);
        let pair = Pair::outward(family);
        let request = pair.request(echo(family, true));
        let then = pair.arrives(request.clone());
        Case::begins("ping", A, request, then).counting(Counter::PolicyJudged).check(&node);
        let asked = pair.answer(echo(family, true));
        let denied = Then::Dropped(Reason::PolicyIngress);
        Case::new("ping back", WIRE, asked.clone(), denied).counting(Counter::PolicyJudged).check(&node);
        let answer = pair.answer(echo(family, false));
        Case::new("answer", WIRE, answer.clone(), Then::ToPod(Pod::A, answer)).check(&node);
        // Both ask each other: one pair of entries serves both.
        node.set_isolation(Pod::A, LENIENT, LENIENT);
        let then = Then::ToPod(Pod::A, asked.clone());
        Case::new("allowed", WIRE, asked, then).counting(Counter::PolicyJudged).check(&node);
        let answer = pair.request(echo(family, false));
        Case::new("its answer", A, answer.clone(), Then::ToNode2(answer)).check(&node);
    }
}

/// Admits `PEER` at this port of the protocol, and nobody and nothing else.
pub(crate) fn admit_port(node: &mut Node, protocol: u8, port: u16) {
    node.set_policy(POLICY, verdicts::DENY_NETWORK);
    node.set_cell(POLICY, PEER, ROW);
    node.set_row(ROW, verdicts::DENY_NETWORK);
    node.set_ports(ROW, protocol, port, 16, verdicts::ALLOW);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_is_judged_by_the_backend_that_it_leads_to() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        for (is_egress, backend) in [
            (true, at(Pod::B.ip(family), TARGET_PORT)),
            (true, at(family.remote_pod(), TARGET_PORT)),
            (false, at(Pod::B.ip(family), TARGET_PORT)),
        ] {
            for port in [TARGET_PORT, SERVICE_PORT] {
                node.reset();
                serve(&mut node, opener, service, &[backend]);
                admit_port(&mut node, number(opener), port);
                if is_egress {
                    node.set_isolation(Pod::A, policies::OPEN, POLICY);
                    node.set_identity(backend.ip(), PEER);
                } else {
                    node.set_isolation(Pod::B, POLICY, policies::OPEN);
                    node.set_identity(client.ip(), PEER);
                }
                let request = Packet::new(opener, client, service);
                let translated = request.clone().to(backend);
                let judged = |case: Case| case.counting(Counter::PolicyJudged);
                if port == SERVICE_PORT {
                    let reason = if is_egress { Reason::PolicyEgress } else { Reason::PolicyIngress };
                    judged(Case::new("the frontend's port", A, request, Then::Dropped(reason))).check(&node);
                    continue;
                }
                let (then, back) = if backend.ip() == family.remote_pod() {
                    (Then::ToNode2(translated), WIRE)
                } else {
                    (Then::ToPod(Pod::B, translated), B)
                };
                judged(Case::begins("the backend's port", A, request.clone(), then.clone())).check(&node);
                Case::new("again", A, request, then).check(&node);
                let answer = Packet::new(later(opener)[1], backend, client);
                let translated = answer.clone().from(service);
                Case::new("answer", back, answer, Then::ToPod(Pod::A, translated)).check(&node);
            }
        }
    }
}

/// A flood of packets that a policy denies must not fill the table.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_is_denied_leaves_nothing_behind() {
    let mut node = Node::start();
    for (family, opener) in every() {
        node.reset();
        let service = at(family.cluster_ip(), SERVICE_PORT);
        serve(&mut node, opener, service, &[at(Pod::B.ip(family), TARGET_PORT)]);
        node.set_isolation(Pod::A, POLICY, POLICY);
        for to in [service, at(family.remote_pod(), SERVICE_PORT), at(Pod::B.ip(family), SERVICE_PORT)] {
            for port in 1..40 {
                crate::code(&node, A, &Packet::new(opener, at(Pod::A.ip(family), port), to));
            }
        }
        assert_eq!(node.flows(), []);
        assert!(node.places().iter().all(|place| place.protocol == 0), "no place is taken");
        assert!(!node.is_marked(Pod::A) && !node.is_marked(Pod::B));
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_outside_is_judged_by_its_own_address_though_it_is_masqueraded() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        let (backend, masked) = (at(Pod::B.ip(family), TARGET_PORT), at(family.node(), SNAT_FIRST));
        for is_admitted in [true, false] {
            node.reset();
            serve(&mut node, opener, service, &[backend]);
            admit_port(&mut node, number(opener), TARGET_PORT);
            node.set_isolation(Pod::B, POLICY, policies::OPEN);
            node.set_identity(family.node(), 9 | identities::OWN_NODE);
            if is_admitted {
                node.set_identity(client.ip(), PEER);
            }
            let request = Packet::new(opener, client, service);
            let translated = request.clone().from(masked).to(backend);
            let case = if is_admitted {
                Case::begins("admitted", WIRE, request, Then::ToPod(Pod::B, translated))
            } else {
                Case::new("denied", WIRE, request, Then::Dropped(Reason::PolicyIngress))
            };
            case.counting(Counter::PolicyJudged).check(&node);
            if is_admitted {
                node.revise();
                let answer = Packet::new(later(opener)[1], backend, masked);
                let translated = answer.clone().from(service).to(client);
                let case = Case::new("answer", B, answer, Then::ToGateway(translated));
                case.counting(Counter::PolicyJudged).check(&node);
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_itself_through_its_service_unless_a_tier_denies_it() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let (client, service) = (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let (backend, masked) = (at(Pod::A.ip(family), TARGET_PORT), at(family.node(), SNAT_FIRST));
        for (verdict, passes) in [
            (verdicts::DENY_NETWORK, true),
            (verdicts::ALLOW, true),
            (verdicts::DENY_ADMIN, false),
            (verdicts::DENY_BASELINE, false),
        ] {
            for (ingress, egress, reason) in [
                (POLICY, policies::OPEN, Reason::PolicyIngress),
                (policies::OPEN, POLICY, Reason::PolicyEgress),
            ] {
                node.reset();
                serve(&mut node, opener, service, &[backend]);
                node.set_isolation(Pod::A, ingress, egress);
                node.set_policy(POLICY, verdict);
                let request = Packet::new(opener, client, service);
                let translated = request.clone().from(masked).to(backend);
                let case = if passes {
                    Case::begins("hairpin", A, request, Then::ToPod(Pod::A, translated))
                } else {
                    Case::new("hairpin", A, request, Then::Dropped(reason))
                };
                case.counting(Counter::PolicyJudged).check(&node);
                if passes {
                    let answer = Packet::new(later(opener)[1], backend, masked);
                    let translated = answer.clone().from(service).to(client);
                    Case::new("answer", A, answer, Then::ToPod(Pod::A, translated)).check(&node);
                }
            }
        }
    }
}

/// Through a flow to a Service, one with its own entries, and none.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_change_of_policies_ends_a_flow_and_another_lets_it_go_on() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let service = at(family.cluster_ip(), SERVICE_PORT);
        let pair = Pair::inside(family);
        for (dialled, ingress) in [(service, policies::OPEN), (pair.server, STRICT)] {
            node.reset();
            serve(&mut node, opener, service, &[pair.server]);
            strict_and_lenient(&mut node);
            node.set_isolation(Pod::A, ingress, POLICY);
            node.set_policy(POLICY, verdicts::ALLOW);
            let request = |transport| pair.request(transport).to(dialled);
            let passes = |transport| Then::ToPod(Pod::B, pair.request(transport));
            let heard = |transport| Then::ToPod(Pod::A, pair.answer(transport).from(dialled));
            let judged = |case: Case| case.counting(Counter::PolicyJudged);
            let [onward, answer] = later(opener);
            judged(Case::begins("first", A, request(opener), passes(opener))).check(&node);

            node.set_policy(POLICY, verdicts::DENY_NETWORK);
            Case::new("not told yet", A, request(onward), passes(onward)).check(&node);
            node.revise();
            for _ in 0..2 {
                let denied = || Then::Dropped(Reason::PolicyEgress);
                judged(Case::new("revoked", A, request(onward), denied())).check(&node);
                judged(Case::new("revoked", B, pair.answer(answer), denied())).check(&node);
            }
            node.quiet();
            node.set_policy(POLICY, verdicts::ALLOW);
            node.revise();
            judged(Case::new("granted", A, request(onward), passes(onward))).check(&node);
            judged(Case::new("granted", B, pair.answer(answer), heard(answer))).check(&node);
            Case::new("and noted", A, request(onward), passes(onward)).check(&node);
            Case::new("and noted", B, pair.answer(answer), heard(answer)).check(&node);
        }
    }
}

/// Whoever goes on sending in vain keeps no place in the table.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_is_denied_keeps_no_flow_alive() {
    let mut node = Node::start();
    for family in FAMILIES {
        node.reset();
        strict_and_lenient(&mut node);
        node.set_isolation(Pod::A, STRICT, LENIENT);
        let pair = Pair::outward(family);
        let request = pair.request(Transport::Udp);
        crate::code(&node, A, &request);
        if !age(&mut node, 20) {
            continue;
        }
        let seen = node.flow(&request).map(|flow| flow.last_seen);
        node.set_policy(LENIENT, verdicts::DENY_NETWORK);
        node.revise();
        crate::code(&node, A, &request);
        assert_eq!(node.flow(&request).map(|flow| flow.last_seen), seen);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn established_flows_are_kept_where_that_is_asked_for() {
    let mut node = Node::start();
    for (family, opener) in all() {
        for pair in [Pair::inside(family), Pair::outward(family), Pair::inward(family)] {
            node.reset();
            node.set_policy_state(3, state_flags::KEEP);
            let [request, answer] = [pair.request(opener), pair.answer(reply(family, opener))];
            let [there, back] = [&request, &answer].map(|packet| pair.arrives(packet.clone()));
            Case::begins("between open pods", pair.from, request.clone(), there.clone()).check(&node);
            Case::new("answer", pair.back, answer.clone(), back.clone()).check(&node);
            strict_and_lenient(&mut node);
            for pod in Pod::ALL {
                node.set_isolation(pod, STRICT, STRICT);
            }
            node.revise();
            Case::new("kept", pair.from, request.clone(), there).check(&node);
            Case::new("kept", pair.back, answer, back).check(&node);
            let other = if let Transport::Icmp(..) = opener {
                Packet::udp(pair.client, pair.server)
            } else {
                request.from(at(pair.client.ip(), CLIENT_PORT + 1))
            };
            let is_inward = pair.from == WIRE;
            let reason = if is_inward { Reason::PolicyIngress } else { Reason::PolicyEgress };
            let case = Case::new("a new one", pair.from, other, Then::Dropped(reason));
            case.counting(Counter::PolicyJudged).check(&node);
            node.quiet();
        }
    }
}

/// It might be an answer: entered the wrong way round, it would open a way that policies do not.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_segment_in_the_middle_of_a_connection_is_judged_but_not_entered() {
    let mut node = Node::start();
    for family in FAMILIES {
        for transport in [ACK, SYN_ACK, RST].map(Transport::Tcp).into_iter().chain([Transport::Sctp(DATA)]) {
            node.reset();
            strict_and_lenient(&mut node);
            node.set_isolation(Pod::A, STRICT, LENIENT);
            let pair = Pair::outward(family);
            let judged = |case: Case| case.counting(Counter::PolicyJudged);
            let segment = pair.request(transport);
            judged(Case::new("onward", A, segment.clone(), Then::ToNode2(segment))).check(&node);
            let denied = Then::Dropped(Reason::PolicyIngress);
            judged(Case::new("answer", WIRE, pair.answer(transport), denied)).check(&node);
        }
    }
}

/// The entries of a flow to a Service and of a plain one must not be taken for each other.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_plain_flow_gets_another_port_where_a_flow_to_a_service_has_its_answers() {
    let mut node = Node::start();
    for (family, opener) in every() {
        node.reset();
        let (pair, service) = (Pair::outward(family), at(family.cluster_ip(), SERVICE_PORT));
        serve(&mut node, opener, service, &[pair.server]);
        strict_and_lenient(&mut node);
        node.set_isolation(Pod::A, STRICT, LENIENT);
        let judged = |case: Case| case.counting(Counter::PolicyJudged);
        let dialled = pair.request(opener).to(service);
        judged(Case::begins("to the Service", A, dialled, Then::ToNode2(pair.request(opener)))).check(&node);
        let moved = at(pair.client.ip(), SNAT_FIRST);
        let request = pair.request(opener);
        let translated = request.clone().from(moved);
        judged(Case::begins("plainly", A, request, Then::ToNode2(translated))).check(&node);
        let transport = later(opener)[1];
        let answer = pair.answer(transport);
        let heard = answer.clone().from(service);
        Case::new("the Service's", WIRE, answer.clone(), Then::ToPod(Pod::A, heard)).check(&node);
        Case::new("the plain one's", WIRE, answer.clone().to(moved), Then::ToPod(Pod::A, answer))
            .check(&node);
    }
}

/// A datagram socket that sent to an address before it was a Service's.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_plain_flow_gives_way_to_a_service_that_comes_to_have_its_address() {
    let mut node = Node::start();
    for family in FAMILIES {
        for opener in OPENERS {
            node.reset();
            strict_and_lenient(&mut node);
            node.set_isolation(Pod::A, STRICT, LENIENT);
            let (client, service) =
                (at(Pod::A.ip(family), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
            let backend = at(family.remote_pod(), TARGET_PORT);
            let judged = |case: Case| case.counting(Counter::PolicyJudged);
            let request = Packet::new(opener, client, service);
            judged(Case::begins("before", A, request.clone(), Then::ToGateway(request.clone()))).check(&node);
            node.set_backend(1, backend, 1);
            node.set_frontend(number(opener), service, [&[1], &[1]], 0);
            if !age(&mut node, 1) {
                continue;
            }
            let then = Then::ToNode2(request.clone().to(backend));
            judged(Case::rebalances("after", A, request, then)).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backend_that_a_client_outside_may_not_reach_is_not_reached_with_its_own_address_either() {
    let mut node = Node::start();
    for (family, opener) in every() {
        node.reset();
        let (client, service) = (at(family.client(), CLIENT_PORT), at(family.node(), NODE_PORT));
        let backend = at(Pod::B.ip(family), TARGET_PORT);
        serve_with(&mut node, opener, service, &[backend], fairlead_abi::frontend_flags::KEEP_SOURCE);
        node.set_isolation(Pod::B, STRICT, policies::OPEN);
        let request = Packet::new(opener, client, service);
        let denied = Then::Dropped(Reason::PolicyIngress);
        Case::new("denied", WIRE, request, denied).counting(Counter::PolicyJudged).check(&node);
    }
}

/// Of protocols without ports the addresses are all that tells flows apart.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_protocol_without_ports_is_answered_too() {
    let mut node = Node::start();
    for family in FAMILIES {
        node.reset();
        strict_and_lenient(&mut node);
        node.set_isolation(Pod::A, STRICT, LENIENT);
        let pair = Pair::outward(family);
        let judged = |case: Case| case.counting(Counter::PolicyJudged);
        let [request, answer] = [pair.request(Transport::Bare(47)), pair.answer(Transport::Bare(47))];
        let denied = Then::Dropped(Reason::PolicyIngress);
        judged(Case::new("unasked", WIRE, answer.clone(), denied)).check(&node);
        judged(Case::begins("request", A, request.clone(), Then::ToNode2(request))).check(&node);
        Case::new("answer", WIRE, answer.clone(), Then::ToPod(Pod::A, answer)).check(&node);
        let other = pair.answer(Transport::Bare(50));
        let denied = Then::Dropped(Reason::PolicyIngress);
        judged(Case::new("of another protocol", WIRE, other, denied)).check(&node);
    }
}

/// A SYN that comes again is of the flow that it began.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_new_connection_on_the_ports_of_an_ended_one_is_judged_anew() {
    let mut node = Node::start();
    for family in FAMILIES {
        node.reset();
        strict_and_lenient(&mut node);
        node.set_isolation(Pod::A, STRICT, LENIENT);
        let pair = Pair::outward(family);
        let judged = |case: Case| case.counting(Counter::PolicyJudged);
        let syn = pair.request(Transport::Tcp(SYN));
        let then = Then::ToNode2(syn.clone());
        judged(Case::begins("SYN", A, syn.clone(), then.clone())).check(&node);
        Case::new("again", A, syn.clone(), then.clone()).check(&node);
        let reset = pair.request(Transport::Tcp(RST));
        Case::new("RST", A, reset.clone(), Then::ToNode2(reset)).check(&node);
        judged(Case::rebalances("a new one", A, syn, then)).check(&node);
    }
}
