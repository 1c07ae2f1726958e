//! Fairlead's cluster tests: real binaries, namespaces, sockets and watches.
//!
//! Each test has a cluster of its own ([`with_cluster`]), so that none depends on what another did, and applies
//! its own objects, made by [`pod`], [`service`] and [`objects`]; [`scene`] has the usual pods, [`ask`] says how
//! requests shall go, [`crowd`] goes on asking while something changes, [`maps`] reads what a node's programs read and
//! [`metrics`] what its agent says. [`policy`] has policies and the pods that they are about, [`matrix`] compares who
//! reaches whom with a table, [`paths`] tries every way of the flat network, [`kube_proxy`] writes the rules that
//! kube-proxy would, [`bridge`] has pods wired by the reference plugins, [`manifests`] reads what installs Fairlead,
//! [`promtool`] has Prometheus' own tool judge what it is to scrape, and [`flood`] counts what comes through when nothing
//! shall. [`mixed`] is traffic of every sort at once, [`inventory`] what a node has in the kernel, and [`soak`] has the one
//! go on while agents come and go at random, and compares the other.

pub mod ask;
pub mod bridge;
pub mod crowd;
pub mod flood;
pub mod inventory;
pub mod kube_proxy;
mod kube_proxy_nft;
pub mod manifests;
pub mod maps;
pub mod matrix;
pub mod metrics;
pub mod mixed;
pub mod objects;
pub mod paths;
pub mod policy;
pub mod promtool;
pub mod real_kube_proxy;
pub mod scene;
pub mod soak;
pub mod takeover;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use fairlead_harness::{Cluster, Options, Protocol};

/// The port on which test pods listen.
pub const POD_PORT: u16 = 8080;
/// The port of test Services.
pub const SERVICE_PORT: u16 = 80;
/// Any address of the family, to choose one like it.
pub(crate) const IPV4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// As [`IPV4`].
pub(crate) const IPV6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Runs a test in a cluster of two nodes, and then takes the cluster down, leaving nothing.
///
/// # Panics
/// When the cluster can't be started, the test fails, or something is left behind.
pub fn with_cluster(test: impl FnOnce(&mut Cluster) -> Result<()>) {
    with_cluster_of(Options::default(), test);
}

/// Runs a test in a cluster of another kind.
///
/// # Panics
/// As [`with_cluster`].
pub fn with_cluster_of(options: Options, test: impl FnOnce(&mut Cluster) -> Result<()>) {
    let mut cluster = Cluster::start(options).unwrap_or_else(|error| panic!("start a cluster: {error:#}"));
    println!("API server: {}", cluster.control_plane());
    // Panics while the cluster is there, so that it shows its logs.
    test(&mut cluster).unwrap_or_else(|error| panic!("{error:#}"));
    cluster.down().unwrap_or_else(|error| panic!("take the cluster down: {error:#}"));
}

/// Each protocol with each of the addresses, one per family.
pub fn variants(addresses: &[IpAddr], port: u16) -> Vec<(Protocol, SocketAddr)> {
    let each = |protocol| addresses.iter().map(move |&address| (protocol, SocketAddr::new(address, port)));
    Protocol::ALL.into_iter().flat_map(each).collect()
}

/// A Pod on that node that answers on [`POD_PORT`], as YAML.
pub fn pod(name: &str, app: &str, node: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: {app} }} }}
spec:
  nodeName: {node}
  containers:
    - name: echo
      image: fairlead/echo:dev
      ports:
        - {{ name: tcp, containerPort: {POD_PORT}, protocol: TCP }}
        - {{ name: udp, containerPort: {POD_PORT}, protocol: UDP }}
        - {{ name: sctp, containerPort: {POD_PORT}, protocol: SCTP }}
"
    )
}

/// A dual-stack Service of that type in front of the pods of that app, as YAML.
pub fn service(name: &str, app: &str, kind: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{ name: {name} }}
spec:
  type: {kind}
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  selector: {{ app: {app} }}
  ports:
    - {{ name: tcp, port: {SERVICE_PORT}, targetPort: {POD_PORT}, protocol: TCP }}
    - {{ name: udp, port: {SERVICE_PORT}, targetPort: {POD_PORT}, protocol: UDP }}
    - {{ name: sctp, port: {SERVICE_PORT}, targetPort: {POD_PORT}, protocol: SCTP }}
"
    )
}
