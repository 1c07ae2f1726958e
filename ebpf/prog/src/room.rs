//! Room for what a packet's way through the programs needs to remember: the stack has 512 bytes for a whole chain of
//! calls.
//!
//! There is one for each CPU. A program at a tc hook runs to its end before another one does on its CPU, since the
//! kernel keeps soft interrupts off meanwhile.

use core::mem::MaybeUninit;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use fairlead_abi::{DropEvent, Flow, FlowKey, Reason};

use crate::lb::Choice;
use crate::packet::Packet;

#[map]
static ROOMS: PerCpuArray<Room> = PerCpuArray::with_max_entries(1, 0);

/// Room for one packet.
pub(crate) struct Room {
    /// For the packet, parsed.
    pub(crate) packet: MaybeUninit<Packet>,
    /// For what is found out about it.
    pub(crate) findings: Findings,
}

/// Room for what is found out about a packet.
pub(crate) struct Findings {
    /// For the flow that it belongs to.
    pub(crate) flow: Flow,
    /// For the backend of one that it begins.
    pub(crate) choice: MaybeUninit<Choice>,
    /// For what policies say of it.
    pub(crate) trial: DropEvent,
    /// For the tuple of what answers it.
    pub(crate) reply: FlowKey,
}

/// What the last packet of this CPU that was parsed says of itself.
#[inline(always)]
pub(crate) fn last_packet() -> Option<&'static Packet> {
    let room = ROOMS.get_ptr(0)?;
    // SAFETY: its fields that are read are integers, which are zero before the first packet.
    Some(unsafe { (*room).packet.assume_init_ref() })
}

/// The room of this CPU, with whatever the last packet left in it.
#[inline(always)]
pub(crate) fn take() -> Result<&'static mut Room, Reason> {
    let room = ROOMS.get_ptr_mut(0).ok_or(Reason::Malformed)?;
    // SAFETY: nobody else has it, see above; only an entry point takes it, and once, but for what `sent` says. What is not `MaybeUninit` is
    // integers only.
    Ok(unsafe { &mut *room })
}

/// The last packet of this CPU, and its flow, for whoever has it sent on: nobody else asks for them any more, and the stack
/// has no place for others.
#[inline(always)]
pub(crate) fn sent() -> Result<(&'static mut Packet, &'static mut Flow), Reason> {
    let room = ROOMS.get_ptr_mut(0).ok_or(Reason::Malformed)?;
    // SAFETY: whoever sends a packet on does nothing with it afterwards, and no other packet is under way on this CPU. A
    // packet that is sent on has been parsed.
    unsafe { Ok(((*room).packet.assume_init_mut(), &mut (*room).findings.flow)) }
}
