//! Gives back what a Service has in the maps and nothing refers to any more.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use fairlead_abi::Region;

use super::ledger::{Contents, Ledger, selections};
use crate::dataplane::{MapError, ServiceMaps, SourceRangeKey};
use crate::frontends::Desired;
use crate::model::{ObjectName, Protocol};

impl Ledger {
    /// Gives back what `service` has and neither its frontends in the map nor `desired` refer to.
    /// Returns how many backends were vacated, and the failures; what failed is kept, to be tried again.
    pub(super) fn sweep(
        &mut self,
        service: &ObjectName,
        desired: &Desired,
        now: Instant,
        maps: &mut impl ServiceMaps,
    ) -> (usize, Vec<MapError>) {
        let mut failures = self.sweep_ranges(service, desired, maps);
        self.sweep_regions(service, desired, now);
        let vacated = self.sweep_backends(service, desired, now, maps, &mut failures);
        let Some(holding) = self.holdings.get_mut(service) else { return (vacated, failures) };
        let asked = |(port, protocol): &(Arc<str>, Protocol)| {
            let mut ports = desired.frontends.values().map(|frontend| &frontend.port);
            ports.any(|asking| asking.port == *port && asking.protocol == *protocol)
        };
        let has_range = |id: &u32| holding.ranges.iter().any(|range| range.range.service == *id);
        holding.ids.retain(|port, id| {
            let keep = self.uses.contains_key(id) || has_range(id) || asked(port);
            if !keep {
                self.service_ids.release(*id, now);
            }
            keep
        });
        if holding.is_empty() {
            self.holdings.remove(service);
        }
        (vacated, failures)
    }

    /// A guarded frontend keeps its ranges until all those that it is to have instead are there.
    fn sweep_ranges(
        &mut self,
        service: &ObjectName,
        desired: &Desired,
        maps: &mut impl ServiceMaps,
    ) -> Vec<MapError> {
        let mut failures = Vec::new();
        let wanted = match self.holdings.get(service) {
            Some(holding) if !holding.ranges.is_empty() => self.wanted_ranges(service, desired),
            _ => return failures,
        };
        let Some(mut ranges) = self.holdings.get_mut(service).map(|held| std::mem::take(&mut held.ranges))
        else {
            return failures;
        };
        let stale: Vec<SourceRangeKey> = ranges.difference(&wanted).copied().collect();
        for range in stale {
            let (id, v4) = (range.range.service, range.range.address.is_v4());
            let mut replacing =
                wanted.iter().filter(|other| (other.range.service, other.range.address.is_v4()) == (id, v4));
            let is_replaced =
                replacing.clone().next().is_some() && replacing.all(|other| ranges.contains(other));
            if self.is_guarded(id, v4) && !is_replaced {
                continue;
            }
            match maps.write_source_range(&range, false) {
                Ok(()) => {
                    ranges.remove(&range);
                }
                Err(error) => failures.push(error),
            }
        }
        if let Some(holding) = self.holdings.get_mut(service) {
            holding.ranges = ranges;
        }
        failures
    }

    fn sweep_regions(&mut self, service: &ObjectName, desired: &Desired, now: Instant) {
        let is_idle = |region: &Region| self.regions.get(&region.base).is_none_or(|known| known.users == 0);
        match self.holdings.get(service) {
            Some(holding) if holding.regions.values().any(is_idle) => {}
            _ => return,
        }
        let selections = desired.frontends.values().flat_map(selections);
        let wanted: HashSet<Region> =
            selections.filter_map(|selection| self.region(service, selection)).collect();
        let Some(holding) = self.holdings.get_mut(service) else { return };
        let mut dropped: Vec<(Contents, Region)> = Vec::new();
        holding.regions.retain(|contents, region| {
            let users = self.regions.get(&region.base).map_or(0, |known| known.users);
            let keep = users > 0 || wanted.contains(region);
            if !keep {
                dropped.push((contents.clone(), *region));
            }
            keep
        });
        for (contents, region) in dropped {
            self.drop_region(region, &contents.ids, now);
        }
    }

    fn sweep_backends(
        &mut self,
        service: &ObjectName,
        desired: &Desired,
        now: Instant,
        maps: &mut impl ServiceMaps,
        failures: &mut Vec<MapError>,
    ) -> usize {
        match self.holdings.get(service) {
            Some(holding) if !holding.backends.values().all(|id| self.is_referred_to(*id)) => {}
            _ => return 0,
        }
        let Some(mut backends) =
            self.holdings.get_mut(service).map(|held| std::mem::take(&mut held.backends))
        else {
            return 0;
        };
        let asked = desired.backends();
        let mut vacated = 0;
        backends.retain(|backend, id| {
            let is_asked = || asked.binary_search(backend).is_ok();
            if self.is_referred_to(*id) || is_asked() || desired.lingers(backend.0, backend.1) {
                return true;
            }
            match self.vacate(*id, now, maps) {
                Ok(()) => {
                    vacated += 1;
                    false
                }
                Err(error) => {
                    failures.push(error);
                    true
                }
            }
        });
        if let Some(holding) = self.holdings.get_mut(service) {
            holding.backends = backends;
        }
        vacated
    }
}
