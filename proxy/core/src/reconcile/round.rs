//! One pass over the Services that changed, in dependency order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use fairlead_abi::{Frontend, FrontendKey, Region};

use super::ledger::Programmed;
use super::{Failure, Reconciler, Report};
use crate::dataplane::{MapError, ServiceMaps};
use crate::endpoints::BackendAddress;
use crate::frontends::{self, Desired, DesiredFrontend};
use crate::model::{ObjectName, Problem, frontend_label};

impl Reconciler {
    /// Brings the Services `names`, and those whose claims they change, to what the index asks for.
    /// Returns further Services that have something to give back now.
    pub(super) fn round(
        &mut self,
        names: BTreeSet<ObjectName>,
        now: Instant,
        maps: &mut impl ServiceMaps,
        report: &mut Report,
    ) -> BTreeSet<ObjectName> {
        let work = self.plan(names);
        let mut failures = Vec::new();
        let mut touched = BTreeSet::new();
        self.leftovers.claim(&work, &mut self.ledger);
        for (name, desired) in &work {
            self.write_backends(name, desired, now, maps, report, &mut failures);
        }
        for (name, desired) in &work {
            self.write_regions(name, desired, now, maps, report, &mut failures);
        }
        for (name, desired) in &work {
            touched.extend(self.write_frontends(name, desired, now, maps, report, &mut failures));
        }
        for (name, desired) in &work {
            touched.extend(self.remove_frontends(name, desired, maps, report, &mut failures));
        }
        for (name, desired) in &work {
            let (vacated, failed) = self.ledger.sweep(name, desired, now, maps);
            report.applied.vacated += vacated;
            failures.extend(failed.into_iter().map(|error| (name.clone(), error)));
        }
        for name in work.keys() {
            self.pending.remove(name);
        }
        for (name, error) in failures {
            self.pending.entry(name.clone()).or_insert_with(|| error.clone());
            report.failed.push(Failure { service: Some(name), error });
        }
        touched.retain(|name| !work.contains_key(name));
        touched
    }

    /// What the Services `names`, and those whose claims they change, get of what they ask for.
    fn plan(&mut self, mut names: BTreeSet<ObjectName>) -> BTreeMap<ObjectName, Desired> {
        let mut work = BTreeMap::new();
        while let Some(name) = names.pop_first() {
            let desired = frontends::desired(&self.index, &name);
            let keys = desired.frontends.keys().copied().collect();
            let affected = self.claims.replace(&name, desired.created, keys);
            names.extend(affected.into_iter().filter(|other| !work.contains_key(other)));
            work.insert(name, desired);
        }
        for (name, desired) in &mut work {
            let mut problems = std::mem::take(&mut desired.problems);
            desired.frontends.retain(|key, frontend| match self.claims.winner(key) {
                Some(winner) if winner != name => {
                    let (object, field) = (format!("Service {name}"), frontend.field.clone());
                    let message = format!("{} is already that of Service {winner}", frontend_label(key));
                    problems.push(Problem { object, field, message });
                    false
                }
                _ => true,
            });
            if problems.is_empty() {
                self.contested.remove(name);
            } else {
                self.contested.insert(name.clone(), problems);
            }
        }
        work
    }

    fn write_backends(
        &mut self,
        name: &ObjectName,
        desired: &Desired,
        now: Instant,
        maps: &mut impl ServiceMaps,
        report: &mut Report,
        failures: &mut Vec<(ObjectName, MapError)>,
    ) {
        let backends: BTreeSet<_> = desired.backends().collect();
        for backend in backends {
            match self.ledger.ensure_backend(name, backend, now, maps) {
                Ok(wrote) => report.applied.backends += usize::from(wrote),
                Err(error) => failures.push((name.clone(), error)),
            }
        }
    }

    fn write_regions(
        &mut self,
        name: &ObjectName,
        desired: &Desired,
        now: Instant,
        maps: &mut impl ServiceMaps,
        report: &mut Report,
        failures: &mut Vec<(ObjectName, MapError)>,
    ) {
        let mut failed: BTreeSet<Vec<u32>> = BTreeSet::new();
        for frontend in desired.frontends.values() {
            for list in [&frontend.internal, &frontend.external] {
                let Some((ids, None)) = self.ledger.region(name, frontend.port.protocol, list) else {
                    continue;
                };
                if failed.contains(&ids) {
                    continue;
                }
                match self.ledger.fill_region(name, ids.clone(), now, maps) {
                    Ok(_) => report.applied.regions += 1,
                    Err(error) => {
                        failures.push((name.clone(), error));
                        failed.insert(ids);
                    }
                }
            }
        }
    }

    fn write_frontends(
        &mut self,
        name: &ObjectName,
        desired: &Desired,
        now: Instant,
        maps: &mut impl ServiceMaps,
        report: &mut Report,
        failures: &mut Vec<(ObjectName, MapError)>,
    ) -> BTreeSet<ObjectName> {
        let mut touched = BTreeSet::new();
        for (key, wanted) in &desired.frontends {
            let frontend = match self.frontend(name, key, wanted, now) {
                Ok(Some(frontend)) => frontend,
                Ok(None) => continue,
                Err(error) => {
                    failures.push((name.clone(), error));
                    continue;
                }
            };
            if self.ledger.frontend_of(key, name) == Some(frontend) {
                continue;
            }
            match maps.write_frontend(key, &frontend) {
                Ok(()) => {
                    report.applied.frontends += 1;
                    let programmed = Programmed { frontend, owner: Some(name.clone()) };
                    touched.extend(self.ledger.set_frontend(*key, Some(programmed)));
                }
                Err(error) => failures.push((name.clone(), error)),
            }
        }
        touched
    }

    /// The entry for `wanted`, or none if something that it refers to could not be written.
    fn frontend(
        &mut self,
        name: &ObjectName,
        key: &FrontendKey,
        wanted: &DesiredFrontend,
        now: Instant,
    ) -> Result<Option<Frontend>, MapError> {
        let region = |list: &[BackendAddress]| -> Option<Region> {
            self.ledger.region(name, wanted.port.protocol, list)?.1
        };
        let (Some(internal), Some(external)) = (region(&wanted.internal), region(&wanted.external)) else {
            return Ok(None);
        };
        let service = self.ledger.service_id(&wanted.port, now)?;
        Ok(Some(Frontend {
            service,
            flags: wanted.flags,
            internal,
            external,
            check: key.check(),
            ..Frontend::default()
        }))
    }

    /// Removes the frontends that `name` has and no longer gets. One that another Service gets instead is
    /// left for that one to overwrite, so that its clients never meet a gap.
    fn remove_frontends(
        &mut self,
        name: &ObjectName,
        desired: &Desired,
        maps: &mut impl ServiceMaps,
        report: &mut Report,
        failures: &mut Vec<(ObjectName, MapError)>,
    ) -> BTreeSet<ObjectName> {
        let Some(holding) = self.ledger.holdings.get(name) else { return BTreeSet::new() };
        let unwanted = holding.frontends.iter().filter(|key| !desired.frontends.contains_key(key));
        let gone: Vec<_> = unwanted.filter(|key| self.claims.winner(key).is_none()).copied().collect();
        let mut touched = BTreeSet::new();
        for key in gone {
            match maps.remove_frontend(&key) {
                Ok(()) => {
                    report.applied.removed += 1;
                    touched.extend(self.ledger.set_frontend(key, None));
                }
                Err(error) => failures.push((name.clone(), error)),
            }
        }
        touched
    }
}
