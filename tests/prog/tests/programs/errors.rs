//! ICMP errors about packets of translated flows: whoever gets one finds in it the packet as it knows it, from whom
//! it knows.

use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{Counter, frontend_flags, protocol};
use fairlead_prog_tests::packet::ETHERNET;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, NODE_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, later, serve_with};

const B: Hook = Hook::FromPod(Pod::B);
const WIRE: Hook = Hook::FromWire;
const OUT: Hook = Hook::ToWire;

/// Who is at one end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Pod(Pod),
    Remote,
    Outside,
    Node,
}

impl End {
    fn ip(self, family: Family) -> IpAddr {
        match self {
            Self::Pod(pod) => pod.ip(family),
            Self::Remote => family.remote_pod(),
            Self::Outside => family.client(),
            Self::Node => family.node(),
        }
    }

    /// Where what it sends to the other end is met.
    fn hook(self, other: Self) -> Hook {
        match (self, other) {
            (Self::Pod(pod), _) => Hook::FromPod(pod),
            (Self::Node, Self::Pod(pod)) => Hook::ToPod(pod),
            (Self::Node, _) => OUT,
            _ => WIRE,
        }
    }

    /// What a packet that is met there and meant for it comes to.
    fn hears(self, met: Hook, packet: Packet) -> Then {
        match self {
            _ if matches!(met, Hook::ToPod(_) | Hook::ToWire) => Then::PassedAs(packet),
            Self::Pod(pod) => Then::ToPod(pod, packet),
            Self::Remote => Then::ToNode2(packet),
            Self::Outside => Then::ToGateway(packet),
            Self::Node => Then::ToStack(packet),
        }
    }
}

/// A flow, as each of its ends knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    client_end: End,
    backend_end: End,
    /// Where its first packet is met.
    met: Hook,
    client: SocketAddr,
    service: SocketAddr,
    /// The client's address as the backend knows it.
    seen: SocketAddr,
    backend: SocketAddr,
}

impl Talk {
    fn new(family: Family, client_end: End, backend_end: End, keeps_source: bool) -> Self {
        let is_outside = client_end == End::Outside;
        let service =
            if is_outside { at(family.node(), NODE_PORT) } else { at(family.cluster_ip(), SERVICE_PORT) };
        let client = at(client_end.ip(family), CLIENT_PORT);
        let masked = at(family.node(), fairlead_prog_tests::node::SNAT_FIRST);
        let is_masked = client_end == backend_end || is_outside && !keeps_source && backend_end != End::Node;
        Self {
            client_end,
            backend_end,
            met: if client_end == End::Node { OUT } else { client_end.hook(End::Outside) },
            client,
            service,
            seen: if is_masked { masked } else { client },
            backend: at(backend_end.ip(family), TARGET_PORT),
        }
    }

    /// Every kind of flow that there is.
    fn all(family: Family) -> Vec<Self> {
        let (a, b) = (End::Pod(Pod::A), End::Pod(Pod::B));
        vec![
            Self::new(family, a, b, false),
            Self::new(family, a, End::Remote, false),
            Self::new(family, a, a, false),
            Self::new(family, a, End::Node, false),
            Self::new(family, End::Outside, b, false),
            Self::new(family, End::Outside, b, true),
            Self::new(family, End::Outside, End::Remote, false),
            Self::new(family, End::Outside, End::Node, false),
            Self::new(family, End::Node, b, false),
            Self::new(family, End::Node, End::Remote, false),
        ]
    }

    /// Pod A's flow to pod B.
    pub(crate) fn between_pods(family: Family) -> Self {
        Self::new(family, End::Pod(Pod::A), End::Pod(Pod::B), false)
    }

    /// Lets it begin.
    pub(crate) fn begin(&self, node: &mut Node, opener: Transport) {
        let keeps_source = self.client_end == End::Outside && self.seen == self.client;
        let flags = if keeps_source { frontend_flags::KEEP_SOURCE } else { 0 };
        serve_with(node, opener, self.service, &[self.backend], flags);
        let request = self.request(opener);
        let translated = request.clone().from(self.seen).to(self.backend);
        let then = match (self.client_end, self.backend_end) {
            (End::Node, End::Pod(pod)) => Then::IntoPod(pod, translated),
            (End::Node, _) => Then::PassedToNode2(translated),
            (_, backend) => backend.hears(self.met, translated),
        };
        Case::begins(format!("begin {self:?}"), self.met, request, then).check(node);
    }

    /// A packet of the client, as it sends it.
    pub(crate) fn request(&self, transport: Transport) -> Packet {
        Packet::new(transport, self.client, self.service).payload(b"what becomes of this?")
    }

    /// The same, as the backend gets it.
    pub(crate) fn request_seen(&self, transport: Transport) -> Packet {
        self.request(transport).from(self.seen).to(self.backend)
    }

    /// A packet of the backend, as it sends it.
    fn reply(&self, transport: Transport) -> Packet {
        Packet::new(transport, self.backend, self.seen).payload(b"nothing")
    }

    /// The same, as the client gets it.
    fn reply_seen(&self, transport: Transport) -> Packet {
        self.reply(transport).from(self.service).to(self.client)
    }
}

/// What an error says: type, code, and the last four bytes of the header.
pub(crate) type Says = (u8, u8, u32);

/// Unreachable, fragmentation needed or too big, time exceeded, parameter problem.
pub(crate) fn errors(family: Family) -> Vec<Says> {
    match family {
        Family::V4 => vec![(3, 3, 0), (3, 1, 0), (3, 13, 0), (3, 4, 1400), (11, 0, 0), (12, 0, 0x0800_0000)],
        Family::V6 => vec![(1, 4, 0), (1, 0, 0), (2, 0, 1400), (3, 0, 0), (4, 1, 6)],
    }
}

/// An error from one to another, about a packet of which `transport` bytes are quoted after the IP header.
pub(crate) fn error(says: Says, from: IpAddr, to: IpAddr, about: &Packet, transport: usize) -> Packet {
    let (kind, code, rest) = says;
    Packet::icmp(kind, code, from, to).rest(rest).payload(&about.quote(transport))
}

/// What the error `sent` is to become: one about the packet as the receiver knows it. The checksum of a quoted SCTP
/// packet stays what it was; nobody could verify it, without the rest of the packet.
fn retold(sent: &Packet, says: Says, from: IpAddr, to: IpAddr, about: &Packet, transport: usize) -> Packet {
    let headers = about.transport_offset() - ETHERNET;
    let mut quote = about.quote(transport);
    if about.quote(0)[if about.is_v4() { 9 } else { 6 }] == protocol::SCTP {
        let before = &sent.bytes()[sent.transport_offset() + 8..];
        let checksum = headers + 8..quote.len().min(headers + 12);
        quote[checksum.clone()].copy_from_slice(&before[checksum]);
    }
    error(says, from, to, about, transport).payload(&quote)
}

/// Checks an error that arrives as `sent`, and comes to `then`.
fn check(node: &Node, what: &str, talk: &Talk, met: Hook, sent: Packet, then: Then) {
    Case::new(format!("{what} {talk:?}"), met, sent, then).counting(Counter::ErrorTranslated).check(node);
}

/// Runs the test for every flow, protocol, error and length of the quotation.
fn each(test: impl Fn(&Node, &Talk, Transport, Says, usize)) {
    let mut node = Node::start();
    for family in FAMILIES {
        for (talk, opener) in Talk::all(family).iter().flat_map(|talk| OPENERS.map(|opener| (talk, opener))) {
            talk.begin(&mut node, opener);
            let [next, _] = later(opener);
            for says in errors(family) {
                for quoted in [8, 18, 60] {
                    test(&node, talk, next, says, quoted);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_of_the_backend_reaches_the_client_as_the_services() {
    each(|node, talk, transport, says, quoted| {
        let about = talk.request_seen(transport).a_hop_on();
        let sent = error(says, talk.backend.ip(), talk.seen.ip(), &about, quoted);
        let about = talk.request(transport).a_hop_on();
        let heard = retold(&sent, says, talk.service.ip(), talk.client.ip(), &about, quoted);
        let met = talk.backend_end.hook(talk.client_end);
        check(node, "backend's", talk, met, sent, talk.client_end.hears(met, heard));
    });
}

/// What the client says about an answer. That of a process of the node is a test of its own.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_of_the_client_reaches_the_backend_as_one_of_whom_it_answered() {
    each(|node, talk, transport, says, quoted| {
        if talk.client_end == End::Node {
            return;
        }
        let about = talk.reply_seen(transport).a_hop_on();
        let sent = error(says, talk.client.ip(), talk.service.ip(), &about, quoted);
        let about = talk.reply(transport).a_hop_on();
        let heard = retold(&sent, says, talk.seen.ip(), talk.backend.ip(), &about, quoted);
        check(node, "client's", talk, talk.met, sent, talk.backend_end.hears(talk.met, heard));
    });
}

/// It must leave for where the backend is, not for where the Service's address would be.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_of_a_process_of_the_node_reaches_the_backend() {
    each(|node, talk, transport, says, quoted| {
        if talk.client_end != End::Node {
            return;
        }
        let about = talk.reply_seen(transport).a_hop_on();
        let sent = error(says, talk.client.ip(), talk.service.ip(), &about, quoted);
        let about = talk.reply(transport).a_hop_on();
        let heard = retold(&sent, says, talk.seen.ip(), talk.backend.ip(), &about, quoted);
        let then = match talk.backend_end {
            End::Pod(pod) => Then::IntoPod(pod, heard),
            _ => Then::PassedToNode2(heard),
        };
        check(node, "process's", talk, OUT, sent, then);
    });
}

/// A router has no part in the flow: its own address is what traceroute is for.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_of_a_router_keeps_the_routers_address() {
    each(|node, talk, transport, says, quoted| {
        let router: IpAddr = if talk.client.is_ipv4() {
            [203, 0, 113, 1].into()
        } else {
            [0x2001, 0xdb8, 7, 0, 0, 0, 0, 1].into()
        };
        if talk.backend_end == End::Remote {
            let about = talk.request_seen(transport).a_hop_on();
            let sent = error(says, router, talk.seen.ip(), &about, quoted);
            let about = talk.request(transport).a_hop_on();
            let heard = retold(&sent, says, router, talk.client.ip(), &about, quoted);
            check(node, "on the way there", talk, WIRE, sent, talk.client_end.hears(WIRE, heard));
        }
        if talk.client_end == End::Outside {
            let about = talk.reply_seen(transport).a_hop_on();
            let sent = error(says, router, talk.service.ip(), &about, quoted);
            let about = talk.reply(transport).a_hop_on();
            let heard = retold(&sent, says, router, talk.backend.ip(), &about, quoted);
            check(node, "on the way back", talk, WIRE, sent, talk.backend_end.hears(WIRE, heard));
        }
    });
}

/// The node's stack speaks up where a translated packet finds no way on: as a router.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_of_the_nodes_own_stack_about_a_pods_packet_names_the_service_inside() {
    let mut node = Node::start();
    for (family, opener) in crate::every() {
        let talk = Talk::new(family, End::Pod(Pod::A), End::Remote, false);
        talk.begin(&mut node, opener);
        for says in errors(family) {
            let sent = error(says, family.node(), talk.client.ip(), &talk.request_seen(opener), 20);
            let heard = retold(&sent, says, family.node(), talk.client.ip(), &talk.request(opener), 20);
            check(&node, "stack's", &talk, Hook::ToPod(Pod::A), sent, Then::PassedAs(heard));
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_quoted_datagram_without_a_checksum_goes_on_having_none() {
    let mut node = Node::start();
    let talk = Talk::between_pods(Family::V4);
    let none = Transport::UdpWithoutChecksum;
    talk.begin(&mut node, none);
    for says in errors(Family::V4) {
        let sent = error(says, talk.backend.ip(), talk.seen.ip(), &talk.request_seen(none), 30);
        let heard = error(says, talk.service.ip(), talk.client.ip(), &talk.request(none), 30);
        check(&node, "backend's", &talk, B, sent, Then::ToPod(Pod::A, heard));
    }
}

/// An error is no packet of the flow: it neither keeps it alive nor makes it an answered one.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_error_leaves_the_flow_as_it_was() {
    let mut node = Node::start();
    for (family, opener) in crate::every() {
        let talk = Talk::between_pods(family);
        talk.begin(&mut node, opener);
        node.edit_flows(|flow| flow.last_seen -= 2_000_000_000);
        let by_key = |node: &Node| {
            let mut flows = node.flows();
            flows.sort_by_key(|(key, _)| (key.source, key.source_port));
            flows
        };
        let before = by_key(&node);
        let (request, seen) = (talk.request(opener), talk.request_seen(opener));
        let says = errors(family)[0];
        let sent = error(says, talk.backend.ip(), talk.seen.ip(), &seen, 8);
        let heard = error(says, talk.service.ip(), talk.client.ip(), &request, 8);
        check(&node, "backend's", &talk, B, sent, Then::ToPod(Pod::A, heard));
        assert_eq!(by_key(&node), before);
    }
}
