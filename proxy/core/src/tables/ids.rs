//! Small numbers given out and taken back.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use super::QUARANTINE;

/// The ids from 1 to a highest one. The lowest free one goes first, which keeps them dense.
#[derive(Clone, Debug)]
pub struct Ids {
    highest: u32,
    /// Every id from here on is free.
    next: u32,
    /// Ids below `next` that are free.
    free: BTreeSet<u32>,
    /// Ids that rest, with the time they were given back.
    resting: VecDeque<(Instant, u32)>,
}

impl Ids {
    /// The ids from 1 to `highest`, all free.
    pub fn new(highest: u32) -> Self {
        Self { highest, next: 1, free: BTreeSet::new(), resting: VecDeque::new() }
    }

    /// The highest id there is.
    pub fn highest(&self) -> u32 {
        self.highest
    }

    /// Gives out a free id, or none if all are taken or resting.
    pub fn take(&mut self, now: Instant) -> Option<u32> {
        while let Some((since, id)) = self.resting.front().copied() {
            if now.saturating_duration_since(since) < QUARANTINE {
                break;
            }
            self.resting.pop_front();
            self.free.insert(id);
        }
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        let id = self.next;
        (id <= self.highest).then(|| {
            self.next = id + 1;
            id
        })
    }

    /// Takes this very id, if it exists and is free.
    pub fn reserve(&mut self, id: u32) -> bool {
        if id == 0 || id > self.highest {
            return false;
        }
        if id < self.next {
            return self.free.remove(&id);
        }
        self.free.extend(self.next..id);
        self.next = id + 1;
        true
    }

    /// Takes an id back.
    pub fn release(&mut self, id: u32, now: Instant) {
        self.resting.push_back((now, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_rests_before_its_next_tenant() {
        let now = Instant::now();
        let mut ids = Ids::new(2);
        assert_eq!((ids.take(now), ids.take(now), ids.take(now)), (Some(1), Some(2), None));
        ids.release(1, now);
        assert_eq!(ids.take(now + QUARANTINE / 2), None);
        assert_eq!(ids.take(now + QUARANTINE), Some(1));
    }

    #[test]
    fn ids_around_reserved_ones_stay_free() {
        let now = Instant::now();
        let mut ids = Ids::new(5);
        assert!(ids.reserve(3) && ids.reserve(1));
        assert!(!ids.reserve(3), "taken twice");
        assert!(!ids.reserve(0) && !ids.reserve(6), "there are no such ids");
        let rest: Vec<u32> = std::iter::from_fn(|| ids.take(now)).collect();
        assert_eq!(rest, [2, 4, 5]);
    }

    #[test]
    fn the_largest_id_space_does_not_overflow() {
        let mut ids = Ids::new(u32::MAX - 1);
        ids.next = u32::MAX - 1;
        assert_eq!(ids.take(Instant::now()), Some(u32::MAX - 1));
        assert_eq!(ids.take(Instant::now()), None);
    }
}
