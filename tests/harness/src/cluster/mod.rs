//! A cluster: started, used, taken down.

mod members;
mod objects;
mod options;
mod outside;
mod subnets;
mod teardown;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairlead_net::netns::Netns;

pub use self::objects::RunningPod;
pub use self::options::Options;
pub use self::teardown::{down, sweep};
use crate::api::Api;
use crate::control::ControlPlane;
use crate::faults::Faults;
use crate::layout::{API_HOST, Layout, MAIN_SUBNET, NodeLayout};
use crate::node::Node;
use crate::place::Place;
use crate::process::{Process, binary};
use crate::{cgroup, fabric, netns, upgrade};

/// The demo's directory.
pub const DEMO_DIR: &str = "/run/fairlead-demo";
/// Where clusters of tests and benchmarks have their directories.
pub const TEST_DIR: &str = "/run/fairlead-test";

/// A running cluster; dropped, it is taken down, and if that is by a panic, its logs are shown.
pub struct Cluster {
    layout: Layout,
    control_plane: ControlPlane,
    api: Api,
    /// The loopback port that leads to the API server.
    relay: SocketAddr,
    options: Options,
    nodes: Vec<Node>,
    processes: Vec<Process>,
    kept: bool,
}

impl Cluster {
    /// Starts a cluster and waits until its nodes can run pods.
    ///
    /// # Errors
    /// When any part can't be started; everything is taken down again then.
    pub fn start(options: Options) -> Result<Self> {
        let (dir, prefix) = options.place.clone().unwrap_or_else(options::unique_place);
        let layout =
            Layout { subnets: options.subnets.clone(), ..Layout::new(&prefix, &dir, options.nodes)? };
        if dir.exists() {
            bail!("{} is there already: an earlier cluster is still up, or crashed", dir.display());
        }
        layout.write()?;
        let guard = teardown::Teardown(Some(layout.clone()));
        (options.progress)(&format!("fabric, {} nodes and an outside client", options.nodes));
        make_namespaces(&layout, &options)?;
        let control_plane = ControlPlane::choose()?;
        (options.progress)(&format!("API server: {control_plane}"));
        let (api, relay, mut processes) = control_plane.start(&layout)?;
        let mut nodes = Vec::new();
        for node in layout.nodes().filter(|node| !options.late.contains(&node.name)) {
            (options.progress)(&format!("{}: agent and node daemon", node.name));
            nodes.push(Node::start(&layout, node, &api, &options)?);
        }
        let outside = Place::open(&layout.fabric_netns(), &layout.outside_cgroup())?;
        let mut kubelet = outside.command(binary("fairlead-harness")?)?;
        kubelet.arg("kubelet").arg("--dir").arg(&layout.dir);
        processes.push(Process::spawn("kubelet", &mut kubelet, &layout.log("kubelet"))?);
        for node in &mut nodes {
            node.wait_until_ready()?;
        }
        guard.disarm();
        Ok(Self { layout, control_plane, api, relay, options, nodes, processes, kept: false })
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

    /// The faults that its API server can be made to show; none if it is a real one.
    pub fn faults(&self) -> Option<Faults> {
        (self.control_plane == ControlPlane::StandIn).then(|| Faults::of(self.relay))
    }

    /// A copy of the agent's executable, of which every program differs from the original's: for upgrades.
    ///
    /// # Errors
    /// When the agent was built without programs.
    pub fn another_build(&self) -> Result<PathBuf> {
        let copy = self.layout.dir.join("another-build/fairlead-proxy");
        upgrade::another_build(&binary("fairlead-proxy")?, &copy)?;
        Ok(copy)
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
        let removed = teardown::remove(&self.layout);
        self.nodes.iter_mut().for_each(Node::reap);
        for process in &mut self.processes {
            process.wait(Duration::from_secs(1)).ok();
        }
        removed
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if thread::panicking() {
            teardown::show_logs(&self.layout);
        }
        if let Err(error) = self.take_down() {
            eprintln!("taking the cluster {} down: {error:#}", self.layout.prefix);
        }
    }
}

fn make_namespaces(layout: &Layout, options: &Options) -> Result<()> {
    cgroup::create(&layout.outside_cgroup())?;
    let fabric = netns::create(&layout.fabric_netns())?.keep();
    fabric::create(&fabric, MAIN_SUBNET, API_HOST)?;
    outside::make_client(layout, &fabric, &netns::create(&layout.client_netns())?.keep())?;
    subnets::make(layout)?;
    for node in layout.nodes().filter(|node| !options.late.contains(&node.name)) {
        make_node(&fabric, &node)?;
    }
    Ok(())
}

fn make_node(fabric: &Netns, node: &NodeLayout) -> Result<()> {
    cgroup::create(&node.host_cgroup())?;
    cgroup::create(&node.pods_cgroup())?;
    let netns = netns::create(&node.netns)?.keep();
    fabric::join(fabric, &netns, node.subnet, node.fabric_host())?;
    fabric::add_default_routes(&netns, node.subnet, API_HOST)
}
