//! Sending a packet on: into a local pod, or by the kernel's routing table.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Address, Counter, Endpoint, FlowKey, Mac, Reason, endpoint_flags, protocol};

use crate::packet::{ETHERNET, Ethernet, Ipv4, Ipv6, Packet, UDP, at};
use crate::refuse::Back;
use crate::verdict::{self, Verdict};
use crate::{config, endpoint, nat, observe, too_big};

/// Linux' number of IPv4, everywhere the same.
const AF_INET: u8 = 2;
/// Linux' number of IPv6.
const AF_INET6: u8 = 10;

/// Where a TCP header has its length, in words, in the upper half of the byte.
const TCP_DATA_OFFSET: usize = 12;
/// That byte of a header without options.
const TCP_NO_OPTIONS: u8 = 5 << 4;

/// The mark of a packet that one of our programs sends out of an interface, for the program at that interface's egress:
/// there is nothing left to do. It is gone when the packet leaves the node or its namespace.
const SETTLED: u32 = 0xfa1e_ad00;

/// Marks a packet as settled, if nobody else has marked it.
#[inline(always)]
fn settle(ctx: &TcContext) {
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    if unsafe { (*ctx.skb.skb).mark } == 0 {
        // SAFETY: as above; the mark may be written.
        unsafe { (*ctx.skb.skb).mark = SETTLED };
    }
}

/// Whether a packet at an interface's egress has been settled; the mark is taken off.
#[inline(always)]
pub(crate) fn is_settled(ctx: &TcContext) -> bool {
    let settled = bears_mark(ctx);
    if settled {
        // SAFETY: as in `settle`.
        unsafe { (*ctx.skb.skb).mark = 0 };
    }
    settled
}

/// Whether a packet has been settled; the mark stays.
#[inline(always)]
pub(crate) fn bears_mark(ctx: &TcContext) -> bool {
    // SAFETY: as in `settle`.
    unsafe { (*ctx.skb.skb).mark == SETTLED }
}

/// Sends a packet to wherever its destination is.
#[inline(always)]
pub(crate) fn send(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    Ok(Verdict::Done(fairlead_send(ctx.skb.skb, packet)))
}

/// Out of line as a global function: the verifier walks it once, by itself, and its callers go on with one state
/// where the ways through it had many; nor do they hold its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_send(skb: *mut __sk_buff, packet: *const Packet) -> i32 {
    // SAFETY: the caller passes a packet of its own; the verifier wants to see that it is there.
    match unsafe { packet.as_ref() } {
        Some(packet) => verdict::code(send_on(&TcContext::new(skb), packet)),
        None => verdict::code(Ok(Verdict::Stack)),
    }
}

#[inline(always)]
fn send_on(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    match endpoint::find(&packet.tuple.destination) {
        Some(receiver) => deliver(ctx, packet, receiver),
        None => route(ctx, packet),
    }
}

/// Puts a packet straight into a local pod's namespace, past the host's stack (kernel 5.10) and the queue of the pod's
/// interface, unless that queue limits what the pod is sent.
#[inline(always)]
pub(crate) fn deliver(ctx: &TcContext, packet: &Packet, receiver: &Endpoint) -> Result<Verdict, Reason> {
    nat::take_hop(ctx, packet.is_v4)?;
    address_frame(ctx, receiver.host_mac, receiver.pod_mac)?;
    observe::count(Counter::ToPod);
    if receiver.flags & endpoint_flags::SHAPED != 0 {
        settle(ctx);
        // SAFETY: the helper takes numbers only.
        return Ok(Verdict::Done(unsafe { bpf_redirect(receiver.ifindex, 0) } as i32));
    }
    // SAFETY: the helper takes numbers only.
    Ok(Verdict::Done(unsafe { bpf_redirect_peer(receiver.ifindex, 0) } as i32))
}

/// Sends a packet out by the kernel's routing table; one for the node itself goes up its stack.
#[inline(always)]
fn route(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    if is_multicast(packet) {
        observe::count(Counter::ToStack);
        return Ok(Verdict::Stack);
    }
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let ingress = unsafe { (*ctx.skb.skb).ingress_ifindex };
    let (outcome, found) = look_up_route(ctx, packet, ingress)?;
    match outcome {
        BPF_FIB_LKUP_RET_FRAG_NEEDED => too_big::answer(ctx, mtu_of(&found), Back::Out),
        BPF_FIB_LKUP_RET_SUCCESS => {
            nat::take_hop(ctx, packet.is_v4)?;
            address_frame(ctx, found.smac, found.dmac)?;
            observe::count(Counter::Forwarded);
            settle(ctx);
            // SAFETY: the helper takes numbers only.
            Ok(Verdict::Done(unsafe { bpf_redirect(found.ifindex, 0) } as i32))
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            nat::take_hop(ctx, packet.is_v4)?;
            observe::count(Counter::Forwarded);
            settle(ctx);
            // SAFETY: no parameters are passed, so the helper looks the next hop up and resolves it.
            let code = unsafe { bpf_redirect_neigh(found.ifindex, core::ptr::null_mut(), 0, 0) };
            Ok(Verdict::Done(code as i32))
        }
        // The kernel would call it martian, and nobody would hear of it.
        _ if config::is_node_address(packet.tuple.source) => too_big::refuse(ctx, Back::Out),
        // The node itself, or a case for the kernel: no route, or a special one. It answers with the ICMP error that
        // belongs to it.
        _ => {
            observe::count(Counter::ToStack);
            Ok(Verdict::Stack)
        }
    }
}

/// Sends on a packet of the node itself, translated on its way out of an uplink.
#[inline(always)]
pub(crate) fn emit(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    Ok(Verdict::Done(fairlead_emit(ctx.skb.skb, packet)))
}

/// Out of line as a global function, like `fairlead_send`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_emit(skb: *mut __sk_buff, packet: *const Packet) -> i32 {
    // SAFETY: the caller passes a packet of its own; the verifier wants to see that it is there.
    match unsafe { packet.as_ref() } {
        Some(packet) => verdict::code(send_out(&TcContext::new(skb), packet)),
        None => verdict::code(Ok(Verdict::Stack)),
    }
}

#[inline(always)]
fn send_out(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Reason> {
    if let Some(receiver) = endpoint::find(&packet.tuple.destination) {
        address_frame(ctx, receiver.host_mac, receiver.pod_mac)?;
        observe::count(Counter::ToPod);
        settle(ctx);
        // SAFETY: the helper takes numbers only.
        return Ok(Verdict::Done(unsafe { bpf_redirect(receiver.ifindex, 0) } as i32));
    }
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let uplink = unsafe { (*ctx.skb.skb).ifindex };
    let (outcome, found) = look_up_route(ctx, packet, uplink)?;
    if outcome == BPF_FIB_LKUP_RET_SUCCESS {
        address_frame(ctx, found.smac, found.dmac)?;
        if found.ifindex == uplink {
            return Ok(Verdict::Stack);
        }
        settle(ctx);
        // SAFETY: the helper takes numbers only.
        return Ok(Verdict::Done(unsafe { bpf_redirect(found.ifindex, 0) } as i32));
    }
    if outcome == BPF_FIB_LKUP_RET_NO_NEIGH {
        // SAFETY: no parameters are passed, so the helper looks the next hop up and resolves it.
        let code = unsafe { bpf_redirect_neigh(found.ifindex, core::ptr::null_mut(), 0, 0) };
        return Ok(Verdict::Done(code as i32));
    }
    if outcome == BPF_FIB_LKUP_RET_FRAG_NEEDED {
        return too_big::answer(ctx, mtu_of(&found), Back::Up);
    }
    Err(Reason::NotForwarded)
}

/// How large a datagram may be that takes the route found.
#[inline(always)]
fn mtu_of(found: &FibLookup) -> u16 {
    // SAFETY: the kernel has filled in this field of the union, a number.
    unsafe { found.__bindgen_anon_1.mtu_result }
}

/// Whether the kernel's routing table would not say that the packet is for many: an IPv4 destination above
/// the unicast addresses (RFC 1112, section 4; RFC 919, section 7).
#[inline(always)]
fn is_multicast(packet: &Packet) -> bool {
    packet.is_v4 && u32::from_be(packet.tuple.destination.v4_word()) >= 0xe000_0000
}

#[inline(always)]
fn look_up_route(ctx: &TcContext, packet: &Packet, ifindex: u32) -> Result<(u32, FibLookup), Reason> {
    let mut fib = zeroed_lookup();
    fib.ifindex = ifindex;
    fib.l4_protocol = packet.tuple.protocol;
    if packet.is_v4 {
        // SAFETY: `at` has checked the bounds.
        let header = unsafe { &*at::<Ipv4>(ctx, ETHERNET)? };
        fib.family = AF_INET;
        fib.__bindgen_anon_2.tos = header.tos;
        fib.__bindgen_anon_3.ipv4_src = header.source;
        fib.__bindgen_anon_4.ipv4_dst = header.destination;
    } else {
        // SAFETY: `at` has checked the bounds.
        let header = unsafe { &*at::<Ipv6>(ctx, ETHERNET)? };
        fib.family = AF_INET6;
        fib.__bindgen_anon_2.flowinfo = header.version_class_label & 0x0fff_ffff_u32.to_be();
        fib.__bindgen_anon_3.ipv6_src = header.source;
        fib.__bindgen_anon_4.ipv6_dst = header.destination;
    }
    fib.__bindgen_anon_1.tot_len = largest_datagram(ctx, packet);
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the struct is ours, initialised, and of the size given.
    let outcome = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut fib, size, 0) };
    Ok((outcome as u32, fib))
}

/// Whether the kernel's routing table sends what is for `destination` out of the interface that brought the packet.
#[inline(always)]
pub(crate) fn leads_back(ctx: &TcContext, tuple: &FlowKey, destination: Address) -> bool {
    let mut fib = zeroed_lookup();
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    fib.ifindex = interface;
    fib.l4_protocol = tuple.protocol;
    if destination.is_v4() {
        fib.family = AF_INET;
        fib.__bindgen_anon_3.ipv4_src = tuple.source.v4_word();
        fib.__bindgen_anon_4.ipv4_dst = destination.v4_word();
    } else {
        fib.family = AF_INET6;
        fib.__bindgen_anon_3.ipv6_src = tuple.source.words();
        fib.__bindgen_anon_4.ipv6_dst = destination.words();
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the struct is ours, initialised, and of the size given.
    let outcome = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut fib, size, 0) } as u32;
    matches!(outcome, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH) && fib.ifindex == interface
}

/// The length of the packet's IP datagram, or of the largest that the kernel's segmentation will make of it.
#[inline(always)]
fn largest_datagram(ctx: &TcContext, packet: &Packet) -> u16 {
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment == 0 {
        return (ctx.len() as usize).wrapping_sub(ETHERNET) as u16;
    }
    let header = if packet.tuple.protocol == protocol::TCP { tcp_header(ctx, packet) } else { UDP };
    (packet.transport() - ETHERNET + header + segment as usize) as u16
}

/// The length of the segment's TCP header, with its options.
#[inline(always)]
fn tcp_header(ctx: &TcContext, packet: &Packet) -> usize {
    let data_offset: u8 = ctx.load(packet.transport() + TCP_DATA_OFFSET).unwrap_or(TCP_NO_OPTIONS);
    usize::from(data_offset >> 4) * 4
}

#[inline(always)]
fn address_frame(ctx: &TcContext, source: Mac, destination: Mac) -> Result<(), Reason> {
    // SAFETY: `at` has checked the bounds.
    let frame = unsafe { &mut *at::<Ethernet>(ctx, 0)? };
    frame.source = source;
    frame.destination = destination;
    Ok(())
}

/// A look-up of nothing. Written a word at a time: LLVM would call a memset that goes byte by byte.
#[inline(always)]
fn zeroed_lookup() -> FibLookup {
    const WORDS: usize = size_of::<FibLookup>() / size_of::<u64>();
    let mut fib = MaybeUninit::<FibLookup>::uninit();
    let words = fib.as_mut_ptr().cast::<u64>();
    for word in 0..WORDS {
        // SAFETY: within the struct, whose size is a multiple of a word's; the stack aligns it.
        unsafe { words.add(word).write_volatile(0) };
    }
    // SAFETY: a struct of integers and unions of them, for which zero is a value.
    unsafe { fib.assume_init() }
}
