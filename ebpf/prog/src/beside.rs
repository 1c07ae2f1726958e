//! Packets of pods that another CNI has wired, at the interface behind which they are: a bridge, say.
//!
//! They are no endpoints: nothing is known of them but where their packets come in. To Services they are clients inside
//! the cluster; what is for no Service is the business of their CNI, and left to the stack.

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Counter, Reason, flow_flags};

use crate::refuse::{self, Back};
use crate::room::{self, Room};
use crate::verdict::Verdict;
use crate::{config, ct, endpoint, forward, may, nat, observe, packet, policy, quoted, wire};

/// From parse to verdict.
#[inline(always)]
pub(crate) fn from_pods(ctx: &TcContext) -> Result<Verdict, Reason> {
    let Room { packet, findings } = room::take()?;
    let Some(packet) = packet::parse(ctx, packet)? else {
        return Ok(Verdict::Stack);
    };
    if packet.ttl <= 1 || wire::is_for_another(ctx) {
        return Ok(Verdict::Stack);
    }
    if config::is_node_address(packet.tuple.source) || endpoint::find(&packet.tuple.source).is_some() {
        return Err(Reason::SpoofedSource);
    }
    let receiver = endpoint::find(&packet.tuple.destination);
    let mut may = may::FIND | may::KEEP_APART | may::JUDGE | may::BESIDE;
    if policy::is_idle(None, receiver) {
        may |= may::PASS_PLAIN;
    }
    // A local pod's address is no frontend.
    if receiver.is_none() {
        may |= may::BEGIN_INSIDE;
    }
    if quoted::settle(ctx, packet, may | may::OWN_SOURCE, &mut findings.trial)? {
        return forward::send(ctx, packet);
    }
    match ct::flow_of(ctx, packet, may, findings) {
        Ok(Some(flow)) if flow.flags & flow_flags::STACK != 0 => {
            observe::count(Counter::ToStack);
            Ok(Verdict::Stack)
        }
        Ok(Some(flow)) => {
            nat::follow(ctx, packet, flow)?;
            forward::send(ctx, packet)
        }
        Ok(None) => Ok(Verdict::Stack),
        Err(reason) => refuse::refuse(ctx, packet, reason, Back::Out),
    }
}
