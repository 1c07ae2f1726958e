//! Packets for no frontend: which of them are entered all the same, because of what policies would say of their answers,
//! and which are answers themselves, of flows that have no entry.

use aya_ebpf::bindings::__sk_buff;
use fairlead_abi::{DropEvent, Reason, event_flags};
use fairlead_flow::life;

use crate::packet::{Fragment, Packet};
use crate::policy::{self, Admission, reading};
use crate::{connected, endpoint, may, outside};

/// Whether the packet, which policies leave alone, is remembered as the first of a flow for its answers' sake. Out of
/// line for the stack's sake.
#[inline(never)]
pub(crate) fn is_remembered(packet: &Packet, may: u32) -> bool {
    may & may::STACK != 0 && packet.may_begin()
        || may & may::REMEMBER != 0 && packet.is_datagram() && outside::is(&packet.tuple.source)
}

/// Whether the packet, which policies have not admitted, for this reason, is the answer of a server in a connection that
/// they do admit, and that is older than they, or has lost its entry. `trial`'s tuple is then the client's.
///
/// Out of line for the stack's sake.
#[inline(never)]
pub(crate) fn answers(
    skb: *mut __sk_buff,
    packet: &Packet,
    trial: &mut DropEvent,
    reason: Reason,
) -> Result<(), Reason> {
    if !connected::is_answer(skb, &packet.tuple) {
        return Err(reason);
    }
    trial.tuple = packet.tuple.reversed();
    trial.flags = event_flags::REPLY;
    policy::judge(trial, reading::AGAIN).map(|_| ())
}

/// Whether the packet, which policies have just admitted, is more likely an answer, in a flow that has no entry since
/// they had no say in it, than the first of another flow: a datagram of a pod whose clients came under a policy
/// lately, unless its socket is a client's, or one to the socket of a client that came under one lately.
///
/// What has entries whatever policies say has had them before.
///
/// Out of line for the stack's sake.
#[inline(never)]
pub(crate) fn is_late_answer(skb: *mut __sk_buff, packet: &Packet, admission: Admission) -> bool {
    let is_datagram = !life::is_of_connections(packet.tuple.protocol) && !packet.is_icmp();
    if !is_datagram || packet.is_opaque() || admission.is_kept() {
        return false;
    }
    if endpoint::find(&packet.tuple.source).is_some_and(policy::is_late_server) {
        return connected::may_be_answer(skb, &packet.tuple);
    }
    endpoint::find(&packet.tuple.destination).is_some_and(policy::is_late)
        && connected::is_answer(skb, &packet.tuple)
}

/// Whether a packet is to be entered as the first of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// No.
    None,
    /// Its replies pass only so.
    Needed,
    /// Its replies pass anyhow; but if policies stop admitting it, they must stop too, and not be taken for the first
    /// packets of a flow of their own.
    Wanted,
}

/// Whether the packet, which is for no frontend and which policies have just admitted by `trial`, is to be entered as
/// the first of a flow.
///
/// Connections and echo requests say whether they are. A later packet of a connection might be a reply, of a flow that
/// has no entry since policies admit its replies by themselves; taken for the first, it would open a way back for good.
/// Of datagrams, whoever is seen first is the client.
///
/// Out of line for the stack's sake.
#[inline(never)]
pub(crate) fn entry_of(packet: &Packet, admission: Admission, trial: &mut DropEvent) -> Entry {
    if packet.is_opaque() || packet.fragment == Fragment::Later || !admission.is_of_policies() {
        return Entry::None;
    }
    if life::is_of_connections(packet.tuple.protocol) || packet.is_icmp() {
        let is_first = packet.tcp.opens() || admission.is_kept() && !packet.is_icmp() && !packet.tcp.resets();
        return if admission.is_guarded() && is_first { Entry::Needed } else { Entry::None };
    }
    if admission.is_kept() {
        return Entry::Needed;
    }
    if !admission.is_guarded() {
        return Entry::Wanted;
    }
    trial.tuple = trial.tuple.reversed();
    trial.flags = 0;
    if policy::judge(trial, reading::AGAIN).is_err() { Entry::Needed } else { Entry::Wanted }
}
