//! The running agent as others ask about it: over its socket, and for health. What metrics say of it is
//! [`metrics`](crate::metrics)'.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fairlead_abi::maps;
use fairlead_core::model::ObjectName;
use fairlead_core::reconcile::Reconciler;
use fairlead_daemon::repeated::Repeated;
use fairlead_net::agent::{Awaited, Registration, Request};
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
use crate::events::Telling;
use crate::health::{Answers, stamp};
use crate::host_ports;
use crate::in_effect::Turns;
use crate::inquiry;
use crate::kernel::KernelView;
use crate::masquerade::MasqueradeView;
use crate::pods::{PodApi, PodSockets};
use crate::policy::{Policies, why};
use crate::progress::Progress;
use crate::requests::Requests;
use crate::service_health::CheckViews;
use crate::socket::Answer;
use crate::status::{FlowTableStatus, MapView, ProblemView, ProgramView, Status};
use crate::sweep::Sweeps;
use crate::takeover::{self, drain::Drain};
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
    /// What the kernel has of what is asked of it.
    pub kernel: KernelView,
    /// What an earlier agent left and this one went on with.
    pub adopted: Adopted,
}

/// What an earlier agent left and this one went on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Links of programs.
    pub links: usize,
    /// Endpoints of pods.
    pub endpoints: usize,
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
    /// Connections that kube-proxy's rules have translated.
    pub drain: Drain,
    /// How often health was asked for.
    pub answers: Answers,
    /// What was asked over the socket.
    pub requests: Requests,
    /// Tells of turns of the loops.
    pub turns: Arc<Turns>,
    /// Which API servers are known, and how they answer.
    pub servers: fairlead_api::View,
    /// How telling the API of events goes.
    pub telling: Arc<Telling>,
    /// What was said in the log whenever somebody asked.
    pub repeated: Repeated,
}

impl Answer for Agent {
    fn answer(&self, request: Request) -> Result<Value, String> {
        self.requests.time(request, |request| self.perform(request))
    }

    async fn wait(self: Arc<Self>, awaited: Awaited) -> Result<Value, String> {
        let view = self.await_effect(awaited).await?;
        serde_json::to_value(view).map_err(|e| e.to_string())
    }
}

impl Agent {
    /// Does what is asked for, or says why not.
    fn perform(&self, request: Request) -> Result<Value, String> {
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
            Request::Takeover { dry_run } => {
                let report = takeover::perform(self, dry_run)?;
                serde_json::to_value(report).map_err(|e| e.to_string())
            }
            Request::Why(question) => {
                let answer = why::answer(self, &question)?;
                serde_json::to_value(answer).map_err(|e| e.to_string())
            }
            Request::Wait(_) => Err("this is not how to wait".to_owned()),
        }
    }

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
            drain: self.drain.view(),
            watches: self.watches.states(),
            services,
            policies: self.policies.status(),
            pending,
            problems: problems.into_iter().map(ProblemView::from).collect(),
            writes: progress.writes,
            failed_writes: progress.failed_writes,
            programs,
            maps: self.maps(),
            flow_table,
            endpoints: lock(&self.endpoints).views(),
            health_checks: self.checks.get(),
            packets: self.packets().into_iter().collect(),
            drops: self.drops().into_iter().collect(),
            kernel: Some(self.facts.kernel.clone()),
        }
    }

    /// How full the maps are, by what is known of them: none is read for it.
    pub(crate) fn maps(&self) -> Vec<MapView> {
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
            self.repeated.warn(&format!("look where programs are attached: {}", chain(&e)));
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

    pub(crate) fn packets(&self) -> Vec<(String, u64)> {
        let packets = self.counters.packets().unwrap_or_else(|e| {
            self.repeated.warn(&format!("read the packet counters: {e}"));
            Vec::new()
        });
        packets.into_iter().map(|(counter, count)| (counter.label().to_owned(), count)).collect()
    }

    pub(crate) fn drops(&self) -> Vec<(String, u64)> {
        let drops = self.counters.drops().unwrap_or_else(|e| {
            self.repeated.warn(&format!("read the drop counters: {e}"));
            Vec::new()
        });
        drops.into_iter().map(|(reason, count)| (reason.label().to_owned(), count)).collect()
    }
}

fn json(value: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|e| e.to_string())
}

/// A panic elsewhere leaves these as they were between two steps, which is a state like any other.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
