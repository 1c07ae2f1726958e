//! Compiled policies: what the maps should hold of one, and what they do hold.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use fairlead_abi::{identities, policies};

use super::census::{Census, ElementId};
use super::identity::Identities;
use super::model::{Direction, NamedPort, PolicyName};
use super::program::Program;
use super::row::Row;
use crate::dataplane::MapError;
use crate::tables::QUARANTINE;

/// What pods have in common that are under one compiled policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) direction: Direction,
    /// The objects that select them, in the order in which they are asked.
    pub(super) policies: Box<[PolicyName]>,
    /// What the names that rules ask for stand for on the pod itself.
    pub(super) ports: Box<[NamedPort]>,
}

/// A program whose peers are in use.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) program: Arc<Program>,
    /// The elements that the program's peers are, in order, each with its place among the peers.
    pub(super) elements: Box<[(ElementId, usize)]>,
}

impl Loaded {
    /// No rules at all.
    pub(super) fn empty(direction: Direction) -> Self {
        Self { program: Program::new(direction, &[], &[]).into(), elements: Box::default() }
    }
}

/// A compiled policy.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) key: Key,
    pub(super) loaded: Loaded,
    /// What replaces `loaded` once every address has a number that fits both.
    pub(super) next: Option<Loaded>,
    /// What replaces `loaded` once there is room for the ranges that it names; it is failed until then.
    pub(super) waiting: Option<Arc<Program>>,
    /// Its number in the maps, once it has one.
    pub(super) id: Option<u32>,
    /// Endpoints that should be under it.
    pub(super) endpoints: BTreeSet<u32>,
    /// The rows of its cells in the map, by identity.
    pub(super) cells: BTreeMap<u32, u32>,
    /// Its row in the map for all other identities; none: not written yet.
    pub(super) default: Option<u32>,
    pub(super) stale: Stale,
    /// Identities that have cells in the map and mean nothing any more.
    pub(super) dead: BTreeSet<u32>,
    /// Why the maps can't hold it: pods under it are closed.
    pub(super) failed: Option<MapError>,
    /// Nobody should be under it any more, and nothing of it is written anew.
    pub(super) retired: bool,
}

/// Which cells may be other in the map than they should.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// All of them, and the default row.
    pub(super) all: bool,
    /// Those of these identities.
    pub(super) numbers: BTreeSet<u32>,
}

impl Stale {
    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.numbers.is_empty()
    }
}

/// What the maps should hold.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The rows that the others refer to, each once.
    pub(super) rows: Vec<Row>,
    /// The default row, by its place in `rows`; none: it is as it should be.
    pub(super) default: Option<usize>,
    /// Cells that differ from the default row: identity, and place in `rows`.
    pub(super) cells: Vec<(u32, usize)>,
    /// Identities that need no cell, but have one in the map.
    pub(super) removed: Vec<u32>,
    /// Identities that have one and mean nothing.
    pub(super) dead: Vec<u32>,
}

impl Compiled {
    pub(super) fn new(key: Key, loaded: Loaded) -> Self {
        Self {
            key,
            loaded,
            next: None,
            waiting: None,
            id: None,
            endpoints: BTreeSet::new(),
            cells: BTreeMap::new(),
            default: None,
            stale: Stale { all: true, numbers: BTreeSet::new() },
            dead: BTreeSet::new(),
            failed: None,
            retired: false,
        }
    }

    /// The program that its objects ask for, as far as is known.
    pub(super) fn latest(&self) -> &Program {
        self.waiting.as_ref().or(self.next.as_ref().map(|next| &next.program)).unwrap_or(&self.loaded.program)
    }

    /// Whether pods may be put under it.
    pub(super) fn is_ready(&self) -> bool {
        self.id.is_some() && self.failed.is_none() && self.stale.is_empty() && self.next.is_none()
    }

    /// The row that the map gives to an identity; none while it has no default.
    pub(super) fn row_of(&self, number: u32) -> Option<u32> {
        self.cells.get(&number).copied().or(self.default)
    }

    /// What should be in the maps, as far as it may be other than it is.
    pub(super) fn wanted(&self, census: &Census, numbers: &Identities) -> Wanted {
        let mut rows = Compiler::new(&self.loaded, census);
        let default = rows.row(&[]);
        let mut stale: Vec<u32> = if self.stale.all {
            let elements = self.loaded.elements.iter().map(|(element, _)| *element);
            let names = self.loaded.program.names_of_peers().iter();
            let ports = names.flat_map(|name| census.elements_of_name(name));
            let held = elements.chain(ports).flat_map(|element| numbers.holders(element));
            held.chain(self.cells.keys().copied()).collect()
        } else {
            self.stale.numbers.iter().copied().collect()
        };
        stale.sort_unstable();
        stale.dedup();
        let mut wanted = Wanted::default();
        // What an earlier run knew of a number stays as it is until no address has it.
        let is_open = |number: &u32| *number != identities::UNKNOWN && !numbers.is_inherited(*number);
        for number in stale.into_iter().filter(is_open) {
            let has_cell = self.cells.contains_key(&number);
            match numbers.signature(number).map(|signature| rows.row(signature)) {
                Some(row) if row != default => wanted.cells.push((number, row)),
                Some(_) if has_cell => wanted.removed.push(number),
                None if has_cell => wanted.dead.push(number),
                Some(_) | None => {}
            }
        }
        wanted.default = (self.stale.all || self.default.is_none()).then_some(default);
        wanted.rows = rows.rows;
        wanted
    }
}

/// Makes rows of a program, each set of rules once.
struct Compiler<'a> {
    loaded: &'a Loaded,
    census: &'a Census,
    rows: Vec<Row>,
    /// Places in `rows`, by row.
    places: HashMap<Row, usize>,
    /// Places in `rows`, by the rules that match, and behind [`SEPARATOR`] the elements that their names of ports are.
    known: HashMap<Box<[u32]>, usize>,
    /// Room for such a key.
    key: Vec<u32>,
}

/// Neither a rule nor an element.
const SEPARATOR: u32 = u32::MAX;

impl<'a> Compiler<'a> {
    fn new(loaded: &'a Loaded, census: &'a Census) -> Self {
        let (places, known) = (HashMap::new(), HashMap::new());
        Self { loaded, census, rows: Vec::new(), places, known, key: Vec::new() }
    }

    /// The place of what the program says to whoever is these elements.
    fn row(&mut self, signature: &[ElementId]) -> usize {
        let Self { loaded: Loaded { program, elements }, census, key, .. } = self;
        let held = signature.iter().filter_map(|element| {
            let found = elements.binary_search_by_key(element, |(own, _)| *own).ok()?;
            Some(elements[found].1)
        });
        program.matching(held, key);
        let count = key.len();
        let names = program.names_of_peers();
        if !names.is_empty() {
            key.push(SEPARATOR);
            let is_asked = |port: &NamedPort| names.binary_search(&port.name).is_ok();
            key.extend(signature.iter().filter(|element| census.port(**element).is_some_and(is_asked)));
        }
        if let Some(place) = self.known.get(&**key) {
            return *place;
        }
        let ports = key[count..].iter().filter_map(|element| census.port(*element));
        let row = program.row(&key[..count], &ports.cloned().collect::<Vec<NamedPort>>());
        let place = match self.places.get(&row) {
            Some(place) => *place,
            None => {
                self.places.insert(row.clone(), self.rows.len());
                self.rows.push(row);
                self.rows.len() - 1
            }
        };
        self.known.insert(key.as_slice().into(), place);
        place
    }
}

/// Ids of compiled policies. One that nobody ever had is preferred, so that counters of drops keep their meaning.
#[derive(Debug)]
pub(super) struct PolicyIds {
    highest: u32,
    next: u32,
    /// Those from `next` on that are taken.
    reserved: HashSet<u32>,
    /// Those that were given back, and when.
    resting: VecDeque<(Instant, u32)>,
}

impl PolicyIds {
    /// The ids below `capacity`.
    pub(super) fn new(capacity: u32) -> Self {
        let highest = capacity.saturating_sub(1);
        Self { highest, next: policies::FIRST, reserved: HashSet::new(), resting: VecDeque::new() }
    }

    /// Notes that an earlier run gave out this id.
    pub(super) fn reserve(&mut self, id: u32) {
        self.reserved.insert(id);
    }

    /// An id that nobody has, nor had just now.
    pub(super) fn take(&mut self, now: Instant) -> Option<u32> {
        while self.next <= self.highest {
            let id = self.next;
            self.next += 1;
            if !self.reserved.remove(&id) {
                return Some(id);
            }
        }
        let (since, id) = self.resting.front().copied()?;
        if now.saturating_duration_since(since) < QUARANTINE {
            return None;
        }
        self.resting.pop_front();
        Some(id)
    }

    /// Takes an id back.
    pub(super) fn release(&mut self, id: u32, now: Instant) {
        if id <= self.highest {
            self.resting.push_back((now, id));
        }
    }

    /// When an id is free again, if all are taken or rest.
    pub(super) fn highest(&self) -> u32 {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_come_first_and_others_rest_before_they_come_again() {
        let now = Instant::now();
        let mut ids = PolicyIds::new(5);
        ids.reserve(3);
        assert_eq!(ids.take(now), Some(2));
        ids.release(2, now);
        assert_eq!((ids.take(now), ids.take(now)), (Some(4), None));
        assert_eq!(ids.take(now + QUARANTINE), Some(2));
    }
}
