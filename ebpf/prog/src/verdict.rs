//! Verdicts: decided once, by the modules, and turned into the hook's numbers here, and
//! the numbers that functions out of line answer with.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use fairlead_abi::Reason;

use crate::events;
use crate::handover::{self, Hook};

/// What becomes of a packet.
#[derive(Clone, Copy)]
pub(crate) enum Verdict {
    /// The kernel's stack, or the next program at this hook, goes on with it.
    Stack,
    /// It is decided: this is the hook's number for it, most often what a redirect helper answered.
    Done(i32),
}

/// What a tc program returns for a packet that is met at this hook, by what becomes of it if it is this generation's.
#[inline(always)]
pub(crate) fn at(ctx: &TcContext, hook: Hook, decide: impl FnOnce() -> Result<Verdict, Reason>) -> i32 {
    if handover::leaves(ctx, hook) { TC_ACT_UNSPEC } else { code(decide()) }
}

/// The return code of a tc program. `TC_ACT_UNSPEC` leaves other programs at the hook their turn.
#[inline(always)]
pub(crate) fn code(verdict: Result<Verdict, Reason>) -> i32 {
    match verdict {
        Ok(Verdict::Stack) => handover::to_stack(),
        Ok(Verdict::Done(code)) => code,
        Err(reason) => {
            events::dropped(reason);
            TC_ACT_SHOT
        }
    }
}

/// The answer of a function out of line: one number, since two registers are not returned, and the verifier
/// follows a number where it loses a half-filled structure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome(pub(crate) i32);

impl Outcome {
    /// There is none.
    pub(crate) const NOTHING: Self = Self(0);
    /// There is one: the room has been filled.
    pub(crate) const SOMETHING: Self = Self(1);

    /// Something, or the reason why not.
    #[inline(always)]
    pub(crate) fn of(result: Result<(), Reason>) -> Self {
        match result {
            Ok(()) => Self::SOMETHING,
            Err(reason) => reason.into(),
        }
    }

    /// Whether there is something.
    #[inline(always)]
    pub(crate) fn is_something(self) -> Result<bool, Reason> {
        self.number().map(|number| number == Self::SOMETHING.0)
    }

    /// The number that the function answered with, or the reason why not.
    #[inline(always)]
    pub(crate) fn number(self) -> Result<i32, Reason> {
        if self.0 >= 0 { Ok(self.0) } else { Err(Reason::numbered((-1 - self.0) as u32)) }
    }
}

impl From<Reason> for Outcome {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self(-1 - reason as i32)
    }
}
