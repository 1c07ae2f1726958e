//! The maps in memory, for tests.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use fairlead_abi::{Address, Backend, Frontend, FrontendKey, Region, frontend_flags};

use super::{MapAction, MapCause, MapError, RangeKey, ServiceMaps, SourceRangeKey};
use crate::model::frontend_label;

/// The maps in memory.
///
/// They watch the order of writes. Each write panics that would let a program see, even for a moment, a
/// frontend whose backends are not all there, or other ones than were meant, or a guarded frontend without the
/// ranges that it admits.
#[derive(Clone, Debug, Default)]
pub struct MemoryMaps {
    /// How many writes there have been.
    pub writes: usize,
    /// How many frontends fit; `None`: any number.
    max_frontends: Option<u32>,
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(super) slots: BTreeMap<u32, u32>,
    pub(super) backends: BTreeMap<u32, Backend>,
    /// By Service port.
    pub(super) source_ranges: BTreeMap<u32, BTreeSet<SourceRangeKey>>,
    pub(super) service_cidrs: BTreeMap<RangeKey, u32>,
    /// Regions that frontends refer to, by first slot: length, and how many references.
    regions: BTreeMap<u32, (u32, usize)>,
    /// How often each backend is in such a region.
    references: HashMap<u32, usize>,
    /// How many guarded frontends a Service port has in a family (whether it is IPv4).
    guarded: HashMap<(u32, bool), usize>,
}

impl ServiceMaps for MemoryMaps {
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        assert_ne!(id, 0, "backend 0 is never used");
        assert!(!self.is_referred_to(id), "backend {id} is in use and becomes {backend:?}");
        self.writes += 1;
        self.backends.insert(id, *backend);
        Ok(())
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError> {
        let end = base + ids.len() as u32;
        if let Some((other, (len, _))) = self.regions.range(..end).next_back() {
            assert!(other + len <= base, "slots {base}..{end} overlap those in use from {other}, {len} long");
        }
        self.writes += 1;
        self.slots.extend((base..).zip(ids.iter().copied()));
        Ok(())
    }

    fn write_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), MapError> {
        if let Some(max) = self.max_frontends
            && self.frontends.len() >= max as usize
            && !self.frontends.contains_key(key)
        {
            return Err(MapError::frontend(MapAction::Program, key, MapCause::Full(max)));
        }
        self.expect_sound(key, frontend);
        self.writes += 1;
        let old = self.frontends.insert(*key, *frontend);
        self.refer(key, frontend);
        old.iter().for_each(|old| self.forget(key, old));
        Ok(())
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        self.writes += 1;
        let old = self.frontends.remove(key);
        old.iter().for_each(|old| self.forget(key, old));
        Ok(())
    }

    fn write_source_range(&mut self, range: &SourceRangeKey, present: bool) -> Result<(), MapError> {
        self.writes += 1;
        let (service, v4) = (range.range.service, range.range.address.is_v4());
        let ranges = self.source_ranges.entry(service).or_default();
        if present {
            ranges.insert(*range);
            return Ok(());
        }
        ranges.remove(range);
        let is_guarded = self.guarded.get(&(service, v4)).is_some_and(|count| *count > 0);
        let is_last = ranges.iter().all(|other| other.range.address.is_v4() != v4);
        assert!(
            !(is_guarded && is_last),
            "a guarded frontend of Service port {service} loses its last range"
        );
        if ranges.is_empty() {
            self.source_ranges.remove(&service);
        }
        Ok(())
    }

    fn write_service_cidr(&mut self, cidr: &RangeKey, flags: u32) -> Result<(), MapError> {
        self.writes += 1;
        self.service_cidrs.insert(*cidr, flags);
        Ok(())
    }

    fn remove_service_cidr(&mut self, cidr: &RangeKey) -> Result<(), MapError> {
        self.writes += 1;
        self.service_cidrs.remove(cidr);
        Ok(())
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        let tenants = self.backends.iter().filter(|(_, backend)| backend.has_tenant());
        Ok(tenants.map(|(id, backend)| (*id, *backend)).collect())
    }

    fn last_generation(&self) -> Result<u32, MapError> {
        Ok(self.backends.values().map(|backend| backend.generation).max().unwrap_or_default())
    }

    fn slots(&self, region: Region) -> Result<Vec<u32>, MapError> {
        Ok(self.ids_in(region).map(Option::unwrap_or_default).collect())
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapError> {
        Ok(self.frontends.iter().map(|(key, frontend)| (*key, *frontend)).collect())
    }

    fn source_ranges(&self) -> Result<Vec<SourceRangeKey>, MapError> {
        Ok(self.source_ranges.values().flatten().copied().collect())
    }

    fn service_cidrs(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        Ok(self.service_cidrs.iter().map(|(cidr, flags)| (*cidr, *flags)).collect())
    }
}

/// What the programs look up.
impl MemoryMaps {
    /// The frontend at `key`, unless it is another one's value.
    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).filter(|frontend| frontend.check == key.check()).copied()
    }

    /// The backends in the region, each as it is in the map.
    pub fn backends_in(&self, region: Region) -> Vec<Backend> {
        self.ids_in(region).filter_map(|id| self.backends.get(&id?).copied()).collect()
    }

    /// Whether this client may use the guarded frontends of a Service port.
    pub fn admits(&self, service: u32, client: Address) -> bool {
        let ranges = self.source_ranges.get(&service).into_iter().flatten();
        ranges.into_iter().any(|range| range.clients().contains(client))
    }

    /// The flags of the longest range of ClusterIPs that the address is in.
    pub fn service_cidr(&self, address: Address) -> Option<u32> {
        let holding = self.service_cidrs.iter().filter(|(cidr, _)| cidr.contains(address));
        holding.max_by_key(|(cidr, _)| cidr.prefix_len).map(|(_, flags)| *flags)
    }
}

impl MemoryMaps {
    /// Empty maps in which so many frontends fit.
    pub fn with_room_for(frontends: u32) -> Self {
        Self { max_frontends: Some(frontends), ..Self::default() }
    }

    /// The id in each slot of the region, if any was ever written.
    pub(super) fn ids_in(&self, region: Region) -> impl Iterator<Item = Option<u32>> + '_ {
        let slots = region.base..region.base.saturating_add(region.len);
        slots.map(|slot| self.slots.get(&slot).copied())
    }

    /// Whether any frontend's region holds the backend.
    pub(super) fn is_referred_to(&self, id: u32) -> bool {
        self.references.get(&id).is_some_and(|count| *count > 0)
    }

    /// Panics unless all that the frontend refers to is there, and it is that of its key.
    fn expect_sound(&self, key: &FrontendKey, frontend: &Frontend) {
        let label = frontend_label(key);
        assert_eq!(frontend.check, key.check(), "frontend {label} has another one's check");
        let is_whole = frontend.flags & frontend_flags::WHOLE != 0;
        assert_eq!(
            is_whole,
            *key == FrontendKey::whole(key.address),
            "{label} is a whole address or has a port"
        );
        assert_eq!(is_whole, frontend.service == 0, "frontend {label} has a Service unless it is whole");
        for region in regions_of(frontend) {
            for id in self.ids_in(region) {
                let backend = id.and_then(|id| self.backends.get(&id));
                let live = backend.is_some_and(Backend::has_tenant);
                assert!(live, "frontend {label} refers to a slot of {region:?} that has no backend");
            }
        }
        for region in [frontend.internal, frontend.external] {
            let ids: Vec<Option<u32>> = self.ids_in(region).collect();
            assert!(
                ids.is_sorted_by(|a, b| a < b),
                "frontend {label} has backends that do not ascend: {ids:?}"
            );
        }
        if frontend.flags & frontend_flags::GUARDED != 0 {
            let mut ranges = self.source_ranges.get(&frontend.service).into_iter().flatten();
            let has_range = ranges.any(|range| range.range.address.is_v4() == key.address.is_v4());
            assert!(has_range, "frontend {label} is guarded and has no range");
        }
    }

    fn refer(&mut self, key: &FrontendKey, frontend: &Frontend) {
        for region in regions_of(frontend) {
            self.regions.entry(region.base).or_insert((region.len, 0)).1 += 1;
            for (_, id) in self.slots.range(region.base..region.base + region.len) {
                *self.references.entry(*id).or_insert(0) += 1;
            }
        }
        if frontend.flags & frontend_flags::GUARDED != 0 {
            *self.guarded.entry((frontend.service, key.address.is_v4())).or_insert(0) += 1;
        }
    }

    fn forget(&mut self, key: &FrontendKey, frontend: &Frontend) {
        for region in regions_of(frontend) {
            if let Entry::Occupied(mut entry) = self.regions.entry(region.base) {
                entry.get_mut().1 -= 1;
                if entry.get().1 == 0 {
                    entry.remove();
                }
            }
            for (_, id) in self.slots.range(region.base..region.base + region.len) {
                self.references.entry(*id).and_modify(|count| *count -= 1);
            }
        }
        if frontend.flags & frontend_flags::GUARDED != 0 {
            self.guarded.entry((frontend.service, key.address.is_v4())).and_modify(|count| *count -= 1);
        }
    }
}

fn regions_of(frontend: &Frontend) -> impl Iterator<Item = Region> {
    [frontend.internal, frontend.external, frontend.maglev].into_iter().filter(|region| region.len > 0)
}
