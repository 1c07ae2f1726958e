//! The kernel's maps of Services, for the reconciler: written one by one what is one entry, and in one call
//! what is many.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError as KernelError};
use fairlead_abi::{
    Address, Affinity, AffinityKey, Backend, Frontend, FrontendKey, Region, SourceRange, maps,
};
use fairlead_core::dataplane::{MapAction, MapCause, MapError, RangeKey, ServiceMaps, SourceRangeKey};

use super::{DataplaneError, Pins, is, removed, sys};
use crate::errors::chain;

/// A map, and its descriptor for the calls that aya lacks.
pub struct Batched<M> {
    /// The map.
    pub map: M,
    /// The same map.
    pub fd: OwnedFd,
}

/// How many entries there is room for, for errors to name.
#[derive(Clone, Copy, Debug)]
pub struct CapacityOf {
    /// Of frontends.
    pub frontends: u32,
    /// Of source ranges.
    pub source_ranges: u32,
    /// Of ranges of ClusterIPs.
    pub service_cidrs: u32,
}

/// The maps [`fairlead_abi::maps::FRONTENDS`], [`fairlead_abi::maps::SLOTS`], [`fairlead_abi::maps::BACKENDS`],
/// [`fairlead_abi::maps::SOURCE_RANGES`] and [`fairlead_abi::maps::SERVICE_CIDRS`].
pub struct KernelMaps {
    /// Frontends.
    pub frontends: Batched<HashMap<MapData, FrontendKey, Frontend>>,
    /// Slots; an array, written and read in runs.
    pub slots: OwnedFd,
    /// Backends.
    pub backends: Batched<Array<MapData, Backend>>,
    /// Who may use guarded frontends.
    pub source_ranges: LpmTrie<MapData, SourceRange, u32>,
    /// Where ClusterIPs are.
    pub service_cidrs: LpmTrie<MapData, Address, u32>,
    /// How much of each fits.
    pub capacity: CapacityOf,
}

impl KernelMaps {
    fn all_backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        sys::read_all(self.backends.fd.as_fd()).map_err(|e| unread("backends", e))
    }
}

impl ServiceMaps for KernelMaps {
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        let action = if backend.has_tenant() { MapAction::Program } else { MapAction::Remove };
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
            let cause = full_or_failed(e, self.capacity.frontends);
            MapError::frontend(MapAction::Program, key, cause)
        })
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        removed(self.frontends.map.remove(key))
            .map_err(|e| MapError::frontend(MapAction::Remove, key, failed(e)))
    }

    fn write_source_range(&mut self, range: &SourceRangeKey, present: bool) -> Result<(), MapError> {
        let key = Key::new(range.prefix_len, range.range);
        if present {
            self.source_ranges.insert(&key, 1, 0).map_err(|e| {
                let cause = full_or_failed(e, self.capacity.source_ranges);
                MapError::source_range(MapAction::Program, range, cause)
            })
        } else {
            removed(self.source_ranges.remove(&key))
                .map_err(|e| MapError::source_range(MapAction::Remove, range, failed(e)))
        }
    }

    fn write_service_cidr(&mut self, cidr: &RangeKey, flags: u32) -> Result<(), MapError> {
        self.service_cidrs.insert(&Key::new(cidr.prefix_len, cidr.address), flags, 0).map_err(|e| {
            let cause = full_or_failed(e, self.capacity.service_cidrs);
            MapError::service_cidr(MapAction::Program, cidr, cause)
        })
    }

    fn remove_service_cidr(&mut self, cidr: &RangeKey) -> Result<(), MapError> {
        removed(self.service_cidrs.remove(&Key::new(cidr.prefix_len, cidr.address)))
            .map_err(|e| MapError::service_cidr(MapAction::Remove, cidr, failed(e)))
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        Ok(self.all_backends()?.into_iter().filter(|(_, backend)| backend.has_tenant()).collect())
    }

    fn last_generation(&self) -> Result<u32, MapError> {
        Ok(self.all_backends()?.iter().map(|(_, backend)| backend.generation).max().unwrap_or_default())
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

    fn source_ranges(&self) -> Result<Vec<SourceRangeKey>, MapError> {
        let key = |key: Key<SourceRange>| SourceRangeKey { prefix_len: key.prefix_len(), range: key.data() };
        let keys: Result<Vec<_>, _> = self.source_ranges.keys().map(|found| found.map(key)).collect();
        keys.map_err(|e| unread("source ranges", e))
    }

    fn service_cidrs(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        let key = |key: Key<Address>| RangeKey { prefix_len: key.prefix_len(), address: key.data() };
        let entries = self.service_cidrs.iter().map(|found| found.map(|(found, flags)| (key(found), flags)));
        entries.collect::<Result<Vec<_>, _>>().map_err(|e| unread("service ranges", e))
    }
}

/// What the programs find at a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFrontend {
    /// The entry.
    pub frontend: Frontend,
    /// The backends of clients inside the cluster, as the region of slots names them.
    pub internal: Vec<Backend>,
    /// The backends of clients outside the cluster.
    pub external: Vec<Backend>,
}

/// Reads a frontend and its backends from the pinned maps; none if there is no entry.
///
/// # Errors
/// When a pin is missing or the kernel refuses to read.
pub fn look_up(pins: &Pins, key: &FrontendKey) -> Result<Option<FoundFrontend>, DataplaneError> {
    let open = |name: &str| {
        MapData::from_pin(pins.map(name)).map_err(|e| DataplaneError::new("open pinned map", name, e))
    };
    let of_type = |name: &'static str| move |e: KernelError| DataplaneError::new("read map", name, e);
    let frontends: HashMap<_, FrontendKey, Frontend> =
        Map::HashMap(open(maps::FRONTENDS)?).try_into().map_err(of_type(maps::FRONTENDS))?;
    let frontend = match frontends.get(key, 0) {
        Ok(frontend) if frontend.check == key.check() => frontend,
        Ok(_) | Err(KernelError::KeyNotFound) => return Ok(None),
        Err(e) => return Err(of_type(maps::FRONTENDS)(e)),
    };
    let slots: Array<_, u32> = Map::Array(open(maps::SLOTS)?).try_into().map_err(of_type(maps::SLOTS))?;
    let backends: Array<_, Backend> =
        Map::Array(open(maps::BACKENDS)?).try_into().map_err(of_type(maps::BACKENDS))?;
    let backends_in = |region: Region| {
        let slots = (region.base..region.base.saturating_add(region.len)).map(|slot| slots.get(&slot, 0));
        let found = slots.map(|id| backends.get(&id?, 0));
        found.collect::<Result<Vec<Backend>, KernelError>>().map_err(of_type(maps::SLOTS))
    };
    let (internal, external) = (backends_in(frontend.internal)?, backends_in(frontend.external)?);
    Ok(Some(FoundFrontend { frontend, internal, external }))
}

/// The backend that the Service port of this id remembers for the client, and how long ago the client last dialled it;
/// none if it remembers none, or one that is gone.
///
/// # Errors
/// When a pin is missing or the kernel refuses to read.
pub fn remembered(
    pins: &Pins,
    service: u32,
    client: IpAddr,
) -> Result<Option<(Backend, Duration)>, DataplaneError> {
    let failed = |name: &'static str| move |e: KernelError| DataplaneError::new("read map", name, e);
    let open = |name: &'static str| MapData::from_pin(pins.map(name)).map_err(failed(name));
    let affinities: HashMap<_, AffinityKey, Affinity> =
        Map::LruHashMap(open(maps::AFFINITY)?).try_into().map_err(failed(maps::AFFINITY))?;
    let affinity = match affinities.get(&AffinityKey { client: client.into(), service }, 0) {
        Ok(affinity) => affinity,
        Err(KernelError::KeyNotFound) => return Ok(None),
        Err(e) => return Err(failed(maps::AFFINITY)(e)),
    };
    let backends: Array<_, Backend> =
        Map::Array(open(maps::BACKENDS)?).try_into().map_err(failed(maps::BACKENDS))?;
    let backend = backends.get(&affinity.backend, 0).map_err(failed(maps::BACKENDS))?;
    let ago = Duration::from_nanos(sys::coarse_clock().saturating_sub(affinity.last_used));
    Ok((backend.generation == affinity.generation).then_some((backend, ago)))
}

/// The generations of the backends in the pinned map, by id.
///
/// # Errors
/// When the pin is missing or the kernel refuses to read.
pub fn generations(pins: &Pins, ids: impl Iterator<Item = u32>) -> Result<Vec<u32>, DataplaneError> {
    let failed = |e: KernelError| DataplaneError::new("read map", maps::BACKENDS, e);
    let map = MapData::from_pin(pins.map(maps::BACKENDS)).map_err(failed)?;
    let backends: Array<_, Backend> = Map::Array(map).try_into().map_err(failed)?;
    ids.map(|id| backends.get(&id, 0).map(|backend| backend.generation).map_err(failed)).collect()
}

/// Why a map with room for `capacity` entries took none more: a hash says E2BIG, a trie ENOSPC.
pub(super) fn full_or_failed(error: KernelError, capacity: u32) -> MapCause {
    let full = is(&error, libc::E2BIG) || is(&error, libc::ENOSPC);
    if full { MapCause::Full(capacity) } else { failed(error) }
}

pub(super) fn unread(what: &str, error: impl std::error::Error + 'static) -> MapError {
    MapError { action: MapAction::Read, object: what.to_owned(), cause: failed(error) }
}

pub(super) fn failed(error: impl std::error::Error + 'static) -> MapCause {
    MapCause::Failed(chain(&error))
}
