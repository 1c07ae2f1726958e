//! Fairlead's paths, in a cluster of one node with four pods and an outside client ([`fairlead_harness`]).
//!
//! The pods are wired by the real CNI plugin and served by the real agent; client and server run where the
//! pods' containers do, in their namespaces and control groups. All pods are on one node, as in the
//! kernel's direct paths, so that the two differ in nothing but the way between them. The pods of the path
//! from pod to pod are no Service's client or backend: their packets need no table of flows.

use std::net::IpAddr;

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, Options};

use crate::cell::Target;
use crate::kernel::{DIRECT, DIRECT_OUTSIDE};
use crate::topology::{Path, Topology};

const OBJECTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: plain-client}
spec: {nodeName: node1, containers: [{name: bench, image: fairlead-bench}]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain-server}
spec: {nodeName: node1, containers: [{name: bench, image: fairlead-bench}]}
---
apiVersion: v1
kind: Pod
metadata: {name: service-client}
spec: {nodeName: node1, containers: [{name: bench, image: fairlead-bench}]}
---
apiVersion: v1
kind: Pod
metadata: {name: service-server, labels: {app: service-server}}
spec: {nodeName: node1, containers: [{name: bench, image: fairlead-bench}]}
---
apiVersion: v1
kind: Service
metadata: {name: bench}
spec:
  type: NodePort
  selector: {app: service-server}
  ports:
  - {name: many, port: 7001}
  - {name: single, port: 7002}
  - {name: sink, port: 7003}
  - {name: datagram, port: 7004, protocol: UDP}
"#;

/// Starts the cluster; it must outlive the topology that [`add_paths`] extends.
///
/// # Errors
/// When any part of it does not start: the programs were not built, say.
pub(crate) fn start() -> Result<Cluster> {
    let swept = fairlead_harness::sweep().context("take down what an earlier run left")?;
    if swept > 0 {
        eprintln!("took down {swept} clusters of earlier runs");
    }
    let cluster =
        Cluster::start(Options { nodes: 1, progress: |step| eprintln!("{step}"), ..Options::default() })?;
    cluster.apply(OBJECTS)?;
    Ok(cluster)
}

/// Adds pod to pod, pod to ClusterIP, and outside to NodePort.
///
/// # Errors
/// When a pod does not start, or cannot be reached on one of the paths.
pub(crate) fn add_paths(topology: &mut Topology, cluster: &Cluster) -> Result<()> {
    let plain_server = cluster.pod("plain-server")?;
    let pod_ip =
        plain_server.ips.iter().copied().find(IpAddr::is_ipv4).context("the server has no IPv4 address")?;
    let cluster_ips = cluster.cluster_ips("bench")?;
    let cluster_ip =
        cluster_ips.into_iter().find(IpAddr::is_ipv4).context("the Service has no IPv4 address")?;
    let node_port = |name| cluster.node_port("bench", name);
    let node = Target {
        address: cluster.nodes().first().context("there is no node")?.layout().ipv4,
        many: node_port("many")?,
        single: node_port("single")?,
        sink: node_port("sink")?,
        datagram: node_port("datagram")?,
    };
    let plain_client = topology.add_client("plain client", Some(&cluster.pod("plain-client")?.place))?;
    let plain_server = topology.add_server("plain server", Some(&plain_server.place))?;
    let client = topology.add_client("service client", Some(&cluster.pod("service-client")?.place))?;
    let server = topology.add_server("service server", Some(&cluster.pod("service-server")?.place))?;
    let outside = topology.add_client("outside client", Some(&cluster.client()?))?;
    for (name, direct, client, server, target) in [
        ("pod_to_pod", DIRECT, plain_client, plain_server, Target::itself(pod_ip)),
        ("clusterip", DIRECT, client, server, Target::itself(cluster_ip)),
        ("nodeport", DIRECT_OUTSIDE, outside, server, node),
    ] {
        topology.add_path(Path { name, direct: Some(direct), client, server, target })?;
    }
    Ok(())
}
