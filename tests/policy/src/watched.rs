//! Maps of which somebody looks at every state that they pass through.

use fairlead_abi::{CellKey, Isolation, PolicyState};
use fairlead_core::dataplane::{MapError, PolicyMaps, RangeKey, RowPrefix};

/// Maps, and who looks at them after each write.
pub struct WatchedMaps<'a, M, F> {
    /// The maps.
    pub inner: &'a mut M,
    /// Who looks.
    pub look: F,
}

impl<M: PolicyMaps, F: FnMut(&M)> WatchedMaps<'_, M, F> {
    fn seen(&mut self, written: Result<(), MapError>) -> Result<(), MapError> {
        (self.look)(self.inner);
        written
    }
}

impl<M: PolicyMaps, F: FnMut(&M)> PolicyMaps for WatchedMaps<'_, M, F> {
    fn write_row(&mut self, key: &RowPrefix, verdict: u32) -> Result<(), MapError> {
        let written = self.inner.write_row(key, verdict);
        self.seen(written)
    }

    fn remove_row(&mut self, key: &RowPrefix) -> Result<(), MapError> {
        let removed = self.inner.remove_row(key);
        self.seen(removed)
    }

    fn write_default(&mut self, policy: u32, row: u32) -> Result<(), MapError> {
        let written = self.inner.write_default(policy, row);
        self.seen(written)
    }

    fn write_cell(&mut self, key: &CellKey, row: u32) -> Result<(), MapError> {
        let written = self.inner.write_cell(key, row);
        self.seen(written)
    }

    fn remove_cell(&mut self, key: &CellKey) -> Result<(), MapError> {
        let removed = self.inner.remove_cell(key);
        self.seen(removed)
    }

    fn write_peer(&mut self, prefix: &RangeKey, identity: u32) -> Result<(), MapError> {
        let written = self.inner.write_peer(prefix, identity);
        self.seen(written)
    }

    fn remove_peer(&mut self, prefix: &RangeKey) -> Result<(), MapError> {
        let removed = self.inner.remove_peer(prefix);
        self.seen(removed)
    }

    fn write_isolation(&mut self, index: u32, isolation: Isolation) -> Result<(), MapError> {
        let written = self.inner.write_isolation(index, isolation);
        self.seen(written)
    }

    fn write_state(&mut self, state: PolicyState) -> Result<(), MapError> {
        let written = self.inner.write_state(state);
        self.seen(written)
    }

    fn rows(&self) -> Result<Vec<(RowPrefix, u32)>, MapError> {
        self.inner.rows()
    }

    fn default_row(&self, policy: u32) -> Result<u32, MapError> {
        self.inner.default_row(policy)
    }

    fn cells(&self) -> Result<Vec<(CellKey, u32)>, MapError> {
        self.inner.cells()
    }

    fn peers(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        self.inner.peers()
    }

    fn isolation(&self, index: u32) -> Result<Isolation, MapError> {
        self.inner.isolation(index)
    }

    fn state(&self) -> Result<PolicyState, MapError> {
        self.inner.state()
    }
}
