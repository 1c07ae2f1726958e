//! The kernel's maps of Services, for the reconciler: written one by one what is one entry, and in one call
//! what is many.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Array, HashMap, MapData, MapError as KernelError};
use fairlead_abi::{Backend, Frontend, FrontendKey, Region};
use fairlead_core::dataplane::{MapAction, MapCause, MapError, ServiceMaps};

use super::sys;
use crate::errors::chain;

/// A map, and its descriptor for the calls that aya lacks.
pub struct Batched<M> {
    /// The map.
    pub map: M,
    /// The same map.
    pub fd: OwnedFd,
}

/// The maps [`fairlead_abi::maps::FRONTENDS`], [`fairlead_abi::maps::SLOTS`] and
/// [`fairlead_abi::maps::BACKENDS`].
pub struct KernelMaps {
    /// Frontends.
    pub frontends: Batched<HashMap<MapData, FrontendKey, Frontend>>,
    /// Slots; an array, written and read in runs.
    pub slots: OwnedFd,
    /// Backends.
    pub backends: Batched<Array<MapData, Backend>>,
    /// How many frontends there is room for.
    pub max_frontends: u32,
}

impl ServiceMaps for KernelMaps {
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        let action = if backend.generation == 0 { MapAction::Remove } else { MapAction::Program };
        self.backends.map.set(id, backend, 0).map_err(|e| {
            let cause = match e {
                KernelError::OutOfBounds { max_entries, .. } => MapCause::Full(max_entries),
                other => failed(other),
            };
            MapError::backend(action, id, backend, cause)
        })
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError> {
        if ids.is_empty() {
            return Ok(());
        }
        let region = Region { base, len: ids.len() as u32 };
        let slots: Vec<u32> = (base..base + region.len).collect();
        sys::update_batch(self.slots.as_fd(), &slots, ids)
            .map_err(|e| MapError::slots(MapAction::Program, region, failed(e)))
    }

    fn write_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), MapError> {
        self.frontends.map.insert(key, frontend, 0).map_err(|e| {
            let cause = if is(&e, libc::E2BIG) { MapCause::Full(self.max_frontends) } else { failed(e) };
            MapError::frontend(MapAction::Program, key, cause)
        })
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        match self.frontends.map.remove(key) {
            Ok(()) | Err(KernelError::KeyNotFound) => Ok(()),
            Err(e) if is(&e, libc::ENOENT) => Ok(()),
            Err(e) => Err(MapError::frontend(MapAction::Remove, key, failed(e))),
        }
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        let all: Vec<(u32, Backend)> =
            sys::read_all(self.backends.fd.as_fd()).map_err(|e| unread("backends", e))?;
        Ok(all.into_iter().filter(|(_, backend)| backend.generation != 0).collect())
    }

    fn slots(&self, region: Region) -> Result<Vec<u32>, MapError> {
        if region.len == 0 {
            return Ok(Vec::new());
        }
        sys::read_run(self.slots.as_fd(), region.base, region.len)
            .map_err(|e| MapError::slots(MapAction::Read, region, failed(e)))
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapError> {
        sys::read_all(self.frontends.fd.as_fd()).map_err(|e| unread("frontends", e))
    }
}

fn unread(what: &str, error: std::io::Error) -> MapError {
    MapError { action: MapAction::Read, object: what.to_owned(), cause: failed(error) }
}

fn failed(error: impl std::error::Error + 'static) -> MapCause {
    MapCause::Failed(chain(&error))
}

/// Whether the kernel's answer was `errno`.
fn is(error: &KernelError, errno: i32) -> bool {
    matches!(error, KernelError::SyscallError(e) if e.io_error.raw_os_error() == Some(errno))
}
