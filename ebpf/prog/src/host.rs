//! Packets at the node's edge: from the wire, and from the node's own stack.

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Reason};

use crate::lb::{self, Client};
use crate::packet::{self, Packet};
use crate::verdict::Verdict;
use crate::{config, ct, endpoint, forward, icmp, nat, observe};

/// A packet that arrives from outside the node.
#[inline(always)]
pub fn from_wire(ctx: &TcContext) -> Result<Verdict, Reason> {
    let Some(mut packet) = packet::parse(ctx)? else {
        return Ok(Verdict::Stack);
    };
    if packet.ttl <= 1 {
        return Ok(Verdict::Stack);
    }
    let receiver = endpoint::find(&packet.tuple.destination);
    if let Some(receiver) = receiver
        && !endpoint::is_translated(receiver)
    {
        return forward::deliver(ctx, &packet, receiver);
    }
    if let Some(flow) = ct::find(&packet) {
        nat::translate(ctx, &mut packet, &flow)?;
        return forward::send(ctx, &packet);
    }
    match receiver {
        Some(receiver) => forward::deliver(ctx, &packet, receiver),
        None => balance(ctx, &mut packet, Client::Outside),
    }
}

/// A packet that the node's own stack sends: perhaps the reply of a backend that is the node itself.
/// Packets that are only forwarded have another source, and pass.
#[inline(always)]
pub fn from_stack(ctx: &TcContext) -> Result<Verdict, Reason> {
    let Some(mut packet) = packet::parse(ctx)? else {
        return Ok(Verdict::Stack);
    };
    if config::is_node_address(packet.tuple.source)
        && packet.has_ports()
        && let Some(flow) = ct::find(&packet)
    {
        nat::translate(ctx, &mut packet, &flow)?;
    }
    Ok(Verdict::Stack)
}

/// A packet of no known flow, for no local pod: the first of a flow to a Service, or one to route.
///
/// From outside, only what a Service claims is ours; all else is left to the node's stack.
#[inline(always)]
pub fn balance(ctx: &TcContext, packet: &mut Packet, client: Client) -> Result<Verdict, Reason> {
    let tuple = &packet.tuple;
    let frontend = if packet.has_ports() {
        lb::find(tuple.destination, tuple.destination_port, tuple.protocol)
    } else {
        None
    };
    let Some(frontend) = frontend else {
        return match client {
            Client::Inside => forward::route(ctx, packet),
            Client::Outside => Ok(Verdict::Stack),
        };
    };
    match lb::choose(&frontend, client) {
        Ok(choice) => {
            let flow = ct::open(packet, &choice)?;
            observe::count(Counter::FlowCreated);
            nat::translate(ctx, packet, &flow)?;
            forward::send(ctx, packet)
        }
        Err(Reason::NoEndpoint) => icmp::refuse(ctx, packet, Reason::NoEndpoint),
        Err(reason) => Err(reason),
    }
}
