//! Local pods and their marks.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use fairlead_abi::{Address, Endpoint, marks};

use crate::lent;

#[map]
static ENDPOINTS: HashMap<Address, Endpoint> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);

#[map]
static MARKS: Array<u32> = Array::pinned(1024, 0);

/// The local pod with this address.
#[inline(always)]
pub(crate) fn find(address: &Address) -> Option<&'static Endpoint> {
    let copy;
    let address = if lent::needs_no_copy() {
        address
    } else {
        copy = *address;
        &copy
    };
    // SAFETY: the element may be given to another pod while it is read, when its own has gone: a packet under way
    // to a pod that is deleted then meets what a route to it would. All fields are integers, so none is invalid.
    unsafe { ENDPOINTS.get(address) }
}

/// Whether the pod takes part in a translated flow, or did.
#[inline(always)]
pub(crate) fn is_translated(endpoint: &Endpoint) -> bool {
    MARKS.get(endpoint.index).is_some_and(|mark| *mark & marks::TRANSLATED != 0)
}

/// Marks the pod with this address, if it is a local one, as part of a translated flow.
#[inline(always)]
pub(crate) fn mark_translated(address: &Address) {
    if let Some(endpoint) = find(address)
        && let Some(mark) = MARKS.get_ptr_mut(endpoint.index)
    {
        // SAFETY: an aligned word of a map that is never resized; the bit is only ever set, so that racing
        // writers agree.
        unsafe { *mark |= marks::TRANSLATED };
    }
}
