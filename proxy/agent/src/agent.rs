//! The running agent as others ask about it: over its socket, for metrics and for health.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fairlead_core::reconcile::Reconciler;
use fairlead_core::view::{ServiceView, WithoutBackend};
use fairlead_net::agent::Request;
use serde_json::Value;

use crate::dataplane::DataplaneError;
use crate::dataplane::counters::{Counters, Fill};
use crate::dataplane::endpoints::Endpoints;
use crate::dataplane::load::MapSize;
use crate::errors::chain;
use crate::exposition::Page;
use crate::health::{Answers, stamp};
use crate::socket::Answer;
use crate::status::{MapView, ProblemView, Status};
use crate::sync::Progress;
use crate::uplinks::NodeView;
use crate::watch::Watches;

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The node's name in the API.
    pub node_name: String,
    /// When the agent started.
    pub started: SystemTime,
    /// How programs are attached.
    pub attachment: String,
    /// The directory that everything is pinned in.
    pub pins: String,
    /// The cgroup whose sockets are translated.
    pub cgroup: String,
    /// How many instructions the verifier walked for each program.
    pub programs: BTreeMap<String, u32>,
    /// The sizes of the maps.
    pub sizes: Vec<MapSize>,
}

/// The parts of the agent that can be asked.
pub struct Agent {
    /// What does not change.
    pub facts: Facts,
    /// Services and what is programmed of them.
    pub reconciler: Arc<Mutex<Reconciler>>,
    /// How the loop is doing.
    pub progress: Arc<Mutex<Progress>>,
    /// The node's network.
    pub node: Arc<Mutex<NodeView>>,
    /// How the watches are doing.
    pub watches: Arc<Watches>,
    /// Local pods.
    pub endpoints: Arc<Mutex<Endpoints>>,
    /// What the programs counted.
    pub counters: Counters,
    /// How full the maps are.
    pub fill: Fill,
    /// How often health was asked for.
    pub answers: Answers,
}

impl Answer for Agent {
    fn answer(&self, request: Request) -> Result<Value, String> {
        let done = |result: Result<(), DataplaneError>| match result {
            Ok(()) => Ok(Value::Null),
            Err(e) => Err(chain(&e)),
        };
        match request {
            Request::AddEndpoint(registration) => {
                let pod = format!("{}/{}", registration.pod.namespace, registration.pod.name);
                let addresses = registration.addresses.clone();
                done(
                    lock(&self.endpoints)
                        .add(registration)
                        .inspect_err(|e| tracing::warn!(pod, "{}", chain(e))),
                )
                .inspect(|_| tracing::info!(pod, ?addresses, "endpoint added"))
            }
            Request::DeleteEndpoint { container_id, ifname } => {
                let deleted = lock(&self.endpoints).delete(&(container_id.clone(), ifname));
                done(deleted).inspect(|_| tracing::info!(container_id, "endpoint removed"))
            }
            Request::CheckEndpoint(registration) => done(lock(&self.endpoints).check(&registration)),
            Request::Status => serde_json::to_value(self.status()).map_err(|e| e.to_string()),
            Request::Services => {
                let services = lock(&self.reconciler).services();
                serde_json::to_value(services).map_err(|e| e.to_string())
            }
        }
    }
}

impl Agent {
    /// How the loop is doing now.
    pub fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// How often health was asked for.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// The agent's state. Reads the maps, so not for an asynchronous thread.
    pub fn status(&self) -> Status {
        let progress = self.progress();
        let Facts { node_name, started, attachment, pins, cgroup, programs, .. } = self.facts.clone();
        let reconciler = lock(&self.reconciler);
        let services = reconciler.index().services().count();
        let pending = reconciler.pending().map(|(name, error)| format!("Service {name}: {error}")).collect();
        let problems = reconciler.problems();
        drop(reconciler);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_name,
            ready: progress.first_programmed.is_some(),
            started: stamp(started),
            last_programmed: progress.last_finished.map(stamp),
            attachment,
            pins,
            cgroup,
            node: lock(&self.node).clone(),
            watches: self.watches.states(),
            services,
            pending,
            problems: problems
                .into_iter()
                .map(|problem| ProblemView {
                    object: problem.object,
                    field: problem.field,
                    message: problem.message,
                })
                .collect(),
            writes: progress.writes,
            failed_writes: progress.failed_writes,
            programs,
            maps: self.maps(),
            endpoints: lock(&self.endpoints).views(),
            packets: self.packets().into_iter().collect(),
            drops: self.drops().into_iter().collect(),
        }
    }

    /// The page that `/metrics` serves. Reads the maps, so not for an asynchronous thread.
    pub fn metrics(&self) -> String {
        let mut page = Page::default();
        self.own_metrics(&mut page);
        self.kube_proxy_metrics(&mut page);
        page.finish()
    }

    fn own_metrics(&self, page: &mut Page) {
        let progress = self.progress();
        page.gauge("fairlead_ready", "Whether the maps have held everything once.")
            .sample(&[], u8::from(progress.first_programmed.is_some()));
        page.counter("fairlead_drops_total", "Packets dropped or refused, by reason.");
        for (reason, count) in self.drops() {
            page.sample(&[("reason", &reason)], count);
        }
        page.counter("fairlead_packets_total", "Packets that were not dropped, by what happened to them.");
        for (what, count) in self.packets() {
            page.sample(&[("verdict", &what)], count);
        }
        let maps = self.maps();
        page.gauge("fairlead_map_capacity", "Entries that a map has room for.");
        for map in &maps {
            page.sample(&[("map", &map.size.name)], map.size.capacity);
        }
        page.gauge("fairlead_map_entries", "Entries that a map holds.");
        for map in &maps {
            if let Some(entries) = map.entries {
                page.sample(&[("map", &map.size.name)], entries);
            }
        }
        page.counter("fairlead_map_writes_total", "Writes to the maps of Services, by their end.")
            .sample(&[("result", "done")], progress.writes)
            .sample(&[("result", "failed")], progress.failed_writes);
        page.gauge("fairlead_services_pending", "Services that are not as their objects ask.")
            .sample(&[], progress.pending);
        let problems = lock(&self.reconciler).problems().len();
        page.gauge("fairlead_object_problems", "Parts of objects that were left out.").sample(&[], problems);
        page.gauge("fairlead_endpoints", "Local pods.").sample(&[], lock(&self.endpoints).len());
        let watches = self.watches.states();
        page.gauge("fairlead_watch_connected", "Whether a watch's last answer was a good one.");
        for (kind, state) in &watches {
            page.sample(&[("kind", kind)], u8::from(state.connected));
        }
        page.counter("fairlead_watch_events_total", "Events and listed objects that came by a watch.");
        for (kind, state) in &watches {
            page.sample(&[("kind", kind)], state.events);
        }
        page.counter("fairlead_watch_failures_total", "How often a watch broke.");
        for (kind, state) in &watches {
            page.sample(&[("kind", kind)], state.failures);
        }
    }

    /// What dashboards made for kube-proxy read.
    fn kube_proxy_metrics(&self, page: &mut Page) {
        let progress = self.progress();
        page.histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "How long a reconcile took.",
            &progress.durations,
        );
        page.gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When the last reconcile ended.")
            .sample(&[], seconds(progress.last_finished));
        page.gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When the last update came.")
            .sample(&[], seconds(progress.last_queued));
        page.gauge(
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "EndpointSlices not reconciled yet.",
        )
        .sample(&[], progress.endpoint_changes.pending);
        page.counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "EndpointSlices that changed.")
            .sample(&[], progress.endpoint_changes.total);
        page.gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Services not reconciled yet.")
            .sample(&[], progress.service_changes.pending);
        page.counter("kubeproxy_sync_proxy_rules_service_changes_total", "Services that changed.")
            .sample(&[], progress.service_changes.total);
        let (internal, external) = without_local(&lock(&self.reconciler).services());
        page.gauge(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local policy and endpoints, but none of them on this node.",
        )
        .sample(&[("traffic_policy", "internal")], internal)
        .sample(&[("traffic_policy", "external")], external);
        page.histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From the cause of an endpoint's change until it is programmed.",
            &progress.programming,
        );
        let answers = self.answers.counts();
        for (asked, name) in
            [("healthz", "kubeproxy_proxy_healthz_total"), ("livez", "kubeproxy_proxy_livez_total")]
        {
            page.counter(name, "Answers, by HTTP status.");
            for ((_, code), count) in answers.iter().filter(|((of, _), _)| *of == asked) {
                page.sample(&[("code", &code.to_string())], count);
            }
        }
    }

    fn maps(&self) -> Vec<MapView> {
        let entries: BTreeMap<&str, usize> = match self.fill.entries() {
            Ok(entries) => entries.into(),
            Err(e) => {
                tracing::warn!("count the entries of maps: {e}");
                BTreeMap::new()
            }
        };
        let view = |size: &MapSize| MapView {
            size: size.clone(),
            entries: entries.get(size.name.as_str()).copied(),
        };
        self.facts.sizes.iter().map(view).collect()
    }

    fn packets(&self) -> Vec<(String, u64)> {
        let packets = self.counters.packets().unwrap_or_else(|e| {
            tracing::warn!("read the packet counters: {e}");
            Vec::new()
        });
        packets.into_iter().map(|(counter, count)| (counter.label().to_owned(), count)).collect()
    }

    fn drops(&self) -> Vec<(String, u64)> {
        let drops = self.counters.drops().unwrap_or_else(|e| {
            tracing::warn!("read the drop counters: {e}");
            Vec::new()
        });
        drops.into_iter().map(|(reason, count)| (reason.label().to_owned(), count)).collect()
    }
}

/// How many Service ports have endpoints, but none that clients inside, or outside, may use here.
fn without_local(services: &[ServiceView]) -> (usize, usize) {
    let having = |is: fn(&fairlead_core::view::FrontendView) -> bool| {
        let drops = |service: &&ServiceView| {
            service
                .frontends
                .iter()
                .any(|frontend| frontend.without_backend == WithoutBackend::Drop && is(frontend))
        };
        services.iter().filter(drops).count()
    };
    (having(|frontend| frontend.internal.is_empty()), having(|frontend| frontend.external.is_empty()))
}

/// Seconds since 1970, 0 for never.
fn seconds(time: Option<SystemTime>) -> f64 {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.unwrap_or_default().as_secs_f64()
}

/// A panic elsewhere leaves these as they were between two steps, which is a state like any other.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
