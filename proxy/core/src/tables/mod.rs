//! Who has which number: backend and Service ids, and regions of slots.
//!
//! Pure bookkeeping; [`crate::reconcile`] decides and writes. A program may hold a number that it just
//! read for as long as one packet takes, so what is given back rests for [`QUARANTINE`] before it is
//! given out again.

mod ids;
mod slots;

use std::time::Duration;

pub use ids::Ids;
pub use slots::Slots;

/// How long a number rests between two tenants: far longer than a program runs.
pub const QUARANTINE: Duration = Duration::from_secs(1);
