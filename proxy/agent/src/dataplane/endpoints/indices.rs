//! Places of endpoints in [`fairlead_abi::maps::MARKS`].

use std::collections::{BTreeSet, VecDeque};

/// Which places in the marks are taken. A freed one is reused last, so that a program that still holds the
/// entry of the pod before marks nobody else.
pub(super) struct Indices {
    pub(super) capacity: u32,
    untouched: u32,
    freed: VecDeque<u32>,
    taken: BTreeSet<u32>,
}

impl Indices {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, untouched: 0, freed: VecDeque::new(), taken: BTreeSet::new() }
    }

    /// Takes this one; false if it is taken, or beyond the map.
    pub(super) fn claim(&mut self, index: u32) -> bool {
        index < self.capacity && self.taken.insert(index)
    }

    /// Takes one that is free.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        while self.untouched < self.capacity {
            let index = self.untouched;
            self.untouched += 1;
            if self.taken.insert(index) {
                return Some(index);
            }
        }
        while let Some(index) = self.freed.pop_front() {
            if self.taken.insert(index) {
                return Some(index);
            }
        }
        None
    }

    /// Gives one back.
    pub(super) fn free(&mut self, index: u32) {
        if self.taken.remove(&index) && index < self.untouched {
            self.freed.push_back(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_index_is_reused_last() {
        let mut indices = Indices::new(3);
        assert_eq!(indices.allocate(), Some(0));
        indices.free(0);
        assert_eq!([indices.allocate(), indices.allocate(), indices.allocate()], [Some(1), Some(2), Some(0)]);
        assert_eq!(indices.allocate(), None);
    }

    #[test]
    fn an_index_that_was_claimed_at_restart_is_given_to_nobody_else() {
        let mut indices = Indices::new(3);
        assert!(indices.claim(1));
        assert!(!indices.claim(1), "taken twice");
        assert!(!indices.claim(3), "beyond the map");
        assert_eq!([indices.allocate(), indices.allocate(), indices.allocate()], [Some(0), Some(2), None]);
        indices.free(1);
        assert_eq!(indices.allocate(), Some(1));
    }

    #[test]
    fn a_claimed_index_freed_before_its_turn_is_given_once() {
        let mut indices = Indices::new(2);
        assert!(indices.claim(1));
        indices.free(1);
        assert_eq!([indices.allocate(), indices.allocate(), indices.allocate()], [Some(0), Some(1), None]);
    }
}
