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
mod effect;
mod fill;
mod ledger;
mod pass;
mod round;
mod sweep;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_abi::FrontendKey;
use serde::Serialize;

use crate::dataplane::{MapError, ServiceMaps};
use crate::detail::{self, ServiceDetail};
use crate::endpoints::BackendAddress;
use crate::frontends::{self, HealthCheck, WithoutLocal};
use crate::index::Index;
use crate::model::{ObjectName, Problem, frontend_label};
use crate::settings::Settings;
use crate::tracked::Tracked;
use crate::view::{self, ServiceView};

use adopt::Leftovers;
use cidrs::Cidrs;
use claims::Claims;
use ledger::Ledger;
use pass::Pass;
pub use views::BackendView;

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
    /// The host ports of a pod, by its [label](Index::label).
    HostPorts(String),
    /// What an earlier run left over.
    Leftovers,
    /// The ranges that ClusterIPs are from.
    ServiceRanges,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::HostPorts(pod) => write!(f, "host ports of {pod}"),
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

    /// Every watch has finished its first list. Until then [`Self::reconcile`] does nothing but for host ports: what is
    /// not yet listed can't be told from what is gone.
    pub fn set_synced(&mut self) {
        if !self.synced {
            self.synced = true;
            self.index.touch_host_ports();
        }
    }

    /// Whether every watch has finished its first list.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Brings the maps to what the index asks for: Services that changed since the last call and, once
    /// [`Self::next_deadline`] has passed, those that are pending.
    pub fn reconcile(&mut self, now: Instant, maps: &mut impl ServiceMaps) -> Report {
        if !self.synced {
            return self.reconcile_host_ports(now, maps);
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
        let pending = &self.pending;
        self.index.settle(|name| pending.contains_key(name));
        report
    }

    /// What can be done before all first lists: pods need no list to be known, but what an earlier run left where they
    /// ask for something may be a Service's.
    fn reconcile_host_ports(&mut self, now: Instant, maps: &mut impl ServiceMaps) -> Report {
        let mut names = self.index.take_dirty_host_ports();
        names.extend(self.pending.keys().cloned());
        let mut report = Report::default();
        self.rounds(names, &mut Pass { now, maps, report: &mut report });
        report.pending = self.index.dirty_len() + self.pending.len();
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

    /// Addresses that a Service asks for and can't have, because another one, or another of its ports, does.
    pub fn contested(&self) -> impl Iterator<Item = &Problem> {
        self.contested.values().flatten()
    }

    /// Grows with each change of [`Self::problems`], which costs much more.
    pub fn problems_version(&self) -> u64 {
        self.index.problems_version() + self.contested.version()
    }

    /// Whether all ports that `owner`, a pod, asks for are in the maps as of the last reconcile; and nothing of one that
    /// asks for none any more. A port at an address that the node does not have is not missed.
    ///
    /// # Errors
    /// When they are not, and why.
    pub fn has_host_ports(&self, owner: &ObjectName) -> Result<(), String> {
        if let Some(error) = self.pending.get(owner) {
            return Err(error.to_string());
        }
        let Some(wanted) = self.index.host_ports(owner) else { return Ok(()) };
        if self.index.awaits_addresses() && wanted.ports.iter().any(|port| port.host_ip.is_none()) {
            return Err("the node's addresses are not known yet: the API has not named its Node".to_owned());
        }
        for key in frontends::desired(&self.index, owner).frontends.keys() {
            let label = frontend_label(key);
            match self.claims.winner(key) {
                Some(winner) if winner != owner => {
                    return Err(format!("{label} is already that of {}", self.index.label(winner)));
                }
                _ if self.ledger.frontend_of(key, owner).is_some() => {}
                _ => {
                    return Err(format!(
                        "whether {label} is a Service's is not known yet: the API has not said"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether `owner`, a pod, asks for any port, or has any in the maps.
    pub fn knows_host_ports(&self, owner: &ObjectName) -> bool {
        self.index.host_ports(owner).is_some() || self.ledger.holdings.contains_key(owner)
    }

    /// The frontends of `owner`, a pod, that are in the maps, each with its backends.
    pub fn host_ports(&self, owner: &ObjectName) -> Vec<(FrontendKey, Arc<[BackendAddress]>)> {
        let desired = frontends::desired(&self.index, owner);
        let own = desired.frontends.iter().filter(|(key, _)| self.ledger.frontend_of(key, owner).is_some());
        own.map(|(key, frontend)| (*key, Arc::clone(&frontend.internal))).collect()
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

    /// Every Service port with its frontends and backends, in order of name, and then those of pods.
    pub fn services(&self) -> Vec<ServiceView> {
        let services = self.index.services().flat_map(|service| self.service(&service.name));
        let pods = self.index.host_port_owners().flat_map(|owner| {
            let programmed = |key: &FrontendKey| self.ledger.frontend_of(key, owner);
            view::host_ports(&self.index, owner, programmed, self.pending.get(owner))
        });
        services.chain(pods).collect()
    }

    /// The ports of one Service.
    pub fn service(&self, name: &ObjectName) -> Vec<ServiceView> {
        view::service(&self.index, name, |key| self.ledger.frontend_of(key, name), self.pending.get(name))
    }

    /// One Service, its endpoints, and why a port has none; none if it is not the proxy's business.
    pub fn detail(&self, name: &ObjectName) -> Option<ServiceDetail> {
        detail::detail(&self.index, name, self.service(name))
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
