//! The flow table: which packets are translated, and to what.
//!
//! Only flows to Services are in it. Each has two entries, made together by [`open`]: the client's packets
//! find the forward one, the backend's packets the reply one. The table is an LRU hash: when it is full, the
//! flow that was silent longest makes way.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use fairlead_abi::{Address, Config, Flow, FlowKey, Reason, flow_flags, protocol};
use fairlead_flow::snat;

use crate::lb::{self, Choice};
use crate::packet::Packet;
use crate::{config, endpoint};

#[map]
static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(65_536, 0);

/// How stale `last_seen` may grow before a packet writes it anew.
const REFRESH: u64 = 500_000_000;

/// Nanoseconds of the monotonic clock, to the last tick (kernel 5.11).
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and only reads the clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The flow that this packet belongs to, noted as seen. A forward flow whose backend is gone is none:
/// its packet is balanced anew.
#[inline(always)]
pub(crate) fn find(packet: &Packet) -> Option<Flow> {
    let entry = FLOWS.get_ptr_mut(&packet.tuple)?;
    // SAFETY: the pointer is to a live element; all fields are integers, so that a racing write, or the
    // element's reuse, can only give a stale value, never an invalid one.
    let flow = unsafe { *entry };
    if flow.flags & flow_flags::REPLY == 0 && is_stale(packet, &flow) {
        return None;
    }
    let seen = now();
    let ended = packet.tcp.closes() || packet.tcp.resets();
    let flags = if packet.tcp.resets() {
        flow.flags | flow_flags::RESET
    } else if packet.tcp.closes() {
        flow.flags | flow_flags::CLOSING
    } else {
        flow.flags & !flow_flags::RESET
    };
    if flags != flow.flags || seen.wrapping_sub(flow.last_seen) > REFRESH {
        // SAFETY: as above.
        unsafe {
            (*entry).flags = flags;
            (*entry).last_seen = seen;
        }
    }
    if ended {
        end_partner(packet, &flow, seen);
    }
    Some(flow)
}

/// Whether the flow must choose a backend anew. A datagram never goes to a backend that is gone; a TCP
/// connection stays with the backend that knows it, to the end, and only a new one may take its place.
#[inline(always)]
fn is_stale(packet: &Packet, flow: &Flow) -> bool {
    if packet.tuple.protocol == protocol::TCP && !packet.tcp.opens() {
        return false;
    }
    let over = flow.flags & (flow_flags::CLOSING | flow_flags::RESET) != 0;
    over || lb::generation(flow.backend) != flow.generation
}

/// The tuple that a flow's packets leave with.
#[inline(always)]
fn leaving(flow: &Flow, ip_protocol: u8) -> FlowKey {
    FlowKey {
        source: flow.source,
        destination: flow.destination,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        protocol: ip_protocol,
        reserved: [0; 3],
    }
}

/// Tells the entry of the other direction that the connection ends.
#[inline(always)]
fn end_partner(packet: &Packet, flow: &Flow, seen: u64) {
    let partner = leaving(flow, packet.tuple.protocol).reversed();
    if let Some(entry) = FLOWS.get_ptr_mut(&partner) {
        let flag = if packet.tcp.resets() { flow_flags::RESET } else { flow_flags::CLOSING };
        // SAFETY: as in `find`.
        unsafe {
            (*entry).flags |= flag;
            (*entry).last_seen = seen;
        }
    }
}

/// Enters a new flow to the chosen backend, in both directions.
#[inline(always)]
pub(crate) fn open(packet: &Packet, choice: &Choice) -> Result<Flow, Reason> {
    let config = config::get()?;
    let backend = choice.backend.address;
    // A backend that is the node itself answers through the node's stack, where the reply is seen anyhow,
    // and would refuse a packet that claims to come from its own address. A pod that reaches itself must
    // not see its own address either.
    let masquerade = backend == packet.tuple.source || choice.masquerade && !config::is_node_address(backend);
    let source =
        if masquerade { config::node_address(config, packet.tuple.source)? } else { packet.tuple.source };
    let seen = now();
    let mut reply = FlowKey {
        source: choice.backend.address,
        destination: source,
        source_port: choice.backend.port,
        destination_port: packet.tuple.source_port,
        protocol: packet.tuple.protocol,
        reserved: [0; 3],
    };
    let back = Flow {
        last_seen: seen,
        source: packet.tuple.destination,
        destination: packet.tuple.source,
        source_port: packet.tuple.destination_port,
        destination_port: packet.tuple.source_port,
        backend: choice.id,
        generation: choice.backend.generation,
        flags: flow_flags::REPLY,
        reserved: 0,
    };
    // A client that keeps its address keeps its port too, unless another flow of its own, to another
    // frontend of the same backend, has it.
    let kept = !masquerade && claim(&reply, &back);
    if !kept {
        masquerade_port(&mut reply, &back, config)?;
    }
    let forward = Flow {
        source,
        destination: choice.backend.address,
        source_port: reply.destination_port,
        destination_port: choice.backend.port,
        flags: 0,
        ..back
    };
    FLOWS.insert(&packet.tuple, &forward, 0).map_err(|_| Reason::FlowTableFull)?;
    mark(&forward, &packet.tuple.source);
    Ok(forward)
}

/// Both ends of the flow, where they are local pods, must consult the table from now on.
#[inline(always)]
fn mark(forward: &Flow, client: &Address) {
    endpoint::mark_translated(client);
    endpoint::mark_translated(&forward.destination);
}

/// Enters the first reply key that is free, trying one port of the range after the other. Out of line, so that
/// the verifier does not carry the callers' state through the search.
#[inline(never)]
fn masquerade_port(reply: &mut FlowKey, back: &Flow, config: &Config) -> Result<(), Reason> {
    // SAFETY: the helper takes nothing and returns a number.
    let seed = unsafe { bpf_get_prandom_u32() };
    for attempt in 0..snat::ATTEMPTS {
        reply.destination_port = snat::candidate(config.snat_first, config.snat_count, seed, attempt);
        if claim(reply, back) {
            return Ok(());
        }
    }
    Err(Reason::NoSnatPort)
}

/// Enters the reply key if it is free, is this flow's own from before, or has been left.
#[inline(always)]
fn claim(reply: &FlowKey, back: &Flow) -> bool {
    if FLOWS.insert(reply, back, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    let Some(entry) = FLOWS.get_ptr_mut(reply) else {
        return false;
    };
    // SAFETY: as in `find`.
    let held = unsafe { &*entry };
    let own = held.destination == back.destination
        && held.destination_port == back.destination_port
        && held.source == back.source
        && held.source_port == back.source_port;
    if !own && !snat::may_take_over(held, reply.protocol, back.last_seen) {
        return false;
    }
    FLOWS.insert(reply, back, 0).is_ok()
}
