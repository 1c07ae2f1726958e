//! The trimmed objects that the proxy works on: of each API object only the fields that it uses.
//!
//! Made by [`crate::convert`], held by [`crate::index::Index`]. Everything in them is already checked.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_abi::{FrontendKey, Port, protocol};
use ipnet::IpNet;
use serde::Serialize;

/// The namespace and name of an object. Cheap to clone: many tables name the same Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// metadata.namespace.
    pub namespace: Arc<str>,
    /// metadata.name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that Services name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293; the default where a Service names none.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// Its IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
        }
    }

    /// The protocol of an IP protocol number, if it is one that Services name.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            protocol::TCP => Some(Self::Tcp),
            protocol::UDP => Some(Self::Udp),
            protocol::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Which endpoints a kind of client may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum TrafficPolicy {
    /// All of them.
    #[default]
    Cluster,
    /// Only those on the client's node, or the node that the packet came to.
    Local,
}

/// A Service that has a virtual address: not headless, not ExternalName, not left to another proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// metadata.creationTimestamp, in seconds of the Unix epoch; decides who keeps a contested address.
    pub created: i64,
    /// spec.clusterIPs, at most one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// status.loadBalancer.ingress, those with an address that the proxy must capture.
    pub load_balancer_ips: Vec<IpAddr>,
    /// spec.externalIPs.
    pub external_ips: Vec<IpAddr>,
    /// spec.externalTrafficPolicy.
    pub external_policy: TrafficPolicy,
    /// spec.internalTrafficPolicy.
    pub internal_policy: TrafficPolicy,
    /// How long a client keeps its backend, 1–86400 seconds, where spec.sessionAffinity is ClientIP.
    pub affinity: Option<u32>,
    /// spec.loadBalancerSourceRanges, in order and without host bits. A family of which any range has length 0
    /// has none: everybody is admitted.
    pub source_ranges: Vec<IpNet>,
    /// spec.healthCheckNodePort of a load balancer's Service whose external traffic policy is Local.
    pub health_check_port: Option<u16>,
    /// spec.ports.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// The ranges that guard its load balancer addresses of one family; none: everybody is admitted.
    pub fn ranges_of(&self, v4: bool) -> impl Iterator<Item = IpNet> + '_ {
        self.source_ranges.iter().filter(move |range| range.addr().is_ipv4() == v4).copied()
    }

    /// Whether any of its frontends is meant for clients outside the cluster.
    pub fn is_external(&self) -> bool {
        !self.load_balancer_ips.is_empty()
            || !self.external_ips.is_empty()
            || self.ports.iter().any(|port| port.node_port.is_some())
    }
}

/// One of a Service's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its place in spec.ports, for problems to name.
    pub index: usize,
    /// Its name, empty if the Service has only one; EndpointSlices refer to it.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port that clients dial, 1–65535.
    pub port: u16,
    /// The port that clients dial on nodes.
    pub node_port: Option<u16>,
}

/// The name of a Service's port: what a frontend belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// The port's name, possibly empty.
    pub port: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, port, protocol } = self;
        if port.is_empty() {
            write!(f, "{service}/{protocol}")
        } else {
            write!(f, "{service}:{port}/{protocol}")
        }
    }
}

/// A slice of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service that it belongs to, from its `kubernetes.io/service-name` label.
    pub service: ObjectName,
    /// Ports that every endpoint of the slice serves.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of an [`EndpointSlice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service port that it answers for.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port that the endpoint listens on, 1–65535.
    pub port: u16,
}

/// An endpoint of an [`EndpointSlice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address: the first one listed, since all are said to be fungible.
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, though perhaps on its way out.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// The node that it is on.
    pub node: Option<Arc<str>>,
    /// Who should use it rather than others.
    pub hints: Option<Arc<Hints>>,
}

/// Which clients should use an endpoint rather than others, as the EndpointSlice controller thinks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// Those in these zones.
    pub zones: Box<[Box<str>]>,
    /// Those on these nodes.
    pub nodes: Box<[Box<str>]>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// metadata.name.
    pub name: String,
    /// status.addresses of type InternalIP, in the order given.
    pub addresses: Vec<IpAddr>,
    /// spec.podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Its label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Whether it is being deleted, or the cluster autoscaler is about to delete it.
    pub leaving: bool,
}

impl Node {
    /// The node's primary addresses: the first of each family.
    pub fn primary_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self.addresses.iter().find(|address| address.is_ipv4());
        let v6 = self.addresses.iter().find(|address| address.is_ipv6());
        v4.into_iter().chain(v6).copied()
    }
}

/// Something in an object that makes no sense, and is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Kind and name, as in `Service default/web`.
    pub object: String,
    /// The path of the field, as in `spec.ports[1].port`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.message)
    }
}

/// The key of the frontend at this address, port and protocol.
pub fn frontend_key(address: IpAddr, port: u16, protocol: Protocol) -> FrontendKey {
    FrontendKey { address: address.into(), port: Port::new(port), protocol: protocol.number(), reserved: 0 }
}

/// A frontend as people write it: `10.96.0.1:80/tcp`, `[fd00::1]:53/udp`, `10.96.0.1 (whole)`.
pub fn frontend_label(key: &FrontendKey) -> String {
    if *key == FrontendKey::whole(key.address) {
        return format!("{} (whole)", IpAddr::from(key.address));
    }
    let address = socket_label(key.address.into(), key.port.number());
    match Protocol::from_number(key.protocol) {
        Some(protocol) => format!("{address}/{protocol}"),
        None => format!("{address}/{}", key.protocol),
    }
}

/// An address and port as people write them: `10.0.0.1:80`, `[fd00::1]:80`.
pub fn socket_label(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_are_written_as_people_write_them() {
        let v4 = frontend_key("10.96.0.1".parse().expect("an address"), 80, Protocol::Tcp);
        let v6 = frontend_key("fd00::1".parse().expect("an address"), 53, Protocol::Udp);
        assert_eq!(frontend_label(&v4), "10.96.0.1:80/tcp");
        assert_eq!(frontend_label(&v6), "[fd00::1]:53/udp");
        assert_eq!(frontend_label(&FrontendKey::whole(v6.address)), "fd00::1 (whole)");
        assert_eq!(frontend_label(&FrontendKey { protocol: 47, ..v4 }), "10.96.0.1:80/47");
    }

    #[test]
    fn a_nodes_primary_addresses_are_the_first_of_each_family() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let node = Node {
            name: "a".into(),
            addresses: vec![
                address("fd00::2"),
                address("192.0.2.1"),
                address("192.0.2.9"),
                address("fd00::1"),
            ],
            pod_cidrs: Vec::new(),
            zone: None,
            leaving: false,
        };
        let primary: Vec<IpAddr> = node.primary_addresses().collect();
        assert_eq!(primary, [address("192.0.2.1"), address("fd00::2")]);
    }

    #[test]
    fn protocols_keep_their_numbers() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(1), None);
    }
}
