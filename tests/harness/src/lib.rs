//! Nodes, pods and a fabric in network namespaces, for Fairlead's demo, tests and benchmarks.
//!
//! ```text
//!   your shell ── relay ──┐                                   <prefix>-client
//!                         │                                         │
//!   <prefix>-fabric:  API server, kubelet ── bridge 10.90.0.0/24 ───┤ fd00:90::/64
//!                                               │           │
//!                                        <prefix>-node1   <prefix>-node2    each: fairlead-proxy,
//!                                            │    │          │    │         fairlead-cni node, bpffs,
//!                                           pod  pod        pod  pod        control groups
//! ```
//!
//! A [`Cluster`] is all of that. Its nodes are real to Fairlead: each has its own network namespace, agent,
//! node daemon, bpffs directory and control group; only the mounted file systems are shared. A pod is a Pod
//! object, run as a kubelet would ([`kubelet`]): namespace, the node's real CNI configuration and plugin, a small
//! server ([`serve`]) inside, status and readiness reported to the API.
//!
//! Everything has a name derived from the cluster's [`layout`], every process sits in the cluster's control
//! group, and the layout is on disk before anything is made. So a cluster is taken down completely, also after a
//! crash ([`down`]).

pub mod api;
pub mod cgroup;
mod cluster;
pub mod cni;
mod control;
pub mod fabric;
pub mod kubelet;
pub mod layout;
pub mod netns;
mod node;
mod place;
mod probe;
mod process;
pub mod relay;
pub mod serve;

pub use cluster::{Cluster, DEMO_DIR, Options, RunningPod, TEST_DIR, down, sweep};
pub use control::ControlPlane;
pub use node::{Node, output};
pub use place::{Place, Traffic};
pub use probe::{Failure, FailureKind, Load, Reply, Report, http_get, run as run_load};
pub use process::{Process, binary, wait_for};
pub use serve::{Answer, Port, Protocol};
