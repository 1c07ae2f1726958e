//! Nodes, pods and a fabric in network namespaces, for Fairlead's demo, tests and benchmarks.
//!
//! ```text
//!   your shell ── loopback ──┐                 <prefix>-client (four addresses)
//!                            │                                      │     <prefix>-router ── <prefix>-far
//!   <prefix>-fabric:  API server, kubelet ── bridge 10.90.0.0/24 ───┴────────────┘ (when asked for)
//!                                               │           │  fd00:90::/64
//!                                        <prefix>-node1   <prefix>-node2    each: fairlead-proxy,
//!                                            │    │          │    │         fairlead-cni node, bpffs,
//!                                           pod  pod        pod  pod        control groups
//! ```
//!
//! A [`Cluster`] is all of that, with more subnets behind the router that the fabric is, if asked for. Its nodes are real to Fairlead: each has its own network namespace, agent,
//! node daemon, bpffs directory and control group; only the mounted file systems are shared. A pod is a Pod
//! object, run as a kubelet would ([`kubelet`]): namespace, the node's real CNI configuration and plugin, a small
//! server ([`serve`]) inside, status and readiness reported to the API.
//!
//! What tests do: a [`Place`] is where a client runs, a [`Load`] what it does (TCP, UDP, and [`sctp`] by raw sockets),
//! a [`Report`] what came of it; [`reach`] tries whether many are reached; [`packet`] makes packets that no client would send, [`Faults`] are the API server's,
//! [`upgrade`] makes another build of the agent, and [`contain`] runs a node's daemons as a container runtime would.
//!
//! Everything has a name derived from the cluster's [`layout`], every process sits in the cluster's control
//! group, and the layout is on disk before anything is made. So a cluster is taken down completely, also after a
//! crash ([`down`]).

mod answer;
pub mod api;
mod boot;
pub mod cgroup;
mod cluster;
pub mod cni;
pub mod contain;
mod control;
mod echo;
pub mod fabric;
mod faults;
pub mod kubelet;
pub mod layout;
mod load;
pub mod netns;
mod node;
pub mod packet;
mod place;
mod probe;
mod process;
mod protocol;
pub mod reach;
pub mod relay;
mod report;
pub mod sctp;
pub mod serve;
pub mod upgrade;

pub use answer::Answer;
pub use cluster::{Cluster, DEMO_DIR, Options, RunningPod, TEST_DIR, down, sweep};
pub use control::ControlPlane;
pub use echo::{EchoId, EchoWatch};
pub use faults::{Faults, Outage, Rights};
pub use load::Load;
pub use node::{Asked, Node, output};
pub use place::{Place, Traffic, Trying};
pub use probe::{http_get, run as run_load};
pub use process::{Process, binary, wait_for};
pub use protocol::{Port, Protocol};
pub use reach::{Outcome, Try, Way};
pub use report::{Failure, FailureKind, Reply, Report};
