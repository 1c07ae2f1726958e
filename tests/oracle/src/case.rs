//! A case: what the API goes through, and the packets that are sent in the end.

use std::net::{IpAddr, SocketAddr};

use fairlead_prog_tests::{Family, Hook, Pod};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::world;

/// Everything that a run needs, as it is kept in `data/`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What went wrong when it was found, for readers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// How the proxy is started.
    #[serde(default)]
    pub settings: Settings,
    /// What happens before any packet, in order.
    pub history: Vec<Step>,
    /// The packets.
    pub probes: Vec<Probe>,
    /// What happens then, before every connection that is still open goes on. The proxy sees it all at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<Step>,
}

impl Case {
    /// Whether the API could tell all of this: it has no object without a name.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.history.iter().chain(&self.later).all(|step| match step {
            Step::Apply(object) | Step::Delete(object) => object.has_name(),
            Step::Reconcile | Step::Restart => true,
        })
    }
}

/// The proxy's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where NodePorts are: on the node's addresses in these ranges; none: on its primary addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodeport_addresses: Option<Vec<IpNet>>,
    /// The ServiceCIDRs, whatever the API says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_cidrs: Option<Vec<IpNet>>,
    /// The size of Maglev tables for clients outside; none: every backend is drawn at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maglev: Option<u32>,
}

/// One step of the history.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The API tells of an object that is new or has changed.
    Apply(Object),
    /// The API tells that an object is gone.
    Delete(Object),
    /// The proxy brings the maps up to date. It does so after the last step too.
    Reconcile,
    /// The proxy dies; another one finds its maps, and lists all objects.
    Restart,
}

/// An API object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Object {
    /// core/v1.
    Node(Box<Node>),
    /// core/v1.
    Service(Box<Service>),
    /// discovery.k8s.io/v1.
    EndpointSlice(Box<EndpointSlice>),
    /// networking.k8s.io/v1.
    ServiceCIDR(Box<ServiceCIDR>),
}

impl Object {
    /// What it says of itself.
    #[must_use]
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Node(node) => &node.metadata,
            Self::Service(service) => &service.metadata,
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::ServiceCIDR(cidr) => &cidr.metadata,
        }
    }

    fn has_name(&self) -> bool {
        let meta = self.metadata();
        let is_cluster_wide = matches!(self, Self::Node(_) | Self::ServiceCIDR(_));
        meta.name.is_some() && meta.namespace.is_none() == is_cluster_wide
    }
}

/// A packet that a client begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Where the programs meet it.
    pub at: At,
    /// Its kind.
    pub kind: Kind,
    /// The client.
    pub from: SocketAddr,
    /// What the client dials; the port means nothing to [`Kind::Echo`].
    pub to: SocketAddr,
    /// Whether it is sent so often, each time from another port, that every backend should get one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub often: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum At {
    /// A pod of the node.
    PodA,
    /// Another one.
    PodB,
    /// Beyond the uplink.
    Wire,
    /// The node itself: a process whose packet no socket hook has translated.
    Host,
}

impl At {
    /// Every place.
    pub const ALL: [Self; 4] = [Self::PodA, Self::PodB, Self::Wire, Self::Host];

    /// The client's address there; on the wire there are many.
    #[must_use]
    pub fn address(self, family: Family) -> Option<IpAddr> {
        match self {
            Self::PodA => Some(Pod::A.ip(family)),
            Self::PodB => Some(Pod::B.ip(family)),
            Self::Host => Some(family.node()),
            Self::Wire => None,
        }
    }

    /// The program that meets the client's packets.
    #[must_use]
    pub fn hook(self) -> Hook {
        match self {
            Self::PodA => Hook::FromPod(Pod::A),
            Self::PodB => Hook::FromPod(Pod::B),
            Self::Wire => Hook::FromWire,
            Self::Host => Hook::ToWire,
        }
    }
}

/// The kind of a client's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Opens a TCP connection.
    Syn,
    /// Is in the middle of a TCP connection that nobody here knows.
    Ack,
    /// A UDP datagram.
    Udp,
    /// Opens an SCTP association.
    Init,
    /// An ICMP or ICMPv6 echo request.
    Echo,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Syn, Self::Ack, Self::Udp, Self::Init, Self::Echo];

    /// The name that Services have for its protocol.
    #[must_use]
    pub fn protocol(self) -> Option<&'static str> {
        match self {
            Self::Syn | Self::Ack => Some("TCP"),
            Self::Udp => Some("UDP"),
            Self::Init => Some("SCTP"),
            Self::Echo => None,
        }
    }
}

impl Probe {
    /// The family of its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        world::family(self.to.ip())
    }
}
