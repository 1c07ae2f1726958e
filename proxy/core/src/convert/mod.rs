//! API objects to the trimmed model: bad parts are left out and named, good parts kept.
//!
//! Called by [`crate::index::Index`] and [`crate::policy::Engine`] for every object that a watch delivers. The rules for addresses are
//! those of the API server's own validation, because a stand-in or an old object may have passed less.

mod cluster_policy;
mod network_policy;
mod node;
mod pod;
mod selector;
mod service;
mod slice;

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::intern::Interned;
use crate::model::{EndpointSlice, Node, ObjectName, Problem, Protocol, Service};
use crate::policy::api::ClusterNetworkPolicy;
use crate::policy::model::{ClusterPolicy, Namespace, NetworkPolicy, Pod, PolicyNode};

pub use pod::{CONFIG_HASH_ANNOTATION, NAMESPACE_NAME_LABEL};

/// Names the proxy that a Service is left to.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Marks a Service that no proxy is to handle.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Names the Service that an EndpointSlice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Names the zone that a Node is in.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The taint of a Node that the cluster autoscaler is about to delete.
pub const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What an API object became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// The object, or `None` if it is not the proxy's business, or beyond use.
    pub value: Option<T>,
    /// What was left out.
    pub problems: Vec<Problem>,
}

/// Converts a Service. Headless ones, ExternalName ones and those labelled away are `None` without a problem.
pub fn service(object: &core::Service) -> Converted<Service> {
    let mut notes = Notes::new("Service", &object.metadata);
    let value = service::convert(object, &mut notes);
    notes.finish(value)
}

/// Converts an EndpointSlice. One without the label that names its Service is `None` without a problem.
pub fn slice(object: &discovery::EndpointSlice, interned: &mut Interned) -> Converted<EndpointSlice> {
    let mut notes = Notes::new("EndpointSlice", &object.metadata);
    let value = slice::convert(object, interned, &mut notes);
    notes.finish(value)
}

/// Converts a Node.
pub fn node(object: &core::Node) -> Converted<Node> {
    let mut notes = Notes::new("Node", &object.metadata);
    let value = node::convert(object, &mut notes);
    notes.finish(value)
}

/// Converts a Pod.
pub fn pod(object: &core::Pod) -> Converted<Pod> {
    let mut notes = Notes::new("Pod", &object.metadata);
    let value = pod::convert(object, &mut notes);
    notes.finish(value)
}

/// Converts a Namespace.
pub fn namespace(object: &core::Namespace) -> Converted<Namespace> {
    let mut notes = Notes::new("Namespace", &object.metadata);
    let value = pod::namespace(object, &mut notes);
    notes.finish(value)
}

/// Converts a Node to what policies ask of it.
pub fn policy_node(object: &core::Node) -> Converted<PolicyNode> {
    let mut notes = Notes::new("Node", &object.metadata);
    let value = pod::node(object, &mut notes);
    notes.finish(value)
}

/// Converts a NetworkPolicy.
pub fn network_policy(object: &networking::NetworkPolicy) -> Converted<NetworkPolicy> {
    let mut notes = Notes::new("NetworkPolicy", &object.metadata);
    let value = network_policy::convert(object, &mut notes);
    notes.finish(value)
}

/// Converts a ClusterNetworkPolicy. One whose tier is not known is `None`.
pub fn cluster_policy(object: &ClusterNetworkPolicy) -> Converted<ClusterPolicy> {
    let mut notes = Notes::new("ClusterNetworkPolicy", &object.metadata);
    let value = cluster_policy::convert(object, &mut notes);
    notes.finish(value)
}

/// Converts a ServiceCIDR to the ranges that it names, without host bits.
pub fn service_cidr(object: &networking::ServiceCIDR) -> Converted<Vec<IpNet>> {
    let mut notes = Notes::new("ServiceCIDR", &object.metadata);
    let listed = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for (index, text) in listed.iter().enumerate() {
        found.extend(notes.check(format!("spec.cidrs[{index}]"), range(text)));
    }
    notes.finish(Some(found))
}

/// The problems of one object, while it is converted.
struct Notes {
    object: String,
    problems: Vec<Problem>,
}

impl Notes {
    fn new(kind: &str, meta: &ObjectMeta) -> Self {
        let name = meta.name.as_deref().unwrap_or("(unnamed)");
        let object = match &meta.namespace {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        Self { object, problems: Vec::new() }
    }

    fn note(&mut self, field: impl Into<String>, message: impl Into<String>) {
        let (object, field, message) = (self.object.clone(), field.into(), message.into());
        self.problems.push(Problem { object, field, message });
    }

    /// `Ok`'s value, or a note of the error at `field`.
    fn check<T>(&mut self, field: impl Into<String>, checked: Result<T, String>) -> Option<T> {
        checked.map_err(|message| self.note(field, message)).ok()
    }

    fn finish<T>(self, value: Option<T>) -> Converted<T> {
        Converted { value, problems: self.problems }
    }
}

fn object_name(meta: &ObjectMeta, notes: &mut Notes) -> Option<ObjectName> {
    match (&meta.namespace, &meta.name) {
        (Some(namespace), Some(name)) => Some(ObjectName::new(namespace.as_str(), name.as_str())),
        (None, _) => {
            notes.note("metadata.namespace", "missing");
            None
        }
        (_, None) => {
            notes.note("metadata.name", "missing");
            None
        }
    }
}

/// Whether the object is left to another proxy, or to none.
fn is_opted_out(meta: &ObjectMeta) -> bool {
    let has_label = |label| meta.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
    has_label(PROXY_NAME_LABEL) || has_label(HEADLESS_LABEL)
}

/// An address that a Service or an endpoint may have: neither unspecified, loopback, link-local, multicast
/// nor an IPv4 address in IPv6 clothes.
fn unicast(text: &str) -> Result<IpAddr, String> {
    let address = address(text).ok_or_else(|| format!("{text:?} is not an IP address"))?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let fault = if address.is_unspecified() {
        "is unspecified"
    } else if address.is_loopback() {
        "is a loopback address"
    } else if address.is_multicast() {
        "is a multicast address"
    } else if link_local {
        "is a link-local or broadcast address"
    } else if mapped {
        "is an IPv4 address written as IPv6"
    } else {
        return Ok(address);
    };
    Err(format!("{address} {fault}"))
}

/// Like kube-proxy, this takes zeros before the numbers of an IPv4 address for nothing: old objects may have them.
fn address(text: &str) -> Option<IpAddr> {
    let number = |part: &str| {
        let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<u8>().ok().filter(|_| is_number)
    };
    let parts = || text.split('.').map(number).collect::<Option<Vec<u8>>>();
    let octets = || <[u8; 4]>::try_from(parts()?).ok();
    text.parse().ok().or_else(|| octets().map(IpAddr::from))
}

fn family_name(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn port_number(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is not between 1 and 65535")),
    }
}

fn protocol(text: &Option<String>) -> Result<Protocol, String> {
    match text.as_deref() {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{other:?} is none of TCP, UDP, SCTP")),
    }
}

/// A range of addresses, without host bits. Spaces around it are no fault, since the API server admits them.
fn range(text: &str) -> Result<IpNet, String> {
    let parsed = text.trim().split_once('/').and_then(|(first, len)| {
        let is_number = len.bytes().all(|byte| byte.is_ascii_digit());
        IpNet::new(address(first)?, len.parse().ok().filter(|_| is_number)?).ok()
    });
    parsed.map(|range| range.trunc()).ok_or_else(|| format!("{text:?} is not an address range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn addresses_that_no_packet_may_carry_are_refused() {
        for text in ["0.0.0.0", "::", "127.0.0.9", "::1", "224.0.0.1", "ff02::1", "169.254.1.1", "fe80::1"] {
            assert!(unicast(text).is_err(), "{text}");
        }
        for text in
            ["255.255.255.255", "::ffff:10.0.0.1", "10.0.0", "10.0.0.1/24", "fd00::1%eth0", " 10.0.0.1", ""]
        {
            assert!(unicast(text).is_err(), "{text}");
        }
        for text in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"] {
            assert!(unicast(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn zeros_before_numbers_count_for_nothing() {
        let read = |text: &str| unicast(text).map(|address| address.to_string());
        assert_eq!(read("172.30.0.041").as_deref(), Ok("172.30.0.41"));
        assert_eq!(
            range("203.0.113.000/025").map(|range| range.to_string()).as_deref(),
            Ok("203.0.113.0/25")
        );
        for text in ["1.2.3", "1.2.3.256", "1.2.3.+4", "1.2.3.4.5", "1..2.3"] {
            assert!(unicast(text).is_err(), "{text}");
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "/8"] {
            assert!(range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_service_cidr_names_its_ranges_and_its_faults() {
        let object = json!({
            "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": ["10.96.0.1/12", "fd00:10:96::/112", "10.96.0.0"] },
        });
        let converted = service_cidr(&from_value(object).expect("a ServiceCIDR"));
        let ranges: Vec<String> = converted.value.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.96.0.0/12", "fd00:10:96::/112"]);
        let problems: Vec<String> = converted.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            ["ServiceCIDR kubernetes: spec.cidrs[2]: \"10.96.0.0\" is not an address range"]
        );
    }
}
