//! Fairlead's paths between nodes, in clusters of two nodes each ([`fairlead_harness`]).
//!
//! In one cluster the nodes reach each other's pods by routes, as nodes on one subnet do by default, in the other by VXLAN.
//! The pods of both are wired and served as those of [`crate::fairlead`], and are no Service's client or backend.

use std::net::IpAddr;

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, Options};

use crate::cell::Target;
use crate::remote;
use crate::topology::{Path, Topology};

/// Names of the paths.
pub(crate) const NAMES: [&str; 2] = ["pod_to_pod_remote", "vxlan"];
/// The baseline of each.
const DIRECT: [&str; 2] = [remote::REMOTE, remote::VXLAN];
/// How the nodes of each are told to reach other nodes' pods.
const ROUTING: [&str; 2] = ["auto", "vxlan"];

const OBJECTS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node1, containers: [{name: bench, image: fairlead-bench}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server}
spec: {nodeName: node2, containers: [{name: bench, image: fairlead-bench}]}
";

/// The clusters; they must outlive the topology that [`add_paths`](Self::add_paths) extends.
pub(crate) struct Clusters([Cluster; 2]);

impl Clusters {
    /// Starts the clusters.
    ///
    /// # Errors
    /// When any part of them does not start.
    pub(crate) fn start() -> Result<Self> {
        let start = |routing| {
            let options = Options { progress: |step| eprintln!("{step}"), ..Options::default() };
            let cluster = Cluster::start(options.with_cni_arguments(&["--routing", routing]))?;
            cluster.apply(OBJECTS)?;
            anyhow::Ok(cluster)
        };
        let [auto, vxlan] = ROUTING;
        Ok(Self([start(auto)?, start(vxlan)?]))
    }

    /// Adds pod to pod on another node, by routes and by VXLAN.
    ///
    /// # Errors
    /// When a pod does not start, or cannot be reached.
    pub(crate) fn add_paths(&self, topology: &mut Topology) -> Result<()> {
        for ((cluster, name), direct) in self.0.iter().zip(NAMES).zip(DIRECT) {
            let (client, server) = (cluster.pod("client")?, cluster.pod("server")?);
            let address = server.ips.iter().copied().find(IpAddr::is_ipv4);
            let target = Target::itself(address.context("the server has no IPv4 address")?);
            let client = topology.add_client(&format!("{name} client"), Some(&client.place))?;
            let server = topology.add_server(&format!("{name} server"), Some(&server.place))?;
            topology.add_path(Path { name, direct: Some(direct), client, server, target })?;
        }
        Ok(())
    }

    /// Takes the clusters down.
    ///
    /// # Errors
    /// When something is left behind.
    pub(crate) fn down(self) -> Result<()> {
        self.0.into_iter().try_for_each(Cluster::down)
    }
}
