//! The maps as the reconciler and the policy engine see them: two traits, and implementations for tests.
//!
//! The agent implements [`ServiceMaps`] and [`PolicyMaps`] over the kernel's maps. [`MemoryMaps`] and
//! [`MemoryPolicyMaps`] hold them in memory and can print them; [`FaultyMaps`] wraps any and makes writes fail.

mod dump;
mod faulty;
mod keys;
mod memory;
mod policy;
mod policy_memory;

use std::fmt;

use fairlead_abi::{Backend, Frontend, FrontendKey, Region};

use crate::model::{frontend_label, socket_label};

pub use faulty::FaultyMaps;
pub use keys::{RangeKey, SourceRangeKey};
pub use memory::MemoryMaps;
pub use policy::{PolicyMaps, RowPrefix};
pub use policy_memory::{FlowSide, MemoryPolicyMaps};

/// The maps [`fairlead_abi::maps::FRONTENDS`], [`fairlead_abi::maps::SLOTS`],
/// [`fairlead_abi::maps::BACKENDS`], [`fairlead_abi::maps::SOURCE_RANGES`] and
/// [`fairlead_abi::maps::SERVICE_CIDRS`].
pub trait ServiceMaps {
    /// Writes the backend `id`; one without tenant vacates it.
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError>;

    /// Writes `ids` into the slots from `base` on.
    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError>;

    /// Creates or replaces the frontend at `key` in one step.
    fn write_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), MapError>;

    /// Removes the frontend at `key`; one that is not there is no error.
    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError>;

    /// Admits the clients of `range`, or no longer; one that is not there is removed without error.
    fn write_source_range(&mut self, range: &SourceRangeKey, present: bool) -> Result<(), MapError>;

    /// Creates or replaces a range of ClusterIPs, with [`fairlead_abi::cidr_flags`].
    fn write_service_cidr(&mut self, cidr: &RangeKey, flags: u32) -> Result<(), MapError>;

    /// Removes a range of ClusterIPs; one that is not there is no error.
    fn remove_service_cidr(&mut self, cidr: &RangeKey) -> Result<(), MapError>;

    /// Every backend that has a tenant, with its id.
    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError>;

    /// The highest generation that any backend has, with a tenant or without; 0 if no id ever had one.
    fn last_generation(&self) -> Result<u32, MapError>;

    /// The backend ids in the slots of `region`.
    fn slots(&self, region: Region) -> Result<Vec<u32>, MapError>;

    /// Every frontend.
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapError>;

    /// Every source range.
    fn source_ranges(&self) -> Result<Vec<SourceRangeKey>, MapError>;

    /// Every range of ClusterIPs, with its flags.
    fn service_cidrs(&self) -> Result<Vec<(RangeKey, u32)>, MapError>;
}

/// A map operation that failed: which, on what, why.
///
/// Reads as `program frontend 10.96.0.1:80/tcp: map full (65536)`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action} {object}: {cause}")]
pub struct MapError {
    /// What was attempted.
    pub action: MapAction,
    /// The object that it was attempted on, as in `frontend 10.96.0.1:80/tcp`.
    pub object: String,
    /// Why it failed.
    pub cause: MapCause,
}

impl MapError {
    /// The failure of `action` on the frontend at `key`.
    pub fn frontend(action: MapAction, key: &FrontendKey, cause: MapCause) -> Self {
        Self { action, object: format!("frontend {}", frontend_label(key)), cause }
    }

    /// The failure of `action` on `backend` at `id`.
    pub fn backend(action: MapAction, id: u32, backend: &Backend, cause: MapCause) -> Self {
        let object = if backend.has_tenant() {
            format!("backend {}", socket_label(backend.address.into(), backend.port.number()))
        } else {
            format!("backend {id}")
        };
        Self { action, object, cause }
    }

    /// The failure of `action` on a source range.
    pub fn source_range(action: MapAction, range: &SourceRangeKey, cause: MapCause) -> Self {
        let object = format!("source range {} of Service port {}", range.clients(), range.range.service);
        Self { action, object, cause }
    }

    /// The failure of `action` on a range of ClusterIPs.
    pub fn service_cidr(action: MapAction, cidr: &RangeKey, cause: MapCause) -> Self {
        Self { action, object: format!("service range {cidr}"), cause }
    }

    /// The failure of `action` on `region`.
    pub fn slots(action: MapAction, region: Region, cause: MapCause) -> Self {
        Self { action, object: format!("{} slots from {}", region.len, region.base), cause }
    }
}

/// What was attempted on a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapAction {
    /// Create or replace an entry.
    Program,
    /// Remove or vacate an entry.
    Remove,
    /// Read entries back.
    Read,
}

impl fmt::Display for MapAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Program => "program",
            Self::Remove => "remove",
            Self::Read => "read",
        })
    }
}

/// Why a map operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapCause {
    /// The map holds as many entries as it can: so many.
    #[error("map full ({0})")]
    Full(u32),
    /// The kernel's answer, or another implementation's.
    #[error("{0}")]
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, frontend_key};

    #[test]
    fn an_error_names_the_step_the_object_and_the_cause() {
        let key = frontend_key("10.96.0.1".parse().expect("an address"), 80, Protocol::Tcp);
        let error = MapError::frontend(MapAction::Program, &key, MapCause::Full(65536));
        assert_eq!(error.to_string(), "program frontend 10.96.0.1:80/tcp: map full (65536)");
        let vacant =
            MapError::backend(MapAction::Remove, 7, &Backend::default(), MapCause::Failed("EIO".into()));
        assert_eq!(vacant.to_string(), "remove backend 7: EIO");
    }
}
