//! A node: its Node object, its agent and its CNI daemon.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1;
use kube::api::{Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::api::Api;
use crate::cluster::Options;
use crate::fabric;
use crate::layout::{Layout, NodeLayout};
use crate::place::Place;
use crate::probe::http_get;
use crate::process::{Process, binary, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// A node of a running cluster.
#[derive(Debug)]
pub struct Node {
    layout: NodeLayout,
    place: Place,
    kubeconfig: PathBuf,
    logs: PathBuf,
    fabric: Place,
    proxy_binary: PathBuf,
    /// What every node's agent is told, and what this one is.
    proxy_arguments: [Vec<String>; 2],
    proxy: Option<Process>,
    daemon: Process,
}

impl Node {
    /// Creates the Node object and starts the node's processes.
    ///
    /// # Errors
    /// When the API server refuses or a process can't be started.
    pub(crate) fn start(cluster: &Layout, layout: NodeLayout, api: &Api, options: &Options) -> Result<Self> {
        register(&layout, api, options).with_context(|| format!("create Node {}", layout.name))?;
        for dir in [layout.state_dir(), layout.cni_bin_dir(), layout.cni_conf_dir(), layout.cni_data_dir()] {
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let place = Place::open(&layout.netns, &layout.host_cgroup())?;
        let kubeconfig = cluster.node_kubeconfig();
        let mut daemon = place.command(binary("fairlead-cni")?)?;
        daemon.args(["node", "--hostname-override", &layout.name, "--kubeconfig"]).arg(&kubeconfig);
        daemon
            .arg("--cni-bin-dir")
            .arg(layout.cni_bin_dir())
            .arg("--cni-conf-dir")
            .arg(layout.cni_conf_dir());
        daemon.arg("--node-file").arg(layout.node_file()).arg("--data-dir").arg(layout.cni_data_dir());
        if options.proxy {
            daemon.arg("--agent-socket").arg(layout.socket());
        } else {
            daemon.args(["--agent-socket", ""]);
        }
        let daemon =
            Process::spawn("fairlead-cni", &mut daemon, &cluster.log(&format!("{}-cni", layout.name)))?;
        let mut node = Self {
            place,
            kubeconfig,
            logs: cluster.log(&format!("{}-proxy", layout.name)),
            fabric: Place::open(&cluster.fabric_netns(), &cluster.outside_cgroup())?,
            proxy_binary: binary("fairlead-proxy")?,
            proxy_arguments: [
                options.proxy_arguments.clone(),
                options.node_arguments.get(&layout.name).cloned().unwrap_or_default(),
            ],
            proxy: None,
            daemon,
            layout,
        };
        if options.proxy {
            node.start_proxy()?;
        }
        Ok(node)
    }

    /// Waits until pods can be run here: the agent is healthy and CNI is configured.
    ///
    /// # Errors
    /// When a process ends, or it takes too long.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        let conf_dir = self.layout.cni_conf_dir();
        wait_for(&format!("the CNI configuration of {}", self.layout.name), PATIENCE, || {
            self.daemon.check()?;
            let lists = fs::read_dir(&conf_dir)?.flatten();
            let installed = lists.map(|e| e.path()).any(|p| p.extension().is_some_and(|e| e == "conflist"));
            Ok(installed.then_some(()))
        })?;
        if self.proxy.is_some() {
            self.wait_for_proxy()?;
        }
        Ok(())
    }

    /// The Node object's name.
    pub fn name(&self) -> &str {
        &self.layout.name
    }

    /// Where the node's things are.
    pub fn layout(&self) -> &NodeLayout {
        &self.layout
    }

    /// Where the node's own processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The node's address of the same family as `like`.
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.layout.ipv4 } else { self.layout.ipv6 }
    }

    /// Starts the agent, which must not be running.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_proxy(&mut self) -> Result<()> {
        let mut command = self.place.command(&self.proxy_binary)?;
        command.args(["run", "--hostname-override", &self.layout.name]);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--bpffs").arg(self.layout.bpffs());
        command.arg("--cgroup").arg(&self.layout.cgroup).arg("--state-dir").arg(self.layout.state_dir());
        command.arg("--socket").arg(self.layout.socket()).args(self.proxy_arguments.iter().flatten());
        self.proxy = Some(Process::spawn("fairlead-proxy", &mut command, &self.logs)?);
        Ok(())
    }

    /// Starts that executable as the agent, from now on; none must be running.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_proxy_from(&mut self, executable: &Path) -> Result<()> {
        executable.clone_into(&mut self.proxy_binary);
        self.start_proxy()
    }

    /// Restarts the agent with these arguments instead of those that were this node's own so far, and waits until it
    /// is healthy.
    ///
    /// # Errors
    /// When it does not end, or does not come back.
    pub fn restart_proxy_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.stop_proxy(Signal::SIGTERM)?;
        self.proxy_arguments[1] = arguments.iter().map(ToString::to_string).collect();
        self.start_proxy()?;
        self.wait_for_proxy()
    }

    /// The agent's process id, while it runs.
    pub fn proxy_id(&self) -> Option<u32> {
        self.proxy.as_ref().map(Process::id)
    }

    /// Sets the MTU of the node's link to the fabric, at both ends.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.place.set_mtu(fabric::UPLINK, mtu)?;
        self.fabric.set_mtu(&fabric::port(self.layout.fabric_host()), mtu)
    }

    /// Ends the agent by a signal and waits until it is gone; what it programmed stays.
    ///
    /// # Errors
    /// When it does not run, or does not go within ten seconds.
    pub fn stop_proxy(&mut self, signal: Signal) -> Result<()> {
        let mut proxy =
            self.proxy.take().with_context(|| format!("no agent runs on {}", self.layout.name))?;
        proxy.signal(signal)?;
        proxy.wait(Duration::from_secs(10)).map(drop)
    }

    /// Waits until the agent is healthy.
    ///
    /// # Errors
    /// When it ends, or it takes too long.
    pub fn wait_for_proxy(&mut self) -> Result<()> {
        wait_for(&format!("the agent of {}", self.layout.name), PATIENCE, || {
            let proxy = self.proxy.as_mut().context("no agent runs")?;
            proxy.check()?;
            let healthy = healthz(&self.place).is_ok_and(|(status, _)| status == 200);
            Ok((healthy && self.layout.socket().exists()).then_some(()))
        })
    }

    /// The agent's health: HTTP status and body.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn healthz(&self) -> Result<(u16, String)> {
        healthz(&self.place)
    }

    /// The agent's metrics, as text.
    ///
    /// # Errors
    /// When nobody answers, or not with metrics.
    pub fn metrics(&self) -> Result<String> {
        let server = SocketAddr::from(([127, 0, 0, 1], METRICS_PORT));
        match self.place.netns().run(|| http_get(server, "/metrics"))?? {
            (200, text) => Ok(text),
            (status, text) => bail!("/metrics answers {status}: {text}"),
        }
    }

    /// What `fairlead-proxy` prints when asked on the node, as in `proxy(&["status", "-o", "json"])`.
    ///
    /// # Errors
    /// When it fails.
    pub fn proxy(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.place.command(&self.proxy_binary)?;
        output(command.args(arguments).arg("--socket").arg(self.layout.socket()))
    }

    /// Reaps the node's processes once the control group has been killed.
    pub(crate) fn reap(&mut self) {
        for process in self.proxy.iter_mut().chain([&mut self.daemon]) {
            process.wait(Duration::from_secs(1)).ok();
        }
    }
}

/// What a command prints.
///
/// # Errors
/// When it can't be started or fails; with what it says about it.
pub fn output(command: &mut Command) -> Result<String> {
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {name}"))?;
    if !output.status.success() {
        bail!("{name} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed something else than text"))
}

fn healthz(place: &Place) -> Result<(u16, String)> {
    let server = SocketAddr::from(([127, 0, 0, 1], HEALTHZ_PORT));
    Ok(place.netns().run(|| http_get(server, "/healthz"))??)
}

fn register(layout: &NodeLayout, api: &Api, options: &Options) -> Result<()> {
    let pod_cidrs = options.pod_cidrs.get(&layout.name).unwrap_or(&layout.pod_cidrs);
    let mut labels = json!({
        "kubernetes.io/hostname": layout.name,
        "kubernetes.io/os": "linux",
        "topology.kubernetes.io/zone": format!("zone-{}", layout.number),
    });
    for (key, value) in options.node_labels.get(&layout.name).into_iter().flatten() {
        labels[key] = json!(value);
    }
    let object = serde_json::from_value(json!({
        "metadata": { "name": layout.name, "labels": labels },
        "spec": { "podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs },
    }))?;
    let status = json!({
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": layout.ipv4 },
                { "type": "InternalIP", "address": layout.ipv6 },
                { "type": "Hostname", "address": layout.name },
            ],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        },
    });
    let nodes = kube::Api::<v1::Node>::all(api.client());
    api.block_on(async {
        nodes.create(&PostParams::default(), &object).await?;
        nodes.patch_status(&layout.name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    })
}
