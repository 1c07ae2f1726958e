//! What an earlier run left in the maps, taken over by those who want it.
//!
//! Rows are known again by what they say, compiled policies by the endpoints that are under them, identities by the
//! addresses that have them. What nobody takes over is removed once nobody is under it.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_abi::{Isolation, policies, verdicts};

use super::Engine;
use super::compiled::{Compiled, Key, Loaded, Stale};
use super::model::{Direction, Handle};
use crate::dataplane::{MapError, PolicyMaps};

/// Compiled policies of an earlier run.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    policies: BTreeMap<u32, Left>,
}

/// A compiled policy of an earlier run.
#[derive(Debug, Default)]
struct Left {
    cells: BTreeMap<u32, u32>,
    default: u32,
}

impl Engine {
    /// Reads the maps.
    pub(super) fn read(&mut self, maps: &impl PolicyMaps) -> Result<(), MapError> {
        let mut left: BTreeMap<u32, Left> = BTreeMap::new();
        self.ledger.state = maps.state()?;
        self.ledger.rows.adopt(maps.rows()?);
        for (key, row) in maps.cells()? {
            left.entry(key.policy).or_default().cells.insert(key.identity, row);
            self.identities.reserve(key.identity);
            self.ledger.rows.reserve(row);
            self.ledger.cells += 1;
        }
        let peers = maps.peers()?;
        peers.iter().for_each(|(_, value)| self.identities.reserve(super::places::number(*value)));
        self.places.adopt(peers.into_iter());
        let indices: Vec<u32> = self.endpoints.iter().map(|(index, _)| index).collect();
        for index in indices {
            let isolation = maps.isolation(index)?;
            self.ledger.isolation.insert(index, isolation);
            for id in [isolation.ingress, isolation.egress] {
                if id >= policies::FIRST {
                    left.entry(id).or_default();
                }
            }
        }
        // Also of those whose cells are gone, but whose default row an earlier run could not take back.
        for id in policies::FIRST..self.capacity.policies {
            let default = maps.default_row(id)?;
            if default != verdicts::DENY_NETWORK || left.contains_key(&id) {
                left.entry(id).or_default().default = default;
                self.ids.reserve(id);
            }
        }
        self.leftovers = Some(Leftovers { policies: left });
        Ok(())
    }

    /// Gives what the earlier run left to those who want it now, before anything is written.
    pub(super) fn take_over(&mut self) {
        let Some(Leftovers { policies: left }) = self.leftovers.take() else { return };
        self.places.assume(&mut self.identities);
        let ids = left.keys().copied().filter(|id| (policies::FIRST..self.capacity.policies).contains(id));
        let claims = self.claims(&ids.collect());
        for (id, left) in left {
            let rows = left.cells.values().copied().chain([left.default]);
            rows.for_each(|row| self.ledger.rows.refer(row));
            let handle = match claims.get(&id) {
                Some(handle) => *handle,
                None => self.orphan(id),
            };
            if let Some(compiled) = self.compiled.get_mut(&handle) {
                compiled.id = Some(id);
                compiled.cells = left.cells;
                compiled.default = Some(left.default);
            }
        }
    }

    /// Which policies take over which ids: those that all endpoints under an id should be under now.
    fn claims(&self, left: &BTreeSet<u32>) -> BTreeMap<u32, Handle> {
        let mut heirs: BTreeMap<u32, BTreeSet<Option<Handle>>> = BTreeMap::new();
        for (index, Isolation { ingress, egress }) in &self.ledger.isolation {
            for (direction, id) in Direction::BOTH.into_iter().zip([*ingress, *egress]) {
                let is_heir = |compiled: &&Compiled| {
                    compiled.key.direction == direction && compiled.endpoints.contains(index)
                };
                let heir =
                    self.compiled.iter().find(|(_, compiled)| is_heir(compiled)).map(|(handle, _)| *handle);
                heirs.entry(id).or_default().insert(heir);
            }
        }
        let mut claims = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (id, heirs) in heirs.into_iter().filter(|(id, _)| left.contains(id)) {
            if let (Some(Some(heir)), 1) = (heirs.first().copied(), heirs.len())
                && taken.insert(heir)
            {
                claims.insert(id, heir);
            }
        }
        claims
    }

    /// A policy of which nothing is known but what is in the maps.
    fn orphan(&mut self, id: u32) -> Handle {
        self.last_handle += 1;
        let handle = self.last_handle;
        let direction = Direction::Ingress;
        let key = Key { direction, policies: Box::default(), ports: Box::default() };
        let mut compiled = Compiled::new(key, Loaded::empty(direction));
        compiled.id = Some(id);
        compiled.stale = Stale::default();
        compiled.retired = true;
        self.compiled.insert(handle, compiled);
        handle
    }
}
