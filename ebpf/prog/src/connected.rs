//! Connections of local pods that are in no table of ours. The pod's own tables of sockets tell of them.
//!
//! A pod may have a plain connection to a backend, from a port from which it now dials a Service that would give it
//! that very backend: both would have one tuple there. And a pod may have connections that are older than the policies
//! which admit them from one of their ends only: which end has a listener tells who began. Of datagrams, a socket that is
//! connected tells that its owner is a client, if no other at its port hears everybody.

use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple as SocketTuple};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use fairlead_abi::{Address, FlowKey, protocol};

use crate::{endpoint, lent};

/// Of no socket.
const NONE: u32 = 0;
/// A state that new connections of the tuple may follow (RFC 9293, section 3.6.1).
const TIME_WAIT: u32 = 6;
/// The state of a datagram socket that is not connected (TCP_CLOSE), and of no other that is found.
const UNCONNECTED: u32 = 7;
/// A state of no connection.
const LISTEN: u32 = 10;
const V4: u32 = 12;
const V6: u32 = 36;

/// Whether one of the two ends is a local pod with a TCP connection whose packets arrive with this tuple, or leave
/// with it.
#[inline(always)]
pub(crate) fn has(skb: *mut __sk_buff, tuple: &FlowKey) -> bool {
    tuple.protocol == protocol::TCP && fairlead_conned(skb, tuple) != 0
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_conned(skb: *mut __sk_buff, tuple: *const FlowKey) -> u32 {
    // SAFETY: the caller passes a tuple of its own; the verifier wants to see that it is there.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else {
        return 0;
    };
    if let Some(receiver) = endpoint::find(&tuple.destination) {
        return u32::from(is_connected(skb, receiver.netns, tuple));
    }
    let answer = tuple.reversed();
    endpoint::find(&tuple.source).map_or(0, |sender| u32::from(is_connected(skb, sender.netns, &answer)))
}

/// Whether the namespace has a connection that a packet of this tuple would belong to.
#[inline(always)]
fn is_connected(skb: *mut __sk_buff, netns: u32, tuple: &FlowKey) -> bool {
    !matches!(state(skb, netns, tuple, From::Source), NONE | TIME_WAIT | LISTEN)
}

/// Whether the packet is one of a server to its client, in a connection that a local pod at either end of it has. Of
/// datagrams only those to a client that is a local pod and has connected its socket are known to be.
#[inline(always)]
pub(crate) fn is_answer(skb: *mut __sk_buff, tuple: &FlowKey) -> bool {
    let tells = matches!(tuple.protocol, protocol::TCP | protocol::UDP);
    tells && fairlead_answer(skb, tuple) != 0
}

/// Whether the datagram's sender is a local pod whose sockets do not say that it is a client of the receiver: perhaps
/// its server.
#[inline(always)]
pub(crate) fn may_be_answer(skb: *mut __sk_buff, tuple: &FlowKey) -> bool {
    fairlead_serves(skb, tuple) != 0
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_serves(skb: *mut __sk_buff, tuple: *const FlowKey) -> u32 {
    // SAFETY: the caller passes a tuple of its own; the verifier wants to see that it is there.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else {
        return 0;
    };
    let sender = endpoint::find(&tuple.source);
    u32::from(sender.is_some_and(|sender| end(skb, sender.netns, &tuple.reversed()) != End::Client))
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_answer(skb: *mut __sk_buff, tuple: *const FlowKey) -> u32 {
    // SAFETY: the caller passes a tuple of its own; the verifier wants to see that it is there.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else {
        return 0;
    };
    if tuple.protocol == protocol::UDP {
        // That a sender's socket is not connected says nothing: any may send to anybody.
        let receiver = endpoint::find(&tuple.destination);
        return u32::from(receiver.is_some_and(|receiver| end(skb, receiver.netns, tuple) == End::Client));
    }
    let mut is_told = 0;
    if let Some(receiver) = endpoint::find(&tuple.destination)
        && receiver.netns != 0
    {
        if end(skb, receiver.netns, tuple) != End::Client {
            return 0;
        }
        is_told = 1;
    }
    if let Some(sender) = endpoint::find(&tuple.source)
        && sender.netns != 0
    {
        if end(skb, sender.netns, &tuple.reversed()) != End::Server {
            return 0;
        }
        is_told = 1;
    }
    is_told
}

/// What the namespace is to the connection of packets that arrive there with a tuple.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It has no such connection.
    Neither,
    /// It has the connection, and nobody who would accept others at its port.
    Client,
    /// It has the connection, and a listener.
    Server,
}

#[inline(always)]
fn end(skb: *mut __sk_buff, netns: u32, tuple: &FlowKey) -> End {
    if matches!(state(skb, netns, tuple, From::Source), NONE | UNCONNECTED | LISTEN) {
        return End::Neither;
    }
    // From where nobody can be connected, only a listener would hear.
    let accepts = matches!(state(skb, netns, tuple, From::Nowhere), UNCONNECTED | LISTEN);
    if accepts { End::Server } else { End::Client }
}

/// Whose packet it is that a socket is looked up for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// The tuple's sender.
    Source,
    /// The unspecified address, from port 0.
    Nowhere,
}

/// The state of the socket in the namespace that a packet of this tuple would belong to (kernel 5.2), or [`NONE`].
///
/// Out of line for the stack's sake.
#[inline(never)]
fn state(skb: *mut __sk_buff, netns: u32, tuple: &FlowKey, from: From) -> u32 {
    if netns == 0 {
        return NONE;
    }
    let Some(wanted) = lent::sockets() else {
        return NONE;
    };
    let size = if tuple.source.is_v4() { V4 } else { V6 };
    let is_known = from == From::Source;
    // SAFETY: the fields lie within the struct, and those of the family that counts are all written.
    unsafe {
        if size == V4 {
            let v4 = &raw mut (*wanted).__bindgen_anon_1.ipv4;
            (&raw mut (*v4).saddr).write_volatile(if is_known { tuple.source.v4_word() } else { 0 });
            (&raw mut (*v4).daddr).write_volatile(tuple.destination.v4_word());
            (&raw mut (*v4).sport).write_volatile(if is_known { tuple.source_port.wire() } else { 0 });
            (&raw mut (*v4).dport).write_volatile(tuple.destination_port.wire());
        } else {
            let v6 = &raw mut (*wanted).__bindgen_anon_1.ipv6;
            let (source, destination) = ((&raw mut (*v6).saddr).cast(), (&raw mut (*v6).daddr).cast());
            write(source, if is_known { &tuple.source } else { &Address::UNSPECIFIED });
            write(destination, &tuple.destination);
            (&raw mut (*v6).sport).write_volatile(if is_known { tuple.source_port.wire() } else { 0 });
            (&raw mut (*v6).dport).write_volatile(tuple.destination_port.wire());
        }
    }
    if tuple.protocol == protocol::UDP {
        return datagrams(skb, wanted, size, netns);
    }
    // SAFETY: the context is the kernel's, the tuple ours, initialised as far as the size says.
    let socket = unsafe { bpf_skc_lookup_tcp(skb.cast(), wanted, size, u64::from(netns - 1), 0) };
    if socket.is_null() {
        return NONE;
    }
    // SAFETY: the helper has given a socket, whose state may be read until it is released.
    unsafe {
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state
    }
}

/// The same of a datagram socket (kernel 4.20). Out of line, since the verifier does not let one instruction read the
/// state of sockets of two kinds.
#[inline(never)]
fn datagrams(skb: *mut __sk_buff, wanted: *mut SocketTuple, size: u32, netns: u32) -> u32 {
    // SAFETY: as in `state`.
    let socket = unsafe { bpf_sk_lookup_udp(skb.cast(), wanted, size, u64::from(netns - 1), 0) };
    if socket.is_null() {
        return NONE;
    }
    // SAFETY: as in `state`.
    unsafe {
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state
    }
}

/// Writes an address word by word: as one value it would lie on the stack twice.
///
/// # Safety
/// `place` must be one of four words.
#[inline(always)]
unsafe fn write(place: *mut u32, address: &Address) {
    let [first, second, third, fourth] = address.words();
    // SAFETY: the caller's promise.
    unsafe {
        place.write_volatile(first);
        place.add(1).write_volatile(second);
        place.add(2).write_volatile(third);
        place.add(3).write_volatile(fourth);
    }
}
