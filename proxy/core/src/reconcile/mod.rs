//! Brings the maps to what the objects ask for, a Service at a time, dependencies first.
//!
//! Owned by the agent, which feeds [`Reconciler::index_mut`], and after a short pause calls
//! [`Reconciler::reconcile`] with the maps. What one call does, for all Services that changed together:
//!
//! ```text
//! desired ─► claims ─► adopt ─► backends ─► slots ─► ranges ─► frontends ─► removals ─► sweep
//!            who gets  what a    ids and     new      whom a    one write    frontends   regions, backends and
//!            an        former    genera-     regions  guarded   switches     that nobody ranges that nothing
//!            address   run left  tions                one       a frontend   asks for    refers to; ids and slots
//!                                                     admits                             rest, then serve again
//! ```
//!
//! The ranges that ClusterIPs are from follow at the end, when all that is in them is there.
//!
//! Any write may fail. What depends on it is then left as it was, its Service stays pending and is done
//! again from its desired state, and everything else proceeds. Nothing is remembered but what is in the
//! maps, so a retry, a repeated event and a restart are the same thing.

mod adopt;
mod cidrs;
mod claims;
mod fill;
mod ledger;
mod pass;
mod round;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::dataplane::{MapError, ServiceMaps};
use crate::frontends::{HealthCheck, WithoutLocal};
use crate::index::Index;
use crate::model::{ObjectName, Problem};
use crate::settings::Settings;
use crate::tracked::Tracked;
use crate::view::{self, ServiceView};

use adopt::Leftovers;
use cidrs::Cidrs;
use claims::Claims;
use ledger::Ledger;
use pass::Pass;

/// The first pause before a failed write is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause before a failed write is tried again.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Entries of [`fairlead_abi::maps::SLOTS`].
    pub slots: u32,
    /// Entries of [`fairlead_abi::maps::BACKENDS`], of which the first is never used.
    pub backends: u32,
}

/// What one call of [`Reconciler::reconcile`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Writes that succeeded.
    pub applied: Applied,
    /// Writes that failed, each with the Service that waits for it, where there is one.
    pub failed: Vec<Failure>,
    /// How many Services are not as their objects ask.
    pub pending: usize,
}

/// Writes that succeeded, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Backends that got an id.
    pub backends: usize,
    /// Regions that were filled.
    pub regions: usize,
    /// Source ranges that were admitted.
    pub ranges: usize,
    /// Frontends that were created or switched.
    pub frontends: usize,
    /// Frontends that were removed.
    pub removed: usize,
    /// Backends that were vacated.
    pub vacated: usize,
}

impl Applied {
    /// All of them.
    pub fn total(&self) -> usize {
        let Self { backends, regions, ranges, frontends, removed, vacated } = self;
        backends + regions + ranges + frontends + removed + vacated
    }
}

/// A write that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {error}")]
pub struct Failure {
    /// What it was for.
    pub part: Part,
    /// What failed.
    pub error: MapError,
}

/// What a write is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A Service.
    Service(ObjectName),
    /// What an earlier run left over.
    Leftovers,
    /// The ranges that ClusterIPs are from.
    ServiceRanges,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Leftovers => f.write_str("left over from an earlier run"),
            Self::ServiceRanges => f.write_str("ranges of ClusterIPs"),
        }
    }
}

/// The state of the maps of Services, and the objects that they follow.
#[derive(Debug)]
pub struct Reconciler {
    index: Index,
    synced: bool,
    claims: Claims,
    ledger: Ledger,
    leftovers: Leftovers,
    cidrs: Cidrs,
    /// Addresses that a Service asks for and another one has.
    contested: Tracked<ObjectName, Vec<Problem>>,
    health: Tracked<ObjectName, HealthCheck>,
    without_local: Tracked<ObjectName, WithoutLocal>,
    /// Services that are not as their objects ask, with the first thing that failed.
    pending: BTreeMap<ObjectName, MapError>,
    retry: Option<Retry>,
}

/// When failed writes are tried again.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Reconciler {
    /// Empty maps of this size, on the node of that name.
    pub fn new(node_name: impl Into<String>, capacity: Capacity, settings: Settings) -> Self {
        Self {
            index: Index::new(node_name, settings),
            synced: false,
            claims: Claims::default(),
            ledger: Ledger::new(capacity),
            leftovers: Leftovers::default(),
            cidrs: Cidrs::default(),
            contested: Tracked::default(),
            health: Tracked::default(),
            without_local: Tracked::default(),
            pending: BTreeMap::new(),
            retry: None,
        }
    }

    /// Learns what an earlier run left in the maps, before the first reconcile.
    ///
    /// Services that want what is there get the same ids, generations and regions; the rest is removed by
    /// the first reconcile.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn adopt(&mut self, maps: &impl ServiceMaps) -> Result<(), MapError> {
        self.leftovers = Leftovers::read(maps, &mut self.ledger)?;
        self.cidrs.adopt(maps)
    }

    /// What the API holds.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// What the API holds, to be changed.
    pub fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// Every watch has finished its first list. Until then [`Self::reconcile`] does nothing: what is not
    /// yet listed can't be told from what is gone.
    pub fn set_synced(&mut self) {
        self.synced = true;
    }

    /// Whether every watch has finished its first list.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Brings the maps to what the index asks for: Services that changed since the last call and, once
    /// [`Self::next_deadline`] has passed, those that are pending.
    pub fn reconcile(&mut self, now: Instant, maps: &mut impl ServiceMaps) -> Report {
        if !self.synced {
            return Report { pending: self.index.dirty_len(), ..Report::default() };
        }
        let mut names = self.index.take_dirty();
        let retrying = self.retry.is_some_and(|retry| retry.at <= now);
        if retrying {
            names.extend(self.pending.keys().cloned());
        }
        let mut report = Report::default();
        let mut pass = Pass { now, maps, report: &mut report };
        if self.index.take_dirty_cidrs() {
            self.cidrs.replace(self.index.service_cidrs(), self.claims.whole());
        }
        self.rounds(names, &mut pass);
        if retrying || self.retry.is_none() {
            let touched = self.clear_leftovers(&mut pass);
            self.rounds(touched, &mut pass);
        }
        self.cidrs.apply(&mut pass);
        self.retry = self.next_retry(now, retrying, &report);
        report.pending = self.pending.len();
        report
    }

    /// When to call [`Self::reconcile`] again even if nothing changes; none if nothing is pending.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.retry.map(|retry| retry.at)
    }

    /// Services that are not as their objects ask, with the first thing that failed.
    pub fn pending(&self) -> impl Iterator<Item = (&ObjectName, &MapError)> {
        self.pending.iter()
    }

    /// Everything in the objects that makes no sense or can't be had.
    pub fn problems(&self) -> Vec<Problem> {
        self.index.problems().chain(self.contested.values().flatten()).cloned().collect()
    }

    /// Grows with each change of [`Self::problems`], which costs much more.
    pub fn problems_version(&self) -> u64 {
        self.index.problems_version() + self.contested.version()
    }

    /// What load balancers ask this node for, in order of Service, as of the last reconcile.
    pub fn health_checks(&self) -> Vec<HealthCheck> {
        self.health.values().cloned().collect()
    }

    /// Grows with each change of [`Self::health_checks`].
    pub fn health_checks_version(&self) -> u64 {
        self.health.version()
    }

    /// How many Service ports have endpoints that their Local policy keeps from clients here.
    pub fn without_local(&self) -> WithoutLocal {
        self.without_local.values().fold(WithoutLocal::default(), |sum, one| WithoutLocal {
            internal: sum.internal + one.internal,
            external: sum.external + one.external,
        })
    }

    /// Every Service port with its frontends and backends, in order of name.
    pub fn services(&self) -> Vec<ServiceView> {
        let names: Vec<&ObjectName> = self.index.services().map(|service| &service.name).collect();
        names.into_iter().flat_map(|name| self.service(name)).collect()
    }

    /// The ports of one Service.
    pub fn service(&self, name: &ObjectName) -> Vec<ServiceView> {
        view::service(&self.index, name, |key| self.ledger.frontend_of(key, name), self.pending.get(name))
    }

    /// Rounds until no Service has anything left to give back.
    fn rounds(&mut self, mut names: BTreeSet<ObjectName>, pass: &mut Pass<'_, impl ServiceMaps>) {
        while !names.is_empty() {
            names = self.round(names, pass);
        }
    }

    /// Pauses grow while nothing changes; a removal may have made the room that others wait for.
    fn next_retry(&self, now: Instant, retrying: bool, report: &Report) -> Option<Retry> {
        if self.pending.is_empty() && self.leftovers.is_empty() && !self.cidrs.is_pending() {
            return None;
        }
        let made_room = report.applied.removed + report.applied.vacated > 0;
        match self.retry {
            Some(retry) if !retrying && !made_room => Some(retry),
            Some(retry) if !made_room => {
                let pause = (retry.pause * 2).min(LAST_RETRY);
                Some(Retry { at: now + pause, pause })
            }
            _ => Some(Retry { at: now + FIRST_RETRY, pause: FIRST_RETRY }),
        }
    }
}
