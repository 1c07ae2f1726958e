//! Services: which frontend a packet is for, and which backend gets it.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use fairlead_abi::{Address, Backend, Frontend, FrontendKey, Port, Reason, frontend_flags};

use crate::packet::Packet;

#[map]
static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);

#[map]
static SLOTS: Array<u32> = Array::pinned(262_144, 0);

#[map]
static BACKENDS: Array<Backend> = Array::pinned(131_072, 0);

/// An id that no backend has; its generation is always 0.
pub(crate) const NO_BACKEND: u32 = 0;

/// Where a new flow comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// A pod or a process of this node.
    Inside,
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

/// The frontend with this address, port and protocol.
#[inline(always)]
pub(crate) fn find(address: Address, port: Port, protocol: u8) -> Option<Frontend> {
    let key = FrontendKey { address, port, protocol, reserved: 0 };
    // SAFETY: the value is copied out at once; a racing write, or the element's reuse, gives a stale value at
    // worst, and all fields are integers, so none is invalid.
    unsafe { FRONTENDS.get(&key) }.copied()
}

/// The present generation of a backend id; 0 if it has no tenant.
#[inline(always)]
pub(crate) fn generation(id: u32) -> u32 {
    BACKENDS.get(id).map_or(0, |backend| backend.generation)
}

/// Chooses a backend at random among those that such a client may get.
#[inline(always)]
pub(crate) fn choose(frontend: &Frontend, client: Client) -> Result<Choice, Reason> {
    let region = if client == Client::Inside { frontend.internal } else { frontend.external };
    if region.len == 0 {
        let live = frontend.flags & frontend_flags::HAS_ENDPOINTS != 0;
        return Err(if live { Reason::NoLocalEndpoint } else { Reason::NoEndpoint });
    }
    // SAFETY: the helper takes nothing and returns a number.
    let draw = unsafe { bpf_get_prandom_u32() } % region.len;
    let id = *SLOTS.get(region.base + draw).ok_or(Reason::StaleService)?;
    let backend = *BACKENDS.get(id).ok_or(Reason::StaleService)?;
    if backend.generation == 0 {
        return Err(Reason::StaleService);
    }
    let masquerade = client == Client::Outside && frontend.flags & frontend_flags::KEEP_SOURCE == 0;
    Ok(Choice { id, backend, masquerade })
}

/// The choice for a packet that is the first of a flow to a Service, if its destination is a frontend.
#[inline(always)]
pub(crate) fn pick(packet: &Packet, client: Client) -> Result<Option<Choice>, Reason> {
    if !packet.has_ports() {
        return Ok(None);
    }
    let tuple = &packet.tuple;
    match find(tuple.destination, tuple.destination_port, tuple.protocol) {
        Some(frontend) => choose(&frontend, client).map(Some),
        None => Ok(None),
    }
}
