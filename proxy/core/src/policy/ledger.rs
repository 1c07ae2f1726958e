//! What the maps hold: rows, how many cells, the endpoints' policies and the revision.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fairlead_abi::{Isolation, PolicyState, rows};

use super::row::Row;
use super::view::Capacity;
use crate::dataplane::{MapAction, MapCause, MapError, PolicyMaps, RowPrefix};

/// What the maps hold.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) rows: Rows,
    /// How many cells there are.
    pub(super) cells: usize,
    /// The policies of endpoints; an index that is not here may have any.
    pub(super) isolation: BTreeMap<u32, Isolation>,
    pub(super) state: PolicyState,
}

impl Ledger {
    /// Whether any endpoint is under this compiled policy.
    pub(super) fn is_in_use(&self, id: u32) -> bool {
        self.isolation.values().any(|isolation| isolation.ingress == id || isolation.egress == id)
    }

    /// All compiled policies that any endpoint is under.
    pub(super) fn in_use(&self) -> BTreeSet<u32> {
        let both = self.isolation.values().flat_map(|isolation| [isolation.ingress, isolation.egress]);
        both.collect()
    }
}

/// The rows in the map.
#[derive(Debug)]
pub(super) struct Rows {
    next: u32,
    slots: HashMap<u32, Slot>,
    numbers: HashMap<Row, u32>,
    /// How many entries there are.
    entries: usize,
    /// Rows that no cell refers to.
    idle: BTreeSet<u32>,
}

/// A row and how much of it is in the map.
#[derive(Debug)]
struct Slot {
    /// What it says, if it makes sense.
    row: Option<Row>,
    entries: Vec<(RowPrefix, u32)>,
    /// So many of `entries`, from the first on, are in the map.
    written: usize,
    /// Cells and default rows that refer to it.
    references: usize,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            next: rows::FIRST,
            slots: HashMap::new(),
            numbers: HashMap::new(),
            entries: 0,
            idle: BTreeSet::new(),
        }
    }
}

impl Rows {
    /// Learns what is in the map, before anything else.
    pub(super) fn adopt(&mut self, found: Vec<(RowPrefix, u32)>) {
        let mut by_number: BTreeMap<u32, Vec<(RowPrefix, u32)>> = BTreeMap::new();
        for entry in found {
            by_number.entry(entry.0.key.row).or_default().push(entry);
        }
        for (number, entries) in by_number {
            self.reserve(number);
            self.entries += entries.len();
            self.idle.insert(number);
            let row = Row::from_entries(&entries);
            if let Some(row) = &row {
                self.numbers.entry(row.clone()).or_insert(number);
            }
            let written = entries.len();
            self.slots.insert(number, Slot { row, entries, written, references: 0 });
        }
    }

    /// Notes that a map may hold this number.
    pub(super) fn reserve(&mut self, number: u32) {
        self.next = self.next.max(number.saturating_add(1));
    }

    /// How many entries those of `wanted` would add that are not there yet, at most.
    pub(super) fn missing(&self, wanted: &[Row]) -> usize {
        wanted.iter().filter(|row| row.constant().is_none() && !self.is_written(row)).map(Row::len).sum()
    }

    /// Refuses to add so many entries, if there is no room.
    pub(super) fn check(&self, missing: usize, capacity: Capacity) -> Result<(), MapError> {
        if self.entries + missing <= capacity.rows as usize {
            return Ok(());
        }
        let object = format!("{missing} ranges of ports");
        Err(MapError::policy(MapAction::Program, object, MapCause::Full(capacity.rows)))
    }

    /// The number of a row, all of which is in the map then. Adds to `count` what it wrote.
    pub(super) fn ensure(
        &mut self,
        row: &Row,
        maps: &mut impl PolicyMaps,
        count: &mut usize,
    ) -> Result<u32, MapError> {
        if let Some(verdict) = row.constant() {
            return Ok(verdict);
        }
        let number = match self.numbers.get(row) {
            Some(number) => *number,
            None => {
                let number = self.next;
                // Four thousand million tables of ports outlast any run.
                self.next += 1;
                self.numbers.insert(row.clone(), number);
                let entries = row.entries(number).collect();
                let slot = Slot { row: Some(row.clone()), entries, written: 0, references: 0 };
                self.slots.insert(number, slot);
                self.idle.insert(number);
                number
            }
        };
        if let Some(slot) = self.slots.get_mut(&number) {
            while let Some((key, verdict)) = slot.entries.get(slot.written) {
                maps.write_row(key, *verdict)?;
                slot.written += 1;
                self.entries += 1;
                *count += 1;
            }
        }
        Ok(number)
    }

    /// Counts a cell or default row that refers to a row.
    pub(super) fn refer(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.references += 1;
            self.idle.remove(&number);
        }
    }

    /// Counts one less.
    pub(super) fn forget(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.references -= 1;
            if slot.references == 0 {
                self.idle.insert(number);
            }
        }
    }

    /// Removes rows that nothing refers to. Adds to `count` what it removed; the first failure.
    pub(super) fn sweep(&mut self, maps: &mut impl PolicyMaps, count: &mut usize) -> Result<(), MapError> {
        let mut failed = Ok(());
        for number in std::mem::take(&mut self.idle) {
            let Some(slot) = self.slots.get_mut(&number) else { continue };
            let removed = slot.remove(maps, &mut self.entries, count);
            if removed.is_err() {
                self.idle.insert(number);
                failed = failed.and(removed);
                continue;
            }
            if let Some(row) = self.slots.remove(&number).and_then(|slot| slot.row)
                && self.numbers.get(&row) == Some(&number)
            {
                self.numbers.remove(&row);
            }
        }
        failed
    }

    fn is_written(&self, row: &Row) -> bool {
        let slot = self.numbers.get(row).and_then(|number| self.slots.get(number));
        slot.is_some_and(|slot| slot.written == slot.entries.len())
    }
}

impl Slot {
    fn remove(
        &mut self,
        maps: &mut impl PolicyMaps,
        entries: &mut usize,
        count: &mut usize,
    ) -> Result<(), MapError> {
        while let Some(last) = self.written.checked_sub(1) {
            maps.remove_row(&self.entries[last].0)?;
            self.written = last;
            *entries -= 1;
            *count += 1;
        }
        Ok(())
    }
}
