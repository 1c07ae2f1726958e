//! What is in the maps, and whose it is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use fairlead_abi::{Backend, Frontend, FrontendKey, Port, Region, frontend_flags};

use super::Capacity;
use crate::dataplane::{MapAction, MapCause, MapError, ServiceMaps, SourceRangeKey};
use crate::endpoints::BackendAddress;
use crate::frontends::{Desired, DesiredFrontend};
use crate::maglev;
use crate::model::{ObjectName, Protocol, ServicePortName};
use crate::small::SmallMap;
use crate::tables::{Ids, Slots};

/// The entries of the maps with their owners, and the numbers that are free.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) frontends: HashMap<FrontendKey, Programmed>,
    pub(super) holdings: HashMap<ObjectName, Holding>,
    /// By first slot.
    pub(super) regions: HashMap<u32, RegionUse>,
    /// How many of these regions a backend is in, by id.
    references: Vec<u32>,
    /// By id of a Service port.
    pub(super) uses: HashMap<u32, ServiceUse>,
    pub(super) service_ids: Ids,
    pub(super) backend_ids: Ids,
    pub(super) slots: Slots,
    /// The generation that the next tenant of any id gets: never one that a flow may still carry.
    pub(super) next_generation: u32,
}

/// A frontend as it is in the map.
#[derive(Clone, Debug)]
pub(super) struct Programmed {
    pub(super) frontend: Frontend,
    /// None while it is left over from an earlier run.
    pub(super) owner: Option<ObjectName>,
}

/// A region that is taken.
#[derive(Clone, Debug)]
pub(super) struct RegionUse {
    pub(super) len: u32,
    /// None while it is left over from an earlier run.
    pub(super) owner: Option<ObjectName>,
    /// How many references the frontends in the map make to it.
    pub(super) users: u32,
}

/// How many frontends in the map carry the id of a Service port.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ServiceUse {
    frontends: u32,
    guarded_v4: u32,
    guarded_v6: u32,
}

impl ServiceUse {
    fn guarded(&mut self, v4: bool) -> &mut u32 {
        if v4 { &mut self.guarded_v4 } else { &mut self.guarded_v6 }
    }
}

/// What one Service has in the maps.
///
/// Backends belong to a Service and protocol, not to one of its ports, so that renaming a port changes
/// nothing; and not to several Services, so that the end of one Service ends its flows alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Holding {
    /// Ids by port name and protocol.
    pub(super) ids: SmallMap<(Arc<str>, Protocol), u32>,
    pub(super) backends: SmallMap<(Protocol, BackendAddress), u32>,
    /// Regions by what is in them.
    pub(super) regions: SmallMap<Contents, Region>,
    pub(super) frontends: SmallMap<FrontendKey, ()>,
    pub(super) ranges: BTreeSet<SourceRangeKey>,
}

/// What is in a region: these backends' ids, which ascend, as a list or as the Maglev table of a size over them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Contents {
    pub(super) ids: Box<[u32]>,
    pub(super) maglev: Option<u32>,
}

/// What a region of a Service should hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection<'a> {
    protocol: Protocol,
    backends: &'a [BackendAddress],
    /// The size of the Maglev table; none: a list.
    maglev: Option<u32>,
}

/// What the regions of `frontend` should hold: internal, external, Maglev.
pub(super) fn selections(frontend: &DesiredFrontend) -> [Selection<'_>; 3] {
    let protocol = frontend.port.protocol;
    let list = |backends| Selection { protocol, backends, maglev: None };
    let hashed: &[BackendAddress] = if frontend.maglev.is_some() { &frontend.external } else { &[] };
    [
        list(&frontend.internal),
        list(&frontend.external),
        Selection { protocol, backends: hashed, maglev: frontend.maglev },
    ]
}

impl Holding {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && self.backends.is_empty()
            && self.regions.is_empty()
            && self.frontends.is_empty()
            && self.ranges.is_empty()
    }

    /// The backends' ids in their order; none if one has no id.
    fn ids_of(&self, selection: Selection<'_>) -> Option<Vec<u32>> {
        let id = |address: &BackendAddress| self.backends.get(&(selection.protocol, *address)).copied();
        selection.backends.iter().map(id).collect()
    }
}

impl Contents {
    pub(super) fn new(mut ids: Vec<u32>, maglev: Option<u32>) -> Self {
        ids.sort_unstable();
        Self { ids: ids.into(), maglev }
    }
}

impl Ledger {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            frontends: HashMap::new(),
            holdings: HashMap::new(),
            regions: HashMap::new(),
            references: vec![0; capacity.backends as usize],
            uses: HashMap::new(),
            service_ids: Ids::new(u32::MAX - 1),
            backend_ids: Ids::new(capacity.backends.saturating_sub(1)),
            slots: Slots::new(capacity.slots),
            next_generation: 1,
        }
    }

    /// The frontend at `key` as it is in the map, if it is that of `service`.
    pub(super) fn frontend_of(&self, key: &FrontendKey, service: &ObjectName) -> Option<Frontend> {
        let programmed = self.frontends.get(key)?;
        (programmed.owner.as_ref() == Some(service)).then_some(programmed.frontend)
    }

    /// Notes that `region`, which holds these backends, is taken.
    pub(super) fn add_region(&mut self, region: Region, ids: &[u32], owner: Option<ObjectName>) {
        self.regions.insert(region.base, RegionUse { len: region.len, owner, users: 0 });
        self.references_of(ids, |count| *count += 1);
    }

    /// Gives back a region that held these backends.
    pub(super) fn drop_region(&mut self, region: Region, ids: &[u32], now: Instant) {
        self.regions.remove(&region.base);
        self.slots.release(region, now);
        self.references_of(ids, |count| *count -= 1);
    }

    /// A damaged map may name ids that there are not.
    fn references_of(&mut self, ids: &[u32], change: impl Fn(&mut u32)) {
        for id in ids {
            self.references.get_mut(*id as usize).into_iter().for_each(&change);
        }
    }

    /// Whether the backend is in any region.
    pub(super) fn is_referred_to(&self, backend: u32) -> bool {
        self.references.get(backend as usize).is_some_and(|count| *count > 0)
    }

    /// Whether any frontend in the map carries the id of this Service port.
    pub(super) fn is_used(&self, service: u32) -> bool {
        self.uses.contains_key(&service)
    }

    /// Whether any frontend in the map relies on the ranges of this Service port and family.
    pub(super) fn is_guarded(&self, service: u32, v4: bool) -> bool {
        let uses = self.uses.get(&service).copied();
        uses.is_some_and(|mut uses| *uses.guarded(v4) > 0)
    }

    /// The id of a Service port, new if it has none.
    pub(super) fn service_id(&mut self, port: &ServicePortName, now: Instant) -> Result<u32, MapError> {
        let ids = &mut self.holdings.entry(port.service.clone()).or_default().ids;
        let key = (port.port.clone(), port.protocol);
        if let Some(id) = ids.get(&key) {
            return Ok(*id);
        }
        let full = || MapError {
            action: MapAction::Program,
            object: format!("id of {port}"),
            cause: MapCause::Full(u32::MAX - 1),
        };
        let id = self.service_ids.take(now).ok_or_else(full)?;
        ids.insert(key, id);
        Ok(id)
    }

    /// Gives a backend of `service` an id and writes it, if it has none; returns whether it wrote.
    pub(super) fn ensure_backend(
        &mut self,
        service: &ObjectName,
        (protocol, address): (Protocol, BackendAddress),
        now: Instant,
        maps: &mut impl ServiceMaps,
    ) -> Result<bool, MapError> {
        let backends = &mut self.holdings.entry(service.clone()).or_default().backends;
        if backends.contains_key(&(protocol, address)) {
            return Ok(false);
        }
        let backend = Backend {
            address: address.ip.into(),
            port: Port::new(address.port),
            reserved: 0,
            generation: self.next_generation,
        };
        let Some(id) = self.backend_ids.take(now) else {
            let full = MapCause::Full(self.backend_ids.highest());
            return Err(MapError::backend(MapAction::Program, 0, &backend, full));
        };
        if let Err(error) = maps.write_backend(id, &backend) {
            self.backend_ids.release(id, now);
            return Err(error);
        }
        self.next_generation = self.next_generation.checked_add(1).unwrap_or(1);
        backends.insert((protocol, address), id);
        Ok(true)
    }

    /// Takes the tenant of this id from the map, and gives the id back.
    pub(super) fn vacate(
        &mut self,
        id: u32,
        now: Instant,
        maps: &mut impl ServiceMaps,
    ) -> Result<(), MapError> {
        maps.write_backend(id, &Backend::vacated(self.next_generation))?;
        self.next_generation = self.next_generation.checked_add(1).unwrap_or(1);
        self.backend_ids.release(id, now);
        Ok(())
    }

    /// The region of `service` that holds these backends; none if there is none yet.
    pub(super) fn region(&self, service: &ObjectName, selection: Selection<'_>) -> Option<Region> {
        if selection.backends.is_empty() {
            return Some(Region::default());
        }
        let holding = self.holdings.get(service)?;
        let contents = Contents::new(holding.ids_of(selection)?, selection.maglev);
        holding.regions.get(&contents).copied()
    }

    /// Takes and fills a region of `service`, if it has none that holds these backends, and all of them have ids.
    /// Returns whether it wrote.
    pub(super) fn ensure_region(
        &mut self,
        service: &ObjectName,
        selection: Selection<'_>,
        now: Instant,
        maps: &mut impl ServiceMaps,
    ) -> Result<bool, MapError> {
        if selection.backends.is_empty() {
            return Ok(false);
        }
        let Some(holding) = self.holdings.get_mut(service) else { return Ok(false) };
        let Some(ids) = holding.ids_of(selection) else { return Ok(false) };
        let contents = Contents::new(ids.clone(), selection.maglev);
        if holding.regions.contains_key(&contents) {
            return Ok(false);
        }
        let slots = match selection.maglev {
            None => contents.ids.to_vec(),
            Some(size) => hashed(selection.backends, &ids, size),
        };
        let len = slots.len() as u32;
        let Some(region) = self.slots.take(len, now) else {
            let object = format!("{len} slots of Service {service}");
            let cause = MapCause::Full(self.slots.count());
            return Err(MapError { action: MapAction::Program, object, cause });
        };
        if let Err(error) = maps.write_slots(region.base, &slots) {
            self.slots.release(region, now);
            return Err(error);
        }
        let held = contents.ids.clone();
        holding.regions.insert(contents, region);
        self.add_region(region, &held, Some(service.clone()));
        Ok(true)
    }

    /// Notes that the map now has this frontend at `key`, or none. Returns the other Services that owned
    /// it, or a region that it no longer refers to.
    pub(super) fn set_frontend(
        &mut self,
        key: FrontendKey,
        programmed: Option<Programmed>,
    ) -> BTreeSet<ObjectName> {
        let new_owner = programmed.as_ref().and_then(|new| new.owner.clone());
        if let Some(new) = &programmed {
            for region in regions_of(&new.frontend) {
                self.regions.entry(region.base).and_modify(|region| region.users += 1);
            }
            self.count_use(&key, &new.frontend);
        }
        let old = match programmed {
            Some(new) => self.frontends.insert(key, new),
            None => self.frontends.remove(&key),
        };
        let mut touched = BTreeSet::new();
        if let Some(old) = old {
            self.discount_use(&key, &old.frontend);
            for region in regions_of(&old.frontend) {
                if let Some(region) = self.regions.get_mut(&region.base) {
                    region.users = region.users.saturating_sub(1);
                    touched.extend(region.owner.clone());
                }
            }
            if let Some(owner) = old.owner {
                if let Some(holding) = self.holdings.get_mut(&owner) {
                    holding.frontends.remove(&key);
                }
                touched.insert(owner);
            }
        }
        if let Some(owner) = new_owner {
            touched.remove(&owner);
            self.holdings.entry(owner).or_default().frontends.insert(key, ());
        }
        touched
    }

    fn count_use(&mut self, key: &FrontendKey, frontend: &Frontend) {
        if frontend.service == 0 {
            return;
        }
        let uses = self.uses.entry(frontend.service).or_default();
        uses.frontends += 1;
        *uses.guarded(key.address.is_v4()) += u32::from(frontend.flags & frontend_flags::GUARDED != 0);
    }

    fn discount_use(&mut self, key: &FrontendKey, frontend: &Frontend) {
        let Some(uses) = self.uses.get_mut(&frontend.service) else { return };
        uses.frontends -= 1;
        *uses.guarded(key.address.is_v4()) -= u32::from(frontend.flags & frontend_flags::GUARDED != 0);
        if uses.frontends == 0 {
            self.uses.remove(&frontend.service);
        }
    }

    /// Which ranges the guarded frontends of `desired` ask for, as far as their Service ports have ids.
    pub(super) fn wanted_ranges(&self, service: &ObjectName, desired: &Desired) -> BTreeSet<SourceRangeKey> {
        let Some(holding) = self.holdings.get(service) else { return BTreeSet::new() };
        let guarded =
            desired.frontends.iter().filter(|(_, wanted)| wanted.flags & frontend_flags::GUARDED != 0);
        let ranges = |(key, wanted): (&FrontendKey, &DesiredFrontend)| {
            let v4 = key.address.is_v4();
            let id = holding.ids.get(&(wanted.port.port.clone(), wanted.port.protocol)).copied();
            let own = desired.source_ranges.iter().filter(move |range| range.addr().is_ipv4() == v4);
            own.filter_map(move |range| Some(SourceRangeKey::new(id?, *range))).collect::<Vec<_>>()
        };
        guarded.flat_map(ranges).collect()
    }
}

/// The slots of the Maglev table of `size` places over `backends`, which have these ids.
pub(super) fn hashed(backends: &[BackendAddress], ids: &[u32], size: u32) -> Vec<u32> {
    let places = maglev::table(backends, size);
    places.into_iter().map(|index| ids[index as usize]).collect()
}

/// The regions that a frontend refers to, each counted as often as it does.
pub(super) fn regions_of(frontend: &Frontend) -> impl Iterator<Item = Region> {
    [frontend.internal, frontend.external, frontend.maglev].into_iter().filter(|region| region.len > 0)
}
