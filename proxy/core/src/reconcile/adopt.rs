//! What an earlier run left in the maps: taken over by the Services that want it, the rest removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use fairlead_abi::{Backend, FrontendKey};

use super::ledger::{Ledger, Programmed, RegionUse, regions_of};
use super::{Failure, Reconciler, Report};
use crate::dataplane::{MapError, ServiceMaps};
use crate::endpoints::BackendAddress;
use crate::frontends::{Desired, DesiredFrontend, FrontendKind};
use crate::model::{ObjectName, Protocol};

/// How far generations jump at adoption: those of backends that were vacated can't be read back, and
/// must not come again while a flow may carry them. An earlier run would have had to vacate all of its
/// last so many tenants for that.
const GENERATION_JUMP: u32 = 1 << 16;

/// Entries that no Service has taken over yet.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    frontends: BTreeSet<FrontendKey>,
    service_ids: BTreeSet<u32>,
    /// By first slot, with the backend ids in it.
    regions: BTreeMap<u32, Vec<u32>>,
    backends: BTreeMap<u32, BackendAddress>,
    /// Backends in no region, whose established flows may go on.
    lingering: HashMap<IpAddr, BTreeSet<u32>>,
}

impl Leftovers {
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.service_ids.is_empty()
            && self.regions.is_empty()
            && self.backends.is_empty()
    }

    /// Reads the maps, and notes in `ledger` what is taken.
    pub(super) fn read(maps: &impl ServiceMaps, ledger: &mut Ledger) -> Result<Self, MapError> {
        let mut left = Self::default();
        let mut generation = 0;
        for (id, backend) in maps.backends()? {
            generation = generation.max(backend.generation);
            if ledger.backend_ids.reserve(id) {
                let address = BackendAddress { ip: backend.address.into(), port: backend.port.number() };
                left.backends.insert(id, address);
                left.lingering.entry(address.ip).or_default().insert(id);
            }
        }
        if generation != 0 {
            ledger.next_generation = generation.checked_add(GENERATION_JUMP).unwrap_or(1);
        }
        for (key, frontend) in maps.frontends()? {
            for region in regions_of(&frontend) {
                if !ledger.regions.contains_key(&region.base) && ledger.slots.reserve(region) {
                    let ids = maps.slots(region)?;
                    ledger.regions.insert(region.base, RegionUse { len: region.len, owner: None, users: 0 });
                    ids.iter().for_each(|id| left.no_longer_lingers(*id));
                    left.regions.insert(region.base, ids);
                }
            }
            if ledger.service_ids.reserve(frontend.service) {
                left.service_ids.insert(frontend.service);
            }
            left.frontends.insert(key);
            ledger.set_frontend(key, Some(Programmed { frontend, owner: None }));
        }
        Ok(left)
    }

    fn no_longer_lingers(&mut self, id: u32) {
        if let Some(address) = self.backends.get(&id)
            && let Some(ids) = self.lingering.get_mut(&address.ip)
        {
            ids.remove(&id);
        }
    }

    /// Gives the Services of `work` what is left of the frontends that they get, and all that these refer to.
    ///
    /// A ClusterIP stays with its Service; other addresses may have passed to another one meanwhile, which
    /// must not come to own the first one's backends by that. So ClusterIPs are looked at first.
    pub(super) fn claim(&mut self, work: &BTreeMap<ObjectName, Desired>, ledger: &mut Ledger) {
        if self.is_empty() {
            return;
        }
        for own in [true, false] {
            for (name, desired) in work {
                let frontends = desired.frontends.iter();
                for (key, wanted) in
                    frontends.filter(|(_, wanted)| (wanted.kind == FrontendKind::ClusterIp) == own)
                {
                    self.claim_frontend(name, key, wanted, ledger);
                }
            }
        }
        for (name, desired) in work {
            for address in desired.addresses() {
                self.claim_lingering(name, address, desired, ledger);
            }
        }
    }

    fn claim_frontend(
        &mut self,
        name: &ObjectName,
        key: &FrontendKey,
        wanted: &DesiredFrontend,
        ledger: &mut Ledger,
    ) {
        if !self.frontends.remove(key) {
            return;
        }
        let Some(programmed) = ledger.frontends.get_mut(key) else { return };
        programmed.owner = Some(name.clone());
        let frontend = programmed.frontend;
        let holding = ledger.holdings.entry(name.clone()).or_default();
        holding.frontends.insert(*key);
        let port = (wanted.port.port.clone(), wanted.port.protocol);
        if !holding.ids.contains_key(&port) && self.service_ids.remove(&frontend.service) {
            holding.ids.insert(port, frontend.service);
        }
        for region in regions_of(&frontend) {
            self.claim_region(name, wanted.port.protocol, region.base, ledger);
        }
    }

    fn claim_region(&mut self, name: &ObjectName, protocol: Protocol, base: u32, ledger: &mut Ledger) {
        let holding = ledger.holdings.entry(name.clone()).or_default();
        let Some(region) = ledger.regions.get_mut(&base) else { return };
        match self.regions.get(&base) {
            Some(ids) if !holding.regions.contains_key(ids) => {}
            _ => return,
        }
        let Some(ids) = self.regions.remove(&base) else { return };
        for id in &ids {
            if let Some(address) = self.backends.get(id)
                && !holding.backends.contains_key(&(protocol, *address))
            {
                holding.backends.insert((protocol, *address), *id);
                self.backends.remove(id);
            }
        }
        region.owner = Some(name.clone());
        holding.regions.insert(ids, fairlead_abi::Region { base, len: region.len });
    }

    /// The maps do not say which protocol a backend in no region had, so it goes to the first that misses it.
    fn claim_lingering(&mut self, name: &ObjectName, ip: IpAddr, desired: &Desired, ledger: &mut Ledger) {
        let Some(ids) = self.lingering.get_mut(&ip) else { return };
        let backends = &mut ledger.holdings.entry(name.clone()).or_default().backends;
        ids.retain(|id| {
            let Some(address) = self.backends.get(id).copied() else { return false };
            let misses = |protocol: &Protocol| {
                desired.lingers(*protocol, address) && !backends.contains_key(&(*protocol, address))
            };
            let Some(protocol) = [Protocol::Udp, Protocol::Tcp].into_iter().find(misses) else { return true };
            backends.insert((protocol, address), *id);
            self.backends.remove(id);
            false
        });
    }
}

impl Reconciler {
    /// Removes what no Service took over, in the order that its parts refer to each other. Returns
    /// Services that have something to give back now.
    pub(super) fn clear_leftovers(
        &mut self,
        now: Instant,
        maps: &mut impl ServiceMaps,
        report: &mut Report,
    ) -> BTreeSet<ObjectName> {
        let mut touched = BTreeSet::new();
        if self.leftovers.is_empty() {
            return touched;
        }
        let (left, ledger) = (&mut self.leftovers, &mut self.ledger);
        let mut failed = |error| report.failed.push(Failure { service: None, error });
        left.frontends.retain(|key| match maps.remove_frontend(key) {
            Ok(()) => {
                report.applied.removed += 1;
                touched.extend(ledger.set_frontend(*key, None));
                false
            }
            Err(error) => {
                failed(error);
                true
            }
        });
        left.regions.retain(|base, _| match ledger.regions.get(base) {
            Some(region) if region.users > 0 => true,
            Some(region) => {
                ledger.slots.release(fairlead_abi::Region { base: *base, len: region.len }, now);
                ledger.regions.remove(base);
                false
            }
            None => false,
        });
        let used: BTreeSet<u32> = left.regions.values().flatten().copied().collect();
        left.backends.retain(|id, _| {
            if used.contains(id) {
                return true;
            }
            match maps.write_backend(*id, &Backend::default()) {
                Ok(()) => {
                    report.applied.vacated += 1;
                    ledger.backend_ids.release(*id, now);
                    false
                }
                Err(error) => {
                    failed(error);
                    true
                }
            }
        });
        let ids: BTreeSet<u32> =
            ledger.frontends.values().map(|programmed| programmed.frontend.service).collect();
        left.service_ids.retain(|id| {
            let used = ids.contains(id);
            if !used {
                ledger.service_ids.release(*id, now);
            }
            used
        });
        touched
    }
}
