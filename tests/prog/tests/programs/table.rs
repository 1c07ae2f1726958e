//! The flow table: how many connections it holds, whom it keeps, and who makes way.

use std::net::SocketAddr;

use fairlead_abi::{Config, Counter, Reason, flow_flags};
use fairlead_prog_tests::packet::sctp::INIT;
use fairlead_prog_tests::packet::tcp::SYN;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::leaks::check_table;
use crate::{NODE_PORT, SERVICE_PORT, TARGET_PORT, age, at, code, every, later, number, serve};

const A: Hook = Hook::FromPod(Pod::A);
const B: Hook = Hook::FromPod(Pod::B);

/// Room for so many connections.
fn limit(node: &mut Node, places: u32) {
    node.set_config(Config { places, snat_count: 64, ..Node::config() });
}

/// A Service, its backend, and pod A's flows to it, told apart by the client's port.
#[derive(Clone, Copy)]
struct Flows {
    family: Family,
    opener: Transport,
    service: SocketAddr,
    backend: SocketAddr,
}

impl Flows {
    fn serve(node: &mut Node, family: Family, opener: Transport) -> Self {
        let (service, backend) = (at(family.cluster_ip(), SERVICE_PORT), at(Pod::B.ip(family), TARGET_PORT));
        serve(node, opener, service, &[backend]);
        Self { family, opener, service, backend }
    }

    fn request(&self, transport: Transport, port: u16) -> Packet {
        Packet::new(transport, at(Pod::A.ip(self.family), port), self.service)
    }

    fn answer(&self, transport: Transport, port: u16) -> Packet {
        Packet::new(transport, self.backend, at(Pod::A.ip(self.family), port))
    }

    /// The first packet of the client's flow at this port.
    fn opening(&self, what: &str, port: u16) -> Case {
        let request = self.request(self.opener, port);
        let translated = request.clone().to(self.backend);
        Case::begins(what, A, request, Then::ToPod(Pod::B, translated))
    }

    /// The same, where the table has no place for it.
    fn refused(&self, what: &str, port: u16) -> Case {
        Case::new(what, A, self.request(self.opener, port), Then::Dropped(Reason::FlowTableFull))
    }

    /// Packets of the flow pass in both directions.
    fn goes_on(&self, node: &Node, port: u16) {
        let [next, answer] = later(self.opener);
        let request = self.request(next, port);
        let translated = request.clone().to(self.backend);
        Case::new("goes on", A, request, Then::ToPod(Pod::B, translated)).check(node);
        let answer = self.answer(answer, port);
        let translated = answer.clone().from(self.service);
        Case::new("is answered", B, answer, Then::ToPod(Pod::A, translated)).check(node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_full_table_drops_new_flows_and_those_before_go_on() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let flows = Flows::serve(&mut node, family, opener);
        limit(&mut node, 8);
        // A place that is free is found sooner or later.
        let mut open: Vec<u16> = Vec::new();
        for port in 1000..1400 {
            if code(&node, A, &flows.request(opener, port)) != fairlead_prog_tests::case::SHOT {
                open.push(port);
            }
        }
        assert_eq!((open.len(), node.flows().len()), (8, 16), "{family:?}, {opener:?}");
        for port in 2000..2020 {
            flows.refused("one too many", port).check(&node);
            open.iter().for_each(|port| flows.goes_on(&node, *port));
        }
        // From outside too, where a port to masquerade with must not be lost.
        let outside = Packet::new(opener, at(family.client(), 1), at(family.node(), NODE_PORT));
        node.set_frontend(number(opener), outside.destination, [&[1], &[1]], 0);
        Case::new("outside", Hook::FromWire, outside, Then::Dropped(Reason::FlowTableFull)).check(&node);
        check_table(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn in_a_full_table_whoever_is_over_or_never_went_on_makes_way() {
    use flow_flags::{ANSWERED, CLOSED, CLOSING, CONFIRMED, RESET};
    const OPEN: u32 = ANSWERED | CONFIRMED;
    let (tcp, sctp, udp) = (Transport::Tcp(SYN), Transport::Sctp(INIT), Transport::Udp);
    let mut node = Node::start();
    for family in FAMILIES {
        for (opener, flags, silent, over) in [
            (tcp, 0, 0, false),
            (tcp, 0, 3, true),
            (tcp, ANSWERED, 1, false),
            (tcp, ANSWERED, 3, true),
            (tcp, OPEN, 7200, false),
            (tcp, OPEN, 86_300, false),
            (tcp, OPEN, 86_500, true),
            (tcp, OPEN | CLOSING, 3500, false),
            (tcp, OPEN | CLOSING, 3700, true),
            (tcp, OPEN | CLOSING | CLOSED, 1, false),
            (tcp, OPEN | CLOSING | CLOSED, 3, true),
            (tcp, OPEN | RESET, 1, false),
            (tcp, OPEN | RESET, 3, true),
            (sctp, 0, 0, false),
            (sctp, 0, 3, true),
            (sctp, OPEN, 200, false),
            (sctp, OPEN, 220, true),
            (sctp, OPEN | CLOSING | CLOSED, 12, true),
            (udp, 0, 0, false),
            (udp, 0, 3, true),
            (udp, OPEN, 110, false),
            (udp, OPEN, 130, true),
        ] {
            let what = format!("{opener:?}, flags {flags}, silent for {silent} s");
            let flows = Flows::serve(&mut node, family, opener);
            limit(&mut node, 1);
            flows.opening("first", 1).check(&node);
            node.edit_flows(|flow| flow.flags |= flags);
            if !age(&mut node, silent) {
                continue;
            }
            if !over {
                flows.refused(&what, 2).check(&node);
                continue;
            }
            let second = flows.opening(&what, 2);
            let flow = fairlead_prog_tests::case::NewFlow::TakesOver;
            Case { flow, ..second }.counting(Counter::FlowReclaimed).check(&node);
            assert_eq!(node.flow(&flows.request(opener, 1)), None, "{what}: forward");
            assert_eq!(node.flow(&flows.answer(opener, 1)), None, "{what}: reply");
            flows.goes_on(&node, 2);
            check_table(&node);
        }
    }
}

/// While there is room, a flow that nobody has answered has its time too. Which place a new one looks at first is
/// drawn: of twenty, one in a million never looks at the place of the first.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn while_there_is_room_a_flow_that_was_never_answered_has_its_time() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let seconds = if opener == Transport::Udp { 30 } else { 120 };
        for (silent, over) in [(seconds - 5, false), (seconds + 5, true)] {
            let reclaimed = |node: &Node| node.counters()[Counter::FlowReclaimed as usize];
            let before = reclaimed(&node);
            for round in 0..20 {
                let flows = Flows::serve(&mut node, family, opener);
                limit(&mut node, 2);
                flows.opening("first", 1).check(&node);
                if !age(&mut node, silent) {
                    return;
                }
                code(&node, A, &flows.request(opener, 2 + round));
            }
            assert_eq!(reclaimed(&node) > before, over, "{opener:?} after {silent} s");
        }
    }
}

/// A client may only listen, a backend only be told.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_with_packets_in_one_direction_only_is_not_over() {
    let mut node = Node::start();
    for (family, opener) in every() {
        for live_is_reply in [false, true] {
            let flows = Flows::serve(&mut node, family, opener);
            limit(&mut node, 1);
            flows.opening("first", 1).check(&node);
            node.edit_flows(|flow| {
                if (flow.flags & flow_flags::REPLY != 0) != live_is_reply {
                    flow.last_seen = flow.last_seen.wrapping_sub(300_000_000_000);
                }
            });
            flows.refused("second", 2).check(&node);
            flows.goes_on(&node, 1);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_that_is_balanced_anew_keeps_its_place() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let flows = Flows::serve(&mut node, family, opener);
        limit(&mut node, 1);
        flows.opening("first", 1).check(&node);
        for round in 2..10 {
            let successor = at(family.remote_pod(), TARGET_PORT + round);
            node.set_backend(u32::from(round), successor, 1);
            let ids = [u32::from(round)];
            node.set_frontend(number(opener), flows.service, [&ids, &ids], 0);
            node.set_backend(u32::from(round) - 1, successor, 0);
            let request = flows.request(opener, 1);
            let translated = request.clone().to(successor);
            Case::rebalances("anew", A, request, Then::ToNode2(translated)).check(&node);
            check_table(&node);
        }
        flows.refused("another", 2).check(&node);
    }
}

/// Whoever looked for a free place among so many that are taken would hardly ever find one.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_is_balanced_anew_though_the_table_is_full() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let flows = Flows::serve(&mut node, family, opener);
        limit(&mut node, 128);
        for port in 1000..2000 {
            code(&node, A, &flows.request(opener, port));
        }
        assert_eq!(node.flows().len(), 256, "the table is full");
        // They have all been answered, and live.
        node.edit_flows(|flow| flow.flags |= flow_flags::ANSWERED);
        let successor = at(family.remote_pod(), TARGET_PORT);
        node.set_backend(2, successor, 1);
        node.set_frontend(number(opener), flows.service, [&[2], &[2]], 0);
        node.set_backend(1, flows.backend, 0);
        for port in 1000..1020 {
            let request = flows.request(opener, port);
            let translated = request.clone().to(successor);
            Case::rebalances("anew", A, request, Then::ToNode2(translated)).check(&node);
        }
        check_table(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_that_is_refused_or_dropped_in_the_end_leaves_no_place_taken() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let flows = Flows::serve(&mut node, family, opener);
        limit(&mut node, 1);
        // The only place goes to a flow whose backend goes.
        flows.opening("first", 1).check(&node);
        node.set_backend(1, flows.backend, 0);
        let stale = Then::Dropped(Reason::StaleService);
        Case::loses("its backend is gone", A, flows.request(opener, 1), stale).check(&node);
        node.set_backend(1, flows.backend, 1);
        flows.opening("second", 2).check(&node);
        node.forget_flows();
        // It goes to one that finds no port to masquerade with.
        let nowhere =
            Config { places: 1, node_v4: Default::default(), node_v6: Default::default(), ..Node::config() };
        node.set_config(nowhere);
        let hairpin = Packet::new(opener, at(Pod::B.ip(family), 3), flows.service);
        Case::new("no address", B, hairpin, Then::Dropped(Reason::NoNodeAddress)).check(&node);
        flows.opening("third", 3).check(&node);
        check_table(&node);
    }
}

/// Whoever asks while the machine's only place is held, and then again when it is not.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_that_tries_again_is_served_when_there_is_room() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let flows = Flows::serve(&mut node, family, opener);
        limit(&mut node, 1);
        flows.opening("first", 1).check(&node);
        flows.refused("second", 2).check(&node);
        node.forget_flows();
        flows.opening("second again", 2).check(&node);
    }
}
