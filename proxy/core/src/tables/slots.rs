//! Contiguous runs of slots, given out and taken back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use fairlead_abi::Region;

use super::QUARANTINE;

/// The slots from 0 to a count. The shortest free run that is long enough is cut, the first of those; neighbours
/// grow together again when they come back.
#[derive(Clone, Debug)]
pub struct Slots {
    count: u32,
    /// First slot of each free run → its length. No two runs touch.
    free: BTreeMap<u32, u32>,
    /// The same runs as (length, first slot).
    by_len: BTreeSet<(u32, u32)>,
    /// Regions that rest, with the time they were given back.
    resting: VecDeque<(Instant, Region)>,
}

impl Slots {
    /// So many slots, all free.
    pub fn new(count: u32) -> Self {
        let mut slots =
            Self { count, free: BTreeMap::new(), by_len: BTreeSet::new(), resting: VecDeque::new() };
        slots.add_run(0, count);
        slots
    }

    /// How many slots there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Gives out a region of `len` slots, at least one; none if no free run is that long.
    pub fn take(&mut self, len: u32, now: Instant) -> Option<Region> {
        while let Some((since, region)) = self.resting.front().copied() {
            if now.saturating_duration_since(since) < QUARANTINE {
                break;
            }
            self.resting.pop_front();
            self.put_back(region);
        }
        let (_, base) = self.by_len.range((len, 0)..).next().copied()?;
        let region = Region { base, len };
        self.cut(region).then_some(region)
    }

    /// Takes this very region, if all of it exists and is free.
    pub fn reserve(&mut self, region: Region) -> bool {
        region.len > 0 && self.cut(region)
    }

    /// Takes a region back.
    pub fn release(&mut self, region: Region, now: Instant) {
        self.resting.push_back((now, region));
    }

    fn cut(&mut self, region: Region) -> bool {
        let Some((&base, &len)) = self.free.range(..=region.base).next_back() else { return false };
        let before = region.base - base;
        let Some(after) = len.checked_sub(before).and_then(|rest| rest.checked_sub(region.len)) else {
            return false;
        };
        self.remove_run(base, len);
        self.add_run(base, before);
        self.add_run(region.base + region.len, after);
        true
    }

    fn put_back(&mut self, region: Region) {
        let Region { mut base, mut len } = region;
        if let Some(&after) = self.free.get(&(base + len)) {
            self.remove_run(base + len, after);
            len += after;
        }
        if let Some((&before, &before_len)) = self.free.range(..base).next_back()
            && before + before_len == base
        {
            self.remove_run(before, before_len);
            base = before;
            len += before_len;
        }
        self.add_run(base, len);
    }

    fn add_run(&mut self, base: u32, len: u32) {
        if len > 0 {
            self.free.insert(base, len);
            self.by_len.insert((len, base));
        }
    }

    fn remove_run(&mut self, base: u32, len: u32) {
        self.free.remove(&base);
        self.by_len.remove(&(len, base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(base: u32, len: u32) -> Region {
        Region { base, len }
    }

    #[test]
    fn regions_grow_together_again_when_all_come_back() {
        let now = Instant::now();
        let mut slots = Slots::new(10);
        let taken: Vec<Region> = [3, 4, 3].iter().map(|len| slots.take(*len, now).expect("room")).collect();
        assert_eq!(taken, [region(0, 3), region(3, 4), region(7, 3)]);
        assert_eq!(slots.take(1, now), None);
        for index in [1, 0, 2] {
            slots.release(taken[index], now);
        }
        assert_eq!(slots.take(10, now + QUARANTINE), Some(region(0, 10)));
    }

    #[test]
    fn a_region_rests_before_its_next_tenant() {
        let now = Instant::now();
        let mut slots = Slots::new(2);
        let taken = slots.take(2, now).expect("room");
        slots.release(taken, now);
        assert_eq!(slots.take(1, now + QUARANTINE / 2), None);
        assert_eq!(slots.take(1, now + QUARANTINE), Some(region(0, 1)));
    }

    #[test]
    fn only_what_is_free_and_exists_can_be_reserved() {
        let mut slots = Slots::new(10);
        assert!(slots.reserve(region(4, 2)));
        assert!(!slots.reserve(region(5, 2)), "overlaps");
        assert!(!slots.reserve(region(9, 2)), "ends outside");
        assert!(!slots.reserve(region(11, 1)), "begins outside");
        assert!(!slots.reserve(region(6, 0)), "empty");
        assert!(slots.reserve(region(6, 4)) && slots.reserve(region(0, 4)));
        assert!(!Slots::new(0).reserve(region(0, 1)));
    }

    /// A long random sequence of takes and releases never gives out a slot twice, nor loses one.
    #[test]
    fn no_slot_has_two_tenants_and_none_is_lost() {
        let mut now = Instant::now();
        let mut slots = Slots::new(200);
        let mut held: Vec<Region> = Vec::new();
        let mut state = 7_u32;
        for _ in 0..5000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let choice = state >> 16;
            now += QUARANTINE / 4;
            if choice.is_multiple_of(3) && !held.is_empty() {
                let region = held.swap_remove(choice as usize % held.len());
                slots.release(region, now);
            } else if let Some(new) = slots.take(1 + choice % 20, now) {
                let disjoint =
                    |other: &Region| other.base + other.len <= new.base || new.base + new.len <= other.base;
                assert!(held.iter().all(disjoint), "{new:?} overlaps one of {held:?}");
                held.push(new);
            }
        }
        held.iter().for_each(|region| slots.release(*region, now));
        assert_eq!(slots.take(200, now + QUARANTINE), Some(region(0, 200)));
    }

    #[test]
    fn the_shortest_run_that_is_long_enough_is_cut() {
        let now = Instant::now();
        let mut slots = Slots::new(20);
        let taken: Vec<Region> =
            [6, 1, 3, 1, 3].iter().map(|len| slots.take(*len, now).expect("room")).collect();
        for index in [0, 2, 4] {
            slots.release(taken[index], now);
        }
        let later = now + QUARANTINE;
        assert_eq!(slots.take(3, later), Some(region(7, 3)), "the run of six stays whole");
        assert_eq!(slots.take(6, later), Some(region(0, 6)));
    }
}
