//! The kernel's connection tracking: its table, its events, and entries of ours (ctnetlink,
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use fairlead_abi::{Address, Flow, FlowKey, Port, flow_flags, protocol};
use fairlead_flow::life;
use nix::sys::time::TimeVal;

use super::netlink::{
    self, Attributed, CONNTRACK, CREATE, EXCLUSIVE, Message, Nest, Received, Socket, attribute,
};

/// `IPCTNL_MSG_CT_NEW`, `_GET` and `_DELETE`.
const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;
/// `CTA_*`.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const NAT_SOURCE: u16 = 6;
const TIMEOUT: u16 = 7;
const NAT_DESTINATION: u16 = 13;
const ZONE: u16 = 18;
/// `CTA_TUPLE_*`, `CTA_IP_*` and `CTA_PROTO_*`.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE: u16 = 2;
const PROTOCOL_DESTINATION: u16 = 3;
/// `CTA_NAT_V4_MINIP`, `CTA_NAT_V6_MINIP`, `CTA_NAT_PROTO` and `CTA_PROTONAT_PORT_*`.
const NAT_V4_FIRST: u16 = 1;
const NAT_V6_FIRST: u16 = 4;
const NAT_PROTOCOL: u16 = 3;
const NAT_PORT_FIRST: u16 = 1;
const NAT_PORT_LAST: u16 = 2;
/// `CTA_PROTOINFO_TCP` and its `_STATE` and `_FLAGS_*`.
const INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const TCP_FLAGS_ORIGINAL: u16 = 4;
const TCP_FLAGS_REPLY: u16 = 5;
/// `TCP_CONNTRACK_ESTABLISHED`, and the first of the states of a connection that ends.
const ESTABLISHED: u8 = 3;
const FIN_WAIT: u8 = 4;
const TIME_WAIT: u8 = 7;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: the numbers of its segments are not known.
const BE_LIBERAL: u8 = 8;
/// `IPS_SEEN_REPLY`, `IPS_ASSURED`, `IPS_CONFIRMED` and `IPS_DST_NAT`.
const SEEN_REPLY: u32 = 2;
const ASSURED: u32 = 4;
const CONFIRMED: u32 = 8;
const DESTINATION_TRANSLATED: u32 = 0x20;
/// `NFNLGRP_CONNTRACK_NEW` and `_DESTROY`, a bit each.
const GROUPS: u32 = 1 | 1 << 2;
/// How long to wait for an event.
const WAIT: TimeVal = TimeVal::new(0, 200_000);

/// A connection as connection tracking knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The tuple of the client's packets before anything is translated.
    pub original: FlowKey,
    /// That of the backend's.
    pub reply: FlowKey,
    /// Whether the client's packets are given another receiver.
    pub is_translated: bool,
    /// For how many seconds more it is known if nothing comes; 0 where that is not told.
    pub seconds: u32,
    /// Whether one end has said goodbye.
    pub is_closing: bool,
    /// Whether both have, or it was reset: its entry only waits for its time to pass.
    pub is_over: bool,
}

/// What connection tracking tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection was entered.
    New(Connection),
    /// One was removed.
    Gone(Connection),
}

/// Whether connection tracking is loaded and has connections in this network namespace. Asked in any other way, it would
/// be loaded.
pub fn is_at_work() -> bool {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.is_ok_and(|count| count.trim() != "0")
}

/// Subscribes to what begins and ends.
///
/// # Errors
/// When the kernel refuses.
pub fn subscribe() -> io::Result<Socket> {
    Socket::subscribed(GROUPS, WAIT)
}

/// Passes on the next events, after a fifth of a second at the latest.
///
/// # Errors
/// When some were lost, or the kernel refuses.
pub fn next(socket: &mut Socket, mut take: impl FnMut(Event)) -> io::Result<()> {
    socket.events(|message| {
        let number = message.kind & 0xff;
        let Some(connection) = read(&message) else { return };
        match number {
            NEW if message.flags & (CREATE | EXCLUSIVE) != 0 => take(Event::New(connection)),
            DELETE => take(Event::Gone(connection)),
            _ => {}
        }
    })
}

/// The connections of protocols with ports.
///
/// # Errors
/// When the kernel refuses.
pub fn list(mut take: impl FnMut(Connection)) -> io::Result<()> {
    // Of all address families, `AF_UNSPEC`.
    let message = Message::new(CONNTRACK, GET, 0, 0);
    Socket::open()?.dump(&message, |message| {
        if let Some(connection) = read(&message) {
            take(connection);
        }
    })
}

/// Removes the connection with this original tuple, if it is there.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(socket: &mut Socket, original: &FlowKey) -> io::Result<()> {
    let message = Message::new(CONNTRACK, DELETE, family(original), 0).nest(TUPLE_ORIGINAL, &tuple(original));
    match socket.request(&message) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Enters the connection whose client's packets arrive with the tuple `key` and are translated by `flow`: the kernel
/// goes on with it. One that is there already with another translation is replaced.
///
/// # Errors
/// When the kernel refuses.
pub fn enter(socket: &mut Socket, key: &FlowKey, flow: &Flow) -> io::Result<()> {
    let message = entry(key, flow);
    match socket.request(&message) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
            remove(socket, key)?;
            socket.request(&message)
        }
        other => other,
    }
}

fn entry(key: &FlowKey, flow: &Flow) -> Message {
    let seconds = u32::try_from(life::span(flow, key.protocol) / 1_000_000_000).unwrap_or(u32::MAX);
    let mut message = Message::new(CONNTRACK, NEW, family(key), CREATE | EXCLUSIVE)
        .nest(TUPLE_ORIGINAL, &tuple(key))
        // Not yet translated: the kernel does that by what follows.
        .nest(TUPLE_REPLY, &tuple(&key.reversed()))
        .with(STATUS, &(SEEN_REPLY | ASSURED | CONFIRMED).to_be_bytes())
        .with(TIMEOUT, &seconds.to_be_bytes());
    if (flow.destination, flow.destination_port) != (key.destination, key.destination_port) {
        message = message.nest(NAT_DESTINATION, &range(flow.destination, flow.destination_port));
    }
    if (flow.source, flow.source_port) != (key.source, key.source_port) {
        message = message.nest(NAT_SOURCE, &range(flow.source, flow.source_port));
    }
    if key.protocol == protocol::TCP {
        let closing = flow.flags & flow_flags::CLOSING != 0;
        let info = Nest::default()
            .with(TCP_STATE, &[if closing { FIN_WAIT } else { ESTABLISHED }])
            .with(TCP_FLAGS_ORIGINAL, &[BE_LIBERAL; 2])
            .with(TCP_FLAGS_REPLY, &[BE_LIBERAL; 2]);
        message = message.nest(PROTOCOL_INFO, &Nest::default().nest(INFO_TCP, &info));
    }
    message
}

fn range(address: Address, port: Port) -> Nest {
    let ports = Nest::default()
        .with(NAT_PORT_FIRST, &port.number().to_be_bytes())
        .with(NAT_PORT_LAST, &port.number().to_be_bytes());
    let first = if address.is_v4() { NAT_V4_FIRST } else { NAT_V6_FIRST };
    Nest::default().with(first, &octets(address)).nest(NAT_PROTOCOL, &ports)
}

fn family(key: &FlowKey) -> u8 {
    // `NFPROTO_IPV4` and `NFPROTO_IPV6`.
    if key.source.is_v4() { 2 } else { 10 }
}

fn octets(address: Address) -> Vec<u8> {
    match IpAddr::from(address) {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn tuple(key: &FlowKey) -> Nest {
    // `CTA_IP_V4_SRC` and `CTA_IP_V6_SRC`; the destination's number is one more.
    let source = if key.source.is_v4() { 1 } else { 3 };
    let addresses =
        Nest::default().with(source, &octets(key.source)).with(source + 1, &octets(key.destination));
    let ports = Nest::default()
        .with(PROTOCOL_NUMBER, &[key.protocol])
        .with(PROTOCOL_SOURCE, &key.source_port.number().to_be_bytes())
        .with(PROTOCOL_DESTINATION, &key.destination_port.number().to_be_bytes());
    Nest::default().nest(TUPLE_IP, &addresses).nest(TUPLE_PROTOCOL, &ports)
}

/// The connection in a message; none of a protocol without ports, or in a zone of somebody's own.
fn read(message: &Received<'_>) -> Option<Connection> {
    let all = message.attributes;
    if attribute(all, ZONE).and_then(netlink::half).is_some_and(|zone| zone != 0) {
        return None;
    }
    let original = read_tuple(attribute(all, TUPLE_ORIGINAL)?)?;
    let reply = read_tuple(attribute(all, TUPLE_REPLY)?)?;
    let status = attribute(all, STATUS).and_then(netlink::word).unwrap_or(0);
    let is_redirected =
        (reply.source, reply.source_port) != (original.destination, original.destination_port);
    let state = attribute(all, PROTOCOL_INFO)
        .and_then(|info| attribute(info, INFO_TCP))
        .and_then(|tcp| attribute(tcp, TCP_STATE))
        .and_then(|state| state.first().copied());
    Some(Connection {
        original,
        reply,
        // An event of an end has no status.
        is_translated: is_redirected && (status & DESTINATION_TRANSLATED != 0 || status == 0),
        seconds: attribute(all, TIMEOUT).and_then(netlink::word).unwrap_or(0),
        is_closing: state.is_some_and(|state| state >= FIN_WAIT),
        is_over: state.is_some_and(|state| state >= TIME_WAIT),
    })
}

fn read_tuple(bytes: &[u8]) -> Option<FlowKey> {
    let (addresses, ports) = (attribute(bytes, TUPLE_IP)?, attribute(bytes, TUPLE_PROTOCOL)?);
    let address = |v4, v6| {
        let v4 = attribute(addresses, v4).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
        let v6 = attribute(addresses, v6).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
        v4.map(IpAddr::from).or(v6.map(|octets| Ipv6Addr::from(octets).into())).map(Address::from)
    };
    let port = |kind| attribute(ports, kind).and_then(netlink::half).map(Port::new);
    let protocol = *attribute(ports, PROTOCOL_NUMBER)?.first()?;
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP).then_some(())?;
    Some(FlowKey {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        source_port: port(PROTOCOL_SOURCE)?,
        destination_port: port(PROTOCOL_DESTINATION)?,
        protocol,
        reserved: [0; 3],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &str, destination: &str) -> FlowKey {
        let [source, destination] =
            [source, destination].map(|text| text.parse::<std::net::SocketAddr>().expect("an address"));
        FlowKey {
            source: source.ip().into(),
            destination: destination.ip().into(),
            source_port: Port::new(source.port()),
            destination_port: Port::new(destination.port()),
            protocol: protocol::TCP,
            reserved: [0; 3],
        }
    }

    #[test]
    fn a_tuple_is_read_as_it_is_written() {
        for key in [key("10.0.0.1:40000", "10.96.0.1:80"), key("[fd00::1]:40000", "[fd00::2]:80")] {
            assert_eq!(read_tuple(tuple(&key).bytes()), Some(key));
        }
    }

    #[test]
    fn who_is_given_another_receiver_is_translated_and_who_only_leaves_with_another_address_is_not() {
        let (client, frontend, backend, node) =
            ("10.0.0.1:40000", "10.96.0.1:80", "10.0.1.2:8080", "192.0.2.1:50000");
        let status = |bits: u32| bits.to_be_bytes();
        for (reply, bits, is_translated) in [
            (key(backend, client), SEEN_REPLY | DESTINATION_TRANSLATED, true),
            (key(backend, node), DESTINATION_TRANSLATED | 0x10, true),
            (key(frontend, node), 0x10, false),
            (key(frontend, client), SEEN_REPLY, false),
        ] {
            let attributes = Nest::default()
                .nest(TUPLE_ORIGINAL, &tuple(&key(client, frontend)))
                .nest(TUPLE_REPLY, &tuple(&reply))
                .with(STATUS, &status(bits));
            let received = Received { kind: 0x100, flags: 0, family: 2, attributes: attributes.bytes() };
            assert_eq!(read(&received).map(|read| read.is_translated), Some(is_translated), "{reply:?}");
        }
    }
}
