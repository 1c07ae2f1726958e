//! `fairlead-cni node` on two nodes of different subnets, with a router between that knows no pods.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use fairlead_net::exec::Wiring;
use fairlead_net::netns::Netns;
use fairlead_net::node;
use serde_json::Value;

use crate::api::{FakeApi, node as node_object};
use crate::host::{Host, Pod};
use crate::sites::{Daemon, eventually, items, wire};

const PATIENCE: Duration = Duration::from_secs(5);
const PORT: u16 = 7;

/// Whom a node is: its subnets, with its own addresses and the router's, and its podCIDRs.
struct Site {
    name: &'static str,
    subnets: [(&'static str, &'static str, &'static str); 2],
    pod_cidrs: [&'static str; 2],
}

const SITES: [Site; 2] = [
    Site {
        name: "a",
        subnets: [
            ("192.0.2.0/24", "192.0.2.1", "192.0.2.254"),
            ("2001:db8:1::/64", "2001:db8:1::1", "2001:db8:1::fe"),
        ],
        pod_cidrs: ["10.244.1.0/24", "fd00:1::/64"],
    },
    Site {
        name: "b",
        subnets: [
            ("198.51.100.0/24", "198.51.100.2", "198.51.100.254"),
            ("2001:db8:2::/64", "2001:db8:2::2", "2001:db8:2::fe"),
        ],
        pod_cidrs: ["10.244.2.0/24", "fd00:2::/64"],
    },
];

impl Site {
    fn object(&self, underlay: Underlay) -> Value {
        let addresses: Vec<&str> = self.subnets.iter().map(|(_, address, _)| *address).collect();
        let known = if underlay == Underlay::V6 { &addresses[1..] } else { &addresses[..] };
        node_object(self.name, &self.pod_cidrs, known)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Underlay {
    V4,
    /// The Nodes have no IPv4 addresses.
    V6,
}

/// Two nodes, a pod on each, and the router.
struct Scene {
    hosts: [Host; 2],
    pods: [Pod; 2],
    addresses: [Vec<IpAddr>; 2],
    _apis: [FakeApi; 2],
    _daemons: Vec<Daemon>,
    _router: Pod,
    _uplinks: [Wiring; 2],
}

impl Scene {
    fn new(underlay: Underlay, arguments: &[&str]) -> Self {
        let router = Pod::new();
        router.netns.run(node::enable_forwarding).expect("enter").expect("enable forwarding");
        let hosts = [Host::new(&["10.0.0.0/8"]), Host::new(&["10.0.0.0/8"])];
        let uplinks = [0, 1].map(|n| {
            let site = &SITES[n];
            wire(&hosts[n].netns, &router.netns, site.name, &site.subnets)
        });
        let objects = SITES.each_ref().map(|site| site.object(underlay));
        let apis = hosts.each_ref().map(|host| FakeApi::serve(&host.netns, &objects));
        let daemons = vec![
            Daemon::start_as("a", &hosts[0], &apis[0], arguments),
            Daemon::start_as("b", &hosts[1], &apis[1], arguments),
        ];
        for host in &hosts {
            eventually("the conflist", || host.dir.path().join("conf/10-fairlead.conflist").exists());
        }
        let pods = [Pod::new(), Pod::new()];
        let addresses = [0, 1].map(|n| {
            let result = hosts[n].add(&pods[n]);
            let ips = result["ips"].as_array().expect("ips");
            let text =
                |ip: &Value| ip["address"].as_str().expect("text").split('/').next().map(str::to_owned);
            ips.iter().map(|ip| text(ip).expect("an address").parse().expect("an address")).collect()
        });
        Self { hosts, pods, addresses, _apis: apis, _daemons: daemons, _router: router, _uplinks: uplinks }
    }

    /// The address of a pod or a node, of the family.
    fn address(&self, at: At, v6: bool) -> IpAddr {
        match at {
            At::Pod(n) => *self.addresses[n].iter().find(|a| a.is_ipv6() == v6).expect("an address"),
            At::Host(n) => SITES[n].subnets[usize::from(v6)].1.parse().expect("an address"),
        }
    }

    fn netns(&self, at: At) -> &Netns {
        match at {
            At::Pod(n) => &self.pods[n].netns,
            At::Host(n) => &self.hosts[n].netns,
        }
    }

    /// Every pair across the router, of pods and nodes, by TCP and UDP, each seen with its own address.
    fn everybody_reaches_everybody(&self, families: &[bool]) {
        for &v6 in families {
            for (client, server) in [
                (At::Pod(0), At::Pod(1)),
                (At::Host(0), At::Pod(1)),
                (At::Pod(1), At::Host(0)),
                (At::Pod(0), At::Host(1)),
                (At::Host(1), At::Pod(0)),
            ] {
                let to = SocketAddr::new(self.address(server, v6), PORT);
                let expected = self.address(client, v6);
                let what = format!("{client:?} to {server:?} at {to}");
                assert_eq!(tcp(self.netns(client), self.netns(server), to), expected, "TCP, {what}");
                assert_eq!(udp(self.netns(client), self.netns(server), to), expected, "UDP, {what}");
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum At {
    Pod(usize),
    Host(usize),
}

/// Sends much by TCP; whom the server has seen.
fn tcp(client: &Netns, server: &Netns, to: SocketAddr) -> IpAddr {
    let listener = server.run(|| TcpListener::bind(to)).expect("enter").expect("bind");
    let sent = vec![7_u8; 500_000];
    thread::scope(|scope| {
        let served = scope.spawn(|| {
            let (mut stream, peer) = accept(&listener);
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).expect("read");
            assert_eq!(received.len(), 500_000);
            peer.ip()
        });
        let connect = || TcpStream::connect_timeout(&to, PATIENCE);
        let mut stream = client.run(connect).expect("enter").expect("connect");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&sent).expect("write");
        drop(stream);
        served.join().expect("the server")
    })
}

/// Accepts a connection, which has to come in time.
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).expect("non-blocking");
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        if let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(false).expect("blocking");
            return (stream, peer);
        }
        assert!(Instant::now() < deadline, "nobody connects");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends datagrams, one of which has to be cut to pieces; whom the server has seen.
fn udp(client: &Netns, server: &Netns, to: SocketAddr) -> IpAddr {
    let receiver = server.run(|| UdpSocket::bind(to)).expect("enter").expect("bind");
    receiver.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sender = client.run(|| UdpSocket::bind(any)).expect("enter").expect("bind");
    let mut seen = None;
    for size in [1, 1200, 3000] {
        sender.send_to(&vec![7; size], to).expect("send");
        let (received, peer) = receiver.recv_from(&mut [0; 4000]).expect("receive");
        assert_eq!(received, size);
        seen = Some(peer.ip());
    }
    seen.expect("a peer")
}

#[test]
#[ignore = "needs root: run make test"]
fn pods_and_nodes_reach_each_other_across_a_router_that_knows_no_pods() {
    let scene = Scene::new(Underlay::V4, &[]);
    scene.everybody_reaches_everybody(&[false, true]);
}

#[test]
#[ignore = "needs root: run make test"]
fn the_overlay_takes_ipv6_where_the_nodes_have_no_ipv4() {
    let scene = Scene::new(Underlay::V6, &[]);
    assert!(items(&scene.hosts[0]).iter().any(|item| item.starts_with("device fairlead-vxlan6")));
    // The nodes' IPv4 addresses are not known to each other.
    let to = SocketAddr::new(scene.address(At::Pod(1), false), PORT);
    let pods = [0, 1].map(|n| scene.netns(At::Pod(n)));
    assert_eq!(tcp(pods[0], pods[1], to), scene.address(At::Pod(0), false));
    scene.everybody_reaches_everybody(&[true]);
}

#[test]
#[ignore = "needs root: run make test"]
fn pods_that_have_a_larger_mtu_than_the_overlay_learn_what_fits() {
    // As those that are older than the first node elsewhere.
    let scene = Scene::new(Underlay::V4, &["--mtu=1400"]);
    for v6 in [false, true] {
        let to = SocketAddr::new(scene.address(At::Pod(1), v6), PORT);
        let [client, server] = [0, 1].map(|n| scene.netns(At::Pod(n)));
        assert_eq!(tcp(client, server, to), scene.address(At::Pod(0), v6));
    }
}
