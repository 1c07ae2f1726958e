//! Policies and Services: what is judged is the client before masquerading, and the backend that was chosen.

use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{Config, Reason, protocol};
use fairlead_oracle::case::Kind;
use fairlead_oracle::wire;
use fairlead_policy_oracle::programs::Subject;
use fairlead_policy_oracle::script::Script;
use fairlead_policy_oracle::world;
use fairlead_prog_tests::case::SHOT;
use fairlead_prog_tests::node::PLACES;
use fairlead_prog_tests::{FAMILIES, Family, Hook, Node, Pod};

/// The port of every Service here.
const SERVICE: u16 = 80;
/// The port of its backends.
const TARGET: u16 = 8080;
/// First of the ports that flows are masqueraded with.
const SNAT_FIRST: u16 = 50_000;

/// x/a sends to x/b at the target's port and to nobody else, and x/b is sent by x/a and by a machine outside.
const GUARDED: &str = "
pods: x/a x/b x/c

-- apply --
kind: NetworkPolicy
metadata: {namespace: x, name: client}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 8080}]}]
---
kind: NetworkPolicy
metadata: {namespace: x, name: server}
spec:
  podSelector: {matchLabels: {pod: b}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {pod: a}}
    - ipBlock: {cidr: 198.51.100.0/25}
    - ipBlock: {cidr: \"2001:db8:ffff::/49\"}
    ports: [{port: 8080}]

-- reach tcp/8080 --
     x/a x/b x/c
x/a  +   +   e
x/b  e   +   e
x/c  +   i   +

-- reach tcp/80 --
     x/b
x/a  e
out  i
";

/// What a pod's packets meet.
struct Guarded {
    subject: Subject,
}

impl Guarded {
    /// The cluster of a script, and at the first address of Services the backends that `serving` names by number.
    fn start(script: &str, serving: &[u32]) -> Self {
        let mut subject = Subject::start();
        for part in Script::parse(script).expect("a script").parts {
            subject.live_through(&part.steps).expect("live through it");
        }
        let node = subject.node();
        let (snat_first, snat_count) = (SNAT_FIRST, 1000);
        node.set_config(Config { places: PLACES, snat_first, snat_count, ..Node::config() });
        for (family, id) in FAMILIES.into_iter().zip([1, 11]) {
            let backends = serving.iter().zip(id..).map(|(number, id)| {
                node.set_backend(id, SocketAddr::new(world::local_pod(family, *number), TARGET), 1);
                id
            });
            let ids: Vec<u32> = backends.collect();
            for address in [family.cluster_ip(), family.node()] {
                node.set_frontend(protocol::TCP, SocketAddr::new(address, SERVICE), [&ids, &ids], 2);
            }
        }
        Self { subject }
    }

    /// Sends the packet that opens a connection. Returns where it went and from whom, or why not.
    fn dial(&mut self, hook: Hook, from: IpAddr, to: IpAddr) -> Result<(SocketAddr, SocketAddr), Reason> {
        let packet = wire::first(Kind::Syn, SocketAddr::new(from, 1234), SocketAddr::new(to, SERVICE));
        let node = self.subject.node();
        let before = node.drops();
        let outcome = node.send(hook, &hook.frame(packet).bytes());
        let after = node.drops();
        if outcome.code != SHOT {
            return Ok(wire::tuple(&outcome.packet).expect("a packet"));
        }
        let counts = Reason::ALL.iter().zip(after.iter().zip(&before));
        let reasons: Vec<Reason> =
            counts.filter(|(_, (after, before))| after > before).map(|(reason, _)| *reason).collect();
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        Err(reasons[0])
    }
}

fn at(family: Family, number: u32) -> SocketAddr {
    SocketAddr::new(world::local_pod(family, number), TARGET)
}

#[test]
#[ignore = "needs root: run make test"]
fn the_backend_and_its_port_are_judged_and_not_the_service_s() {
    for family in FAMILIES {
        let mut guarded = Guarded::start(GUARDED, &[12]);
        let a = world::local_pod(family, 11);
        let sent = guarded.dial(Hook::FromPod(Pod::A), a, family.cluster_ip());
        assert_eq!(sent, Ok((SocketAddr::new(a, 1234), at(family, 12))), "{family:?}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_backend_that_the_client_may_not_send_to_is_denied_on_its_side() {
    for family in FAMILIES {
        let mut guarded = Guarded::start(GUARDED, &[13]);
        let a = world::local_pod(family, 11);
        let sent = guarded.dial(Hook::FromPod(Pod::A), a, family.cluster_ip());
        assert_eq!(sent, Err(Reason::PolicyEgress), "{family:?}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_client_that_the_backend_may_not_be_sent_by_is_denied_on_its_side() {
    for family in FAMILIES {
        let mut guarded = Guarded::start(GUARDED, &[12]);
        // The third pod shares the first one's interface.
        let c = world::local_pod(family, 13);
        let sent = guarded.dial(Hook::FromPod(Pod::A), c, family.cluster_ip());
        assert_eq!(sent, Err(Reason::PolicyIngress), "{family:?}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_client_outside_is_judged_by_its_own_address_though_the_backend_sees_the_node_s() {
    for family in FAMILIES {
        let mut guarded = Guarded::start(GUARDED, &[12]);
        let [allowed, denied, _] = world::outsiders(family);
        let sent = guarded.dial(Hook::FromWire, denied, family.node());
        assert_eq!(sent, Err(Reason::PolicyIngress), "{family:?}");
        let (source, backend) = guarded.dial(Hook::FromWire, allowed, family.node()).expect("it passes");
        assert_eq!((source.ip(), backend), (family.node(), at(family, 12)), "{family:?}");
        // The backend's answer passes, though it may send to nobody.
        let answer = wire::answer(Kind::Syn, backend, source);
        let hook = Hook::FromPod(Pod::B);
        let node = guarded.subject.node();
        let outcome = node.send(hook, &hook.frame(answer).bytes());
        let client = SocketAddr::new(allowed, 1234);
        let service = SocketAddr::new(family.node(), SERVICE);
        assert_eq!(wire::tuple(&outcome.packet), Some((service, client)), "{family:?}");
        assert_ne!(outcome.code, SHOT, "{family:?}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_reaches_itself_by_its_service_unless_a_tier_denies_it() {
    for family in FAMILIES {
        let mut guarded = Guarded::start(GUARDED, &[12]);
        let b = world::local_pod(family, 12);
        let sent = guarded.dial(Hook::FromPod(Pod::B), b, family.cluster_ip());
        assert_eq!(sent.map(|(_, backend)| backend), Ok(at(family, 12)), "{family:?}");
        let tier = "
-- apply --
kind: ClusterNetworkPolicy
metadata: {name: all}
spec:
  tier: Admin
  priority: 0
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{namespaces: {}}]}]

-- reach tcp/8080 --
     x/b
x/b  iA
";
        // There is one node at a time.
        drop(guarded);
        let mut guarded = Guarded::start(&format!("pods: x/a x/b\n{tier}"), &[12]);
        let sent = guarded.dial(Hook::FromPod(Pod::B), b, family.cluster_ip());
        assert_eq!(sent, Err(Reason::PolicyIngress), "{family:?}");
    }
}
