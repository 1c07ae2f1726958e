//! Packets at the node's edge: from the wire, and from the node's own stack.

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Flow, Reason};

use crate::lb::{self, Client};
use crate::packet::{self, Packet};
use crate::verdict::Verdict;
use crate::{config, ct, endpoint, forward, icmp, nat, observe};

/// A packet that arrives from outside the node. Only what a local pod or a Service claims is ours; all else
/// is left to the node's stack.
#[inline(always)]
pub(crate) fn from_wire(ctx: &TcContext) -> Result<Verdict, Reason> {
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
    match flow_of(&packet, receiver.is_none()) {
        Ok(Some(flow)) => {
            nat::translate(ctx, &mut packet, &flow)?;
            forward::send(ctx, &packet)
        }
        Ok(None) => receiver.map_or(Ok(Verdict::Stack), |receiver| forward::deliver(ctx, &packet, receiver)),
        Err(Reason::NoEndpoint) => icmp::refuse(ctx, &packet, Reason::NoEndpoint),
        Err(reason) => Err(reason),
    }
}

/// The flow that a packet from outside belongs to, or begins if it is not for a pod.
#[inline(always)]
fn flow_of(packet: &Packet, may_begin: bool) -> Result<Option<Flow>, Reason> {
    match ct::find(packet) {
        None if may_begin => begin(packet, Client::Outside),
        found => Ok(found),
    }
}

/// A packet that the node's own stack sends: perhaps the reply of a backend that is the node itself.
/// Packets that are only forwarded have another source, and pass.
#[inline(always)]
pub(crate) fn from_stack(ctx: &TcContext) -> Result<Verdict, Reason> {
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

/// The flow to a Service that this packet is the first of, if its destination is a frontend.
#[inline(always)]
pub(crate) fn begin(packet: &Packet, client: Client) -> Result<Option<Flow>, Reason> {
    if !packet.has_ports() {
        return Ok(None);
    }
    let tuple = &packet.tuple;
    let Some(frontend) = lb::find(tuple.destination, tuple.destination_port, tuple.protocol) else {
        return Ok(None);
    };
    let flow = ct::open(packet, &lb::choose(&frontend, client)?)?;
    observe::count(Counter::FlowCreated);
    Ok(Some(flow))
}
