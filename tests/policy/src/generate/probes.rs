//! Random packets between everybody who is there, and at the edges of what policies say.

use std::net::{IpAddr, SocketAddr};

use fairlead_oracle::case::Kind;
use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{FAMILIES, Family};

use super::chance;
use crate::case::Probe;
use crate::cluster::Cluster;
use crate::world;

/// The port of the first probe's client; each has its own.
const FIRST_PORT: u16 = 20_000;
/// How many probes a case has.
const PROBES: u16 = 80;
/// Ports at and beside the ends of ranges.
const PORTS: [u16; 18] =
    [80, 80, 8080, 53, 9090, 1, 52, 54, 79, 81, 443, 444, 7999, 8000, 9000, 9001, 9091, 65_535];

/// Packets to and from the local pods.
pub fn probes(random: &mut Random, cluster: &Cluster) -> Vec<Probe> {
    (0..PROBES).filter_map(|number| probe(random, cluster, FIRST_PORT + number)).collect()
}

fn probe(random: &mut Random, cluster: &Cluster, port: u16) -> Option<Probe> {
    let family = *random.one_of(&FAMILIES);
    let of_family = |address: &&IpAddr| address.is_ipv4() == (family == Family::V4);
    let local: Vec<IpAddr> = cluster
        .endpoints
        .values()
        .flat_map(|endpoint| endpoint.addresses.iter().filter(of_family))
        .copied()
        .collect();
    if local.is_empty() {
        return None;
    }
    let pod = *random.one_of(&local);
    let other = match random.below(10) {
        0..=3 => *random.one_of(&local),
        4..=6 => world::remote_pod(family, 2 + random.below(5) as u32),
        7 if chance(random, 1, 2) => family.node(),
        7 => world::other_node(family),
        _ => *random.one_of(&world::outsiders(family)),
    };
    let (from, to) = if chance(random, 1, 2) { (pod, other) } else { (other, pod) };
    let kind = *random.one_of(&[Kind::Syn, Kind::Syn, Kind::Syn, Kind::Udp, Kind::Init, Kind::Echo]);
    let to_port =
        if chance(random, 1, 12) { 1 + random.below(65_535) as u16 } else { *random.one_of(&PORTS) };
    let (from_port, to_port) = if kind == Kind::Echo { (0, 0) } else { (port, to_port) };
    Some(Probe { kind, from: SocketAddr::new(from, from_port), to: SocketAddr::new(to, to_port) })
}
