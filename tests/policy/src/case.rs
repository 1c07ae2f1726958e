//! A case: what the API and the node go through, and the packets that are judged in the end.

use std::net::{IpAddr, SocketAddr};

use fairlead_oracle::case::Kind;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::oracle;

/// The label that every Namespace has of its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Everything that a run needs, as it is kept in `found/`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What went wrong when it was found, for readers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// What happens before any packet, in order.
    pub history: Vec<Step>,
    /// The packets that begin flows.
    pub probes: Vec<Probe>,
    /// What happens then, before every flow that is still open goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<Step>,
}

impl Case {
    /// Whether the API and the node could tell all of this: objects have a name and what their kind requires, and the
    /// endpoints at one time have different indexes and addresses.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let mut endpoints: Vec<&Endpoint> = Vec::new();
        self.history.iter().chain(&self.later).all(|step| match step {
            Step::Apply(object) | Step::Delete(object) => object.is_one(),
            Step::Attach(endpoint) => {
                let is_apart = endpoints.iter().all(|other| other.is_apart(endpoint));
                endpoints.push(endpoint);
                is_apart && !endpoint.addresses.is_empty()
            }
            Step::Detach(index) => {
                let before = endpoints.len();
                endpoints.retain(|endpoint| endpoint.index != *index);
                endpoints.len() < before
            }
            Step::Addresses(_) | Step::Reconcile | Step::Restart => true,
        })
    }
}

/// One step of the history.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The API tells of an object that is new or has changed.
    Apply(Object),
    /// The API tells that an object is gone.
    Delete(Object),
    /// A local pod is given its interface.
    Attach(Endpoint),
    /// The local pod with this index loses it.
    Detach(u32),
    /// The node's interfaces have these addresses from now on.
    Addresses(Vec<IpAddr>),
    /// The agent brings the maps up to date. It does so after the last step too.
    Reconcile,
    /// The agent dies; another one finds its maps and endpoints, and lists all objects.
    Restart,
}

/// A local pod, as the agent knows it from its CNI plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its place in the maps that have one for each local pod.
    pub index: u32,
    /// The namespace of its Pod.
    pub namespace: String,
    /// The name of its Pod; empty: it is none of the API's.
    pub name: String,
    /// The UID of its Pod; empty: the runtime did not say.
    #[serde(default)]
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Endpoint {
    /// Whether both can be there at the same time.
    fn is_apart(&self, other: &Self) -> bool {
        self.index != other.index && !self.addresses.iter().any(|address| other.addresses.contains(address))
    }
}

/// An API object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Object {
    /// core/v1.
    Node(Box<Node>),
    /// core/v1.
    Namespace(Box<Namespace>),
    /// core/v1.
    Pod(Box<Pod>),
    /// networking.k8s.io/v1.
    NetworkPolicy(Box<NetworkPolicy>),
    /// policy.networking.k8s.io/v1alpha2, as it stands.
    ClusterNetworkPolicy(Value),
}

impl Object {
    /// Namespace and name; the namespace of cluster-wide objects is empty.
    #[must_use]
    pub fn name(&self) -> (String, String) {
        let of = |meta: &ObjectMeta| {
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
        };
        match self {
            Self::Node(node) => of(&node.metadata),
            Self::Namespace(namespace) => of(&namespace.metadata),
            Self::Pod(pod) => of(&pod.metadata),
            Self::NetworkPolicy(policy) => of(&policy.metadata),
            Self::ClusterNetworkPolicy(policy) => {
                let name = policy["metadata"]["name"].as_str().unwrap_or_default();
                (String::new(), name.to_owned())
            }
        }
    }

    /// Whether the API would take it for an object of its kind.
    fn is_one(&self) -> bool {
        let (namespace, name) = self.name();
        let is_whole = match self {
            Self::ClusterNetworkPolicy(policy) => oracle::can_read(policy),
            Self::Namespace(namespace) => {
                let label = namespace.metadata.labels.as_ref().and_then(|labels| labels.get(NAME_LABEL));
                label == namespace.metadata.name.as_ref()
            }
            _ => true,
        };
        let is_namespaced = matches!(self, Self::Pod(_) | Self::NetworkPolicy(_));
        is_whole && !name.is_empty() && namespace.is_empty() != is_namespaced
    }
}

/// The first packet of a flow, as it is judged: its client before any masquerading, its server after the choice of a
/// backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Its kind, and so its protocol.
    pub kind: Kind,
    /// The client.
    pub from: SocketAddr,
    /// The server; the port means nothing to [`Kind::Echo`].
    pub to: SocketAddr,
}

impl Probe {
    /// The IP protocol's number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Syn | Kind::Ack => fairlead_abi::protocol::TCP,
            Kind::Udp => fairlead_abi::protocol::UDP,
            Kind::Init => fairlead_abi::protocol::SCTP,
            Kind::Echo if self.to.is_ipv4() => fairlead_abi::protocol::ICMP,
            Kind::Echo => fairlead_abi::protocol::ICMPV6,
        }
    }

    /// The server's port; 0 for protocols without ports.
    #[must_use]
    pub fn port(&self) -> u16 {
        if self.kind == Kind::Echo { 0 } else { self.to.port() }
    }
}
