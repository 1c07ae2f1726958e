//! Policies and datagrams, which do not say who began: the first that is seen is the client's, but for answers to what
//! came before the policy.

use std::time::Duration;

use fairlead_abi::{Address, Config, Counter, Reason, flow_flags, policies, protocol, state_flags, verdicts};
use fairlead_prog_tests::node::SNAT_FIRST;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::policy_flows::{Pair, admit_port};
use crate::policy_plain::{A, B, PEER, POLICY};
use crate::{SERVICE_PORT, TARGET_PORT, at, serve};

const WIRE: Hook = Hook::FromWire;
/// A policy that admits nothing.
const STRICT: u32 = POLICY + 1;
/// Protocols without connections.
const DATAGRAMS: [Transport; 2] = [Transport::Udp, Transport::Bare(47)];
/// The time after which nothing is late.
const LONG_AGO: Duration = Duration::from_secs(3);

fn judged(case: Case) -> Case {
    case.counting(Counter::PolicyJudged)
}

/// A request of the pair, its answer, and what becomes of them if they pass.
fn exchange(pair: &Pair, transport: Transport) -> ([Packet; 2], [Then; 2]) {
    let packets = [pair.request(transport), pair.answer(transport)];
    let there = packets.clone().map(|packet| pair.arrives(packet));
    (packets, there)
}

/// Whether the packet is the client's in the one flow of its two ends.
fn is_clients(node: &Node, packet: &Packet) -> bool {
    let ends = [packet.source, packet.destination].map(|end| Address::from(end.ip()));
    let flows = node.flows().into_iter().filter(|(key, _)| [key.source, key.destination] == ends);
    let [(_, flow)] = flows.collect::<Vec<_>>()[..] else { panic!("one entry") };
    flow.flags & flow_flags::REPLY == 0
}

/// Puts the client under `POLICY` for what it sends if it is a local pod, or else the server for what it is sent. Gives
/// the reason for which that policy drops.
fn isolate(node: &mut Node, pair: &Pair) -> Reason {
    node.reset();
    node.set_policy(STRICT, verdicts::DENY_NETWORK);
    node.set_policy(POLICY, verdicts::ALLOW);
    if pair.from == A {
        node.set_isolation(Pod::A, policies::OPEN, POLICY);
        return Reason::PolicyEgress;
    }
    node.set_isolation(Pod::B, POLICY, policies::OPEN);
    Reason::PolicyIngress
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn whoever_sends_the_first_datagram_is_the_client() {
    let mut node = Node::start();
    for family in FAMILIES {
        let pair = Pair::outward(family);
        let ([request, answer], [there, back]) = exchange(&pair, Transport::Udp);
        node.reset();
        admit_port(&mut node, protocol::UDP, TARGET_PORT);
        node.set_identity(pair.server.ip(), PEER);
        node.set_isolation(Pod::A, policies::OPEN, POLICY);
        judged(Case::begins("request", A, request.clone(), there.clone())).check(&node);
        Case::new("answer", WIRE, answer.clone(), back.clone()).check(&node);
        assert!(is_clients(&node, &request) && !is_clients(&node, &answer));
        // What the policy does not admit may be answered, and no more.
        let other = at(pair.server.ip(), TARGET_PORT + 1);
        let (unasked, heard) = (answer.clone().from(other), request.clone().to(other));
        let denied = Then::Dropped(Reason::PolicyEgress);
        judged(Case::new("denied", A, heard.clone(), denied)).check(&node);
        Case::begins("unasked", WIRE, unasked.clone(), pair.arrives(unasked)).check(&node);
        Case::new("and answered", A, heard.clone(), Then::ToNode2(heard)).check(&node);
        node.forget_flows();
        Case::begins("the other end's first", WIRE, answer.clone(), back).check(&node);
        Case::new("its answer", A, request.clone(), there).check(&node);
        assert!(is_clients(&node, &answer) && !is_clients(&node, &request));
        node.quiet();
    }
}

/// The answer would be admitted as a flow of its own: whoever sends it is under no policy.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_answers_to_a_revoked_flow_stop_too_and_one_under_way_does_not_reopen_it() {
    let mut node = Node::start();
    for family in FAMILIES {
        for transport in DATAGRAMS {
            for pair in [Pair::outward(family), Pair::inward(family), Pair::inside(family)] {
                let reason = isolate(&mut node, &pair);
                let ([request, answer], [there, back]) = exchange(&pair, transport);
                judged(Case::begins("request", pair.from, request.clone(), there.clone())).check(&node);

                node.set_policy(POLICY, verdicts::DENY_NETWORK);
                node.revise();
                for _ in 0..2 {
                    let denied = || Then::Dropped(reason);
                    judged(Case::new("under way", pair.back, answer.clone(), denied())).check(&node);
                    judged(Case::new("revoked", pair.from, request.clone(), denied())).check(&node);
                }
                assert!(is_clients(&node, &request) && !is_clients(&node, &answer));

                node.set_policy(POLICY, verdicts::ALLOW);
                node.revise();
                judged(Case::new("granted", pair.back, answer.clone(), back.clone())).check(&node);
                judged(Case::new("granted", pair.from, request.clone(), there.clone())).check(&node);
                Case::new("and noted", pair.back, answer, back).check(&node);
                Case::new("and noted", pair.from, request, there).check(&node);
            }
        }
    }
}

/// A server that came under a policy for what it is sent: its sockets do not say that it is a client.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_answer_from_before_the_policy_is_entered_as_one_if_the_policy_admits_the_client() {
    let mut node = Node::start();
    for family in FAMILIES {
        for transport in DATAGRAMS {
            for pair in [Pair::inward(family), Pair::inside(family)] {
                let ([request, answer], [there, back]) = exchange(&pair, transport);
                node.reset();
                node.set_isolation(Pod::B, POLICY, policies::OPEN);
                node.set_policy(POLICY, verdicts::ALLOW);
                assert!(node.set_isolated(Pod::B, Duration::ZERO));
                Case::begins("answer", B, answer.clone(), back.clone()).check(&node);
                assert!(is_clients(&node, &request) && !is_clients(&node, &answer));
                Case::new("request", pair.from, request.clone(), there).check(&node);

                node.set_policy(POLICY, verdicts::DENY_NETWORK);
                node.revise();
                let denied = || Then::Dropped(Reason::PolicyIngress);
                judged(Case::new("revoked", B, answer.clone(), denied())).check(&node);
                judged(Case::new("revoked", pair.from, request.clone(), denied())).check(&node);
                node.quiet();

                node.forget_flows();
                for _ in 0..2 {
                    Case::new("to a client that is denied", B, answer.clone(), back.clone()).check(&node);
                    judged(Case::new("denied", pair.from, request.clone(), denied())).check(&node);
                }
                node.quiet();
                if !node.set_isolated(Pod::B, LONG_AGO) {
                    continue;
                }
                Case::begins("its own", B, answer.clone(), back).check(&node);
                assert!(is_clients(&node, &answer));
                let (there, packet) = (pair.arrives(request.clone()), request);
                Case::new("its answer", pair.from, packet, there).check(&node);
            }
        }
    }
}

/// What a pod sends under a policy that is not about its clients is its own, or the policy would have no say in it; and
/// what has an entry whatever policies say has had it before.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn nothing_is_an_answer_from_before_a_policy_on_what_the_pod_sends_or_where_flows_are_kept() {
    let mut node = Node::start();
    for family in FAMILIES {
        let pair = Pair::outward(family);
        let ([request, answer], [there, _]) = exchange(&pair, Transport::Udp);
        for (ingress, egress, flags) in
            [(policies::OPEN, POLICY, 0), (STRICT, POLICY, state_flags::KEEP), (STRICT, POLICY, 0)]
        {
            isolate(&mut node, &pair);
            node.set_isolation(Pod::A, ingress, egress);
            node.set_policy_state(1, flags);
            assert!(node.set_isolated(Pod::A, Duration::ZERO));
            let is_own = ingress == policies::OPEN || flags != 0;
            let case = if is_own { Case::begins } else { Case::new };
            judged(case("first", A, request.clone(), there.clone())).check(&node);
            assert!(!is_own || is_clients(&node, &request));
            let then =
                if is_own { pair.arrives(answer.clone()) } else { Then::Dropped(Reason::PolicyIngress) };
            let answered = Case::new("answer", WIRE, answer.clone(), then);
            if is_own {
                answered.check(&node);
            } else {
                judged(answered).check(&node);
            }
            node.quiet();
        }
    }
}

/// A datagram in two parts.
fn parts(datagram: Packet) -> [Packet; 2] {
    let datagram = datagram.identification(7).payload(&[1; 64]);
    [datagram.clone().fragment(0, true), datagram.fragment(9, false)]
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_parts_of_an_answer_from_before_the_policy_leave_as_they_came() {
    let mut node = Node::start();
    for family in FAMILIES {
        let pair = Pair::inward(family);
        for verdict in [verdicts::ALLOW, verdicts::DENY_NETWORK] {
            node.reset();
            node.set_isolation(Pod::B, POLICY, policies::OPEN);
            node.set_policy(POLICY, verdict);
            assert!(node.set_isolated(Pod::B, Duration::ZERO));
            let [first, second] = parts(pair.answer(Transport::Udp));
            let case = if verdict == verdicts::ALLOW { Case::begins } else { Case::new };
            case("first", B, first.clone(), Then::ToNode2(first)).check(&node);
            Case::new("second", B, second.clone(), Then::ToNode2(second.clone())).check(&node);
            // It has no ports to be an answer by.
            node.forget_flows();
            Case::new("its first not seen", B, second.clone(), Then::ToNode2(second)).check(&node);
        }
    }
}

/// Its only place is another flow's.
fn fill(node: &mut Node, family: Family) {
    node.set_config(Config { places: 1, ..Node::config() });
    let (client, server) = (at(Pod::A.ip(family), 1), at(family.remote_pod(), 1));
    crate::code(node, A, &Packet::udp(client, server));
    assert_eq!(node.flows().len(), 2, "the table is full");
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_full_table_stops_only_those_datagrams_whose_answers_need_it() {
    let mut node = Node::start();
    for family in FAMILIES {
        let pair = Pair::outward(family);
        let ([request, answer], [there, back]) = exchange(&pair, Transport::Udp);
        isolate(&mut node, &pair);
        fill(&mut node, family);
        judged(Case::new("request", A, request.clone(), there.clone())).check(&node);
        Case::new("answer", WIRE, answer, back).check(&node);
        let [first, second] = parts(request.clone());
        judged(Case::new("first part", A, first.clone(), Then::ToNode2(first))).check(&node);
        Case::new("second part", A, second.clone(), Then::ToNode2(second)).check(&node);

        node.set_isolation(Pod::A, STRICT, POLICY);
        let full = Then::Dropped(Reason::FlowTableFull);
        judged(Case::new("answers are denied", A, request, full)).check(&node);

        let pair = Pair::inward(family);
        let ([_, answer], [_, back]) = exchange(&pair, Transport::Udp);
        node.set_isolation(Pod::B, POLICY, policies::OPEN);
        assert!(node.set_isolated(Pod::B, Duration::ZERO));
        Case::new("an answer from before", B, answer, back).check(&node);
        node.quiet();
    }
}

/// The entries of the two must not be taken for each other.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_to_a_service_gets_another_port_where_a_plain_one_has_its_answers() {
    let mut node = Node::start();
    for family in FAMILIES {
        let (pair, service) = (Pair::outward(family), at(family.cluster_ip(), SERVICE_PORT));
        let ([request, answer], [there, back]) = exchange(&pair, Transport::Udp);
        isolate(&mut node, &pair);
        serve(&mut node, Transport::Udp, service, &[pair.server]);
        judged(Case::begins("plainly", A, request.clone(), there.clone())).check(&node);
        let moved = at(pair.client.ip(), SNAT_FIRST);
        let translated = Then::ToNode2(request.clone().from(moved));
        judged(Case::begins("to the Service", A, request.clone().to(service), translated)).check(&node);
        Case::new("the plain one's", WIRE, answer.clone(), back).check(&node);
        let heard = answer.clone().from(service);
        Case::new("the Service's", WIRE, answer.to(moved), Then::ToPod(Pod::A, heard)).check(&node);
        Case::new("plainly again", A, request, there).check(&node);
    }
}
