//! Sockets that are connected to a backend before the first packet exists.
//!
//! Only sockets of the network namespaces in [`CLIENTS`] are touched: the host's own, and those of pods if the agent
//! is told so. The process goes on to see the frontend that it dialled: getpeername() and recvmsg() translate back.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use aya_ebpf::{EbpfContext, Global};
use fairlead_abi::{
    Address, Counter, FlowKey, Frontend, Port, Reason, SocketClient, SocketKey, SocketPeer, event_flags,
    frontend_flags, protocol, socket_flags,
};

use crate::lb::{self, Choice, Client};
use crate::{config, events, handover, observe, service};

#[map]
static SOCKETS: LruHashMap<SocketKey, SocketPeer> = LruHashMap::pinned(65_536, 0);

#[map]
static CLIENTS: HashMap<u64, SocketClient> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);

/// Whether the kernel has `bpf_set_retval`. What is not is no part of the programs: the verifier takes a value that is
/// set at load for a constant.
#[unsafe(no_mangle)]
static SAYS_WHY: Global<u8> = Global::new(1);

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// The family of the hook: a v6 socket may well dial a mapped IPv4 address.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    /// A hook for IPv4 addresses.
    V4,
    /// A hook for IPv6 addresses.
    V6,
}

/// connect(): dials a backend in place of a frontend.
///
/// A datagram socket is left to dial the frontend: once connected, no hook would see it again, not even
/// when its backend is gone. Its packets are translated one by one on their way out. Those of the host would not reach
/// a backend that is the node itself from there, and those to the node's own address, a NodePort's, take no such way:
/// such a socket is translated once, and refused when its backend is gone ([`is_left`]).
#[inline(always)]
pub(crate) fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let (mut frontend, mut choice) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let Some((frontend, dialled)) = dialling(ctx, family, &mut frontend) else {
        return ALLOW;
    };
    match lb::choose(frontend, Client::Inside, &dialled, &mut choice) {
        Ok(()) => {}
        Err(Reason::StaleService) => return ALLOW,
        Err(reason) => return refuse(&dialled, reason),
    }
    // SAFETY: a choice that is no error has been filled in.
    let choice = unsafe { choice.assume_init_ref() };
    let at_home = frontend.flags & frontend_flags::NODE_PORT != 0
        || config::is_node_address(choice.backend.address)
        || config::is_node_address(dialled.destination);
    if is_datagram(ctx) && !(at_home && config::is_host(netns_of(ctx))) {
        return ALLOW;
    }
    dial(ctx, family, &socket_key(ctx, &dialled), choice, socket_flags::CONNECTED)
}

/// sendmsg() with an address: sends to a backend in place of a frontend, the same one as long as it is there.
#[inline(always)]
pub(crate) fn send(ctx: &SockAddrContext, family: Family) -> i32 {
    let (mut frontend, mut choice) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let Some((frontend, dialled)) = dialling(ctx, family, &mut frontend) else {
        return ALLOW;
    };
    let socket = socket_key(ctx, &dialled);
    if let Some(peer) = chosen_before(&socket) {
        write(ctx, family, peer.address, peer.port);
        return ALLOW;
    }
    match lb::choose(frontend, Client::Inside, &dialled, &mut choice) {
        // SAFETY: as in `connect`.
        Ok(()) => dial(ctx, family, &socket, unsafe { choice.assume_init_ref() }, 0),
        Err(Reason::StaleService) => ALLOW,
        Err(reason) => refuse(&dialled, reason),
    }
}

/// The frontend that a process names, and the tuple of the packet that it would send.
#[inline(always)]
fn dialling<'room>(
    ctx: &SockAddrContext,
    family: Family,
    room: &'room mut MaybeUninit<Frontend>,
) -> Option<(&'room Frontend, FlowKey)> {
    let client = client_of(ctx)?;
    let (destination, destination_port) = read(ctx, family);
    let source = if destination.is_v4() { client.v4 } else { client.v6 };
    let source_port = Port::default();
    let protocol = protocol_of(ctx);
    let dialled = FlowKey { source, destination, source_port, destination_port, protocol, reserved: [0; 3] };
    // What is being replaced in this moment is left to the packet's way, here and by the callers.
    let frontend = service::find(&dialled, room).ok()??;
    Some((frontend, dialled))
}

/// The socket, and the address that it dialled.
#[inline(always)]
fn socket_key(ctx: &SockAddrContext, dialled: &FlowKey) -> SocketKey {
    // SAFETY: the helper reads the context that the kernel gave.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    SocketKey { cookie, address: dialled.destination, port: dialled.destination_port, reserved: [0; 3] }
}

#[inline(always)]
fn dial(ctx: &SockAddrContext, family: Family, dialled: &SocketKey, choice: &Choice, flags: u16) -> i32 {
    remember(dialled, choice, flags);
    write(ctx, family, choice.backend.address, choice.backend.port);
    observe::count(Counter::SocketTranslated);
    ALLOW
}

/// Fails the call at once, with the error that a refusal or a route that leads nowhere would give.
#[inline(always)]
fn refuse(dialled: &FlowKey, reason: Reason) -> i32 {
    observe::drop(reason);
    events::tell_of(dialled, reason, event_flags::SOCKET);
    let error = if let Reason::NoEndpoint = reason { ECONNREFUSED } else { EHOSTUNREACH };
    say_why(error);
    REFUSE
}

/// Has the call that is refused fail with `error`; on a kernel that does not offer it, it fails with EPERM.
#[inline(always)]
pub(crate) fn say_why(error: i32) {
    if SAYS_WHY.load() != 0 {
        // SAFETY: the helper takes a number (kernel 5.18).
        unsafe { bpf_set_retval(-error) };
    }
}

#[inline(always)]
fn is_datagram(ctx: &SockAddrContext) -> bool {
    protocol_of(ctx) == protocol::UDP
}

/// recvmsg() and getpeername(): names the frontend in place of the backend.
#[inline(always)]
pub(crate) fn name_peer(ctx: &SockAddrContext, family: Family) -> i32 {
    if client_of(ctx).is_none() {
        return ALLOW;
    }
    let (address, port) = read(ctx, family);
    // SAFETY: the helper reads the context that the kernel gave.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let key = SocketKey { cookie, address, port, reserved: [0; 3] };
    // SAFETY: the value is copied out at once; a racing write gives a stale address at worst.
    if let Some(peer) = unsafe { SOCKETS.get(&key) }
        && handover::may_name(peer, protocol_of(ctx))
    {
        write(ctx, family, peer.address, peer.port);
    }
    ALLOW
}

/// Who the socket's process is, if its sockets are to be translated.
#[inline(always)]
fn client_of(ctx: &SockAddrContext) -> Option<&'static SocketClient> {
    // SAFETY: all fields are integers; one that is reused in this moment is another client's at worst.
    unsafe { CLIENTS.get(&netns_of(ctx)) }
}

/// The cookie of the socket's network namespace.
#[inline(always)]
fn netns_of(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper reads the context that the kernel gave (kernel 5.8).
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The cookie of the socket that sent the packet; 0 if none did.
#[inline(always)]
pub(crate) fn cookie_of(ctx: &TcContext) -> u64 {
    // SAFETY: the helper reads the context that the kernel gave.
    unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) }
}

/// Whether the socket was translated, once and for all, to this backend, which is gone.
///
/// Out of line for the stack's sake.
#[inline(never)]
pub(crate) fn is_left(cookie: u64, destination: &Address, port: Port) -> bool {
    let key = SocketKey { cookie, address: *destination, port, reserved: [0; 3] };
    // SAFETY: two integers are read; a racing write gives stale ones at worst.
    unsafe { SOCKETS.get(&key) }.is_some_and(|peer| {
        let is_connected = peer.flags & socket_flags::CONNECTED != 0;
        is_connected && service::generation(peer.backend) != peer.generation
    })
}

/// The backend that this socket's datagrams to the frontend went to before, if it is still there.
#[inline(always)]
fn chosen_before(dialled: &SocketKey) -> Option<SocketPeer> {
    // SAFETY: the value is copied out at once; a racing write gives a stale address at worst.
    let peer = unsafe { SOCKETS.get(dialled) }.copied()?;
    (peer.generation != 0 && service::generation(peer.backend) == peer.generation).then_some(peer)
}

#[inline(always)]
fn remember(dialled: &SocketKey, choice: &Choice, flags: u16) {
    let backend = choice.backend;
    let there = SocketPeer {
        address: backend.address,
        port: backend.port,
        flags,
        backend: choice.id,
        generation: backend.generation,
    };
    let back = SocketPeer { address: dialled.address, port: dialled.port, ..there };
    let from = SocketKey { address: backend.address, port: backend.port, ..*dialled };
    // A table that refuses an entry costs the process the familiar name of its peer, not its connection.
    let _ = SOCKETS.insert(dialled, &there, 0);
    let _ = SOCKETS.insert(&from, &back, 0);
}

#[inline(always)]
fn protocol_of(ctx: &SockAddrContext) -> u8 {
    // SAFETY: the field is read through the context pointer that the kernel gave.
    unsafe { (&raw const (*ctx.sock_addr).protocol).read_volatile() as u8 }
}

/// The address that the process named.
#[inline(always)]
fn read(ctx: &SockAddrContext, family: Family) -> (Address, Port) {
    let named = ctx.sock_addr;
    // SAFETY: the fields lie in the context that the kernel gave, whose port is read as a whole word.
    unsafe {
        let address = read_address(family, &raw const (*named).user_ip4, &raw const (*named).user_ip6);
        (address, Port::from_wire((&raw const (*named).user_port).read_volatile() as u16))
    }
}

/// The address of this family in a context, one word at a time, which is the width that the verifier admits.
///
/// # Safety
/// Both must point into the context that the kernel gave.
#[inline(always)]
pub(crate) unsafe fn read_address(family: Family, v4: *const u32, v6: *const [u32; 4]) -> Address {
    // SAFETY: the caller's promise.
    unsafe {
        match family {
            Family::V4 => Address::from_v4_word(v4.read_volatile()),
            Family::V6 => {
                let words = v6.cast::<u32>();
                Address::from_v6_words([
                    words.read_volatile(),
                    words.add(1).read_volatile(),
                    words.add(2).read_volatile(),
                    words.add(3).read_volatile(),
                ])
            }
        }
    }
}

/// Puts another address in its place.
#[inline(always)]
fn write(ctx: &SockAddrContext, family: Family, address: Address, port: Port) {
    let named = ctx.sock_addr;
    // SAFETY: as in `read`.
    unsafe {
        match family {
            Family::V4 => (&raw mut (*named).user_ip4).write_volatile(address.v4_word()),
            Family::V6 => {
                let words = (&raw mut (*named).user_ip6).cast::<u32>();
                let [first, second, third, fourth] = address.words();
                words.write_volatile(first);
                words.add(1).write_volatile(second);
                words.add(2).write_volatile(third);
                words.add(3).write_volatile(fourth);
            }
        }
        (&raw mut (*named).user_port).write_volatile(u32::from(port.wire()));
    }
}
