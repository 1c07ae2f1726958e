//! What an earlier run left in the maps: taken over by the Services that want it, the rest removed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use fairlead_abi::{FrontendKey, Region};

use super::ledger::{Contents, Holding, Ledger, Programmed, hashed, regions_of};
use super::pass::Pass;
use super::{Failure, Part, Reconciler};
use crate::dataplane::{MapError, ServiceMaps, SourceRangeKey};
use crate::endpoints::BackendAddress;
use crate::frontends::{Desired, DesiredFrontend, FrontendKind};
use crate::model::{ObjectName, Protocol};

/// Entries that no Service has taken over yet.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    frontends: HashSet<FrontendKey>,
    service_ids: HashSet<u32>,
    /// Who took over a Service id that other leftovers may still carry.
    claimed_ids: HashMap<u32, ObjectName>,
    /// By first slot.
    regions: HashMap<u32, LeftRegion>,
    backends: HashMap<u32, BackendAddress>,
    /// Backends in no region, whose established flows may go on.
    lingering: HashMap<IpAddr, BTreeSet<u32>>,
    /// By Service id.
    ranges: BTreeMap<u32, Vec<SourceRangeKey>>,
}

/// A region without an owner.
#[derive(Debug)]
struct LeftRegion {
    contents: Contents,
    /// The slots of a Maglev table, for comparison with what its backends should have.
    table: Box<[u32]>,
}

impl LeftRegion {
    fn new(slots: Vec<u32>, is_maglev: bool) -> Self {
        if !is_maglev {
            return Self { contents: Contents::new(slots, None), table: Box::default() };
        }
        let (mut ids, size) = (slots.clone(), slots.len() as u32);
        ids.sort_unstable();
        ids.dedup();
        Self { contents: Contents::new(ids, Some(size)), table: slots.into() }
    }
}

impl Leftovers {
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.service_ids.is_empty()
            && self.regions.is_empty()
            && self.backends.is_empty()
            && self.ranges.is_empty()
    }

    /// Reads the maps, and notes in `ledger` what is taken.
    pub(super) fn read(maps: &impl ServiceMaps, ledger: &mut Ledger) -> Result<Self, MapError> {
        let mut left = Self::default();
        // The numbers of tenants that are gone are below, too: no flow that still carries one finds it again.
        ledger.next_generation = maps.last_generation()?.checked_add(1).unwrap_or(1);
        for (id, backend) in maps.backends()? {
            if ledger.backend_ids.reserve(id) {
                let address = BackendAddress { ip: backend.address.into(), port: backend.port.number() };
                left.backends.insert(id, address);
            }
        }
        for (key, frontend) in maps.frontends()? {
            for region in regions_of(&frontend) {
                if !ledger.regions.contains_key(&region.base) && ledger.slots.reserve(region) {
                    let slots = maps.slots(region)?;
                    let kept = LeftRegion::new(slots, region == frontend.maglev);
                    ledger.add_region(region, &kept.contents.ids, None);
                    left.regions.insert(region.base, kept);
                }
            }
            if ledger.service_ids.reserve(frontend.service) {
                left.service_ids.insert(frontend.service);
            }
            left.frontends.insert(key);
            ledger.set_frontend(key, Some(Programmed { frontend, owner: None }));
        }
        for range in maps.source_ranges()? {
            let service = range.range.service;
            if ledger.service_ids.reserve(service) {
                left.service_ids.insert(service);
            }
            left.ranges.entry(service).or_default().push(range);
        }
        for (id, address) in left.backends.iter().filter(|(id, _)| !ledger.is_referred_to(**id)) {
            left.lingering.entry(address.ip).or_default().insert(*id);
        }
        Ok(left)
    }

    /// Whether what an earlier run left at `key` leads elsewhere than `wanted` inside: it is somebody else's, who may
    /// ask for it yet.
    pub(super) fn is_elsewhere(&self, key: &FrontendKey, wanted: &DesiredFrontend, ledger: &Ledger) -> bool {
        if !self.frontends.contains(key) {
            return false;
        }
        let region = ledger.frontends.get(key).map(|programmed| programmed.frontend.internal);
        let left = region.filter(|region| region.len > 0).and_then(|region| self.regions.get(&region.base));
        let ids = left.iter().flat_map(|left| &left.contents.ids);
        !ids.filter_map(|id| self.backends.get(id)).eq(wanted.internal.iter())
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
            for address in &desired.whole {
                self.claim_entry(name, &FrontendKey::whole((*address).into()), ledger);
            }
            for address in desired.addresses() {
                self.claim_lingering(name, address, desired, ledger);
            }
        }
    }

    fn claim_entry(&mut self, name: &ObjectName, key: &FrontendKey, ledger: &mut Ledger) -> bool {
        if !self.frontends.remove(key) {
            return false;
        }
        let Some(programmed) = ledger.frontends.get_mut(key) else { return false };
        programmed.owner = Some(name.clone());
        ledger.holdings.entry(name.clone()).or_default().frontends.insert(*key, ());
        true
    }

    fn claim_frontend(
        &mut self,
        name: &ObjectName,
        key: &FrontendKey,
        wanted: &DesiredFrontend,
        ledger: &mut Ledger,
    ) {
        if !self.claim_entry(name, key, ledger) {
            return;
        }
        let Some(frontend) = ledger.frontends.get(key).map(|programmed| programmed.frontend) else { return };
        let holding = ledger.holdings.entry(name.clone()).or_default();
        let port = (wanted.port.port.clone(), wanted.port.protocol);
        if !holding.ids.contains_key(&port) && self.service_ids.remove(&frontend.service) {
            holding.ids.insert(port, frontend.service);
            holding.ranges.extend(self.ranges.remove(&frontend.service).into_iter().flatten());
            self.claimed_ids.insert(frontend.service, name.clone());
        }
        // The table last, when its backends' addresses are known to be this Service's.
        for region in regions_of(&frontend) {
            self.claim_region(name, wanted.port.protocol, region.base, ledger);
        }
    }

    fn claim_region(&mut self, name: &ObjectName, protocol: Protocol, base: u32, ledger: &mut Ledger) {
        let holding = ledger.holdings.entry(name.clone()).or_default();
        let Some(used) = ledger.regions.get_mut(&base) else { return };
        match self.regions.get(&base) {
            Some(left) if !holding.regions.contains_key(&left.contents) => {}
            _ => return,
        }
        let Some(left) = self.regions.remove(&base) else { return };
        for id in &left.contents.ids {
            if let Some(address) = self.backends.get(id)
                && !holding.backends.contains_key(&(protocol, *address))
            {
                holding.backends.insert((protocol, *address), *id);
                self.backends.remove(id);
            }
        }
        let is_in = |id: &u32| left.contents.ids.binary_search(id).is_ok();
        let own = holding.backends.iter().filter(|((of, _), id)| *of == protocol && is_in(id));
        let (addresses, ids): (Vec<_>, Vec<_>) = own.map(|((_, address), id)| (*address, *id)).unzip();
        let is_right = match left.contents.maglev {
            _ if ids.is_empty() || ids.len() != left.contents.ids.len() => false,
            None => true,
            Some(size) => hashed(&addresses, &ids, size) == left.table[..],
        };
        if !is_right {
            // Of another Service's backends, or damaged: it goes when no frontend refers to it any more.
            self.regions.insert(base, left);
            return;
        }
        used.owner = Some(name.clone());
        holding.regions.insert(left.contents, Region { base, len: used.len });
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
    pub(super) fn clear_leftovers(&mut self, pass: &mut Pass<'_, impl ServiceMaps>) -> BTreeSet<ObjectName> {
        let mut touched = BTreeSet::new();
        if self.leftovers.is_empty() {
            return touched;
        }
        let (left, ledger, report) = (&mut self.leftovers, &mut self.ledger, &mut *pass.report);
        let mut failed = Vec::new();
        left.frontends.retain(|key| match pass.maps.remove_frontend(key) {
            Ok(()) => {
                report.applied.removed += 1;
                let service = ledger.frontends.get(key).map(|programmed| programmed.frontend.service);
                touched.extend(service.and_then(|service| left.claimed_ids.get(&service)).cloned());
                touched.extend(ledger.set_frontend(*key, None));
                false
            }
            Err(error) => {
                failed.push(error);
                true
            }
        });
        let mut freed: HashSet<u32> = HashSet::new();
        left.regions.retain(|base, kept| {
            let Some(known) = ledger.regions.get(base) else { return false };
            let (is_used, region) = (known.users > 0, Region { base: *base, len: known.len });
            if !is_used {
                ledger.drop_region(region, &kept.contents.ids, pass.now);
                freed.extend(kept.contents.ids.iter().filter(|id| !left.backends.contains_key(*id)));
            }
            is_used
        });
        freed.retain(|id| !ledger.is_referred_to(*id));
        if !freed.is_empty() {
            let holds = |holding: &Holding| holding.backends.values().any(|id| freed.contains(id));
            let holders = ledger.holdings.iter().filter(|(_, holding)| holds(holding));
            touched.extend(holders.map(|(name, _)| name.clone()));
        }
        left.backends.retain(|id, _| {
            if ledger.is_referred_to(*id) {
                return true;
            }
            match ledger.vacate(*id, pass.now, pass.maps) {
                Ok(()) => {
                    report.applied.vacated += 1;
                    false
                }
                Err(error) => {
                    failed.push(error);
                    true
                }
            }
        });
        left.ranges.retain(|service, ranges| {
            ranges.retain(|range| {
                if ledger.is_guarded(*service, range.range.address.is_v4()) {
                    return true;
                }
                pass.maps.write_source_range(range, false).map_err(|error| failed.push(error)).is_err()
            });
            !ranges.is_empty()
        });
        left.service_ids.retain(|id| {
            let is_used = ledger.is_used(*id) || left.ranges.contains_key(id);
            if !is_used {
                ledger.service_ids.release(*id, pass.now);
            }
            is_used
        });
        if left.is_empty() {
            // Its tables were as large as the maps.
            *left = Leftovers::default();
        }
        report.failed.extend(failed.into_iter().map(|error| Failure { part: Part::Leftovers, error }));
        touched
    }
}
