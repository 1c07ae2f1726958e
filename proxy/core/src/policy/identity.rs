//! Numbers of identities: one for each set of elements that an address is.
//!
//! Numbers are sticky. When all who have a number become something else together, the number goes with them, so that
//! cells change and no address does. When they part, those who are what they were keep it. No number is given to
//! anybody else while it may be in a map, nor twice in a run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use fairlead_abi::identities;

use super::census::ElementId;
use super::prefix::Prefix;

/// The elements that an address is, in order.
pub(super) type Signature = Arc<[ElementId]>;

/// Never an element: begins the signature of a number whose meaning an earlier run knew.
const UNKNOWN_MEANING: ElementId = ElementId::MAX;

/// An address or prefix that may be something else than before.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) prefix: Prefix,
    /// The number that it had.
    pub(super) old: u32,
    /// What it is now; none: it is gone.
    pub(super) signature: Option<Signature>,
}

/// A number that means something else than before.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) number: u32,
    /// What it meant; none: it is new.
    pub(super) old: Option<Signature>,
    pub(super) new: Signature,
}

/// All numbers that mean something, but for 0, which is of who is nothing.
#[derive(Debug)]
pub(super) struct Identities {
    next: u32,
    table: BTreeMap<u32, Identity>,
    numbers: HashMap<Signature, u32>,
    /// The numbers of whom is each element.
    holders: HashMap<ElementId, BTreeSet<u32>>,
    /// Numbers that nobody should have any more.
    dying: BTreeSet<u32>,
}

#[derive(Debug)]
struct Identity {
    signature: Signature,
    /// How many addresses and prefixes should have it.
    members: usize,
}

/// Who leaves a number.
#[derive(Debug, Default)]
struct Leaving {
    count: usize,
    target: Option<Signature>,
    parts: bool,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            next: identities::FIRST,
            table: BTreeMap::new(),
            numbers: HashMap::new(),
            holders: HashMap::new(),
            dying: BTreeSet::new(),
        }
    }
}

impl Identities {
    /// What a number means; none if it means nothing any more.
    pub(super) fn signature(&self, number: u32) -> Option<&[ElementId]> {
        match number {
            identities::UNKNOWN => Some(&[]),
            _ => self.table.get(&number).map(|identity| &*identity.signature),
        }
    }

    /// Whether a number means something that only an earlier run knew.
    pub(super) fn is_inherited(&self, number: u32) -> bool {
        self.signature(number).is_some_and(|signature| signature.first() == Some(&UNKNOWN_MEANING))
    }

    /// The numbers of those who are `element`.
    pub(super) fn holders(&self, element: ElementId) -> impl Iterator<Item = u32> + '_ {
        self.holders.get(&element).into_iter().flatten().copied()
    }

    /// Notes that an earlier run gave an address this number.
    pub(super) fn assume(&mut self, number: u32) {
        if number == identities::UNKNOWN {
            return;
        }
        self.reserve(number);
        let unknown = || Identity { signature: Arc::from([UNKNOWN_MEANING, number]), members: 0 };
        self.table.entry(number).or_insert_with(unknown).members += 1;
    }

    /// Notes that a map may hold this number.
    pub(super) fn reserve(&mut self, number: u32) {
        self.next = self.next.max(number.saturating_add(1));
    }

    /// Gives everyone in `moves` a number, returned in the same order. Numbers in `pinned` may be in a map for
    /// addresses that should have another one, so that they must go on meaning what they mean.
    pub(super) fn assign(&mut self, moves: &[Move], pinned: &BTreeSet<u32>) -> (Vec<u32>, Vec<Change>) {
        let mut changes = Vec::new();
        let mut leaving: BTreeMap<u32, Leaving> = BTreeMap::new();
        for Move { old, signature, .. } in moves {
            if *old == identities::UNKNOWN || self.signature(*old) == signature.as_deref() {
                continue;
            }
            let leaving = leaving.entry(*old).or_default();
            leaving.count += 1;
            match (&leaving.target, signature) {
                (_, None) => {}
                (None, Some(signature)) => leaving.target = Some(signature.clone()),
                (Some(target), Some(signature)) => leaving.parts |= target != signature,
            }
        }
        leaving.retain(|number, leaving| {
            let members = self.table.get(number).map_or(0, |identity| identity.members);
            leaving.count == members && !pinned.contains(number)
        });
        for number in leaving.keys() {
            self.unname(*number);
        }
        for (number, Leaving { target, parts, .. }) in leaving {
            if let Some(target) = target.filter(|target| !parts && self.number(target).is_none()) {
                changes.push(self.redefine(number, target));
            }
        }
        let numbers = moves.iter().map(|one| self.go(one, &mut changes)).collect();
        (numbers, changes)
    }

    /// Numbers that nobody has or should have any more, once: they mean nothing from here on.
    pub(super) fn bury(&mut self, pinned: &BTreeSet<u32>) -> Vec<u32> {
        let dead: Vec<u32> = self.dying.difference(pinned).copied().collect();
        for number in &dead {
            self.dying.remove(number);
            self.unname(*number);
            if let Some(identity) = self.table.remove(number) {
                self.unhold(*number, &identity.signature);
            }
        }
        dead
    }

    fn number(&self, signature: &Signature) -> Option<u32> {
        if signature.is_empty() { Some(identities::UNKNOWN) } else { self.numbers.get(signature).copied() }
    }

    fn go(&mut self, Move { old, signature, .. }: &Move, changes: &mut Vec<Change>) -> u32 {
        let new = match signature {
            None => identities::UNKNOWN,
            Some(signature) => match self.number(signature) {
                Some(number) => number,
                None => {
                    let number = self.next;
                    // The numbers of two thousand million identities outlast any run.
                    self.next += 1;
                    let empty = Identity { signature: Arc::default(), members: 0 };
                    self.table.insert(number, empty);
                    let Change { new, .. } = self.redefine(number, signature.clone());
                    changes.push(Change { number, old: None, new });
                    number
                }
            },
        };
        if let Some(identity) = self.table.get_mut(&new) {
            identity.members += 1;
            self.dying.remove(&new);
        }
        if let Some(identity) = self.table.get_mut(old) {
            identity.members -= 1;
            if identity.members == 0 {
                self.dying.insert(*old);
            }
        }
        new
    }

    fn redefine(&mut self, number: u32, signature: Signature) -> Change {
        self.numbers.insert(signature.clone(), number);
        for element in signature.iter() {
            self.holders.entry(*element).or_default().insert(number);
        }
        let mut old = None;
        if let Some(identity) = self.table.get_mut(&number) {
            old = Some(std::mem::replace(&mut identity.signature, signature.clone()));
        }
        if let Some(old) = &old {
            let gone: Vec<ElementId> =
                old.iter().filter(|element| signature.binary_search(element).is_err()).copied().collect();
            self.unhold(number, &gone);
        }
        Change { number, old, new: signature }
    }

    fn unname(&mut self, number: u32) {
        let Some(identity) = self.table.get(&number) else { return };
        if self.numbers.get(&identity.signature) == Some(&number) {
            self.numbers.remove(&identity.signature);
        }
    }

    fn unhold(&mut self, number: u32, elements: &[ElementId]) {
        for element in elements {
            if let Some(holders) = self.holders.get_mut(element) {
                holders.remove(&number);
                if holders.is_empty() {
                    self.holders.remove(element);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses by their last byte, each with its number.
    #[derive(Default)]
    struct Crowd {
        identities: Identities,
        numbers: BTreeMap<u8, u32>,
    }

    impl Crowd {
        fn turn(&mut self, become_: &[(u8, &[u32])], pinned: &[u32]) -> Vec<u32> {
            let moves: Vec<Move> = become_
                .iter()
                .map(|(address, elements)| Move {
                    prefix: Prefix::from(std::net::IpAddr::from([10, 0, 0, *address])),
                    old: self.numbers.get(address).copied().unwrap_or(0),
                    signature: Some(Arc::from(*elements)),
                })
                .collect();
            let pinned = pinned.iter().copied().collect();
            let (numbers, changes) = self.identities.assign(&moves, &pinned);
            for ((address, _), number) in become_.iter().zip(numbers) {
                self.numbers.insert(*address, number);
            }
            self.identities.bury(&pinned);
            changes.iter().map(|change| change.number).collect()
        }

        fn of(&self, address: u8) -> u32 {
            self.numbers[&address]
        }
    }

    #[test]
    fn who_is_the_same_has_one_number_and_who_is_nothing_has_none() {
        let mut crowd = Crowd::default();
        crowd.turn(&[(1, &[5]), (2, &[5]), (3, &[6]), (4, &[])], &[]);
        assert_eq!(crowd.of(1), crowd.of(2));
        assert_ne!(crowd.of(1), crowd.of(3));
        assert_eq!(crowd.of(4), 0);
    }

    #[test]
    fn a_number_goes_with_all_who_have_it() {
        let mut crowd = Crowd::default();
        crowd.turn(&[(1, &[5]), (2, &[5]), (3, &[6])], &[]);
        let (old, other) = (crowd.of(1), crowd.of(3));
        assert_eq!(crowd.turn(&[(1, &[5, 7]), (2, &[5, 7])], &[]), [old], "only its meaning changes");
        assert_eq!((crowd.of(1), crowd.of(2), crowd.of(3)), (old, old, other));
        assert_eq!(crowd.identities.signature(old), Some(&[5, 7][..]));
        assert_eq!(crowd.identities.holders(7).collect::<Vec<_>>(), [old]);
    }

    #[test]
    fn who_stays_what_he_was_keeps_the_number_when_others_leave() {
        let mut crowd = Crowd::default();
        crowd.turn(&[(1, &[5]), (2, &[5])], &[]);
        let old = crowd.of(1);
        crowd.turn(&[(2, &[5, 7])], &[]);
        assert_eq!(crowd.of(1), old);
        assert!(crowd.of(2) > old);
    }

    #[test]
    fn when_all_part_nobody_keeps_the_number() {
        let mut crowd = Crowd::default();
        crowd.turn(&[(1, &[5]), (2, &[5])], &[]);
        let old = crowd.of(1);
        crowd.turn(&[(1, &[6]), (2, &[7])], &[]);
        assert!(crowd.of(1) > old && crowd.of(2) > old && crowd.of(1) != crowd.of(2));
        assert_eq!(crowd.identities.signature(old), None);
    }

    #[test]
    fn two_may_change_places_and_one_may_join_another() {
        let mut crowd = Crowd::default();
        crowd.turn(&[(1, &[5]), (2, &[6])], &[]);
        let (one, two) = (crowd.of(1), crowd.of(2));
        crowd.turn(&[(1, &[6]), (2, &[5])], &[]);
        assert_eq!((crowd.of(1), crowd.of(2)), (one, two));
        crowd.turn(&[(1, &[5])], &[]);
        assert_eq!(crowd.of(1), two);
        assert_eq!(crowd.identities.signature(one), None);
    }

    #[test]
    fn a_number_that_an_address_may_have_by_mistake_goes_on_meaning_what_it_did() {
        let mut crowd = Crowd::default();
        crowd.turn(&[(1, &[5])], &[]);
        let old = crowd.of(1);
        crowd.turn(&[(1, &[6])], &[old]);
        assert_ne!(crowd.of(1), old);
        assert_eq!(crowd.identities.signature(old), Some(&[5][..]));
        crowd.turn(&[], &[]);
        assert_eq!(crowd.identities.signature(old), None);
    }

    #[test]
    fn numbers_of_an_earlier_run_are_taken_over_by_those_who_have_them() {
        let mut crowd = Crowd::default();
        for (address, number) in [(1, 40), (2, 40), (3, 41), (4, 42), (5, 42)] {
            crowd.identities.assume(number);
            crowd.numbers.insert(address, number);
        }
        crowd.turn(&[(1, &[5]), (2, &[5]), (3, &[5, 6]), (4, &[7]), (5, &[8])], &[]);
        assert_eq!((crowd.of(1), crowd.of(2), crowd.of(3)), (40, 40, 41));
        assert_eq!((crowd.of(4), crowd.of(5)), (43, 44), "they would not agree on it");
    }
}
