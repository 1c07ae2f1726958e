//! What the programs counted: read when somebody asks.

use aya::maps::{MapData, MapError, PerCpuArray};
use fairlead_abi::{Counter, Reason};

/// The maps [`fairlead_abi::maps::COUNTERS`] and [`fairlead_abi::maps::DROPS`].
pub struct Counters {
    counters: PerCpuArray<MapData, u64>,
    drops: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Over the two maps.
    pub fn new(counters: PerCpuArray<MapData, u64>, drops: PerCpuArray<MapData, u64>) -> Self {
        Self { counters, drops }
    }

    /// Packets by what happened to them.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn packets(&self) -> Result<Vec<(Counter, u64)>, MapError> {
        Counter::ALL.iter().map(|counter| Ok((*counter, sum(&self.counters, *counter as u32)?))).collect()
    }

    /// Packets dropped or refused, by reason.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn drops(&self) -> Result<Vec<(Reason, u64)>, MapError> {
        Reason::ALL.iter().map(|reason| Ok((*reason, sum(&self.drops, *reason as u32)?))).collect()
    }
}

/// The sum over all CPUs; 0 for a number that is newer than the pinned map.
fn sum(map: &PerCpuArray<MapData, u64>, index: u32) -> Result<u64, MapError> {
    match map.get(&index, 0) {
        Ok(values) => Ok(values.iter().sum()),
        Err(MapError::OutOfBounds { .. } | MapError::KeyNotFound) => Ok(0),
        Err(e) => Err(e),
    }
}
