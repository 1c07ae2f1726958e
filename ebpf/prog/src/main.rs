//! Fairlead's eBPF programs: entry points only. What they do is in the modules, one per concern.
//!
//! | program | hook | packets |
//! |---|---|---|
//! | `fairlead_frpod` | tc ingress, host side of a pod's veth | sent by the pod |
//! | `fairlead_topod` | tc egress, host side of a pod's veth | sent to the pod by the node's own stack |
//! | `fairlead_frwire` | tc ingress, uplink | arriving from outside the node |
//! | `fairlead_towire` | tc egress, uplink | sent out by the node's own stack |
//! | `fairlead_frpods` | tc ingress, an interface behind which another CNI has its pods | sent by these pods |
//! | `fairlead_conn*`, `send*`, `recv*`, `peer*` | cgroup | none: sockets of host processes, perhaps of pods |
//! | `fairlead_bind*` | cgroup | none: sockets of host processes |
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros write public functions beside ours")]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys are looked up where they lie: the whole stack is 512 bytes"
)]

mod about;
mod admission;
mod affinity;
mod beside;
mod bind;
mod clock;
mod config;
mod connected;
mod ct;
mod endpoint;
mod events;
mod forward;
mod fragment;
mod handover;
mod header;
mod icmp;
mod lb;
mod lent;
mod may;
mod nat;
mod observe;
mod outside;
mod packet;
mod places;
mod plain;
mod pod;
mod policy;
mod quoted;
mod refuse;
mod reset;
mod room;
mod say;
mod service;
mod sock;
mod stack;
mod table;
mod too_big;
mod verdict;
mod wire;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext};

use handover::Hook;

/// A packet that a pod sends.
#[classifier]
pub fn fairlead_frpod(ctx: TcContext) -> i32 {
    verdict::at(&ctx, Hook::FromPod, || pod::from_pod(&ctx))
}

/// A packet that the node's own stack sends to a pod.
#[classifier]
pub fn fairlead_topod(ctx: TcContext) -> i32 {
    verdict::at(&ctx, Hook::ToPod, || stack::to_pod(&ctx))
}

/// A packet that arrives from outside the node.
#[classifier]
pub fn fairlead_frwire(ctx: TcContext) -> i32 {
    verdict::at(&ctx, Hook::FromWire, || wire::from_wire(&ctx))
}

/// A packet that the node's own stack sends out.
#[classifier]
pub fn fairlead_towire(ctx: TcContext) -> i32 {
    verdict::at(&ctx, Hook::ToWire, || stack::to_wire(&ctx))
}

/// A packet that a pod sends which another CNI has wired.
#[classifier]
pub fn fairlead_frpods(ctx: TcContext) -> i32 {
    verdict::at(&ctx, Hook::FromPods, || beside::from_pods(&ctx))
}

/// connect() of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn fairlead_conn4(ctx: SockAddrContext) -> i32 {
    sock::connect(&ctx, sock::Family::V4)
}

/// connect() of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn fairlead_conn6(ctx: SockAddrContext) -> i32 {
    sock::connect(&ctx, sock::Family::V6)
}

/// sendto() and sendmsg() with an address, IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn fairlead_send4(ctx: SockAddrContext) -> i32 {
    sock::send(&ctx, sock::Family::V4)
}

/// sendto() and sendmsg() with an address, IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn fairlead_send6(ctx: SockAddrContext) -> i32 {
    sock::send(&ctx, sock::Family::V6)
}

/// recvfrom() and recvmsg(), IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn fairlead_recv4(ctx: SockAddrContext) -> i32 {
    sock::name_peer(&ctx, sock::Family::V4)
}

/// recvfrom() and recvmsg(), IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn fairlead_recv6(ctx: SockAddrContext) -> i32 {
    sock::name_peer(&ctx, sock::Family::V6)
}

/// getpeername(), IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn fairlead_peer4(ctx: SockAddrContext) -> i32 {
    sock::name_peer(&ctx, sock::Family::V4)
}

/// getpeername(), IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn fairlead_peer6(ctx: SockAddrContext) -> i32 {
    sock::name_peer(&ctx, sock::Family::V6)
}

/// bind() of an IPv4 socket has succeeded so far.
#[cgroup_sock(post_bind4)]
pub fn fairlead_bind4(ctx: SockContext) -> i32 {
    bind::guard(&ctx, sock::Family::V4)
}

/// bind() of an IPv6 socket has succeeded so far.
#[cgroup_sock(post_bind6)]
pub fn fairlead_bind6(ctx: SockContext) -> i32 {
    bind::guard(&ctx, sock::Family::V6)
}

/// The licence that the kernel reads: some helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
