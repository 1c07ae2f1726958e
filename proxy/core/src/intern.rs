//! Values that many objects share, each kept once.
//!
//! A cluster has many more endpoints than nodes and zones, and many more pods than sets of labels. Used by
//! [`crate::convert`] and [`crate::policy`], owned by [`crate::index::Index`] and [`crate::policy::Engine`].

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::Hints;

/// Values below this are not worth looking for ones that nobody has any more.
const FEW: usize = 1024;

/// Node names and hints.
#[derive(Debug, Default)]
pub struct Interned {
    names: Pool<str>,
    hints: Pool<Hints>,
}

impl Interned {
    /// This text, shared.
    pub fn name(&mut self, text: &str) -> Arc<str> {
        match self.names.known.get(text) {
            Some(known) => Arc::clone(known),
            None => self.names.keep(text.into()),
        }
    }

    /// These hints, shared.
    pub fn hints(&mut self, hints: Hints) -> Arc<Hints> {
        match self.hints.known.get(&hints) {
            Some(known) => Arc::clone(known),
            None => self.hints.keep(hints.into()),
        }
    }
}

/// Values of one kind.
#[derive(Debug)]
pub(crate) struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// How many there may be before those that nobody else has are forgotten.
    limit: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), limit: FEW }
    }
}

impl<T: ?Sized + Eq + std::hash::Hash> Pool<T> {
    /// This value, shared.
    pub(crate) fn share(&mut self, value: Arc<T>) -> Arc<T> {
        match self.known.get(&value) {
            Some(known) => Arc::clone(known),
            None => self.keep(value),
        }
    }

    fn keep(&mut self, value: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = FEW.max(self.known.len() * 2);
        }
        self.known.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_those_that_nobody_has_are_forgotten() {
        let mut interned = Interned::default();
        let kept = interned.name("kept");
        assert!(Arc::ptr_eq(&kept, &interned.name("kept")));
        for number in 0..10 * FEW {
            interned.name(&format!("node-{number}"));
        }
        assert!(interned.names.known.len() <= FEW, "{}", interned.names.known.len());
        assert!(Arc::ptr_eq(&kept, &interned.name("kept")));
    }
}
