//! Maps that fail now and then, for tests.

use std::fmt;

use fairlead_abi::{Backend, CellKey, Frontend, FrontendKey, Isolation, PolicyState, Region};

use super::{MapAction, MapCause, MapError, PolicyMaps, RangeKey, RowPrefix, ServiceMaps, SourceRangeKey};

/// Maps whose writes fail now and then, as a pseudo-random sequence decides.
#[derive(Clone, Debug)]
pub struct FaultyMaps<M> {
    /// The maps behind.
    pub inner: M,
    /// How many writes in a thousand fail.
    pub failures_per_mille: u32,
    state: u64,
}

impl<M> FaultyMaps<M> {
    /// Maps of which so many writes in a thousand fail, which ones depending on `seed` alone.
    pub fn new(inner: M, seed: u64, failures_per_mille: u32) -> Self {
        Self { inner, failures_per_mille, state: seed }
    }

    /// Whether the next write is to fail, by splitmix64.
    fn fails(&mut self) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        mixed % 1000 < u64::from(self.failures_per_mille)
    }

    fn cause() -> MapCause {
        MapCause::Failed("injected failure".into())
    }
}

impl<M: ServiceMaps> ServiceMaps for FaultyMaps<M> {
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        if self.fails() {
            return Err(MapError::backend(MapAction::Program, id, backend, Self::cause()));
        }
        self.inner.write_backend(id, backend)
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError> {
        if self.fails() {
            let region = Region { base, len: ids.len() as u32 };
            return Err(MapError::slots(MapAction::Program, region, Self::cause()));
        }
        self.inner.write_slots(base, ids)
    }

    fn write_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), MapError> {
        if self.fails() {
            return Err(MapError::frontend(MapAction::Program, key, Self::cause()));
        }
        self.inner.write_frontend(key, frontend)
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        if self.fails() {
            return Err(MapError::frontend(MapAction::Remove, key, Self::cause()));
        }
        self.inner.remove_frontend(key)
    }

    fn write_source_range(&mut self, range: &SourceRangeKey, present: bool) -> Result<(), MapError> {
        if self.fails() {
            let action = if present { MapAction::Program } else { MapAction::Remove };
            return Err(MapError::source_range(action, range, Self::cause()));
        }
        self.inner.write_source_range(range, present)
    }

    fn write_service_cidr(&mut self, cidr: &RangeKey, flags: u32) -> Result<(), MapError> {
        if self.fails() {
            return Err(MapError::service_cidr(MapAction::Program, cidr, Self::cause()));
        }
        self.inner.write_service_cidr(cidr, flags)
    }

    fn remove_service_cidr(&mut self, cidr: &RangeKey) -> Result<(), MapError> {
        if self.fails() {
            return Err(MapError::service_cidr(MapAction::Remove, cidr, Self::cause()));
        }
        self.inner.remove_service_cidr(cidr)
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        self.inner.backends()
    }

    fn last_generation(&self) -> Result<u32, MapError> {
        self.inner.last_generation()
    }

    fn slots(&self, region: Region) -> Result<Vec<u32>, MapError> {
        self.inner.slots(region)
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapError> {
        self.inner.frontends()
    }

    fn source_ranges(&self) -> Result<Vec<SourceRangeKey>, MapError> {
        self.inner.source_ranges()
    }

    fn service_cidrs(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        self.inner.service_cidrs()
    }
}

impl<M: PolicyMaps> FaultyMaps<M> {
    fn try_policy(&mut self, action: MapAction, object: impl fmt::Display) -> Result<(), MapError> {
        match self.fails() {
            true => Err(MapError::policy(action, object, Self::cause())),
            false => Ok(()),
        }
    }
}

impl<M: PolicyMaps> PolicyMaps for FaultyMaps<M> {
    fn write_row(&mut self, key: &RowPrefix, verdict: u32) -> Result<(), MapError> {
        self.try_policy(MapAction::Program, key)?;
        self.inner.write_row(key, verdict)
    }

    fn remove_row(&mut self, key: &RowPrefix) -> Result<(), MapError> {
        self.try_policy(MapAction::Remove, key)?;
        self.inner.remove_row(key)
    }

    fn write_default(&mut self, policy: u32, row: u32) -> Result<(), MapError> {
        self.try_policy(MapAction::Program, format_args!("default row of policy {policy}"))?;
        self.inner.write_default(policy, row)
    }

    fn write_cell(&mut self, key: &CellKey, row: u32) -> Result<(), MapError> {
        self.try_policy(MapAction::Program, format_args!("cell {key:?}"))?;
        self.inner.write_cell(key, row)
    }

    fn remove_cell(&mut self, key: &CellKey) -> Result<(), MapError> {
        self.try_policy(MapAction::Remove, format_args!("cell {key:?}"))?;
        self.inner.remove_cell(key)
    }

    fn write_peer(&mut self, prefix: &RangeKey, identity: u32) -> Result<(), MapError> {
        self.try_policy(MapAction::Program, format_args!("identity of {prefix}"))?;
        self.inner.write_peer(prefix, identity)
    }

    fn remove_peer(&mut self, prefix: &RangeKey) -> Result<(), MapError> {
        self.try_policy(MapAction::Remove, format_args!("identity of {prefix}"))?;
        self.inner.remove_peer(prefix)
    }

    fn write_isolation(&mut self, index: u32, isolation: Isolation) -> Result<(), MapError> {
        self.try_policy(MapAction::Program, format_args!("policies of endpoint {index}"))?;
        self.inner.write_isolation(index, isolation)
    }

    fn write_state(&mut self, state: PolicyState) -> Result<(), MapError> {
        self.try_policy(MapAction::Program, "revision of policies")?;
        self.inner.write_state(state)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::MemoryMaps;

    #[test]
    fn about_as_many_writes_fail_as_asked_for_and_the_same_ones_each_time() {
        let failures = |seed| -> Vec<bool> {
            let mut maps = FaultyMaps::new(MemoryMaps::default(), seed, 300);
            (1..=1000).map(|id| maps.write_backend(id, &Backend::default()).is_err()).collect()
        };
        assert_eq!(failures(1), failures(1));
        assert_ne!(failures(1), failures(2));
        let count = failures(1).iter().filter(|failed| **failed).count();
        assert!((200..400).contains(&count), "{count} of 1000");
    }
}
