//! Connections and flows of datagrams that are older than the policies: the pod's own sockets tell which end began them.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use fairlead_abi::{Counter, DropEvent, Reason, event_flags, flow_flags, policies, verdicts};
use fairlead_prog_tests::packet::tcp::{ACK, FIN_ACK, RST_ACK, SYN};
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, connect, getsockname,
    setsockopt, socket, sockopt,
};

use crate::at;
use crate::policy_plain::{A, POLICY};

const WIRE: Hook = Hook::FromWire;
/// A policy that admits everything.
const LENIENT: u32 = POLICY;
/// A policy that admits nothing.
const STRICT: u32 = POLICY + 1;

/// A connection between a pod and somebody else, both of whose sockets are in the node's namespace.
struct Connection {
    pod: SocketAddr,
    peer: SocketAddr,
    _sockets: Sockets,
}

impl Connection {
    /// From `client` to a listener at `server`, which goes on to listen if asked to.
    fn open(node: &Node, client: IpAddr, server: IpAddr, listens: bool) -> (SocketAddr, SocketAddr, Sockets) {
        node.inside(|| {
            let listener = TcpListener::bind((server, 0)).expect("listen");
            let server = listener.local_addr().expect("a bound socket has an address");
            let near = connect_from(client, server);
            let (far, client) = listener.accept().expect("accept");
            (client, server, (listens.then_some(listener), [near, far]))
        })
    }

    /// That the pod has accepted.
    fn accepted(node: &Node, family: Family, listens: bool) -> Self {
        let (peer, pod, sockets) = Self::open(node, family.home_peer(), family.home_pod(), listens);
        Self { pod, peer, _sockets: sockets }
    }

    /// That the pod has begun.
    fn begun(node: &Node, family: Family) -> Self {
        let (pod, peer, sockets) = Self::open(node, family.home_pod(), family.home_peer(), true);
        Self { pod, peer, _sockets: sockets }
    }

    fn sent(&self, flags: u8) -> Packet {
        Packet::tcp(flags, self.pod, self.peer)
    }

    fn heard(&self, flags: u8) -> Packet {
        Packet::tcp(flags, self.peer, self.pod)
    }
}

type Sockets = (Option<TcpListener>, [TcpStream; 2]);

/// A connection from this address.
fn connect_from(client: IpAddr, server: SocketAddr) -> TcpStream {
    let family = if client.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("make a socket");
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at(client, 0))).expect("bind");
    connect(socket.as_raw_fd(), &SockaddrStorage::from(server)).expect("connect");
    socket.into()
}

/// A node whose pod A also has the address that sockets can have.
fn prepare(node: &mut Node, family: Family, ingress: u32, egress: u32) {
    node.reset();
    node.set_policy(LENIENT, verdicts::ALLOW);
    node.set_policy(STRICT, verdicts::DENY_NETWORK);
    node.add_endpoint(Pod::A, family.home_pod());
    node.set_isolation(Pod::A, ingress, egress);
}

fn judged(case: Case) -> Case {
    case.counting(Counter::PolicyJudged)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_servers_answers_in_an_older_connection_are_judged_as_answers() {
    let mut node = Node::start();
    for family in FAMILIES {
        let connection = Connection::accepted(&node, family, true);
        for (ingress, then) in
            [(policies::OPEN, None), (LENIENT, None), (STRICT, Some(Reason::PolicyIngress))]
        {
            prepare(&mut node, family, ingress, STRICT);
            let answer = connection.sent(ACK);
            let Some(reason) = then else {
                judged(Case::begins("answer", A, answer.clone(), Then::ToStack(answer.clone()))).check(&node);
                Case::new("next", A, answer.clone(), Then::ToStack(answer)).check(&node);
                let request = connection.heard(FIN_ACK);
                Case::new("request", WIRE, request.clone(), Then::ToPod(Pod::A, request)).check(&node);
                continue;
            };
            judged(Case::new("denied", A, answer, Then::Dropped(reason))).check(&node);
            let [DropEvent { tuple, policy, flags, .. }] = node.events()[..] else { panic!("one event") };
            assert_eq!((policy, flags), (STRICT, event_flags::REPLY));
            assert_eq!(tuple.source, connection.peer.ip().into());
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_client_is_answered_in_an_older_connection_is_judged_as_an_answer() {
    let mut node = Node::start();
    for family in FAMILIES {
        let connection = Connection::begun(&node, family);
        for (egress, then) in [(policies::OPEN, None), (LENIENT, None), (STRICT, Some(Reason::PolicyEgress))]
        {
            prepare(&mut node, family, STRICT, egress);
            let answer = connection.heard(ACK);
            let Some(reason) = then else {
                let then = Then::ToPod(Pod::A, answer.clone());
                judged(Case::begins("answer", WIRE, answer.clone(), then.clone())).check(&node);
                Case::new("next", WIRE, answer, then).check(&node);
                let request = connection.sent(FIN_ACK);
                Case::new("request", A, request.clone(), Then::ToStack(request)).check(&node);
                continue;
            };
            judged(Case::new("denied", WIRE, answer, Then::Dropped(reason))).check(&node);
        }
    }
}

/// The other end of each.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_client_sends_in_an_older_connection_is_judged_as_it_is() {
    let mut node = Node::start();
    for family in FAMILIES {
        let begun = Connection::begun(&node, family);
        prepare(&mut node, family, policies::OPEN, STRICT);
        let denied = Then::Dropped(Reason::PolicyEgress);
        judged(Case::new("the pod's", A, begun.sent(ACK), denied)).check(&node);
        let accepted = Connection::accepted(&node, family, true);
        prepare(&mut node, family, STRICT, policies::OPEN);
        let denied = Then::Dropped(Reason::PolicyIngress);
        judged(Case::new("to the pod", WIRE, accepted.heard(ACK), denied)).check(&node);
    }
}

/// Nobody has such a connection, or it can't be told who began it, or it begins now.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn without_a_connection_and_a_listener_nothing_is_an_answer() {
    let mut node = Node::start();
    for family in FAMILIES {
        let other = |address: SocketAddr| at(address.ip(), address.port() ^ 1);
        let connection = Connection::accepted(&node, family, true);
        let left = Connection::accepted(&node, family, false);
        prepare(&mut node, family, policies::OPEN, STRICT);
        for (what, packet) in [
            ("of another peer's port", Packet::tcp(ACK, connection.pod, other(connection.peer))),
            ("of another port", Packet::tcp(ACK, other(connection.pod), connection.peer)),
            ("a reset to nobody", Packet::tcp(RST_ACK, connection.pod, other(connection.peer))),
            ("a SYN", connection.sent(SYN)),
            ("of a server that no longer listens", left.sent(ACK)),
            ("a datagram", Packet::udp(connection.pod, connection.peer)),
        ] {
            judged(Case::new(what, A, packet, Then::Dropped(Reason::PolicyEgress))).check(&node);
        }
        assert_eq!(node.flows(), []);
        node.quiet();
    }
}

/// A datagram socket of the pod that is connected to somebody else's address, in the node's namespace.
struct Datagrams {
    pod: SocketAddr,
    peer: SocketAddr,
    _sockets: Vec<OwnedFd>,
}

impl Datagrams {
    /// With another socket, which is not connected, at the same port if `listens`.
    fn open(node: &Node, family: Family, listens: bool) -> Self {
        let peer = at(family.home_peer(), 5353);
        node.inside(|| {
            let first = datagrams_at(at(family.home_pod(), 0));
            let bound: SockaddrStorage =
                getsockname(first.as_raw_fd()).expect("a bound socket has an address");
            let port = bound.as_sockaddr_in().map(SockaddrIn::port);
            let port = port.or(bound.as_sockaddr_in6().map(SockaddrIn6::port)).expect("a port");
            let pod = at(family.home_pod(), port);
            connect(first.as_raw_fd(), &SockaddrStorage::from(peer)).expect("connect");
            let other = listens.then(|| datagrams_at(pod));
            Self { pod, peer, _sockets: [first].into_iter().chain(other).collect() }
        })
    }

    fn sent(&self) -> Packet {
        Packet::udp(self.pod, self.peer)
    }

    fn heard(&self) -> Packet {
        Packet::udp(self.peer, self.pod)
    }

    /// Whether the entry of what the pod sends is that of a client.
    fn is_client(&self, node: &Node) -> bool {
        node.flow(&self.sent()).is_some_and(|flow| flow.flags & flow_flags::REPLY == 0)
    }
}

/// A datagram socket that shares its address with others.
fn datagrams_at(address: SocketAddr) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).expect("make a socket");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("share the address");
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).expect("bind");
    socket
}

/// The flow is older than the policy, and has no entry.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_datagram_to_a_socket_that_is_connected_to_its_sender_is_judged_as_an_answer() {
    let mut node = Node::start();
    for family in FAMILIES {
        let client = Datagrams::open(&node, family, false);
        for (egress, then) in [(policies::OPEN, None), (LENIENT, None), (STRICT, Some(Reason::PolicyEgress))]
        {
            prepare(&mut node, family, STRICT, egress);
            let (answer, request) = (client.heard(), client.sent());
            let Some(reason) = then else {
                let then = Then::ToPod(Pod::A, answer.clone());
                judged(Case::begins("answer", WIRE, answer.clone(), then.clone())).check(&node);
                assert!(client.is_client(&node));
                Case::new("next", WIRE, answer, then).check(&node);
                Case::new("request", A, request.clone(), Then::ToStack(request)).check(&node);
                continue;
            };
            judged(Case::new("denied", WIRE, answer, Then::Dropped(reason))).check(&node);
            let [DropEvent { tuple, policy, flags, .. }] = node.events()[..] else { panic!("one event") };
            assert_eq!((policy, flags), (STRICT, event_flags::REPLY | event_flags::EGRESS));
            assert_eq!(tuple.source, client.pod.ip().into());
            judged(Case::new("request", A, request, Then::Dropped(reason))).check(&node);
            node.quiet();
        }
    }
}

/// A server may connect a socket to each of its clients, beside the one that all others reach.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn without_a_connected_socket_or_beside_one_that_is_not_a_datagram_is_no_answer() {
    let mut node = Node::start();
    for family in FAMILIES {
        let other = |address: SocketAddr| at(address.ip(), address.port() ^ 1);
        let client = Datagrams::open(&node, family, false);
        let server = Datagrams::open(&node, family, true);
        prepare(&mut node, family, STRICT, policies::OPEN);
        for (what, packet) in [
            ("from another port", client.heard().from(other(client.peer))),
            ("to another port", client.heard().to(other(client.pod))),
            ("to a server", server.heard()),
        ] {
            judged(Case::new(what, WIRE, packet, Then::Dropped(Reason::PolicyIngress))).check(&node);
        }
        assert_eq!(node.flows(), []);
        node.quiet();
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_connected_socket_sends_is_the_clients_even_as_its_pod_comes_under_a_policy() {
    let mut node = Node::start();
    for family in FAMILIES {
        for listens in [false, true] {
            let pod = Datagrams::open(&node, family, listens);
            prepare(&mut node, family, STRICT, policies::OPEN);
            assert!(node.set_isolated(Pod::A, Duration::ZERO));
            let request = pod.sent();
            let case = if listens { Case::new } else { Case::begins };
            case("sent", A, request.clone(), Then::ToStack(request)).check(&node);
            assert_eq!(pod.is_client(&node), !listens);
        }
    }
}

/// The server is under no policy, and its answer passes; taken for the first of a flow, it would open a way back.
#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_connected_socket_hears_as_its_pod_comes_under_a_policy_is_an_answer() {
    let mut node = Node::start();
    for family in FAMILIES {
        let client = Datagrams::open(&node, family, false);
        let (answer, request) = (client.heard(), client.sent());
        let passes = Then::ToPod(Pod::A, answer.clone());
        for egress in [LENIENT, STRICT] {
            prepare(&mut node, family, policies::OPEN, egress);
            assert!(node.set_isolated(Pod::A, Duration::ZERO));
            let case = if egress == LENIENT { Case::begins } else { Case::new };
            case("answer", WIRE, answer.clone(), passes.clone()).check(&node);
            assert_eq!(client.is_client(&node), egress == LENIENT);
            if egress == STRICT {
                let denied = Then::Dropped(Reason::PolicyEgress);
                judged(Case::new("request", A, request.clone(), denied)).check(&node);
                node.quiet();
            }
        }
        if node.set_isolated(Pod::A, Duration::from_secs(3)) {
            Case::begins("of a flow of its own", WIRE, answer, passes).check(&node);
            assert!(!client.is_client(&node));
        }
    }
}
