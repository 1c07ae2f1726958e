//! Verdicts: decided once, by the modules, and turned into the hook's numbers here.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use fairlead_abi::Reason;

use crate::observe;

/// What becomes of a packet.
#[derive(Clone, Copy)]
pub(crate) enum Verdict {
    /// The kernel's stack, or the next program at this hook, goes on with it.
    Stack,
    /// A redirect helper has taken it; the value is what the helper answered.
    Redirect(i32),
}

/// The return code of a tc program. `TC_ACT_UNSPEC` leaves other programs at the hook their turn.
#[inline(always)]
pub(crate) fn code(verdict: Result<Verdict, Reason>) -> i32 {
    match verdict {
        Ok(Verdict::Stack) => TC_ACT_UNSPEC,
        Ok(Verdict::Redirect(code)) => code,
        Err(reason) => {
            observe::drop(reason);
            TC_ACT_SHOT
        }
    }
}
