//! What kind of cluster to start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::TEST_DIR;

/// The label by which a node's zone is known.
const ZONE: &str = "topology.kubernetes.io/zone";

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
    /// More arguments for that of a node, by the node's name; they come last.
    pub node_arguments: BTreeMap<String, Vec<String>>,
    /// Labels of Nodes beside those that every node has, by the node's name; the zone is `zone-<number>` if none is here.
    pub node_labels: BTreeMap<String, BTreeMap<String, String>>,
    /// The networks of a node's pods, IPv4 and IPv6, by the node's name, instead of those of its layout.
    pub pod_cidrs: BTreeMap<String, [String; 2]>,
    /// The subnets of nodes that are on another than the usual one, by the nodes' names.
    pub subnets: BTreeMap<String, u8>,
    /// The nodes that join later.
    pub late: BTreeSet<String>,
    /// More arguments for `fairlead-cni node`.
    pub cni_arguments: Vec<String>,
    /// Which daemons run in containers, and with which capabilities: `NET_ADMIN`, without `CAP_`.
    pub contained: BTreeMap<String, Vec<String>>,
    /// Told each step as it begins.
    pub progress: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            place: None,
            nodes: 2,
            proxy: true,
            proxy_arguments: Vec::new(),
            node_arguments: BTreeMap::new(),
            node_labels: BTreeMap::new(),
            pod_cidrs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            late: BTreeSet::new(),
            cni_arguments: Vec::new(),
            contained: BTreeMap::new(),
            progress: |_| {},
        }
    }
}

impl Options {
    /// The same with that many nodes.
    #[must_use]
    pub fn with_nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }

    /// The same with more arguments for every agent.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.proxy_arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// The same with more arguments for the agent of that node.
    #[must_use]
    pub fn with_node_arguments(mut self, node: &str, arguments: &[&str]) -> Self {
        let of_node = self.node_arguments.entry(node.to_owned()).or_default();
        of_node.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// The same with a label on that Node.
    #[must_use]
    pub fn with_label(mut self, node: &str, key: &str, value: &str) -> Self {
        self.node_labels.entry(node.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// The same with other networks for the pods of that node, IPv4 and IPv6: small ones, say, which are soon full.
    #[must_use]
    pub fn with_pod_cidrs(mut self, node: &str, cidrs: [&str; 2]) -> Self {
        self.pod_cidrs.insert(node.to_owned(), cidrs.map(str::to_owned));
        self
    }

    /// The same with that node on another subnet: a bridge of its own, behind a router that knows no pods. It forwards
    /// what comes from the fabric's own addresses and drops all else, as networks of clouds do.
    #[must_use]
    pub fn with_subnet(mut self, node: &str, subnet: u8) -> Self {
        self.subnets.insert(node.to_owned(), subnet);
        self
    }

    /// The same without that node at first: [`Cluster::join`](super::Cluster::join) brings it.
    #[must_use]
    pub fn with_late(mut self, node: &str) -> Self {
        self.late.insert(node.to_owned());
        self
    }

    /// The same with more arguments for every node's `fairlead-cni node`.
    #[must_use]
    pub fn with_cni_arguments(mut self, arguments: &[&str]) -> Self {
        self.cni_arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// The same with that daemon in a container on every node, with these capabilities ([`contain`](crate::contain)).
    #[must_use]
    pub fn with_contained(mut self, daemon: &str, capabilities: &[String]) -> Self {
        self.contained.insert(daemon.to_owned(), capabilities.to_vec());
        self
    }

    /// The same with that node in that zone.
    #[must_use]
    pub fn with_zone(self, node: &str, zone: &str) -> Self {
        self.with_label(node, ZONE, zone)
    }
}

/// The process that made a cluster with a directory of this name, which [`unique_place`] gave it.
pub(super) fn owner_of(name: &str) -> Option<u32> {
    let (process, _) = name.strip_prefix("fl")?.split_once('-')?;
    u32::from_str_radix(process, 16).ok()
}

/// A directory and a prefix that no other live cluster has.
pub(super) fn unique_place() -> (PathBuf, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("fl{:x}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    (Path::new(TEST_DIR).join(&prefix), prefix)
}
