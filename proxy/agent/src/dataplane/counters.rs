//! What the programs counted and how full the maps are: read when somebody asks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{MapData, MapError, PerCpuArray};
use fairlead_abi::{Address, Backend, Counter, Endpoint, Flow, FlowKey, Frontend, FrontendKey, Reason, maps};

use super::sys;

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

/// The maps that may fill up.
pub struct Fill {
    /// [`maps::FRONTENDS`].
    pub frontends: OwnedFd,
    /// [`maps::BACKENDS`].
    pub backends: OwnedFd,
    /// [`maps::ENDPOINTS`].
    pub endpoints: OwnedFd,
    /// [`maps::FLOWS`].
    pub flows: OwnedFd,
}

impl Fill {
    /// How many entries each map holds, by name; of backends, those that have a tenant. Reads the maps, which
    /// takes some ten milliseconds for each 100,000 entries.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn entries(&self) -> io::Result<[(&'static str, usize); 4]> {
        let (mut frontends, mut backends, mut endpoints, mut flows) = (0, 0, 0, 0);
        sys::read_chunks(self.frontends.as_fd(), |keys: &[FrontendKey], _: &[Frontend]| {
            frontends += keys.len();
        })?;
        sys::read_chunks(self.backends.as_fd(), |_: &[u32], values: &[Backend]| {
            backends += values.iter().filter(|backend| backend.generation != 0).count();
        })?;
        sys::read_chunks(self.endpoints.as_fd(), |keys: &[Address], _: &[Endpoint]| {
            endpoints += keys.len();
        })?;
        sys::read_chunks(self.flows.as_fd(), |keys: &[FlowKey], _: &[Flow]| flows += keys.len())?;
        Ok([
            (maps::FRONTENDS, frontends),
            (maps::BACKENDS, backends),
            (maps::ENDPOINTS, endpoints),
            (maps::FLOWS, flows),
        ])
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
