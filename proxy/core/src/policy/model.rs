//! The trimmed objects that policies are about: of each API object only what decides.
//!
//! Made by [`crate::convert`], held by [`super::Engine`]. Everything in them is already checked.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::selector::{Labels, Selector};
use crate::model::{ObjectName, Protocol};
use crate::stamp::Version;

/// Which packets of a pod a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Those that it is sent.
    Ingress,
    /// Those that it sends.
    Egress,
}

impl Direction {
    /// Both.
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The order in which kinds of policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Tier {
    /// ClusterNetworkPolicies that nobody overrides.
    Admin,
    /// NetworkPolicies.
    Network,
    /// ClusterNetworkPolicies for pods that no NetworkPolicy selects.
    Baseline,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It passes.
    Accept,
    /// It is dropped.
    Deny,
    /// The next tier decides.
    Pass,
}

/// A pod of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// metadata.resourceVersion.
    pub version: Option<Version>,
    /// metadata.uid.
    pub uid: Arc<str>,
    /// The annotation `kubernetes.io/config.hash`: the uid that the kubelet knows a static pod by.
    pub config_hash: Option<Arc<str>>,
    /// metadata.creationTimestamp, in seconds of the Unix epoch.
    pub created: i64,
    /// metadata.labels.
    pub labels: Arc<Labels>,
    /// The named ports of its containers, in order.
    pub ports: Arc<[NamedPort]>,
    /// status.podIPs; none of a pod that is on its node's network.
    pub addresses: Vec<IpAddr>,
    /// spec.hostNetwork: it is its node's address, and no policy is about it.
    pub host_network: bool,
    /// Its phase is Succeeded or Failed: it has no processes any more.
    pub finished: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// spec.nodeName.
    pub node: Option<Arc<str>>,
}

impl Pod {
    /// Whether it is the same pod, in the same state, whatever else has changed of the object.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let Self { name, version: _, uid, config_hash, created, labels, ports, .. } = self;
        let Self { addresses, host_network, finished, terminating, node, .. } = self;
        (name, uid, config_hash, created) == (&other.name, &other.uid, &other.config_hash, &other.created)
            && (labels, ports, addresses) == (&other.labels, &other.ports, &other.addresses)
            && (host_network, finished, terminating, node)
                == (&other.host_network, &other.finished, &other.terminating, &other.node)
    }
}

/// A port that a container gives a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, 1–65535.
    pub port: u16,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// metadata.name.
    pub name: Arc<str>,
    /// metadata.labels, among them always `kubernetes.io/metadata.name`.
    pub labels: Labels,
}

/// A node, as policies see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyNode {
    /// metadata.name.
    pub name: Arc<str>,
    /// metadata.labels.
    pub labels: Labels,
    /// status.addresses that are addresses, internal and external.
    pub addresses: Vec<IpAddr>,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: ObjectName,
    /// The pods of its namespace that it isolates.
    pub pods: Selector,
    /// What they may be sent; none: the policy is not about that.
    pub ingress: Option<Arc<[Rule]>>,
    /// What they may send; none: the policy is not about that.
    pub egress: Option<Arc<[Rule]>>,
}

/// A ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// metadata.name.
    pub name: Arc<str>,
    /// Admin or Baseline.
    pub tier: Tier,
    /// Lower numbers are asked first.
    pub priority: i32,
    /// The pods that it is about; none: nobody can tell.
    pub subject: Option<PodPeer>,
    /// Rules for what they are sent.
    pub ingress: Arc<[Rule]>,
    /// Rules for what they send.
    pub egress: Arc<[Rule]>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place in the object's list, from 0.
    pub index: usize,
    /// What people call it, possibly empty.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// Whom it is about; none: everyone.
    pub peers: Option<Box<[Peer]>>,
    /// Which ports; none: whatever the packet is.
    pub ports: Option<Box<[Ports]>>,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods, but none on its node's network.
    Pods(PodPeer),
    /// Addresses, whosever they are.
    Network {
        /// Those in this range,
        cidr: IpNet,
        /// but in none of these, which lie in it.
        except: Box<[IpNet]>,
    },
    /// The addresses of nodes with these labels.
    Nodes(Selector),
}

/// Pods, by their own labels and their namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodPeer {
    /// Their namespaces.
    pub scope: Scope,
    /// Their labels.
    pub pods: Selector,
}

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// This one.
    One(Arc<str>),
    /// Those with these labels.
    Matching(Selector),
}

impl Scope {
    /// Whether a namespace is one of them.
    pub fn holds(&self, namespace: &Namespace) -> bool {
        match self {
            Self::One(name) => *name == namespace.name,
            Self::Matching(selector) => selector.matches(&namespace.labels),
        }
    }
}

/// Reads as `namespace shop, pods app=web`, `namespaces team=a, pods any`.
impl fmt::Display for PodPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::One(name) => write!(f, "namespace {name}")?,
            Scope::Matching(selector) => write!(f, "namespaces {selector}")?,
        }
        write!(f, ", pods {}", self.pods)
    }
}

/// Reads as `10.0.0.0/8 except 10.1.0.0/16`, `nodes zone=a`, or as a [`PodPeer`].
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(pods) => pods.fmt(f),
            Self::Nodes(selector) => write!(f, "nodes {selector}"),
            Self::Network { cidr, except } => {
                write!(f, "{cidr}")?;
                if !except.is_empty() {
                    let except: Vec<String> = except.iter().map(IpNet::to_string).collect();
                    write!(f, " except {}", except.join(" "))?;
                }
                Ok(())
            }
        }
    }
}

/// Ports that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// From the first to the last, both among them; 0 to 65535 are all of the protocol.
    Range {
        /// The protocol.
        protocol: Protocol,
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
    /// Those that the destination's containers give this name.
    Named {
        /// The name.
        name: Arc<str>,
        /// The protocol that the container's port must have; none: any.
        protocol: Option<Protocol>,
    },
}

impl Ports {
    /// All ports of a protocol.
    pub const fn all(protocol: Protocol) -> Self {
        Self::Range { protocol, first: 0, last: u16::MAX }
    }
}

/// Reads as `tcp/80`, `udp/1000-1999`, `sctp`, `tcp/http`, `http`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { protocol, first: 0, last: u16::MAX } => write!(f, "{protocol}"),
            Self::Range { protocol, first, last } if first == last => write!(f, "{protocol}/{first}"),
            Self::Range { protocol, first, last } => write!(f, "{protocol}/{first}-{last}"),
            Self::Named { name, protocol: Some(protocol) } => write!(f, "{protocol}/{name}"),
            Self::Named { name, protocol: None } => f.write_str(name),
        }
    }
}

/// An object that policies are made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyName {
    /// A ClusterNetworkPolicy.
    Cluster(Arc<str>),
    /// A NetworkPolicy.
    Network(ObjectName),
}

impl PolicyName {
    /// The object's kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Network(_) => "NetworkPolicy",
            Self::Cluster(_) => "ClusterNetworkPolicy",
        }
    }
}

/// Reads as `NetworkPolicy shop/web`, `ClusterNetworkPolicy guard`.
impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(name) => write!(f, "{} {name}", self.kind()),
            Self::Cluster(name) => write!(f, "{} {name}", self.kind()),
        }
    }
}

/// Names a compiled policy for as long as the engine knows it; never given out twice.
pub(super) type Handle = u64;

/// The pod that an endpoint belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name; empty: no Pod of the API, which nothing selects.
    pub name: String,
    /// metadata.uid; empty: the name decides.
    pub uid: String,
}

impl PodId {
    /// Whether it is this Pod, and not another one of its name.
    pub(super) fn is(&self, pod: &Pod) -> bool {
        self.uid.is_empty() || *self.uid == *pod.uid || pod.config_hash.as_deref() == Some(self.uid.as_str())
    }
}
