//! The running agent as others ask about it: over its socket, for metrics and for health.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fairlead_abi::maps;
use fairlead_core::frontends::WithoutLocal;
use fairlead_core::model::ObjectName;
use fairlead_core::reconcile::Reconciler;
use fairlead_net::agent::{Registration, Request};
use serde::Serialize;
use serde_json::Value;

use crate::dataplane::clients::Clients;
use crate::dataplane::counters::Counters;
use crate::dataplane::endpoints::{EndpointId, Endpoints, label};
use crate::dataplane::links::{Links, Place};
use crate::dataplane::load::ProgramFacts;
use crate::dataplane::sizes::MapSize;
use crate::dataplane::{DataplaneError, Pins};
use crate::drops::Drops;
use crate::errors::chain;
use crate::exposition::Page;
use crate::health::{Answers, stamp};
use crate::host_ports;
use crate::inquiry;
use crate::masquerade::MasqueradeView;
use crate::pods::{PodApi, PodSockets};
use crate::policy::{Policies, why};
use crate::progress::Progress;
use crate::service_health::CheckViews;
use crate::socket::Answer;
use crate::status::{FlowTableStatus, MapView, ProblemView, ProgramView, Status};
use crate::sweep::Sweeps;
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
    /// The sizes of the maps.
    pub sizes: Vec<MapSize>,
}

/// The parts of the agent that can be asked.
pub struct Agent {
    /// What does not change.
    pub facts: Facts,
    /// Where maps are pinned.
    pub pins: Pins,
    /// The programs, and where they are attached.
    pub links: Arc<Mutex<Links>>,
    /// Services and what is programmed of them.
    pub reconciler: Arc<Mutex<Reconciler>>,
    /// How the loop is doing.
    pub progress: Arc<Mutex<Progress>>,
    /// The node's network.
    pub node: Arc<Mutex<NodeView>>,
    /// With whose address pods' packets leave.
    pub masquerade: Arc<Mutex<MasqueradeView>>,
    /// How the watches are doing.
    pub watches: Arc<Watches>,
    /// Local pods.
    pub endpoints: Arc<Mutex<Endpoints>>,
    /// Has their host ports programmed.
    pub host_ports: host_ports::Asker,
    /// What passes to and from them.
    pub policies: Arc<Policies>,
    /// What was dropped.
    pub drops: Arc<Drops>,
    /// Asks for single Pods.
    pub api: PodApi,
    /// Which pods' sockets are translated; none if only the host's are.
    pub pods: Option<PodSockets>,
    /// Network namespaces whose sockets are translated.
    pub clients: Arc<Mutex<Clients>>,
    /// The servers that load balancers ask about Services.
    pub checks: CheckViews,
    /// What the programs counted.
    pub counters: Counters,
    /// How full the flow table is.
    pub sweeps: Arc<Mutex<Sweeps>>,
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
                let pod = label(&registration.pod);
                let addresses = registration.addresses.clone();
                done(self.add(registration).inspect_err(|e| tracing::warn!(pod, "{}", chain(e))))
                    .inspect(|_| tracing::info!(pod, ?addresses, "endpoint added"))
            }
            Request::DeleteEndpoint { container_id, ifname } => {
                let deleted = self.delete(&(container_id.clone(), ifname));
                done(deleted).inspect(|_| tracing::info!(container_id, "endpoint removed"))
            }
            Request::CheckEndpoint(registration) => done(self.check(&registration)),
            Request::Status => serde_json::to_value(self.status()).map_err(|e| e.to_string()),
            Request::Services => {
                let services = lock(&self.reconciler).services();
                serde_json::to_value(services).map_err(|e| e.to_string())
            }
            Request::Service { namespace, name } => {
                json(lock(&self.reconciler).detail(&ObjectName::new(namespace, name)))
            }
            Request::Backends { service } => json(inquiry::backends::list(self, service.as_deref())?),
            Request::Endpoints => json(inquiry::endpoints::list(self)),
            Request::Flows { filter, limit } => {
                json(inquiry::flows::list(self, &filter, limit).map_err(|e| chain(&e))?)
            }
            Request::FlowTable { top } => json(inquiry::flow_table::look(self, top).map_err(|e| chain(&e))?),
            Request::Times => json(inquiry::times::look(self)),
            Request::Policies => serde_json::to_value(self.policies.views()).map_err(|e| e.to_string()),
            Request::Drops { after } => {
                serde_json::to_value(self.drops.since(after)).map_err(|e| e.to_string())
            }
            Request::Why(question) => {
                let answer = why::answer(self, &question)?;
                serde_json::to_value(answer).map_err(|e| e.to_string())
            }
        }
    }
}

impl Agent {
    /// How the loop is doing now.
    pub fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Programs a pod's endpoint, and has its sockets translated if that is asked for.
    fn add(&self, registration: Registration) -> Result<(), DataplaneError> {
        // Before the lock: this may take a while, and the API may have to be asked.
        self.policies
            .await_pod(&registration.pod, &self.api)
            .map_err(|why| DataplaneError::new("learn the labels of", label(&registration.pod), why))?;
        if !registration.port_mappings.is_empty() {
            // Whose ports they were may have ended without a word.
            self.collect()?;
        }
        let asked = self.pods.as_ref().and_then(|pods| pods.ask(&registration.pod));
        let mut endpoints = lock(&self.endpoints);
        endpoints.add(registration.clone())?;
        if let Some(pods) = &self.pods {
            endpoints.translate_sockets(|other| {
                let answer = if *other == registration.pod { asked } else { None };
                pods.wanted(other).or(answer)
            });
        }
        drop(endpoints);
        self.host_ports.open(&registration).inspect_err(|_| {
            let Registration { container_id, ifname, .. } = registration.clone();
            if let Err(e) = self.delete(&(container_id, ifname)) {
                tracing::warn!("take back endpoint {}: {}", registration.container_id, chain(&e));
            }
        })
    }

    /// Removes a pod's endpoint, after its host ports, so that nothing leads to an address that may become another's.
    fn delete(&self, id: &EndpointId) -> Result<(), DataplaneError> {
        let closed = self.host_ports.close(id);
        lock(&self.endpoints).delete(id).and(closed)
    }

    fn check(&self, registration: &Registration) -> Result<(), DataplaneError> {
        lock(&self.endpoints).check(registration)?;
        self.host_ports.check(registration)
    }

    /// Has packets to pods pass the queues of their interfaces, where these do anything.
    pub fn follow_queues(&self) {
        if let Err(e) = lock(&self.endpoints).follow_queues() {
            tracing::warn!("follow the queues of pods' interfaces: {}", chain(&e));
        }
    }

    /// Removes endpoints whose interface is gone, and returns how many; tries again what failed for sockets.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn collect(&self) -> Result<usize, DataplaneError> {
        let mut endpoints = lock(&self.endpoints);
        if let Some(pods) = &self.pods {
            endpoints.translate_sockets(|pod| pods.wanted(pod));
        }
        let gone = endpoints.collect()?;
        drop(endpoints);
        gone.iter().try_for_each(|id| self.host_ports.close(id))?;
        Ok(gone.len())
    }

    /// How often health was asked for.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// The agent's state. Reads counters, so not for an asynchronous thread.
    pub fn status(&self) -> Status {
        // A lock that is taken below holds to the end.
        let (programs, flow_table) = (self.programs(), FlowTableStatus::from(&*lock(&self.sweeps)));
        let progress = self.progress();
        let Facts { node_name, started, attachment, pins, cgroup, .. } = self.facts.clone();
        let reconciler = lock(&self.reconciler);
        let services = reconciler.index().services().count();
        let services_pending =
            reconciler.pending().map(|(name, error)| format!("{}: {error}", reconciler.index().label(name)));
        let pending = services_pending.chain(self.policies.pending()).collect();
        let mut problems = reconciler.problems();
        drop(reconciler);
        problems.extend(self.policies.problems());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_name,
            ready: progress.first_programmed.is_some(),
            time: stamp(SystemTime::now()),
            started: stamp(started),
            first_programmed: progress.first_programmed.map(stamp),
            last_programmed: progress.last_finished.map(stamp),
            queued_since: progress.queued_since.map(stamp),
            queued_changes: progress.service_changes.pending + progress.endpoint_changes.pending,
            attachment,
            pins,
            cgroup,
            node: lock(&self.node).clone(),
            masquerade: lock(&self.masquerade).clone(),
            watches: self.watches.states(),
            services,
            policies: self.policies.status(),
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
            flow_table,
            endpoints: lock(&self.endpoints).views(),
            health_checks: self.checks.get(),
            packets: self.packets().into_iter().collect(),
            drops: self.drops().into_iter().collect(),
        }
    }

    /// The page that `/metrics` serves. Reads counters, so not for an asynchronous thread.
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
        let problems = lock(&self.reconciler).problems().len() + self.policies.problems().len();
        page.gauge("fairlead_object_problems", "Parts of objects that were left out.").sample(&[], problems);
        page.gauge("fairlead_endpoints", "Local pods.").sample(&[], lock(&self.endpoints).len());
        page.gauge("fairlead_socket_clients", "Network namespaces whose sockets are translated.")
            .sample(&[], lock(&self.clients).len());
        let checks = self.checks.get();
        page.gauge(
            "fairlead_health_check_servers",
            "Servers of healthCheckNodePorts, by whether they listen.",
        )
        .sample(&[("state", "listening")], checks.iter().filter(|check| check.error.is_none()).count())
        .sample(&[("state", "failed")], checks.iter().filter(|check| check.error.is_some()).count());
        self.flow_metrics(page);
        self.policy_metrics(page);
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

    fn flow_metrics(&self, page: &mut Page) {
        let sweeps = lock(&self.sweeps).clone();
        page.gauge("fairlead_flow_table_capacity", "Connections that the flow table has room for.")
            .sample(&[], sweeps.places);
        page.gauge(
            "fairlead_flow_table_connections",
            "Live connections through Services, at the last sweep.",
        );
        for ((protocol, state), count) in &sweeps.census.connections {
            page.sample(&[("protocol", protocol), ("state", state)], count);
        }
        page.gauge(
            "fairlead_flow_table_pressure_ratio",
            "The part of the flow table that live connections take.",
        )
        .sample(&[], sweeps.pressure());
        page.counter("fairlead_flow_table_swept_total", "Entries of ended connections that sweeps removed.")
            .sample(&[], sweeps.removed);
        page.histogram("fairlead_flow_table_sweep_seconds", "How long sweeps took.", &sweeps.durations);
    }

    fn policy_metrics(&self, page: &mut Page) {
        let status = self.policies.status();
        page.gauge("fairlead_policies_synced", "Whether every list that policies depend on is done.")
            .sample(&[], u8::from(status.synced));
        page.gauge("fairlead_policy_objects", "NetworkPolicies and ClusterNetworkPolicies in the API.")
            .sample(&[], status.objects);
        page.gauge("fairlead_policies_compiled", "Compiled policies that pods of this node are under.")
            .sample(&[], status.compiled);
        page.gauge("fairlead_policies_pending", "Policies and endpoints that are not as their objects ask.")
            .sample(&[], self.policies.pending().len());
        page.counter(
            "fairlead_policy_dropped_packets_total",
            "Packets dropped at pods that the object selects, each counted for all objects that its pod is under.",
        );
        for ((object, direction), count) in &self.policies.drop_totals() {
            page.sample(&[("policy", object), ("direction", &direction.to_string())], count);
        }
        page.histogram(
            "fairlead_policy_reconcile_seconds",
            "How long it took to compile and program what changed of policies.",
            &self.policies.durations(),
        );
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
        let WithoutLocal { internal, external } = lock(&self.reconciler).without_local();
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

    /// How full the maps are, by what is known of them: none is read for it.
    fn maps(&self) -> Vec<MapView> {
        let mut entries = BTreeMap::from(lock(&self.reconciler).entries());
        entries.extend(self.policies.entries());
        let pods = lock(&self.endpoints);
        entries.extend([
            (maps::ENDPOINTS, pods.entry_count()),
            (maps::CLIENTS, lock(&self.clients).len()),
            (maps::FLOWS, usize::try_from(lock(&self.sweeps).census.entries).unwrap_or(usize::MAX)),
        ]);
        let view = |size: &MapSize| MapView {
            size: size.clone(),
            entries: entries.get(size.name.as_str()).copied(),
        };
        self.facts.sizes.iter().map(view).collect()
    }

    /// The programs, and where they are attached.
    fn programs(&self) -> Vec<ProgramView> {
        let node = lock(&self.node).clone();
        let interfaces: Vec<String> =
            lock(&self.endpoints).registrations().map(|pod| pod.host_ifname.clone()).collect();
        let known = |place| match place {
            Place::Pod => interfaces.clone(),
            Place::Uplink => node.uplinks.clone(),
            Place::Pods => node.pod_interfaces.clone(),
        };
        let links = lock(&self.links);
        let mut places = links.places(&self.facts.cgroup, known).unwrap_or_else(|e| {
            tracing::warn!("look where programs are attached: {}", chain(&e));
            BTreeMap::new()
        });
        let view = |(name, ProgramFacts { verified, runs, nanoseconds })| ProgramView {
            attached_to: places.remove(&name).unwrap_or_default(),
            name,
            verified_instructions: verified,
            runs,
            nanoseconds,
        };
        links.programs().facts().into_iter().map(view).collect()
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

fn json(value: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|e| e.to_string())
}

/// Seconds since 1970, 0 for never.
fn seconds(time: Option<SystemTime>) -> f64 {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.unwrap_or_default().as_secs_f64()
}

/// A panic elsewhere leaves these as they were between two steps, which is a state like any other.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
