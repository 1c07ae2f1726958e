//! Random packets: to everything that the objects name, near it, and elsewhere.

use std::net::{IpAddr, SocketAddr};

use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{FAMILIES, Family, Pod};

use super::chance;
use crate::case::{At, Kind, Object, Probe};
use crate::world::{self, pick};

/// The port of the first probe; a probe that is sent often takes the ports up to the next one's.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 260;
/// How many probes a case has at most.
const PROBES: usize = 80;
/// One probe in so many is sent often.
const OFTEN: usize = 20;

/// Probes of what these objects offer.
pub fn probes(random: &mut Random, objects: &[Object]) -> Vec<Probe> {
    let mut targets = Vec::new();
    for object in objects {
        if let Object::Service(service) = object {
            targets.extend(targets_of(service));
        }
    }
    targets.sort();
    targets.dedup();
    let mut wanted: Vec<(SocketAddr, Kind)> = Vec::new();
    for (to, protocol) in &targets {
        for _ in 0..1 + random.below(4) {
            let kind = kind_of(random, protocol);
            wanted.push(near(random, *to, kind));
        }
    }
    for _ in 0..8 {
        wanted.push((elsewhere(random), *random.one_of(&Kind::ALL)));
    }
    // Frontends that come back are what affinity is about; they are shuffled with the rest.
    for index in (1..wanted.len()).rev() {
        wanted.swap(index, random.below(index + 1));
    }
    wanted.truncate(PROBES);
    let mut probes = Vec::new();
    for (number, (to, kind)) in wanted.into_iter().enumerate() {
        let family = world::family(to.ip());
        let at = *random.one_of(&At::ALL);
        let from = at.address(family).unwrap_or_else(|| *random.one_of(&world::clients(family)));
        let from = SocketAddr::new(from, FIRST_PORT + number as u16 * PORTS);
        let to = if kind == Kind::Echo { SocketAddr::new(to.ip(), 0) } else { to };
        let often = kind != Kind::Echo && chance(random, 1, OFTEN);
        let probe = Probe { at, kind, from: nameless(from, kind), to, often };
        if is_possible(&probe) {
            probes.push(probe);
        }
    }
    probes
}

fn nameless(from: SocketAddr, kind: Kind) -> SocketAddr {
    if kind == Kind::Echo { SocketAddr::new(from.ip(), 0) } else { from }
}

/// What a host sends to itself or to its own pods does not leave by the uplink, and nobody sends to itself.
fn is_possible(probe: &Probe) -> bool {
    let to = probe.to.ip();
    let family = probe.family();
    let for_node = to == family.node() || world::pod_at(to).is_some();
    to != probe.from.ip() && (probe.at != At::Host || !for_node)
}

/// Every address and port that a Service might be at, whether or not it is.
fn targets_of(service: &k8s_openapi::api::core::v1::Service) -> Vec<(SocketAddr, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let addresses: Vec<IpAddr> = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(spec.external_ips.iter().flatten())
        .cloned()
        .chain(ingress.flatten().filter_map(|entry| entry.ip.clone()))
        .filter_map(|text| text.parse().ok())
        .filter(|address| is_sendable(*address))
        .collect();
    let mut targets = Vec::new();
    for port in spec.ports.iter().flatten() {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        if let Ok(number) = u16::try_from(port.port) {
            targets.extend(addresses.iter().map(|ip| ((*ip, number).into(), protocol.clone())));
        }
        if let Some(number) = port.node_port.and_then(|number| u16::try_from(number).ok()) {
            let nodes = FAMILIES.iter().flat_map(|family| [family.node(), world::second_address(*family)]);
            targets.extend(nodes.map(|ip| ((ip, number).into(), protocol.clone())));
        }
    }
    targets
}

/// Packets to other addresses are no unicast packets, or not what they seem.
fn is_sendable(address: IpAddr) -> bool {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !address.is_loopback() && !address.is_multicast() && !address.is_unspecified() && !mapped
}

fn kind_of(random: &mut Random, protocol: &str) -> Kind {
    match protocol {
        "UDP" => Kind::Udp,
        "SCTP" => Kind::Init,
        _ if chance(random, 1, 5) => Kind::Ack,
        _ => Kind::Syn,
    }
}

/// Most often the target itself; else the port beside it, or another protocol.
fn near(random: &mut Random, to: SocketAddr, kind: Kind) -> (SocketAddr, Kind) {
    let port = to.port();
    match random.below(16) {
        0 => (SocketAddr::new(to.ip(), port.wrapping_add(1)), kind),
        1 => (SocketAddr::new(to.ip(), port.wrapping_sub(1)), kind),
        2 => (to, *random.one_of(&Kind::ALL)),
        _ => (to, kind),
    }
}

fn elsewhere(random: &mut Random) -> SocketAddr {
    let family = *random.one_of(&FAMILIES);
    let port = *random.one_of(&[53, 80, 8080, 30_001]);
    SocketAddr::new(other_address(random, family), port)
}

fn other_address(random: &mut Random, family: Family) -> IpAddr {
    match random.below(8) {
        0 => pick(family, "10.96.0.200", "fd00:96::c8"),
        1 => pick(family, "10.97.0.9", "fd00:97::9"),
        2 => family.node(),
        3 => random.one_of(&Pod::ALL).ip(family),
        4 => *random.one_of(&world::remote_pods(family)),
        5 => world::other_node(family),
        6 => world::outsider(family),
        _ => pick(family, "192.0.2.99", "2001:db8::99"),
    }
}
