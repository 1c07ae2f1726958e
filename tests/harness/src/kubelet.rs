//! What scheduler and kubelet do for a pod: give it a node, run it, report it, and end it when it is deleted.
//!
//! One process (`fairlead-harness kubelet`) serves all nodes, so that a cluster which is left running goes on
//! working when the demo has ended: `kubectl apply` of a new Pod starts it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{FutureExt, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, ResourceExt};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::cni::{Runtime, Sandbox};
use crate::layout::{Layout, NodeLayout};
use crate::place::Place;
use crate::process::{Process, binary};
use crate::protocol::Port;
use crate::{api, cgroup, netns, serve};

const RETRY: Duration = Duration::from_millis(200);
/// How long a pod may take to end if it does not say so itself, as in Kubernetes.
const GRACE: i64 = 30;
/// The annotation that says for how many milliseconds a pod goes on accepting when it is told to stop
/// ([`serve::LINGER`] otherwise). After half of that it stops being ready, as it would by its readiness probe: it has
/// then been serving while terminating for this long, and goes on for as long again, so that every node has turned
/// datagrams away from it before it is gone.
pub const LINGER: &str = "harness.fairlead.io/linger-ms";
/// The annotation by which a pod leaves its ports to somebody else's server: `"false"`.
pub const SERVED: &str = "harness.fairlead.io/served";

/// Runs every pod of the cluster until killed.
///
/// # Errors
/// When the API can't be reached at all; a pod's failures are shown in its status and tried again.
pub async fn run(layout: Layout) -> Result<()> {
    let client = api::client(&layout.node_kubeconfig()).await?;
    let nodes = layout.nodes().map(|node| (node.name.clone(), Arc::new(node))).collect();
    let mut kubelet =
        Kubelet { layout: Arc::new(layout), client: client.clone(), nodes, pods: HashMap::new(), turn: 0 };
    let events = watcher(Api::<Pod>::all(client), Config::default());
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(pod) | Event::InitApply(pod)) => kubelet.see(&pod).await,
            Ok(Event::Delete(pod)) => kubelet.forget(&pod),
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(%error, "watch pods");
                sleep(RETRY).await;
            }
        }
    }
    Ok(())
}

struct Kubelet {
    layout: Arc<Layout>,
    client: Client,
    nodes: HashMap<String, Arc<NodeLayout>>,
    /// How to tell each pod's task that the pod shall end, by UID.
    pods: HashMap<String, Arc<Notify>>,
    turn: usize,
}

impl Kubelet {
    async fn see(&mut self, pod: &Pod) {
        let Some(uid) = pod.uid() else { return };
        let deleted = pod.metadata.deletion_timestamp.is_some();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        if let Some(end) = self.pods.get(&uid) {
            if deleted {
                end.notify_one();
            }
        } else if let Some(node) = self.nodes.get(&node) {
            let end = Arc::new(Notify::new());
            if deleted {
                end.notify_one();
            }
            self.pods.insert(uid.clone(), Arc::clone(&end));
            let name = pod.name_any();
            let life = Life {
                node: Arc::clone(node),
                api: Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default()),
                netns: self.layout.pod_netns(&name, &uid),
                log: self.layout.log(&format!("pod-{name}")),
                pod: pod.clone(),
                uid,
                name,
            };
            tokio::spawn(life.run(end));
        } else if node.is_empty()
            && !deleted
            && let Err(error) = self.assign(pod).await
        {
            tracing::warn!(pod = pod.name_any(), error = format!("{error:#}"), "assign a node");
        }
    }

    /// Forgets a pod that the API no longer holds; it ends, if it has not yet.
    fn forget(&mut self, pod: &Pod) {
        if let Some(end) = pod.uid().and_then(|uid| self.pods.remove(&uid)) {
            end.notify_one();
        }
    }

    /// Gives the pod to the nodes in turn, among those that its nodeSelector allows.
    async fn assign(&mut self, pod: &Pod) -> Result<()> {
        let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
        let all = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?;
        let fits = |node: &&Node| selector.iter().all(|(key, value)| node.labels().get(key) == Some(value));
        let mut names: Vec<String> = all.iter().filter(fits).map(ResourceExt::name_any).collect();
        names.retain(|name| self.nodes.contains_key(name));
        names.sort_unstable();
        let name = names.get(self.turn % names.len().max(1)).context("no node fits")?;
        let binding = Binding {
            metadata: ObjectMeta { name: Some(pod.name_any()), ..ObjectMeta::default() },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(name.clone()),
                ..ObjectReference::default()
            },
        };
        let pods = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let bound: kube::Result<Value> =
            pods.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await;
        if matches!(&bound, Err(kube::Error::Api(status)) if status.code == 404) {
            // The stand-in has no bindings, and lets the node be set; Kubernetes does neither.
            let patch = Patch::Merge(json!({ "spec": { "nodeName": name } }));
            pods.patch(&pod.name_any(), &PatchParams::default(), &patch).await?;
        } else {
            bound?;
        }
        self.turn += 1;
        Ok(())
    }
}

/// One pod, from its sandbox to its removal from the API.
struct Life {
    node: Arc<NodeLayout>,
    api: Api<Pod>,
    pod: Pod,
    uid: String,
    name: String,
    netns: String,
    log: PathBuf,
}

impl Life {
    async fn run(self, end: Arc<Notify>) {
        let life = Arc::new(self);
        let ended = end.notified();
        pin_mut!(ended);
        let mut server = None;
        let mut reported = String::new();
        // An attempt is never given up half way, so that what it made is known.
        while server.is_none() && ended.as_mut().now_or_never().is_none() {
            match life.begin().await {
                Ok(process) => server = Some(process),
                Err(error) => {
                    life.wait_after(&format!("{error:#}"), &mut reported).await;
                    continue;
                }
            }
            (&mut ended).await;
        }
        if let Err(error) = life.finish(server).await {
            tracing::warn!(pod = life.name, error = format!("{error:#}"), "end a pod");
        }
    }

    /// Makes the pod run and its status say so.
    async fn begin(self: &Arc<Self>) -> Result<Process> {
        let life = Arc::clone(self);
        let (server, addresses) = spawn_blocking(move || life.start()).await??;
        self.report_running(&addresses).await?;
        Ok(server)
    }

    /// Clears away a failed attempt and shows its cause, once.
    async fn wait_after(self: &Arc<Self>, cause: &str, reported: &mut String) {
        if cause != reported {
            tracing::warn!(pod = self.name, cause, "a pod does not start");
            self.report_waiting(cause).await;
            cause.clone_into(reported);
        }
        let life = Arc::clone(self);
        if let Err(error) = spawn_blocking(move || life.clear()).await.context("clear").flatten() {
            tracing::warn!(pod = self.name, error = format!("{error:#}"), "clear a failed attempt away");
        }
        sleep(RETRY).await;
    }

    fn start(&self) -> Result<(Process, Vec<IpAddr>)> {
        let cgroup = self.cgroup();
        cgroup::create(&cgroup)?;
        let (place, addresses) = if self.is_on_host() {
            (Place::open(&self.node.netns, &cgroup)?, vec![self.node.ipv4, self.node.ipv6])
        } else {
            let runtime = self.runtime()?;
            if !runtime.is_configured() {
                bail!("no CNI configuration is installed on {}", self.node.name);
            }
            let netns = netns::create(&self.netns)?.keep();
            (Place::new(netns, &cgroup), runtime.add(&self.sandbox())?)
        };
        let mut command = place.command(binary("fairlead-harness")?)?;
        command.args(["serve", "--pod", &self.name]);
        command.arg("--linger-ms").arg(self.linger().as_millis().to_string());
        for port in self.ports() {
            command.arg("--port").arg(port.to_string());
        }
        let (server, _) = Process::announced(&self.name, &mut command, &self.log)?;
        Ok((server, addresses))
    }

    async fn finish(self: &Arc<Self>, server: Option<Process>) -> Result<()> {
        if let Some(mut server) = server {
            // One that is gone already, or had to be killed, is gone all the same.
            server.signal(Signal::SIGTERM).ok();
            sleep(self.linger() / 2).await;
            self.report_ending().await;
            let grace = self.grace();
            spawn_blocking(move || server.wait(grace).ok()).await?;
        }
        let life = Arc::clone(self);
        spawn_blocking(move || life.clear()).await??;
        let now =
            DeleteParams { preconditions: Some(self.only_this()), ..DeleteParams::default().grace_period(0) };
        match self.api.delete(&self.name, &now).await {
            // Not there, or another pod of the name: the one meant here was deleted by force.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            deleted => deleted.map(drop).context("remove the pod from the API"),
        }
    }

    /// Undoes all that [`start`](Self::start) may have done.
    fn clear(&self) -> Result<()> {
        cgroup::remove(&self.cgroup())?;
        if self.is_on_host() {
            return Ok(());
        }
        let runtime = self.runtime()?;
        if runtime.is_configured() {
            runtime.del(&self.sandbox())?;
        }
        netns::delete(&self.netns)
    }

    async fn report_running(&self, addresses: &[IpAddr]) -> Result<()> {
        let ips: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let now = Timestamp::now();
        let ready = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": now });
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(ready);
        let spec = self.pod.spec.as_ref().context("a pod without spec")?;
        let containers: Vec<_> = spec
            .containers
            .iter()
            .map(|container| {
                json!({
                    "name": container.name,
                    "image": container.image,
                    "imageID": "",
                    "ready": true,
                    "started": true,
                    "restartCount": 0,
                    "state": { "running": { "startedAt": now } },
                })
            })
            .collect();
        self.report(json!({
            "phase": "Running",
            "podIP": addresses.first(),
            "podIPs": ips,
            "hostIP": self.node.ipv4,
            "hostIPs": [{ "ip": self.node.ipv4 }, { "ip": self.node.ipv6 }],
            "startTime": now,
            "conditions": conditions,
            "containerStatuses": containers,
        }))
        .await
    }

    async fn report_ending(&self) {
        let ready = json!({ "type": "Ready", "status": "False", "reason": "Terminating" });
        if let Err(error) = self.report(json!({ "conditions": [ready] })).await {
            tracing::warn!(
                pod = self.name,
                error = format!("{error:#}"),
                "report that a pod is no longer ready"
            );
        }
    }

    async fn report_waiting(&self, why: &str) {
        let ready = json!({ "type": "Ready", "status": "False", "reason": "SandboxFailed", "message": why });
        let report = self.report(json!({ "phase": "Pending", "conditions": [ready] })).await;
        if let Err(error) = report {
            tracing::warn!(pod = self.name, error = format!("{error:#}"), "report why a pod waits");
        }
    }

    async fn report(&self, status: Value) -> Result<()> {
        let patch = json!({ "metadata": { "uid": self.uid }, "status": status });
        let patched = self.api.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).context("report the pod's status")
    }

    fn only_this(&self) -> kube::api::Preconditions {
        kube::api::Preconditions { uid: Some(self.uid.clone()), resource_version: None }
    }

    fn grace(&self) -> Duration {
        let seconds = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        Duration::from_secs(seconds.unwrap_or(GRACE).max(1).unsigned_abs())
    }

    fn linger(&self) -> Duration {
        let asked = self.pod.annotations().get(LINGER).and_then(|millis| millis.parse().ok());
        asked.map_or(serve::LINGER, Duration::from_millis)
    }

    /// Whether the pod shares its node's network namespace.
    fn is_on_host(&self) -> bool {
        self.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true))
    }

    fn ports(&self) -> Vec<Port> {
        if self.pod.annotations().get(SERVED).is_some_and(|served| served == "false") {
            return Vec::new();
        }
        let containers = self.pod.spec.iter().flat_map(|spec| &spec.containers);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let text = |port: &k8s_openapi::api::core::v1::ContainerPort| {
            format!("{}/{}", port.container_port, port.protocol.as_deref().unwrap_or("TCP").to_lowercase())
        };
        // What the small server does not speak is left unserved.
        ports.filter_map(|port| text(port).parse().ok()).collect()
    }

    fn runtime(&self) -> Result<Runtime> {
        Ok(Runtime::new(&self.node, Place::open(&self.node.netns, &self.node.host_cgroup())?))
    }

    fn cgroup(&self) -> PathBuf {
        self.node.pods_cgroup().join(&self.uid)
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox {
            container_id: self.uid.replace('-', ""),
            netns: netns::path(&self.netns),
            namespace: self.pod.namespace().unwrap_or_default(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            capabilities: self.capabilities(),
        }
    }

    /// What a runtime tells plugins: the ports of the node that shall lead to the pod.
    fn capabilities(&self) -> Map<String, Value> {
        let containers = self.pod.spec.iter().flat_map(|spec| &spec.containers);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let mapping = |port: &k8s_openapi::api::core::v1::ContainerPort| {
            json!({
                "hostPort": port.host_port.unwrap_or(0),
                "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                "hostIP": port.host_ip.as_deref().unwrap_or(""),
            })
        };
        let mappings: Vec<Value> = ports.filter(|port| port.host_port.is_some()).map(mapping).collect();
        match mappings.is_empty() {
            true => Map::new(),
            false => Map::from_iter([("portMappings".to_owned(), mappings.into())]),
        }
    }
}
