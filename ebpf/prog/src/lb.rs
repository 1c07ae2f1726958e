//! Services: which frontend a packet is for, and which backend gets it.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use fairlead_abi::{Backend, FlowKey, Frontend, FrontendKey, Reason, Region, frontend_flags, protocol};
use fairlead_flow::maglev;

use crate::packet::{Fragment, Packet};
use crate::{admission, affinity, config, endpoint};

#[map]
static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);

#[map]
static SLOTS: Array<u32> = Array::pinned(262_144, 0);

#[map]
static BACKENDS: Array<Backend> = Array::pinned(131_072, 0);

/// An id that no backend has; its generation is always 0.
pub(crate) const NO_BACKEND: u32 = 0;

/// How often a region can be halved: as often as a number of slots has bits.
const HALVINGS: u32 = 24;

/// Where a new flow comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// A pod or a process of this node.
    Inside,
    /// The node itself, in a packet that is on its way out and could not come back.
    Leaving,
    /// Anyone else: the packet came over an uplink.
    Outside,
}

/// A backend for a new flow.
pub(crate) struct Choice {
    /// The backend's id.
    pub(crate) id: u32,
    /// The backend.
    pub(crate) backend: Backend,
    /// Whether the flow must leave with the node's address.
    pub(crate) masquerade: bool,
}

/// The frontend that the tuple dials, copied into `room`. An address of a local pod is no frontend, whatever Services
/// ask for: most packets to it are delivered without asking.
#[inline(always)]
pub(crate) fn find<'room>(
    tuple: &FlowKey,
    room: &'room mut MaybeUninit<Frontend>,
) -> Result<Option<&'room Frontend>, Reason> {
    let key = FrontendKey {
        address: tuple.destination,
        port: tuple.destination_port,
        protocol: tuple.protocol,
        reserved: 0,
    };
    // SAFETY: the value is copied out at once; all fields are integers, so none is invalid, and the element's reuse
    // for another key shows in the check.
    let Some(frontend) = (unsafe { FRONTENDS.get(&key) }) else {
        return Ok(None);
    };
    if endpoint::find(&tuple.destination).is_some() {
        return Ok(None);
    }
    let frontend = room.write(*frontend);
    if frontend.check == key.check() { Ok(Some(frontend)) } else { Err(Reason::StaleService) }
}

/// Whether there is a frontend with all of these flags at the key.
#[inline(always)]
pub(crate) fn has_flags(key: &FrontendKey, flags: u32) -> bool {
    // SAFETY: an integer is read; one that is reused in this moment belongs to another frontend at worst.
    unsafe { FRONTENDS.get(key) }.is_some_and(|frontend| frontend.flags & flags == flags)
}

/// The present generation of a backend id; 0 if it has no tenant.
#[inline(always)]
pub(crate) fn generation(id: u32) -> u32 {
    BACKENDS.get(id).map_or(0, |backend| backend.generation)
}

/// Whether the backend is in the region, whose ids ascend.
///
/// The verifier would follow both halves of every comparison; both ends are moved by arithmetic instead.
#[inline(always)]
pub(crate) fn holds(region: &Region, id: u32) -> bool {
    let (mut low, mut len) = (region.base, region.len);
    for _ in 0..HALVINGS {
        if len == 0 {
            return false;
        }
        let half = len >> 1;
        let Some(held) = SLOTS.get(low + half) else {
            return false;
        };
        if *held == id {
            return true;
        }
        // All ones if the id is above the middle: ids are far below the sign bit.
        let above = 0_u32.wrapping_sub(held.wrapping_sub(id) >> 31);
        low += (half + 1) & above;
        len = (len - half - 1) & above | half & !above;
    }
    false
}

/// Chooses a backend for the tuple's sender among those that such a client may get: the one that it had before, by
/// its place in the Maglev table, or at random.
#[inline(always)]
pub(crate) fn choose(
    frontend: &Frontend,
    client: Client,
    tuple: &FlowKey,
    choice: &mut MaybeUninit<Choice>,
) -> Result<(), Reason> {
    if frontend.flags & frontend_flags::GUARDED != 0 && !admission::admits(frontend.service, &tuple.source) {
        return Err(Reason::SourceNotAllowed);
    }
    let region = if client == Client::Outside { &frontend.external } else { &frontend.internal };
    if region.len == 0 {
        let live = frontend.flags & frontend_flags::HAS_ENDPOINTS != 0;
        return Err(if live { Reason::NoLocalEndpoint } else { Reason::NoEndpoint });
    }
    let mut id = NO_BACKEND;
    if frontend.affinity != 0 {
        id = affinity::recall(frontend, region, &tuple.source);
    }
    let kept = id != NO_BACKEND;
    if !kept {
        let slot = draw(frontend, client, region, tuple);
        id = *SLOTS.get(slot).ok_or(Reason::StaleService)?;
        if client == Client::Leaving && is_at_home(id) {
            // A node has one pod at most that stands on its address at this port.
            let next = region.base + (slot - region.base + 1) % region.len;
            id = *SLOTS.get(next).ok_or(Reason::StaleService)?;
        }
    }
    let backend = BACKENDS.get(id).ok_or(Reason::StaleService)?;
    let masquerade = client == Client::Outside && frontend.flags & frontend_flags::KEEP_SOURCE == 0;
    let chosen = choice.write(Choice { id, backend: *backend, masquerade });
    if chosen.backend.generation == 0 {
        return Err(Reason::StaleService);
    }
    if frontend.affinity != 0 && !kept {
        affinity::note(frontend, &tuple.source, id, chosen.backend.generation);
    }
    Ok(())
}

/// Whether the backend is the node itself.
#[inline(always)]
fn is_at_home(id: u32) -> bool {
    BACKENDS.get(id).is_some_and(|backend| config::is_node_address(backend.address))
}

/// The slot of the backend that a client without a past gets.
#[inline(always)]
fn draw(frontend: &Frontend, client: Client, region: &Region, tuple: &FlowKey) -> u32 {
    let table = &frontend.maglev;
    if client == Client::Outside && table.len != 0 {
        return table.base + maglev::hash(tuple.source, tuple.source_port, tuple.protocol) % table.len;
    }
    // SAFETY: the helper takes nothing and returns a number.
    region.base + unsafe { bpf_get_prandom_u32() } % region.len
}

/// Whether the packet is the first of a flow to a Service: then the choice for it is filled in.
#[inline(always)]
pub(crate) fn pick(
    packet: &Packet,
    client: Client,
    choice: &mut MaybeUninit<Choice>,
) -> Result<bool, Reason> {
    let mut room = MaybeUninit::uninit();
    if packet.has_ports()
        && let Some(frontend) = find(&packet.tuple, &mut room)?
    {
        // Its checksum, which is the whole packet's, could not be mended.
        if packet.tuple.protocol == protocol::SCTP && packet.fragment == Fragment::First {
            return Err(Reason::NotForwarded);
        }
        if packet.tcp.resets() {
            return Err(Reason::StrayReset);
        }
        return choose(frontend, client, &packet.tuple, choice).map(|()| true);
    }
    admission::unclaimed(&packet.tuple.destination).map_or(Ok(false), Err)
}
