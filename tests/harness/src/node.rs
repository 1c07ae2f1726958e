//! A node: its Node object, its agent and its CNI daemon.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1;
use kube::api::{Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::api::Api;
use crate::cluster::Options;
use crate::contain;
use crate::fabric;
use crate::layout::{API_HOST, CNI, DAEMONS, Layout, NodeLayout, PROXY, SUBNET_BITS, fabric_address};
use crate::place::Place;
use crate::probe::http_get;
use crate::process::{Process, binary, tail, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// A node of a running cluster.
#[derive(Debug)]
pub struct Node {
    layout: NodeLayout,
    place: Place,
    /// What each daemon calls the API server by.
    kubeconfigs: BTreeMap<&'static str, PathBuf>,
    /// The capabilities of daemons that run in containers.
    contained: BTreeMap<String, Vec<String>>,
    logs: PathBuf,
    fabric: Place,
    /// Whether an agent belongs to it.
    has_proxy: bool,
    proxy_binary: PathBuf,
    /// What every node's agent is told, and what this one is.
    proxy_arguments: [Vec<String>; 2],
    daemon_arguments: Vec<String>,
    proxy: Option<Process>,
    daemon: Option<Process>,
}

impl Node {
    /// Creates the Node object and starts the node's processes.
    ///
    /// # Errors
    /// When the API server refuses or a process can't be started.
    pub(crate) fn start(cluster: &Layout, layout: NodeLayout, api: &Api, options: &Options) -> Result<Self> {
        register(&layout, api, options).with_context(|| format!("create Node {}", layout.name))?;
        let mut node = Self {
            place: Place::open(&layout.netns, &layout.host_cgroup())?,
            kubeconfigs: DAEMONS.map(|daemon| (daemon, cluster.kubeconfig_of(daemon))).into(),
            contained: options.contained.clone(),
            logs: cluster.dir.join("logs"),
            fabric: Place::open(&cluster.fabric_netns(), &cluster.outside_cgroup())?,
            has_proxy: options.proxy,
            proxy_binary: binary("fairlead-proxy")?,
            proxy_arguments: [
                options.proxy_arguments.clone(),
                options.node_arguments.get(&layout.name).cloned().unwrap_or_default(),
            ],
            daemon_arguments: options.cni_arguments.clone(),
            proxy: None,
            daemon: None,
            layout,
        };
        node.boot()?;
        Ok(node)
    }

    /// Starts the node's processes, in its namespace as it is now.
    ///
    /// # Errors
    /// When one can't be started.
    pub(crate) fn boot(&mut self) -> Result<()> {
        let layout = &self.layout;
        for dir in [layout.state_dir(), layout.cni_bin_dir(), layout.cni_conf_dir(), layout.cni_data_dir()] {
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        self.place = Place::open(&layout.netns, &layout.host_cgroup())?;
        self.start_daemon()?;
        if self.has_proxy {
            self.start_proxy()?;
        }
        Ok(())
    }

    /// Waits until pods can be run here: the agent is healthy and CNI is configured.
    ///
    /// # Errors
    /// When a process ends, or it takes too long.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        let conf_dir = self.layout.cni_conf_dir();
        wait_for(&format!("the CNI configuration of {}", self.layout.name), PATIENCE, || {
            self.daemon.as_mut().context("no node daemon runs")?.check()?;
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
        let mut command = self.command(PROXY, &self.proxy_binary, "run")?;
        command.arg("--bpffs").arg(self.layout.bpffs());
        command.arg("--cgroup").arg(&self.layout.cgroup).arg("--state-dir").arg(self.layout.state_dir());
        command.arg("--socket").arg(self.layout.socket()).args(self.proxy_arguments.iter().flatten());
        self.proxy = Some(Process::spawn(PROXY, &mut command, &self.log("proxy"))?);
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

    /// Starts `fairlead-cni node`, which must not be running.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_daemon(&mut self) -> Result<()> {
        let layout = &self.layout;
        let mut command = self.command(CNI, &binary(CNI)?, "node")?;
        command
            .arg("--cni-bin-dir")
            .arg(layout.cni_bin_dir())
            .arg("--cni-conf-dir")
            .arg(layout.cni_conf_dir());
        command.arg("--node-file").arg(layout.node_file()).arg("--data-dir").arg(layout.cni_data_dir());
        let socket = if self.has_proxy { layout.socket() } else { PathBuf::new() };
        command.arg("--agent-socket").arg(socket).args(&self.daemon_arguments);
        self.daemon = Some(Process::spawn(CNI, &mut command, &self.log("cni"))?);
        Ok(())
    }

    /// Ends `fairlead-cni node` by a signal and waits until it is gone; its routes stay.
    ///
    /// # Errors
    /// When it does not run, or does not go within ten seconds.
    pub fn stop_daemon(&mut self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.take();
        end(daemon.with_context(|| format!("no node daemon runs on {}", self.layout.name))?, signal)
    }

    /// Pulls the node's cable to the fabric, or puts it back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_cable(&self, plugged: bool) -> Result<()> {
        let port = fabric::port(self.layout.fabric_host());
        self.fabric.ip(&["link", "set", &port, if plugged { "up" } else { "down" }]).map(drop)
    }

    /// Gives the node other addresses on its subnet, those of host `host`, and tells its Node object. As with a new lease
    /// of DHCP, the old ones go first, and take the routes along that needed them.
    ///
    /// # Errors
    /// When the kernel or the API server refuses.
    pub(crate) fn readdress(&mut self, api: &Api, host: u8) -> Result<()> {
        let subnet = self.layout.subnet;
        let (ipv4, ipv6) = fabric_address(subnet, host);
        for (old, new, bits) in
            [(self.layout.ipv4, ipv4, SUBNET_BITS.0), (self.layout.ipv6, ipv6, SUBNET_BITS.1)]
        {
            self.place.ip(&["address", "del", &format!("{old}/{bits}"), "dev", fabric::UPLINK])?;
            self.place.ip(&["address", "add", &format!("{new}/{bits}"), "dev", fabric::UPLINK])?;
        }
        (self.layout.ipv4, self.layout.ipv6) = (ipv4, ipv6);
        let (v4, v6) = fabric_address(subnet, API_HOST);
        for gateway in [v4, v6] {
            let family = if gateway.is_ipv4() { "-4" } else { "-6" };
            self.place.ip(&[family, "route", "replace", "default", "via", &gateway.to_string()])?;
        }
        let status = json!({ "status": { "addresses": addresses(&self.layout) } });
        let nodes = kube::Api::<v1::Node>::all(api.client());
        let (how, what) = (PatchParams::default(), Patch::Merge(status));
        let patched = api.block_on(nodes.patch_status(&self.layout.name, &how, &what));
        patched.map(drop).with_context(|| format!("change the addresses of Node {}", self.layout.name))
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
        let proxy = self.proxy.take();
        end(proxy.with_context(|| format!("no agent runs on {}", self.layout.name))?, signal)
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

    /// Waits until the agent ends by itself, which it is not to do otherwise; how, and with which last words.
    ///
    /// # Errors
    /// When it does not.
    pub fn proxy_ends(&mut self) -> Result<(ExitStatus, String)> {
        let mut proxy =
            self.proxy.take().with_context(|| format!("no agent runs on {}", self.layout.name))?;
        let status = proxy.wait(PATIENCE)?;
        Ok((status, tail(proxy.log(), 3)))
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

    /// What `fairlead-proxy` prints when asked on the node, as in `proxy(&["status", "-o", "json"])`. A status in which
    /// something is wrong is an answer like any other.
    ///
    /// # Errors
    /// When it fails.
    pub fn proxy(&self, arguments: &[&str]) -> Result<String> {
        let Asked { code, printed, complaint } = self.ask_proxy(arguments)?;
        let is_status = arguments.first() == Some(&"status") && !printed.is_empty();
        match code {
            Some(0) => Ok(printed),
            Some(1) if is_status => Ok(printed),
            _ => bail!("fairlead-proxy ended with {code:?}: {}", complaint.trim_end()),
        }
    }

    /// How `fairlead-proxy` ends when asked on the node, and what it prints.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn ask_proxy(&self, arguments: &[&str]) -> Result<Asked> {
        let output = self.proxy_command(arguments)?.output().context("run fairlead-proxy")?;
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).context("fairlead-proxy printed something else than text")
        };
        Ok(Asked {
            code: output.status.code(),
            printed: text(output.stdout)?,
            complaint: text(output.stderr)?,
        })
    }

    /// The command that asks the node's agent.
    ///
    /// # Errors
    /// When the control group is gone.
    pub fn proxy_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.place.command(&self.proxy_binary)?;
        command.args(arguments).arg("--socket").arg(self.layout.socket());
        Ok(command)
    }

    /// Reaps the node's processes once the control group has been killed.
    pub(crate) fn reap(&mut self) {
        for mut process in self.proxy.take().into_iter().chain(self.daemon.take()) {
            process.wait(Duration::from_secs(1)).ok();
        }
    }

    /// Has that daemon run in a container with these capabilities from its next start on ([`contain`]).
    pub fn contain(&mut self, daemon: &str, capabilities: &[String]) {
        self.contained.insert(daemon.to_owned(), capabilities.to_vec());
    }

    /// How that daemon's command line begins.
    fn command(&self, daemon: &str, executable: &Path, verb: &str) -> Result<Command> {
        let kubeconfig = self.kubeconfigs.get(daemon).with_context(|| format!("no daemon {daemon}"))?;
        let mut command = match self.contained.get(daemon) {
            None => self.place.command(executable)?,
            Some(capabilities) => {
                contain::command(&self.place, &self.layout, executable, kubeconfig, capabilities)?
            }
        };
        command.args([verb, "--hostname-override", &self.layout.name]).arg("--kubeconfig").arg(kubeconfig);
        if self.contained.contains_key(daemon) {
            command.args(["--proc-sys", contain::PROC_SYS]);
        }
        Ok(command)
    }

    fn log(&self, process: &str) -> PathBuf {
        self.logs.join(format!("{}-{process}.log", self.layout.name))
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed to its standard output.
    pub printed: String,
    /// What it printed to its standard error.
    pub complaint: String,
}

fn end(mut process: Process, signal: Signal) -> Result<()> {
    process.signal(signal)?;
    process.wait(Duration::from_secs(10)).map(drop)
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

/// The addresses of a Node's status.
fn addresses(layout: &NodeLayout) -> Value {
    json!([
        { "type": "InternalIP", "address": layout.ipv4 },
        { "type": "InternalIP", "address": layout.ipv6 },
        { "type": "Hostname", "address": layout.name },
    ])
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
            "addresses": addresses(layout),
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
