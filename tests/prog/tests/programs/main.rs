//! Packets through the loaded programs: one module per concern.

mod addresses;
mod affinity;
mod apart;
mod beside;
mod drops;
mod errors;
mod flows;
mod frames;
mod fuzz;
mod handover;
mod host;
mod leaks;
mod load;
mod maglev;
mod malformed;
mod nodeport;
mod odd_errors;
mod outside;
mod pods;
mod policy_datagrams;
mod policy_drops;
mod policy_flows;
mod policy_parts;
mod policy_plain;
mod policy_sockets;
mod ranges;
mod refusals;
mod sctp;
mod services;
mod shaped;
mod table;
mod too_big;
mod tracked;

use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{Flow, protocol};
use fairlead_prog_tests::case::REDIRECT;
use fairlead_prog_tests::packet::sctp::{DATA, INIT, INIT_ACK};
use fairlead_prog_tests::packet::tcp::{ACK, SYN, SYN_ACK};
use fairlead_prog_tests::{FAMILIES, Family, Hook, Node, Packet, Transport};

/// The first packet of a client, for each protocol that Services have.
const OPENERS: [Transport; 3] = [Transport::Tcp(SYN), Transport::Udp, Transport::Sctp(INIT)];
/// A port that a client uses.
const CLIENT_PORT: u16 = 40_000;
/// The port of a Service's cluster address.
const SERVICE_PORT: u16 = 80;
/// The port of a Service on the node's address.
const NODE_PORT: u16 = 30_080;
/// The port that backends listen on.
const TARGET_PORT: u16 = 8080;

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// Both families with each of the protocols.
fn every() -> impl Iterator<Item = (Family, Transport)> {
    FAMILIES.into_iter().flat_map(|family| OPENERS.map(|opener| (family, opener)))
}

/// The protocol's number.
fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp(_) => protocol::TCP,
        Transport::Sctp(_) => protocol::SCTP,
        _ => protocol::UDP,
    }
}

/// The packets that follow the first one of a connection, and those that answer it.
fn later(transport: Transport) -> [Transport; 2] {
    match transport {
        Transport::Tcp(_) => [Transport::Tcp(ACK), Transport::Tcp(SYN_ACK)],
        Transport::Sctp(_) => [Transport::Sctp(DATA), Transport::Sctp(INIT_ACK)],
        other => [other, other],
    }
}

/// Makes `frontend`, which is the only one from now on, lead to these backends, numbered from 1, whose
/// generation is 1.
fn serve(node: &mut Node, transport: Transport, frontend: SocketAddr, backends: &[SocketAddr]) {
    serve_with(node, transport, frontend, backends, 0);
}

/// As [`serve`], with flags.
fn serve_with(
    node: &mut Node,
    transport: Transport,
    frontend: SocketAddr,
    backends: &[SocketAddr],
    flags: u32,
) {
    node.forget();
    let ids: Vec<u32> = (1..).take(backends.len()).collect();
    for (id, backend) in ids.iter().zip(backends) {
        node.set_backend(*id, *backend, 1);
    }
    node.set_frontend(number(transport), frontend, [&ids, &ids], flags);
}

/// What a flow entry says, but for the time, and its place, which is drawn.
fn timeless(flow: Option<Flow>) -> Option<Flow> {
    flow.map(|flow| Flow { last_seen: 0, place: 0, ..flow })
}

/// Sends, and tells the program's return code alone.
fn code(node: &Node, hook: Hook, packet: &Packet) -> i32 {
    node.send(hook, &hook.frame(packet.clone()).bytes()).code
}

/// Lets every flow fall silent for so many seconds; false if the machine, whose clock it is, is younger.
fn age(node: &mut Node, seconds: u64) -> bool {
    node.edit_flows(|flow| flow.last_seen = flow.last_seen.wrapping_sub(seconds * 1_000_000_000));
    node.flows().iter().all(|(_, flow)| flow.last_seen < u64::MAX / 2)
}

/// Sends, and tells the port of the backend that the packet is translated to.
fn chosen(node: &Node, hook: Hook, packet: &Packet) -> u16 {
    let packet = hook.frame(packet.clone());
    let outcome = node.send(hook, &packet.bytes());
    assert_eq!(outcome.code, REDIRECT, "{hook:?}: {packet:?}");
    let port = packet.transport_offset() + 2;
    u16::from_be_bytes([outcome.packet[port], outcome.packet[port + 1]])
}
