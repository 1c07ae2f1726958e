//! Brings the maps to what the engine wants, so that no packet is judged by anything but the old state or the new.
//!
//! Addresses are told apart before any policy treats them differently, and only then no longer where no policy does:
//!
//! ```text
//! settle  numbers of all who changed, told apart by old and new peers alike
//!         cells of policies in use ─► PEERS ─► cells of numbers that nobody has any more
//! switch  cells of policies that changed or are new ─► ISOLATION ─► policies that nobody is under
//! release peers of programs that were replaced; settle again
//! ```
//!
//! A policy whose cells can't be written is *failed*, and closed before anything else moves.

use std::collections::BTreeSet;
use std::time::Instant;

use fairlead_abi::{CellKey, Isolation, PolicyState, identities, policies, rows, state_flags, verdicts};

use super::Engine;
use super::compiled::{Compiled, Stale, Wanted};
use super::endpoints::Under;
use super::ledger::Ledger;
use super::model::{Direction, Handle};
use super::prefix::Prefix;
use super::row::Row;
use super::view::{Applied, Capacity, Failure, Report};
use crate::dataplane::{MapAction, MapCause, MapError, PolicyMaps};

/// One call of [`Engine::reconcile`].
pub(super) struct Pass<'a, M> {
    pub(super) now: Instant,
    pub(super) maps: &'a mut M,
    pub(super) report: Report,
}

impl<M> Pass<'_, M> {
    pub(super) fn fail(&mut self, part: impl Into<String>, error: MapError) {
        self.report.failed.push(Failure { part: part.into(), error });
    }
}

/// Endpoints that a policy failed could not be closed: nothing may move that they depend on.
#[derive(Debug)]
pub(super) struct Halted;

impl Engine {
    /// All writes of one call.
    pub(super) fn apply(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) -> Result<(), Halted> {
        self.settle(pass)?;
        self.switch(pass)?;
        for (handle, loaded) in std::mem::take(&mut self.replaced) {
            self.unload(handle, &loaded);
        }
        self.retire(pass);
        self.touch();
        if self.places.is_dirty() {
            self.settle(pass)?;
        }
        Ok(())
    }

    /// Gives all who changed a number, and makes the policies in use and then the map of peers follow.
    fn settle(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) -> Result<(), Halted> {
        for change in self.places.settle(&self.census, &mut self.identities) {
            let elements = change.old.iter().chain([&change.new]).flat_map(|signature| signature.iter());
            let users: BTreeSet<Handle> = elements.flat_map(|element| self.census.users(*element)).collect();
            for handle in users {
                if let Some(compiled) = self.compiled.get_mut(&handle) {
                    compiled.stale.numbers.insert(change.number);
                }
            }
        }
        let in_use = self.ledger.in_use();
        let live = |compiled: &Compiled| compiled.id.is_some_and(|id| in_use.contains(&id));
        self.fill_all(live, pass);
        self.close(pass)?;
        self.write_peers(pass);
        self.fail_mistaken(pass);
        self.close(pass)?;
        let dead = self.identities.bury(&self.places.pinned());
        self.remove_cells(&dead, pass);
        Ok(())
    }

    /// Makes policies what their objects ask for, and puts endpoints under them.
    fn switch(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) -> Result<(), Halted> {
        for (handle, compiled) in &mut self.compiled {
            let Some(next) = compiled.next.take() else { continue };
            if compiled.endpoints.is_empty() {
                // It is not meant for those who are leaving.
                self.replaced.push((*handle, next));
                continue;
            }
            self.replaced.push((*handle, std::mem::replace(&mut compiled.loaded, next)));
            compiled.stale.all = true;
            compiled.failed = None;
        }
        self.fill_all(|compiled| !compiled.endpoints.is_empty(), pass);
        self.fail_mistaken(pass);
        self.close(pass)?;
        let indices: Vec<u32> = self.endpoints.iter().map(|(index, _)| index).collect();
        for index in indices {
            self.isolate(index, self.wanted_isolation(index), pass);
        }
        for index in self.endpoints.gone.clone() {
            if self.isolate(index, Isolation::default(), pass) {
                self.endpoints.gone.remove(&index);
            }
        }
        Ok(())
    }

    /// Fills the policies that `which` names and nothing speaks against.
    fn fill_all(&mut self, which: impl Fn(&Compiled) -> bool, pass: &mut Pass<'_, impl PolicyMaps>) {
        let can_be = |compiled: &Compiled| {
            !compiled.retired && !compiled.stale.is_empty() && compiled.failed.is_none() && which(compiled)
        };
        let handles: Vec<Handle> = self
            .compiled
            .iter()
            .filter(|(_, compiled)| can_be(compiled))
            .map(|(handle, _)| *handle)
            .collect();
        for handle in handles {
            let Some(mut compiled) = self.compiled.remove(&handle) else { continue };
            if let Err(error) = self.fill(&mut compiled, pass) {
                fail(&mut compiled, error, pass);
            }
            self.compiled.insert(handle, compiled);
        }
    }

    /// Writes what the maps lack of a policy.
    fn fill(
        &mut self,
        compiled: &mut Compiled,
        pass: &mut Pass<'_, impl PolicyMaps>,
    ) -> Result<(), MapError> {
        let id = match compiled.id {
            Some(id) => id,
            None => self.ids.take(pass.now).ok_or_else(|| {
                let full = MapCause::Full(self.ids.highest());
                MapError::policy(MapAction::Program, "id of a policy", full)
            })?,
        };
        compiled.id = Some(id);
        let wanted = compiled.wanted(&self.census, &self.identities);
        let is_closed = !self.ledger.is_in_use(id);
        let mut cells = Cells { ledger: &mut self.ledger, compiled, id, applied: &mut pass.report.applied };
        cells.check(&wanted, is_closed, self.capacity)?;
        let mut rows = Vec::with_capacity(wanted.rows.len());
        for row in &wanted.rows {
            rows.push(cells.row(row, pass.maps)?);
        }
        if is_closed {
            wanted.removed.iter().try_for_each(|identity| cells.remove(*identity, pass.maps))?;
        }
        wanted.cells.iter().try_for_each(|(identity, row)| cells.write(*identity, rows[*row], pass.maps))?;
        wanted.default.map_or(Ok(()), |row| cells.write_default(rows[row], pass.maps))?;
        wanted.removed.iter().try_for_each(|identity| cells.remove(*identity, pass.maps))?;
        compiled.stale = Stale::default();
        compiled.dead.extend(wanted.dead);
        Ok(())
    }

    /// Closes the endpoints that are under failed policies.
    fn close(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) -> Result<(), Halted> {
        let failed = |compiled: &&Compiled| compiled.failed.is_some();
        let ids: BTreeSet<u32> =
            self.compiled.values().filter(failed).filter_map(|compiled| compiled.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut closed = true;
        for (index, isolation) in self.ledger.isolation.clone() {
            let shut = |id: u32| if ids.contains(&id) { policies::CLOSED } else { id };
            let wanted = Isolation { ingress: shut(isolation.ingress), egress: shut(isolation.egress) };
            closed &= self.isolate(index, wanted, pass);
        }
        if closed { Ok(()) } else { Err(Halted) }
    }

    /// Puts the endpoint at `index` under these policies; whether it is under them now.
    fn isolate(&mut self, index: u32, wanted: Isolation, pass: &mut Pass<'_, impl PolicyMaps>) -> bool {
        if self.ledger.isolation.get(&index) == Some(&wanted) {
            self.unclosed.remove(&index);
            return true;
        }
        match pass.maps.write_isolation(index, wanted) {
            Ok(()) => {
                self.ledger.isolation.insert(index, wanted);
                self.unclosed.remove(&index);
                pass.report.applied.isolations += 1;
                true
            }
            Err(error) => {
                pass.fail(format!("endpoint {index}"), error.clone());
                self.unclosed.insert(index, error);
                false
            }
        }
    }

    /// Brings the map of peers to what every place should be.
    fn write_peers(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) {
        let mut failed: Vec<Prefix> = Vec::new();
        self.peer_error = None;
        for (prefix, value) in self.places.plan() {
            // What lies in it relies on its own entries being right.
            if failed.iter().any(|inner| prefix.covers(*inner)) {
                failed.push(prefix);
                continue;
            }
            let is_full = self.places.entries() >= self.capacity.peers as usize;
            let written = match value {
                Some(_) if is_full && !self.places.has_entry(prefix) => {
                    let full = MapCause::Full(self.capacity.peers);
                    Err(MapError::policy(MapAction::Program, format!("identity of {prefix}"), full))
                }
                Some(value) => pass.maps.write_peer(&prefix.key(), value),
                None => pass.maps.remove_peer(&prefix.key()),
            };
            match written {
                Ok(()) => {
                    self.places.written(prefix, value);
                    let applied = &mut pass.report.applied;
                    *(if value.is_some() { &mut applied.peers } else { &mut applied.removed }) += 1;
                }
                Err(error) => {
                    failed.push(prefix);
                    pass.fail(format!("peer {prefix}"), error.clone());
                    self.peer_error.get_or_insert(error);
                }
            }
        }
    }

    /// Fails the policies that would treat an address otherwise than they should, because of what the map of peers
    /// could not be told.
    fn fail_mistaken(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) {
        let Some(error) = self.peer_error.clone() else { return };
        let mistaken = self.places.mistaken();
        let minds = |compiled: &Compiled| {
            mistaken.iter().any(|(actual, wanted)| {
                let row = |value: &u32| compiled.row_of(value & !identities::OWN_NODE);
                let passes_for_node = actual & !wanted & identities::OWN_NODE != 0;
                row(actual) != row(wanted) || passes_for_node && row(wanted) != Some(verdicts::ALLOW)
            })
        };
        for compiled in self.compiled.values_mut() {
            if compiled.id.is_some() && compiled.failed.is_none() && minds(compiled) {
                fail(compiled, error.clone(), pass);
            }
        }
    }

    /// Removes the cells of numbers that mean nothing any more.
    fn remove_cells(&mut self, dead: &[u32], pass: &mut Pass<'_, impl PolicyMaps>) {
        let mut failed = Vec::new();
        for compiled in self.compiled.values_mut() {
            let Some(id) = compiled.id else { continue };
            compiled.dead.extend(dead.iter().filter(|identity| compiled.cells.contains_key(identity)));
            for identity in std::mem::take(&mut compiled.dead) {
                let applied = &mut pass.report.applied;
                let mut cells = Cells { ledger: &mut self.ledger, compiled, id, applied };
                if let Err(error) = cells.remove(identity, pass.maps) {
                    compiled.dead.insert(identity);
                    failed.push(error);
                }
            }
        }
        for error in failed {
            pass.fail("removals", error.clone());
            self.leftover = Some(error);
        }
    }

    /// Removes policies that nobody is under.
    fn retire(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) {
        let in_use = self.ledger.in_use();
        let idle = |compiled: &&Compiled| {
            compiled.endpoints.is_empty() && compiled.id.is_none_or(|id| !in_use.contains(&id))
        };
        let handles: Vec<Handle> =
            self.compiled.iter().filter(|(_, compiled)| idle(compiled)).map(|(handle, _)| *handle).collect();
        for handle in handles {
            let Some(mut compiled) = self.compiled.remove(&handle) else { continue };
            if !std::mem::replace(&mut compiled.retired, true) {
                if self.handles.get(&compiled.key) == Some(&handle) {
                    self.handles.remove(&compiled.key);
                }
                self.unload(handle, &compiled.loaded);
                compiled.failed = None;
            }
            if let Err(error) = self.clear(&mut compiled, pass) {
                pass.fail("removals", error.clone());
                self.leftover = Some(error);
                self.compiled.insert(handle, compiled);
            }
        }
    }

    fn clear(
        &mut self,
        compiled: &mut Compiled,
        pass: &mut Pass<'_, impl PolicyMaps>,
    ) -> Result<(), MapError> {
        let Some(id) = compiled.id else { return Ok(()) };
        let identities: Vec<u32> = compiled.cells.keys().copied().collect();
        let mut cells = Cells { ledger: &mut self.ledger, compiled, id, applied: &mut pass.report.applied };
        identities.into_iter().try_for_each(|identity| cells.remove(identity, pass.maps))?;
        if cells.compiled.default.is_some_and(|row| row != verdicts::DENY_NETWORK) {
            cells.write_default(verdicts::DENY_NETWORK, pass.maps)?;
        }
        if let Some(default) = compiled.default.take() {
            self.ledger.rows.forget(default);
        }
        self.ids.release(id, pass.now);
        Ok(())
    }

    /// What the endpoint at `index` should be under, given what is in the maps.
    pub(super) fn wanted_isolation(&self, index: u32) -> Isolation {
        let Some(endpoint) = self.endpoints.get(index) else { return Isolation::default() };
        let [ingress, egress] = Direction::BOTH.map(|direction: Direction| match endpoint.under(direction) {
            Under::Open => policies::OPEN,
            Under::Closed(_) => policies::CLOSED,
            Under::Policy(handle) => {
                let ready = self.compiled.get(&handle).filter(|compiled| compiled.is_ready());
                ready.and_then(|compiled| compiled.id).unwrap_or(policies::CLOSED)
            }
        });
        Isolation { ingress, egress }
    }

    /// Removes rows that nothing refers to.
    pub(super) fn sweep(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) {
        if let Err(error) = self.ledger.rows.sweep(pass.maps, &mut pass.report.applied.removed) {
            pass.fail("removals", error.clone());
            self.leftover = Some(error);
        }
    }

    /// Has flows judged again that were judged before what was written.
    pub(super) fn revise(&mut self, pass: &mut Pass<'_, impl PolicyMaps>) {
        let flags = if self.keep { state_flags::KEEP } else { 0 };
        self.unrevised |= pass.report.applied.total() > 0 || self.ledger.state.flags != flags;
        if !self.unrevised {
            return;
        }
        let state = PolicyState { revision: self.ledger.state.revision.wrapping_add(1), flags };
        match pass.maps.write_state(state) {
            Ok(()) => {
                self.ledger.state = state;
                self.unrevised = false;
            }
            Err(error) => pass.fail("revision", error),
        }
    }
}

fn fail<M>(compiled: &mut Compiled, error: MapError, pass: &mut Pass<'_, M>) {
    let names: Vec<String> = compiled.key.policies.iter().map(ToString::to_string).collect();
    pass.fail(names.join(", "), error.clone());
    compiled.failed = Some(error);
    compiled.stale.all = true;
}

/// The cells of one policy, and the books kept of them.
struct Cells<'a> {
    ledger: &'a mut Ledger,
    compiled: &'a mut Compiled,
    id: u32,
    applied: &'a mut Applied,
}

impl Cells<'_> {
    /// Refuses what there is no room for before any of it is written. Where nobody is under the policy, removals make
    /// room first.
    fn check(&self, wanted: &Wanted, is_closed: bool, capacity: Capacity) -> Result<(), MapError> {
        let is_new = |(identity, _): &&(u32, usize)| !self.compiled.cells.contains_key(identity);
        let missing = wanted.cells.iter().filter(is_new).count();
        let freed = if is_closed { wanted.removed.len() } else { 0 };
        if missing > 0 && self.ledger.cells + missing - freed > capacity.cells as usize {
            let full = MapCause::Full(capacity.cells);
            return Err(MapError::policy(MapAction::Program, format!("{missing} cells"), full));
        }
        let missing = self.ledger.rows.missing(&wanted.rows);
        if missing == 0 { Ok(()) } else { self.ledger.rows.check(missing, capacity) }
    }

    fn row(&mut self, row: &Row, maps: &mut impl PolicyMaps) -> Result<u32, MapError> {
        self.ledger.rows.ensure(row, maps, &mut self.applied.rows)
    }

    fn write(&mut self, identity: u32, row: u32, maps: &mut impl PolicyMaps) -> Result<(), MapError> {
        if self.compiled.cells.get(&identity) == Some(&row) {
            return Ok(());
        }
        maps.write_cell(&CellKey { policy: self.id, identity }, row)?;
        self.applied.cells += 1;
        self.ledger.rows.refer(row);
        match self.compiled.cells.insert(identity, row) {
            Some(old) => self.ledger.rows.forget(old),
            None => self.ledger.cells += 1,
        }
        Ok(())
    }

    fn write_default(&mut self, row: u32, maps: &mut impl PolicyMaps) -> Result<(), MapError> {
        if self.compiled.default == Some(row) {
            return Ok(());
        }
        maps.write_default(self.id, row)?;
        self.applied.cells += 1;
        self.ledger.rows.refer(row);
        if let Some(old) = self.compiled.default.replace(row) {
            self.ledger.rows.forget(old);
        }
        Ok(())
    }

    fn remove(&mut self, identity: u32, maps: &mut impl PolicyMaps) -> Result<(), MapError> {
        if !self.compiled.cells.contains_key(&identity) {
            return Ok(());
        }
        maps.remove_cell(&CellKey { policy: self.id, identity })?;
        self.applied.removed += 1;
        self.ledger.cells -= 1;
        if let Some(row) = self.compiled.cells.remove(&identity) {
            self.ledger.rows.forget(row);
        }
        Ok(())
    }
}

const _: () = assert!(verdicts::DENY_BASELINE < rows::FIRST, "a row that is a verdict has its number");
