//! One pass over the Services that changed, in dependency order.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_abi::{Frontend, FrontendKey, frontend_flags};

use super::ledger::{Programmed, selections};
use super::pass::Pass;
use super::{Failure, Part, Reconciler};
use crate::dataplane::{MapError, ServiceMaps};
use crate::frontends::{self, Desired, DesiredFrontend};
use crate::host_ports;
use crate::model::{ObjectName, Problem, frontend_label};

impl Reconciler {
    /// Brings the Services `names`, and those whose claims they change, to what the index asks for.
    /// Returns further Services that have something to give back now.
    pub(super) fn round(
        &mut self,
        names: BTreeSet<ObjectName>,
        pass: &mut Pass<'_, impl ServiceMaps>,
    ) -> BTreeSet<ObjectName> {
        let work = self.plan(names);
        let mut touched = BTreeSet::new();
        self.leftovers.claim(&work, &mut self.ledger);
        for name in work.keys() {
            self.pending.remove(name);
        }
        for (name, desired) in &work {
            self.write_backends(name, desired, pass);
        }
        for (name, desired) in &work {
            self.write_regions(name, desired, pass);
        }
        for (name, desired) in &work {
            self.write_ranges(name, desired, pass);
        }
        for (name, desired) in &work {
            touched.extend(self.write_frontends(name, desired, pass));
        }
        for (name, desired) in &work {
            touched.extend(self.write_whole(name, desired, pass));
        }
        for (name, desired) in &work {
            touched.extend(self.remove_frontends(name, desired, pass));
        }
        for (name, desired) in &work {
            let (vacated, failed) = self.ledger.sweep(name, desired, pass.now, pass.maps);
            pass.report.applied.vacated += vacated;
            failed.into_iter().for_each(|error| self.fail(name, error, pass));
        }
        touched.retain(|name| !work.contains_key(name));
        touched
    }

    /// What the Services `names`, and those whose claims they change, get of what they ask for.
    fn plan(&mut self, mut names: BTreeSet<ObjectName>) -> BTreeMap<ObjectName, Desired> {
        let mut work = BTreeMap::new();
        let mut addresses = Vec::new();
        while let Some(name) = names.pop_first() {
            let desired = frontends::desired(&self.index, &name);
            addresses.extend(self.claims.whole_of(&name));
            addresses.extend(&desired.whole);
            let given_up = self.claims.keys_of(&name).filter(|key| !desired.wants(key));
            let mut affected: BTreeSet<ObjectName> = given_up.filter_map(|key| self.holder(key)).collect();
            affected.extend(self.claims.replace(&name, desired.created, desired.keys().collect()));
            names.extend(affected.into_iter().filter(|other| *other != name && !work.contains_key(other)));
            work.insert(name, desired);
        }
        for (name, desired) in &mut work {
            if !self.synced {
                desired
                    .frontends
                    .retain(|key, wanted| !self.leftovers.is_elsewhere(key, wanted, &self.ledger));
            }
            let mut problems = std::mem::take(&mut desired.problems);
            let (claims, index) = (&self.claims, &self.index);
            let is_lost = |key: &FrontendKey| claims.winner(key).filter(|winner| *winner != name);
            desired.frontends.retain(|key, frontend| match is_lost(key) {
                Some(winner) => {
                    let object = index.label(name);
                    let field = frontends::field(frontend.kind, frontend.index);
                    let message =
                        format!("{} is already that of {}", frontend_label(key), index.label(winner));
                    problems.push(Problem { object, field, message });
                    false
                }
                None => true,
            });
            desired.whole.retain(|ip| is_lost(&FrontendKey::whole((*ip).into())).is_none());
            self.contested.set(name, (!problems.is_empty()).then_some(problems));
            self.health.set(name, desired.health.take());
            let lacks = desired.without_local;
            self.without_local.set(name, (lacks != Default::default()).then_some(lacks));
        }
        addresses.sort_unstable();
        addresses.dedup();
        for address in addresses {
            let is_used = self.claims.winner(&FrontendKey::whole(address.into())).is_some();
            self.cidrs.set_address(address, is_used);
        }
        work
    }

    /// Who has the frontend in the map. One that lost it may still have it, if its new owner could not be written.
    fn holder(&self, key: &FrontendKey) -> Option<ObjectName> {
        self.ledger.frontends.get(key)?.owner.clone()
    }

    fn write_backends(
        &mut self,
        name: &ObjectName,
        desired: &Desired,
        pass: &mut Pass<'_, impl ServiceMaps>,
    ) {
        for backend in desired.backends() {
            match self.ledger.ensure_backend(name, backend, pass.now, pass.maps) {
                Ok(wrote) => pass.report.applied.backends += usize::from(wrote),
                Err(error) => self.fail(name, error, pass),
            }
        }
    }

    fn write_regions(&mut self, name: &ObjectName, desired: &Desired, pass: &mut Pass<'_, impl ServiceMaps>) {
        let mut failed: Vec<MapError> = Vec::new();
        for selection in desired.frontends.values().flat_map(selections) {
            match self.ledger.ensure_region(name, selection, pass.now, pass.maps) {
                Ok(wrote) => pass.report.applied.regions += usize::from(wrote),
                // Several frontends may ask for the same region.
                Err(error) if failed.contains(&error) => {}
                Err(error) => failed.push(error),
            }
        }
        failed.into_iter().for_each(|error| self.fail(name, error, pass));
    }

    /// Before the frontends that rely on them.
    fn write_ranges(&mut self, name: &ObjectName, desired: &Desired, pass: &mut Pass<'_, impl ServiceMaps>) {
        let guarded = |wanted: &&DesiredFrontend| wanted.flags & frontend_flags::GUARDED != 0;
        for wanted in desired.frontends.values().filter(guarded) {
            if let Err(error) = self.ledger.service_id(&wanted.port, pass.now) {
                self.fail(name, error, pass);
            }
        }
        for range in self.ledger.wanted_ranges(name, desired) {
            let Some(holding) = self.ledger.holdings.get_mut(name) else { continue };
            if holding.ranges.contains(&range) {
                continue;
            }
            match pass.maps.write_source_range(&range, true) {
                Ok(()) => {
                    holding.ranges.insert(range);
                    pass.report.applied.ranges += 1;
                }
                Err(error) => self.fail(name, error, pass),
            }
        }
    }

    fn write_frontends(
        &mut self,
        name: &ObjectName,
        desired: &Desired,
        pass: &mut Pass<'_, impl ServiceMaps>,
    ) -> BTreeSet<ObjectName> {
        let mut touched = BTreeSet::new();
        let ranges_missing = self.lacks_ranges(name, desired);
        for (key, wanted) in desired.frontends.iter() {
            let is_guarded = wanted.flags & frontend_flags::GUARDED != 0;
            if is_guarded && ranges_missing {
                touched.extend(self.close(name, key, pass));
                continue;
            }
            let frontend = match self.frontend(name, key, wanted, pass) {
                Ok(Some(frontend)) => frontend,
                Ok(None) => continue,
                Err(error) => {
                    self.fail(name, error, pass);
                    continue;
                }
            };
            touched.extend(self.write_frontend(name, key, frontend, pass));
        }
        touched
    }

    /// After the frontends, which are worth more where there is not room for all.
    fn write_whole(
        &mut self,
        name: &ObjectName,
        desired: &Desired,
        pass: &mut Pass<'_, impl ServiceMaps>,
    ) -> BTreeSet<ObjectName> {
        let mut touched = BTreeSet::new();
        for address in &desired.whole {
            let key = FrontendKey::whole((*address).into());
            let whole = Frontend { flags: frontend_flags::WHOLE, check: key.check(), ..Frontend::default() };
            touched.extend(self.write_frontend(name, &key, whole, pass));
        }
        touched
    }

    fn write_frontend(
        &mut self,
        name: &ObjectName,
        key: &FrontendKey,
        frontend: Frontend,
        pass: &mut Pass<'_, impl ServiceMaps>,
    ) -> BTreeSet<ObjectName> {
        if self.ledger.frontend_of(key, name) == Some(frontend) {
            return BTreeSet::new();
        }
        match pass.maps.write_frontend(key, &frontend) {
            Ok(()) => {
                pass.report.applied.frontends += 1;
                let programmed = Programmed { frontend, owner: Some(name.clone()) };
                self.ledger.set_frontend(*key, Some(programmed))
            }
            Err(error) => {
                self.fail(name, error, pass);
                BTreeSet::new()
            }
        }
    }

    /// The entry for `wanted`, or none if something that it refers to could not be written.
    fn frontend(
        &mut self,
        name: &ObjectName,
        key: &FrontendKey,
        wanted: &DesiredFrontend,
        pass: &Pass<'_, impl ServiceMaps>,
    ) -> Result<Option<Frontend>, MapError> {
        let regions = selections(wanted).map(|selection| self.ledger.region(name, selection));
        let [Some(internal), Some(external), Some(maglev)] = regions else { return Ok(None) };
        let service = self.ledger.service_id(&wanted.port, pass.now)?;
        let (flags, affinity) = (wanted.flags, wanted.affinity);
        #[allow(clippy::needless_update, reason = "another layout may have more fields")]
        let frontend = Frontend {
            service,
            flags,
            internal,
            external,
            maglev,
            affinity,
            check: key.check(),
            ..Frontend::default()
        };
        Ok(Some(frontend))
    }

    /// Whether a range that the guarded frontends of `desired` ask for could not be written.
    fn lacks_ranges(&self, name: &ObjectName, desired: &Desired) -> bool {
        if desired.source_ranges.is_empty() {
            return false;
        }
        let held = self.ledger.holdings.get(name).map(|holding| &holding.ranges);
        let mut wanted = self.ledger.wanted_ranges(name, desired).into_iter();
        wanted.any(|range| held.is_none_or(|held| !held.contains(&range)))
    }

    /// Closes an address whose ranges could not be written, rather than leave it open to everybody.
    fn close(
        &mut self,
        name: &ObjectName,
        key: &FrontendKey,
        pass: &mut Pass<'_, impl ServiceMaps>,
    ) -> BTreeSet<ObjectName> {
        let programmed = self.ledger.frontends.get(key).map(|programmed| programmed.frontend);
        match programmed {
            Some(frontend) if frontend.flags & frontend_flags::GUARDED == 0 => self.remove(name, key, pass),
            _ => BTreeSet::new(),
        }
    }

    /// Removes the frontends that `name` has and no longer gets. One that another Service gets instead is
    /// left for that one to overwrite, so that its clients never meet a gap.
    fn remove_frontends(
        &mut self,
        name: &ObjectName,
        desired: &Desired,
        pass: &mut Pass<'_, impl ServiceMaps>,
    ) -> BTreeSet<ObjectName> {
        let Some(holding) = self.ledger.holdings.get(name) else { return BTreeSet::new() };
        let unwanted = holding.frontends.keys().filter(|key| !desired.wants(key));
        let mut gone: Vec<_> = unwanted.filter(|key| self.claims.winner(key).is_none()).copied().collect();
        // Whole addresses last: until then the ports that are gone refuse.
        gone.sort_by_key(|key| *key == FrontendKey::whole(key.address));
        gone.iter().flat_map(|key| self.remove(name, key, pass)).collect()
    }

    fn remove(
        &mut self,
        name: &ObjectName,
        key: &FrontendKey,
        pass: &mut Pass<'_, impl ServiceMaps>,
    ) -> BTreeSet<ObjectName> {
        match pass.maps.remove_frontend(key) {
            Ok(()) => {
                pass.report.applied.removed += 1;
                self.ledger.set_frontend(*key, None)
            }
            Err(error) => {
                self.fail(name, error, pass);
                BTreeSet::new()
            }
        }
    }

    /// Notes that `name` is not as its object asks.
    fn fail<M>(&mut self, name: &ObjectName, error: MapError, pass: &mut Pass<'_, M>) {
        self.pending.entry(name.clone()).or_insert_with(|| error.clone());
        let part = match host_ports::is_owner(name) {
            true => Part::HostPorts(self.index.label(name)),
            false => Part::Service(name.clone()),
        };
        pass.report.failed.push(Failure { part, error });
    }
}
