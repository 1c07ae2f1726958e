//! What is in the maps, and whose it is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

use fairlead_abi::{Backend, Frontend, FrontendKey, Port, Region};

use super::Capacity;
use crate::dataplane::{MapAction, MapCause, MapError, ServiceMaps};
use crate::endpoints::BackendAddress;
use crate::frontends::Desired;
use crate::model::{ObjectName, Protocol, ServicePortName};
use crate::tables::{Ids, Slots};

/// The entries of the maps with their owners, and the numbers that are free.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) frontends: HashMap<FrontendKey, Programmed>,
    pub(super) holdings: HashMap<ObjectName, Holding>,
    /// By first slot.
    pub(super) regions: HashMap<u32, RegionUse>,
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

/// What one Service has in the maps.
///
/// Backends belong to a Service and protocol, not to one of its ports, so that renaming a port changes
/// nothing; and not to several Services, so that the end of one Service ends its flows alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Holding {
    /// Ids by port name and protocol.
    pub(super) ids: BTreeMap<(String, Protocol), u32>,
    pub(super) backends: BTreeMap<(Protocol, BackendAddress), u32>,
    /// Regions by the backend ids in them.
    pub(super) regions: HashMap<Vec<u32>, Region>,
    pub(super) frontends: BTreeSet<FrontendKey>,
}

impl Holding {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && self.backends.is_empty()
            && self.regions.is_empty()
            && self.frontends.is_empty()
    }

    fn keep_ids(&mut self, keep: impl Fn(&(String, Protocol), u32) -> bool) -> Vec<u32> {
        let dropped = self.ids.extract_if(.., |port, id| !keep(port, *id));
        dropped.map(|(_, id)| id).collect()
    }
}

impl Ledger {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            frontends: HashMap::new(),
            holdings: HashMap::new(),
            regions: HashMap::new(),
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

    /// The region of `service` that holds these backends, or none if one of them has no id.
    pub(super) fn region(
        &self,
        service: &ObjectName,
        protocol: Protocol,
        addresses: &[BackendAddress],
    ) -> Option<(Vec<u32>, Option<Region>)> {
        if addresses.is_empty() {
            return Some((Vec::new(), Some(Region::default())));
        }
        let holding = self.holdings.get(service)?;
        let ids: Option<Vec<u32>> =
            addresses.iter().map(|address| holding.backends.get(&(protocol, *address)).copied()).collect();
        ids.map(|ids| {
            let region = holding.regions.get(&ids).copied();
            (ids, region)
        })
    }

    /// Takes and fills a region of `service` with `ids`.
    pub(super) fn fill_region(
        &mut self,
        service: &ObjectName,
        ids: Vec<u32>,
        now: Instant,
        maps: &mut impl ServiceMaps,
    ) -> Result<Region, MapError> {
        let len = ids.len() as u32;
        let Some(region) = self.slots.take(len, now) else {
            let object = format!("{len} slots of Service {service}");
            let cause = MapCause::Full(self.slots.count());
            return Err(MapError { action: MapAction::Program, object, cause });
        };
        if let Err(error) = maps.write_slots(region.base, &ids) {
            self.slots.release(region, now);
            return Err(error);
        }
        self.regions.insert(region.base, RegionUse { len, owner: Some(service.clone()), users: 0 });
        self.holdings.entry(service.clone()).or_default().regions.insert(ids, region);
        Ok(region)
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
        }
        let old = match programmed {
            Some(new) => self.frontends.insert(key, new),
            None => self.frontends.remove(&key),
        };
        let mut touched = BTreeSet::new();
        if let Some(old) = old {
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
            self.holdings.entry(owner).or_default().frontends.insert(key);
        }
        touched
    }

    /// Gives back what `service` has and neither its frontends in the map nor `desired` refer to.
    /// Returns how many backends were vacated, and the failures; what failed is kept, to be tried again.
    pub(super) fn sweep(
        &mut self,
        service: &ObjectName,
        desired: &Desired,
        now: Instant,
        maps: &mut impl ServiceMaps,
    ) -> (usize, Vec<MapError>) {
        let wanted: Vec<Region> = desired
            .frontends
            .values()
            .flat_map(|frontend| {
                [&frontend.internal, &frontend.external].map(|list| (frontend.port.protocol, list))
            })
            .filter_map(|(protocol, list)| self.region(service, protocol, list)?.1)
            .collect();
        let Some(holding) = self.holdings.get_mut(service) else { return (0, Vec::new()) };
        holding.regions.retain(|_, region| {
            let users = self.regions.get(&region.base).map_or(0, |known| known.users);
            let keep = users > 0 || wanted.contains(region);
            if !keep {
                self.regions.remove(&region.base);
                self.slots.release(*region, now);
            }
            keep
        });

        let used: HashSet<u32> = holding.regions.keys().flatten().copied().collect();
        let asked: HashSet<(Protocol, BackendAddress)> = desired.backends().collect();
        let (mut vacated, mut failures) = (0, Vec::new());
        holding.backends.retain(|backend, id| {
            let (protocol, address) = *backend;
            if used.contains(id) || asked.contains(backend) || desired.lingers(protocol, address) {
                return true;
            }
            match maps.write_backend(*id, &Backend::default()) {
                Ok(()) => {
                    vacated += 1;
                    self.backend_ids.release(*id, now);
                    false
                }
                Err(error) => {
                    failures.push(error);
                    true
                }
            }
        });

        let in_map: HashSet<u32> = holding
            .frontends
            .iter()
            .filter_map(|key| Some(self.frontends.get(key)?.frontend.service))
            .collect();
        let asked: HashSet<(&str, Protocol)> = desired
            .frontends
            .values()
            .map(|frontend| (frontend.port.port.as_str(), frontend.port.protocol))
            .collect();
        for id in holding.keep_ids(|(port, protocol), id| {
            in_map.contains(&id) || asked.contains(&(port.as_str(), *protocol))
        }) {
            self.service_ids.release(id, now);
        }
        if holding.is_empty() {
            self.holdings.remove(service);
        }
        (vacated, failures)
    }
}

/// The regions that a frontend refers to, each counted as often as it does.
pub(super) fn regions_of(frontend: &Frontend) -> impl Iterator<Item = Region> {
    [frontend.internal, frontend.external].into_iter().filter(|region| region.len > 0)
}
