//! What maps are lent as keys and values. A kernel before 6.2 takes them from the stack, a packet or a map, but not from
//! memory that a global function was called with: there it is copied first, to where every kernel takes it from.
//!
//! Only programs at tc hooks use this: one of them runs to its end before another does on its CPU.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock_tuple as SocketTuple;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use fairlead_abi::{Asked, Flow, FlowKey};

/// Whether maps take keys and values from any memory. What is not so is no part of the programs, since the verifier takes
/// a value that is set at load for a constant.
#[unsafe(no_mangle)]
static ANY_MEMORY: Global<u8> = Global::new(1);

#[map]
static LENT: PerCpuArray<Lent> = PerCpuArray::with_max_entries(1, 0);

/// Room for what is lent together.
struct Lent {
    key: MaybeUninit<FlowKey>,
    value: MaybeUninit<Flow>,
    asked: MaybeUninit<Asked>,
    sockets: MaybeUninit<SocketTuple>,
    another: MaybeUninit<FlowKey>,
}

/// Whether nothing has to be copied.
#[inline(always)]
pub(crate) fn needs_no_copy() -> bool {
    ANY_MEMORY.load() != 0
}

/// The key, until the next one is lent.
#[inline(always)]
pub(crate) fn key(key: &FlowKey) -> Option<&FlowKey> {
    lend(key, |room| &raw mut room.key)
}

/// The value, until the next one is lent.
#[inline(always)]
pub(crate) fn value(value: &Flow) -> Option<&Flow> {
    lend(value, |room| &raw mut room.value)
}

/// The question, until the next one is lent.
#[inline(always)]
pub(crate) fn asked(asked: &Asked) -> Option<&Asked> {
    lend(asked, |room| &raw mut room.asked)
}

/// Room for the tuple that a socket is looked up by, until the next one is: on the stack it would be too much.
#[inline(always)]
pub(crate) fn sockets() -> Option<*mut SocketTuple> {
    let room = LENT.get_ptr_mut(0)?;
    // SAFETY: the element is this CPU's own.
    Some(unsafe { (&raw mut (*room).sockets).cast() })
}

/// Room for a key, until the next one is made there: on the stack it would be too much.
#[inline(always)]
pub(crate) fn another(key: FlowKey) -> Option<&'static FlowKey> {
    let room = LENT.get_ptr_mut(0)?;
    // SAFETY: the element is this CPU's own, and nobody else holds what was made there before.
    Some(unsafe { (*room).another.write(key) })
}

#[inline(always)]
fn lend<T: Copy>(lent: &T, place: fn(&mut Lent) -> *mut MaybeUninit<T>) -> Option<&T> {
    if needs_no_copy() {
        return Some(lent);
    }
    // There always is an element; the verifier does not know.
    let room = LENT.get_ptr_mut(0)?;
    // SAFETY: the element is this CPU's own, and nobody else holds what was lent before. What is lent consists of whole
    // words. Copied at once, it would be copied by a function, for which there is no stack left.
    unsafe {
        let copy = (*place(&mut *room)).as_mut_ptr();
        let (from, to) = (core::ptr::from_ref(lent).cast::<u32>(), copy.cast::<u32>());
        for word in 0..size_of::<T>() / size_of::<u32>() {
            to.add(word).write_volatile(from.add(word).read_volatile());
        }
        Some(&*copy)
    }
}
