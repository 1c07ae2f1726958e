//! A cluster: started, used, taken down.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairlead_net::netns::Netns;
use k8s_openapi::api::core::v1::{Pod, Service};
use nix::mount::{MntFlags, umount2};

use crate::api::Api;
use crate::control::ControlPlane;
use crate::layout::{Layout, NodeLayout};
use crate::node::{Node, output};
use crate::place::Place;
use crate::process::{Process, binary, tail, wait_for};
use crate::{cgroup, fabric, netns};

/// The demo's directory.
pub const DEMO_DIR: &str = "/run/fairlead-demo";
/// Where clusters of tests and benchmarks have their directories.
pub const TEST_DIR: &str = "/run/fairlead-test";
/// The outside client's host number on the fabric.
const CLIENT_HOST: u8 = 100;
/// The API server's.
const API_HOST: u8 = 1;
const PATIENCE: Duration = Duration::from_secs(60);

/// What kind of cluster to start.
pub struct Options {
    /// Directory and prefix of names; by default unique ones for this run.
    pub place: Option<(PathBuf, String)>,
    /// How many nodes.
    pub nodes: u8,
    /// Whether nodes run `fairlead-proxy`; without it there are no Services, and pods are reached by routes.
    pub proxy: bool,
    /// More arguments for `fairlead-proxy run`.
    pub proxy_arguments: Vec<String>,
    /// Told each step as it begins.
    pub progress: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        Self { place: None, nodes: 2, proxy: true, proxy_arguments: Vec::new(), progress: |_| {} }
    }
}

/// A running cluster; dropped, it is taken down, and if that is by a panic, its logs are shown.
pub struct Cluster {
    layout: Layout,
    control_plane: ControlPlane,
    api: Api,
    nodes: Vec<Node>,
    processes: Vec<Process>,
    kept: bool,
}

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
    /// Starts a cluster and waits until its nodes can run pods.
    ///
    /// # Errors
    /// When any part can't be started; everything is taken down again then.
    pub fn start(options: Options) -> Result<Self> {
        let (dir, prefix) = options.place.unwrap_or_else(unique_place);
        let layout = Layout::new(&prefix, &dir, options.nodes)?;
        if dir.exists() {
            bail!("{} is there already: an earlier cluster is still up, or crashed", dir.display());
        }
        layout.write()?;
        let guard = Teardown(Some(layout.clone()));
        (options.progress)(&format!("fabric, {} nodes and an outside client", options.nodes));
        make_namespaces(&layout)?;
        let control_plane = ControlPlane::choose()?;
        (options.progress)(&format!("API server: {control_plane}"));
        let (api, mut processes) = control_plane.start(&layout)?;
        let mut nodes = Vec::new();
        for node in layout.nodes() {
            (options.progress)(&format!("{}: agent and node daemon", node.name));
            let proxy = options.proxy.then_some(options.proxy_arguments.as_slice());
            nodes.push(Node::start(&layout, node, &api, proxy)?);
        }
        let outside = Place::open(&layout.fabric_netns(), &layout.outside_cgroup())?;
        let mut kubelet = outside.command(binary("fairlead-harness")?)?;
        kubelet.arg("kubelet").arg("--dir").arg(&layout.dir);
        processes.push(Process::spawn("kubelet", &mut kubelet, &layout.log("kubelet"))?);
        for node in &mut nodes {
            node.wait_until_ready()?;
        }
        guard.disarm();
        Ok(Self { layout, control_plane, api, nodes, processes, kept: false })
    }

    /// Which API server it runs on.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The cluster's names and places.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The API.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node {name}"))
    }

    /// The node of that name, to stop and start its agent.
    ///
    /// # Errors
    /// When there is none.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.name() == name);
        found.with_context(|| format!("no node {name}"))
    }

    /// The client outside the cluster: on the fabric, without routes to pods or Services.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn client(&self) -> Result<Place> {
        Place::open(&self.layout.client_netns(), &self.layout.outside_cgroup())
    }

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
        let mut last = None;
        let ready = wait_for(&format!("pod {name}"), PATIENCE, || {
            last = self.api.get::<Pod>(name)?;
            Ok(last.clone().filter(is_ready))
        });
        let pod = ready.with_context(|| format!("its conditions: {:?}", conditions(last.as_ref())))?;
        let status = pod.status.unwrap_or_default();
        let ips = status.pod_ips.unwrap_or_default();
        let ips = ips.iter().map(|ip| ip.ip.parse().with_context(|| format!("pod IP {:?}", ip.ip)));
        let ips = ips.collect::<Result<_>>()?;
        let node = pod.spec.and_then(|spec| spec.node_name).context("a running pod without node")?;
        let uid = pod.metadata.uid.unwrap_or_default();
        let cgroup = self.node(&node)?.layout().pods_cgroup().join(&uid);
        let place = Place::open(&self.layout.pod_netns(name, &uid), &cgroup)?;
        Ok(RunningPod { name: name.to_owned(), node, ips, place })
    }

    /// Waits until there is no pod of that name.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait_until_gone(&self, pod: &str) -> Result<()> {
        wait_for(&format!("the end of pod {pod}"), PATIENCE, || {
            Ok(self.api.get::<Pod>(pod)?.is_none().then_some(()))
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

    /// Leaves the cluster up; [`down`] takes it down.
    ///
    /// # Errors
    /// When that can't be recorded.
    pub fn keep(mut self) -> Result<()> {
        self.layout.owner = None;
        self.layout.write()?;
        self.kept = true;
        Ok(())
    }

    /// Takes the cluster down and says how that went, as dropping it can't.
    ///
    /// # Errors
    /// When something is left behind.
    pub fn down(mut self) -> Result<()> {
        self.kept = true;
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let removed = remove(&self.layout);
        self.nodes.iter_mut().for_each(Node::reap);
        for process in &mut self.processes {
            process.wait(Duration::from_secs(1)).ok();
        }
        removed
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

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if thread::panicking() {
            show_logs(&self.layout);
        }
        if let Err(error) = self.take_down() {
            eprintln!("taking the cluster {} down: {error:#}", self.layout.prefix);
        }
    }
}

/// Takes down the cluster that has its state in `dir`, also after a crash; false if there is none.
///
/// # Errors
/// When the directory can't be understood, or something is left behind.
pub fn down(dir: &Path) -> Result<bool> {
    if !dir.exists() {
        return Ok(false);
    }
    match Layout::read(dir)? {
        Some(layout) => remove(&layout)?,
        // Its start ended before anything else was made.
        None => fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))?,
    }
    Ok(true)
}

/// Takes down clusters of tests whose process was killed before it could; returns how many.
///
/// # Errors
/// When something is left behind.
pub fn sweep() -> Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(TEST_DIR).into_iter().flatten().flatten() {
        let owner = Layout::read(&entry.path())?.and_then(|layout| layout.owner);
        let alive = owner.is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists());
        if !alive && down(&entry.path())? {
            swept += 1;
        }
    }
    fs::remove_dir(TEST_DIR).ok();
    Ok(swept)
}

struct Teardown(Option<Layout>);

impl Teardown {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Teardown {
    fn drop(&mut self) {
        if let Some(layout) = &self.0 {
            show_logs(layout);
            if let Err(error) = remove(layout) {
                eprintln!("taking the cluster {} down: {error:#}", layout.prefix);
            }
        }
    }
}

/// A directory and a prefix that no other live cluster has.
fn unique_place() -> (PathBuf, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("fl{:x}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    (Path::new(TEST_DIR).join(&prefix), prefix)
}

fn make_namespaces(layout: &Layout) -> Result<()> {
    cgroup::create(&layout.outside_cgroup())?;
    let fabric = netns::create(&layout.fabric_netns())?.keep();
    fabric::create(&fabric, API_HOST)?;
    fabric::join(&fabric, &netns::create(&layout.client_netns())?.keep(), CLIENT_HOST)?;
    for node in layout.nodes() {
        make_node(&fabric, &node)?;
    }
    Ok(())
}

fn make_node(fabric: &Netns, node: &NodeLayout) -> Result<()> {
    cgroup::create(&node.host_cgroup())?;
    cgroup::create(&node.pods_cgroup())?;
    let netns = netns::create(&node.netns)?.keep();
    fabric::join(fabric, &netns, node.fabric_host())?;
    fabric::add_default_routes(&netns, API_HOST)
}

/// Removes all that the layout names; goes on after an error, and returns the first.
fn remove(layout: &Layout) -> Result<()> {
    let mut outcome = cgroup::remove(&layout.cgroup);
    outcome = outcome.and(unmount_below(&layout.dir));
    for name in netns::list(&format!("{}-", layout.prefix)) {
        outcome = outcome.and(netns::delete(&name));
    }
    if outcome.is_ok() {
        fs::remove_dir_all(&layout.dir).with_context(|| format!("remove {}", layout.dir.display()))?;
        if layout.dir.starts_with(TEST_DIR) {
            // It stays while other tests have clusters in it.
            fs::remove_dir(TEST_DIR).ok();
        }
    }
    outcome
}

fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.filter(|point| point.starts_with(dir)) {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
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

fn show_logs(layout: &Layout) {
    let logs = fs::read_dir(layout.dir.join("logs")).into_iter().flatten().flatten();
    for log in logs.map(|entry| entry.path()) {
        let text = tail(&log, 20);
        if !text.is_empty() {
            eprintln!("--- {}\n{text}", log.file_name().unwrap_or_default().to_string_lossy());
        }
    }
}
