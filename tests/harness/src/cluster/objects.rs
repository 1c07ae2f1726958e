//! The objects of a cluster, and what runs because of them.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::Cluster;
use crate::node::output;
use crate::place::Place;
use crate::process::wait_for;

const PATIENCE: Duration = Duration::from_secs(60);

/// A pod that runs, as its status shows it.
#[derive(Clone, Debug)]
pub struct RunningPod {
    /// Its name.
    pub name: String,
    /// The node that it runs on.
    pub node: String,
    /// Its addresses, at most one of each family.
    pub ips: Vec<IpAddr>,
    /// Where its processes run.
    pub place: Place,
}

impl RunningPod {
    /// The pod's address of the same family as `like`.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, like: IpAddr) -> Result<IpAddr> {
        let found = self.ips.iter().find(|ip| ip.is_ipv4() == like.is_ipv4());
        found.copied().with_context(|| format!("pod {} has no address like {like}", self.name))
    }
}

impl Cluster {
    /// What kubectl prints.
    ///
    /// # Errors
    /// When it fails; with what it says.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.kubectl_command().args(arguments))
    }

    /// `kubectl apply` of some YAML.
    ///
    /// # Errors
    /// When it fails; with what it says.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let mut command = self.kubectl_command();
        command.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("run kubectl")?;
        child.stdin.take().context("kubectl's input")?.write_all(yaml.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(())
    }

    /// Waits until the pod runs and is ready.
    ///
    /// # Errors
    /// When it takes too long; with what the pod's status says.
    pub fn pod(&self, name: &str) -> Result<RunningPod> {
        self.pod_in("default", name)
    }

    /// The same for a pod of that namespace.
    ///
    /// # Errors
    /// As [`pod`](Self::pod).
    pub fn pod_in(&self, namespace: &str, name: &str) -> Result<RunningPod> {
        let mut last = None;
        let ready = wait_for(&format!("pod {namespace}/{name}"), PATIENCE, || {
            last = self.api.get_in::<Pod>(namespace, name)?;
            Ok(last.clone().filter(is_ready))
        });
        let pod = ready.with_context(|| format!("its conditions: {:?}", conditions(last.as_ref())))?;
        let status = pod.status.unwrap_or_default();
        let ips = status.pod_ips.unwrap_or_default();
        let ips = ips.iter().map(|ip| ip.ip.parse().with_context(|| format!("pod IP {:?}", ip.ip)));
        let ips = ips.collect::<Result<_>>()?;
        let spec = pod.spec.unwrap_or_default();
        let on_host = spec.host_network == Some(true);
        let node = spec.node_name.context("a running pod without node")?;
        let uid = pod.metadata.uid.unwrap_or_default();
        let node_layout = self.node(&node)?.layout();
        let netns = if on_host { node_layout.netns.clone() } else { self.layout.pod_netns(name, &uid) };
        let place = Place::open(&netns, &node_layout.pods_cgroup().join(&uid))?;
        Ok(RunningPod { name: name.to_owned(), node, ips, place })
    }

    /// Waits until there is no pod of that name.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait_until_gone(&self, pod: &str) -> Result<()> {
        self.wait_until_gone_in("default", pod)
    }

    /// The same for a pod of that namespace.
    ///
    /// # Errors
    /// As [`wait_until_gone`](Self::wait_until_gone).
    pub fn wait_until_gone_in(&self, namespace: &str, pod: &str) -> Result<()> {
        wait_for(&format!("the end of pod {namespace}/{pod}"), PATIENCE, || {
            Ok(self.api.get_in::<Pod>(namespace, pod)?.is_none().then_some(()))
        })
    }

    /// The Service's ClusterIPs, at most one of each family.
    ///
    /// # Errors
    /// When there is no such Service, or it has none.
    pub fn cluster_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let spec = self.service(service)?.spec.unwrap_or_default();
        let ips = spec.cluster_ips.with_context(|| format!("Service {service} has no ClusterIP"))?;
        ips.iter().map(|ip| ip.parse().with_context(|| format!("ClusterIP {ip:?}"))).collect()
    }

    /// The node port of the Service's port of that name.
    ///
    /// # Errors
    /// When there is no such Service, or the port has none.
    pub fn node_port(&self, service: &str, port: &str) -> Result<u16> {
        let ports = self.service(service)?.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let found = ports.into_iter().find(|p| p.name.as_deref() == Some(port)).and_then(|p| p.node_port);
        let number = found.with_context(|| format!("Service {service} has no node port {port}"))?;
        u16::try_from(number).with_context(|| format!("node port {number}"))
    }

    /// The Service's port for health checks of load balancers.
    ///
    /// # Errors
    /// When there is no such Service, or it has none.
    pub fn health_check_port(&self, service: &str) -> Result<u16> {
        let port = self.service(service)?.spec.and_then(|spec| spec.health_check_node_port);
        let port = port.with_context(|| format!("Service {service} has no port for health checks"))?;
        u16::try_from(port).with_context(|| format!("port {port} for health checks"))
    }

    /// Does what a load balancer's controller does: writes its addresses into the Service's status. The mode is that
    /// of each: `VIP`, `Proxy`, or none.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn set_load_balancer(&self, service: &str, addresses: &[IpAddr], mode: Option<&str>) -> Result<()> {
        let ingress: Vec<Value> = addresses
            .iter()
            .map(|ip| mode.map_or_else(|| json!({ "ip": ip }), |mode| json!({ "ip": ip, "ipMode": mode })))
            .collect();
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        self.patch_status::<Service>(service, &status)
    }

    /// Makes a running pod ready or not, as its readiness probe would.
    ///
    /// # Errors
    /// When there is no such pod, or the API server refuses.
    pub fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        let found = self.api.get::<Pod>(pod)?.with_context(|| format!("no pod {pod}"))?;
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        let mut conditions = serde_json::to_value(conditions)?;
        for condition in conditions.as_array_mut().into_iter().flatten() {
            if condition["type"] == "Ready" || condition["type"] == "ContainersReady" {
                condition["status"] = json!(if ready { "True" } else { "False" });
            }
        }
        self.patch_status::<Pod>(pod, &json!({ "status": { "conditions": conditions } }))
    }

    /// Replaces a pod by another, as one step of a rolling update: the new one is ready before the old one is told to
    /// go, and the old one is gone when this returns.
    ///
    /// # Errors
    /// When the new one does not come, or the old one does not go.
    pub fn replace_pod(&self, old: &str, new: &str, manifest: &str) -> Result<RunningPod> {
        self.apply(manifest)?;
        let running = self.pod(new)?;
        self.kubectl(&["delete", "pod", old, "--wait=false"])?;
        self.wait_until_gone(old)?;
        Ok(running)
    }

    /// Sets labels of a Node, as in `key=value`, or removes them, as in `key-`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn label_node(&self, node: &str, labels: &[&str]) -> Result<()> {
        self.kubectl(&[&["label", "--overwrite", "node", node], labels].concat()).map(drop)
    }

    fn patch_status<K: crate::api::Object>(&self, name: &str, status: &Value) -> Result<()> {
        let objects = kube::Api::<K>::default_namespaced(self.api.client());
        let (how, what) = (PatchParams::default(), Patch::Merge(status));
        let patched = self.api.block_on(objects.patch_status(name, &how, &what));
        patched.map(drop).with_context(|| format!("write the status of {} {name}", K::kind(&())))
    }

    fn service(&self, name: &str) -> Result<Service> {
        self.api.get(name)?.with_context(|| format!("no Service {name}"))
    }

    fn kubectl_command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.layout.kubeconfig());
        // Its cache of what the API offers would outlive the cluster.
        command.arg("--cache-dir").arg(self.layout.dir.join("kubectl"));
        command
    }
}

fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && conditions(Some(pod)).iter().any(|(kind, status, _)| kind == "Ready" && status == "True")
}

fn conditions(pod: Option<&Pod>) -> Vec<(String, String, String)> {
    let status = pod.and_then(|pod| pod.status.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    conditions.map(|c| (c.type_.clone(), c.status.clone(), c.message.clone().unwrap_or_default())).collect()
}
