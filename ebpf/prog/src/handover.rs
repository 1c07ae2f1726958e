//! The handover from another generation: programs with maps of another layout, which are attached here too.
//!
//! For that time these programs are loaded a second time, as a variant that stands before the other generation's at every
//! hook, and leaves it what it can't know about. [`Config::flags`](fairlead_abi::Config::flags) says how far that has come;
//! the agent raises it step by step and carries over, between the steps, what the others' tables hold:
//!
//! | step | ours | the others' |
//! |---|---|---|
//! | none | nothing | all |
//! | connections | flows that our table knows; what begins a connection or asks for an echo | all else; datagrams are noted |
//! | services | also datagrams that begin a flow to a frontend, unless they were noted | all else; datagrams are noted |
//! | all | all datagrams, unless they were noted | those, and what goes on in no flow that is known |
//!
//! A packet that begins a connection says so. A datagram does not: one that our table does not know may belong to a flow
//! that the others have entered since their table was read. So it is first left to them, and what was left is noted, until
//! all of their flows but those noted must have been carried over; only then may the next begin one here. What a
//! backend answers to a datagram that was left is not noted, since only the others know its tuple. It looks like one that begins a
//! flow of the backend's own to the outside, and what the outside answers like one to the node: therefore those begin here
//! only when the last flow to a frontend has been carried over, and these never.
//!
//! What is ours is not shown to the others any more: they would take it for a packet that nobody has seen yet.
//!
//! The usual variant has none of this: the verifier removes what can't be reached.

use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, BPF_F_NO_PREALLOC, TC_ACT_OK, TC_ACT_UNSPEC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Flow, FlowKey, FrontendKey, SocketPeer, config_flags};
use fairlead_flow::life;

use crate::packet::{self, Fragment, Packet};
use crate::room::{self, Room};
use crate::{about, clock, config, forward, fragment, outside, service, table};

/// Whether this is the variant that hands over: overridden as the programs are loaded.
#[unsafe(no_mangle)]
static HANDOVER: Global<u8> = Global::new(0);

/// Datagrams that were left to the others, by their tuple and by that of their answers.
#[map]
static LEFT: HashMap<FlowKey, u8> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

/// Where a packet is met.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// A pod sends it.
    FromPod,
    /// The node's own stack sends it to a pod.
    ToPod,
    /// It arrives from outside the node.
    FromWire,
    /// The node's own stack sends it out.
    ToWire,
    /// A pod sends it that another CNI has wired.
    FromPods,
}

/// Whether this is the variant that hands over.
#[inline(always)]
fn is_on() -> bool {
    HANDOVER.load() != 0
}

/// Whether the packet is left to the other generation's programs, which come next.
#[inline(always)]
pub(crate) fn leaves(ctx: &TcContext, hook: Hook) -> bool {
    is_on() && fairlead_leaves(ctx.skb.skb, hook as u32) != 0
}

/// The return code for a packet that goes on to the stack: for a packet of ours, past the other generation's programs.
#[inline(always)]
pub(crate) fn to_stack() -> i32 {
    if is_on() { TC_ACT_OK } else { TC_ACT_UNSPEC }
}

/// Whether the peer is a frontend that stands for the address that was asked about. Another generation's program may have
/// named it already, and would have its answer turned back otherwise.
#[inline(always)]
pub(crate) fn may_name(peer: &SocketPeer, protocol: u8) -> bool {
    let frontend = FrontendKey { address: peer.address, port: peer.port, protocol, reserved: 0 };
    !is_on() || service::has_flags(&frontend, 0)
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_leaves(skb: *mut __sk_buff, hook: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let is_egress = hook == Hook::ToPod as u32 || hook == Hook::ToWire as u32;
    let step = config::get().map_or(0, |config| config.flags & config_flags::HANDOVER);
    // Whichever generation has settled it, the last program takes the mark off.
    if step == 0 || is_egress && forward::bears_mark(&ctx) {
        return 1;
    }
    let Ok(Room { packet, findings }) = room::take() else {
        return 1;
    };
    let Ok(Some(packet)) = packet::parse(&ctx, packet) else {
        return 1;
    };
    if packet.fragment == Fragment::Later {
        return u32::from(!fragment::find(packet, &mut findings.flow));
    }
    if hook == Hook::FromPod as u32 {
        outside::name_request(packet);
    } else if hook == Hook::FromWire as u32 {
        outside::name_reply(packet);
    }
    let now = clock::now();
    // One that is over the others may have removed, and its port be another's there.
    let is_known = |flow: &Flow| !life::is_over(flow, packet.tuple.protocol, now);
    if table::look_up(&packet.tuple).is_some_and(is_known) || packet.tcp.opens() {
        return 0;
    }
    if packet.is_icmp() {
        return u32::from(!about::is_of_known(&ctx, packet));
    }
    if life::is_of_connections(packet.tuple.protocol) {
        return 1;
    }
    u32::from(leaves_datagram(packet, hook, step))
}

/// Out of line for the stack's sake.
#[inline(never)]
fn leaves_datagram(packet: &Packet, hook: u32, step: u32) -> bool {
    let is_dialled = service::is_dialled(&packet.tuple);
    if hook == Hook::FromWire as u32 && !is_dialled && config::is_node_address(packet.tuple.destination) {
        return true;
    }
    // SAFETY: it is only asked whether the key is there.
    let was_left = unsafe { LEFT.get(&packet.tuple) }.is_some();
    let is_ours = match step {
        config_flags::HANDOVER_ALL => true,
        config_flags::HANDOVER_SERVICES => is_dialled,
        _ => false,
    };
    if is_ours || was_left {
        return was_left;
    }
    // Refused, it may begin a flow twice.
    let _ = LEFT.insert(&packet.tuple, &1, 0);
    let _ = LEFT.insert(packet.tuple.reversed(), &1, 0);
    true
}
