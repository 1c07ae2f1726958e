//! Load balancing: which backend a packet's flow gets.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use fairlead_abi::{Backend, FlowKey, Frontend, Reason, Region, frontend_flags, protocol};
use fairlead_flow::maglev;

use crate::packet::{Fragment, Packet};
use crate::{admission, affinity, config, service};

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
    let mut id = service::NO_BACKEND;
    if frontend.affinity != 0 {
        id = affinity::recall(frontend, region, &tuple.source);
    }
    let kept = id != service::NO_BACKEND;
    if !kept {
        let slot = draw(frontend, client, region, tuple);
        id = service::slot(slot)?;
        if client == Client::Leaving && is_at_home(id) {
            // A node has one pod at most that stands on its address at this port.
            let next = region.base + (slot - region.base + 1) % region.len;
            id = service::slot(next)?;
        }
    }
    let backend = service::backend(id).ok_or(Reason::StaleService)?;
    let masquerade = client == Client::Outside && frontend.flags & frontend_flags::KEEP_SOURCE == 0;
    let chosen = choice.write(Choice { id, backend: *backend, masquerade });
    if !chosen.backend.has_tenant() {
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
    service::backend(id).is_some_and(|backend| config::is_node_address(backend.address))
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
        && let Some(frontend) = service::find(&packet.tuple, &mut room)?
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
