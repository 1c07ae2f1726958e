//! What every step of one reconcile needs.

use std::time::Instant;

use super::Report;

/// One call of [`Reconciler::reconcile`](super::Reconciler::reconcile) under way.
pub(super) struct Pass<'a, M> {
    /// When it was called.
    pub(super) now: Instant,
    /// The maps to write to.
    pub(super) maps: &'a mut M,
    /// What came of it so far.
    pub(super) report: &'a mut Report,
}
