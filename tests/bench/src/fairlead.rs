//! Fairlead's paths, in clusters of one node each with pods and an outside client ([`fairlead_harness`]).
//!
//! There are two clusters: in one, the sockets of pods are translated at connect() (`--socket-lb all`), in the other,
//! as by default, their packets are. Only the path from a pod to a ClusterIP is there in both.
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
use crate::topology::{End, Path, Topology};

/// Names of the paths.
pub(crate) const NAMES: [&str; 5] = [POD_TO_POD, CLUSTERIP, CLUSTERIP_SOCKET, NODEPORT, HOSTPORT];
const POD_TO_POD: &str = "pod_to_pod";
const CLUSTERIP: &str = "clusterip";
const CLUSTERIP_SOCKET: &str = "clusterip_socket";
const NODEPORT: &str = "nodeport";
const HOSTPORT: &str = "hostport";

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
metadata:
  name: service-server
  labels: {app: service-server}
  annotations: {harness.fairlead.io/served: "false"}
spec:
  nodeName: node1
  containers:
  - name: bench
    image: fairlead-bench
    ports:
    - {containerPort: 7001, hostPort: 7001}
    - {containerPort: 7002, hostPort: 7002}
    - {containerPort: 7003, hostPort: 7003}
    - {containerPort: 7004, hostPort: 7004, protocol: UDP}
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

/// The clusters; they must outlive the topology that [`add_paths`](Self::add_paths) extends.
pub(crate) struct Clusters {
    packets: Cluster,
    sockets: Cluster,
}

impl Clusters {
    /// Starts the clusters.
    ///
    /// # Errors
    /// When any part of them does not start: the programs were not built, say.
    pub(crate) fn start() -> Result<Self> {
        let start = |mode: &str| {
            let proxy_arguments = vec!["--socket-lb".to_owned(), mode.to_owned()];
            let progress = |step: &str| eprintln!("{step}");
            let cluster =
                Cluster::start(Options { nodes: 1, proxy_arguments, progress, ..Options::default() })?;
            cluster.apply(OBJECTS)?;
            anyhow::Ok(cluster)
        };
        Ok(Self { packets: start("host")?, sockets: start("all")? })
    }

    /// Adds pod to pod, pod to ClusterIP by packets and by sockets, and outside to NodePort and to hostPort.
    ///
    /// # Errors
    /// When a pod does not start, or cannot be reached on one of the paths.
    pub(crate) fn add_paths(&self, topology: &mut Topology) -> Result<()> {
        add_packet_paths(topology, &self.packets)?;
        let (client, server) = add_service_ends(topology, &self.sockets)?;
        let target = Target::itself(cluster_ip(&self.sockets)?);
        topology.add_path(Path { name: CLUSTERIP_SOCKET, direct: Some(DIRECT), client, server, target })
    }

    /// Takes the clusters down.
    ///
    /// # Errors
    /// When something is left behind.
    pub(crate) fn down(self) -> Result<()> {
        self.packets.down().and(self.sockets.down())
    }
}

fn add_packet_paths(topology: &mut Topology, cluster: &Cluster) -> Result<()> {
    let plain_server = cluster.pod("plain-server")?;
    let pod_ip =
        plain_server.ips.iter().copied().find(IpAddr::is_ipv4).context("the server has no IPv4 address")?;
    let node_port = |name| cluster.node_port("bench", name);
    let address = cluster.nodes().first().context("there is no node")?.layout().ipv4;
    let node_ports = Target {
        address,
        many: node_port("many")?,
        single: node_port("single")?,
        sink: node_port("sink")?,
        datagram: node_port("datagram")?,
    };
    let plain_client = topology.add_client("plain client", Some(&cluster.pod("plain-client")?.place))?;
    let plain_server = topology.add_server("plain server", Some(&plain_server.place))?;
    let (client, server) = add_service_ends(topology, cluster)?;
    let outside = topology.add_client("outside client", Some(&cluster.client()?))?;
    for (name, direct, client, server, target) in [
        (POD_TO_POD, DIRECT, plain_client, plain_server, Target::itself(pod_ip)),
        (CLUSTERIP, DIRECT, client, server, Target::itself(cluster_ip(cluster)?)),
        (NODEPORT, DIRECT_OUTSIDE, outside, server, node_ports),
        (HOSTPORT, DIRECT_OUTSIDE, outside, server, Target::itself(address)),
    ] {
        topology.add_path(Path { name, direct: Some(direct), client, server, target })?;
    }
    Ok(())
}

/// A pod that is a client of the Service, and the one behind it.
fn add_service_ends(topology: &mut Topology, cluster: &Cluster) -> Result<(End, End)> {
    let client = topology.add_client("service client", Some(&cluster.pod("service-client")?.place))?;
    let server = topology.add_server("service server", Some(&cluster.pod("service-server")?.place))?;
    Ok((client, server))
}

fn cluster_ip(cluster: &Cluster) -> Result<IpAddr> {
    let ips = cluster.cluster_ips("bench")?;
    ips.into_iter().find(IpAddr::is_ipv4).context("the Service has no IPv4 address")
}
