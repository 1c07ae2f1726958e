//! What the programs say in the agent's log: flows, as they begin and are balanced anew. At the level debug alone.
//!
//! The agent sets [`level_enabled`]'s level when it loads the programs. Below debug that is a constant by which the verifier
//! sees that no way leads here, and removes the calls. Drops are told by [`crate::events`], at every level.

use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use fairlead_abi::{Address, Flow, FlowKey};

/// The part of the log that it belongs to.
const TARGET: &str = "fairlead_prog";

/// Says that a flow began, or got another backend.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey, flow: &Flow, is_anew: bool) {
    if level_enabled(Level::Debug) {
        fairlead_say(key, flow, u32::from(is_anew));
    }
}

/// Out of line as a global function: the verifier walks it once, by itself, and its callers do not hold its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_say(key: *const FlowKey, flow: *const Flow, is_anew: u32) -> i32 {
    // SAFETY: the caller passes a key and a flow, its own; the verifier wants to see that they are there.
    let (Some(key), Some(flow)) = (unsafe { key.as_ref() }, unsafe { flow.as_ref() }) else {
        return 0;
    };
    let (client, dialled, server) = (bytes(key.source), bytes(key.destination), bytes(flow.destination));
    debug!(
        &(),
        target: TARGET,
        "flow, anew {}: protocol {}, {:i} port {} dials {:i}, gets {:i}",
        is_anew,
        u32::from(key.protocol),
        client,
        key.source_port.number(),
        dialled,
        server
    );
    0
}

#[inline(always)]
fn bytes(address: Address) -> [u8; 16] {
    let [a, b, c, d] = address.words().map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}
