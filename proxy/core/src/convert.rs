//! API objects to the trimmed model: bad parts are left out and named, good parts kept.
//!
//! Called by [`crate::index::Index`] for every object that a watch delivers. The rules for addresses are
//! those of the API server's own validation, because a stand-in or an old object may have passed less.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::{
    EndpointSlice, Node, ObjectName, Problem, Protocol, Service, ServicePort, SliceEndpoint, SlicePort,
    TrafficPolicy,
};

/// Names the proxy that a Service is left to.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Marks a Service that no proxy is to handle.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Names the Service that an EndpointSlice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

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
    let value = service_value(object, &mut notes);
    notes.finish(value)
}

/// Converts an EndpointSlice. One without the label that names its Service is `None` without a problem.
pub fn slice(object: &discovery::EndpointSlice) -> Converted<EndpointSlice> {
    let mut notes = Notes::new("EndpointSlice", &object.metadata);
    let value = slice_value(object, &mut notes);
    notes.finish(value)
}

/// Converts a Node.
pub fn node(object: &core::Node) -> Converted<Node> {
    let mut notes = Notes::new("Node", &object.metadata);
    let value = node_value(object, &mut notes);
    notes.finish(value)
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

fn service_value(object: &core::Service, notes: &mut Notes) -> Option<Service> {
    let name = object_name(&object.metadata, notes)?;
    let has_label = |label| object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
    if has_label(PROXY_NAME_LABEL) || has_label(HEADLESS_LABEL) {
        return None;
    }
    let Some(spec) = &object.spec else {
        notes.note("spec", "missing");
        return None;
    };
    if spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None") {
        return None;
    }
    let created = object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
    Some(Service {
        name,
        created,
        cluster_ips: cluster_ips(spec, notes),
        load_balancer_ips: load_balancer_ips(object, notes),
        external_ips: addresses(spec.external_ips.as_deref().unwrap_or_default(), "spec.externalIPs", notes),
        external_policy: policy(&spec.external_traffic_policy, "spec.externalTrafficPolicy", notes),
        internal_policy: policy(&spec.internal_traffic_policy, "spec.internalTrafficPolicy", notes),
        ports: service_ports(spec, notes),
    })
}

fn cluster_ips(spec: &core::ServiceSpec, notes: &mut Notes) -> Vec<IpAddr> {
    let single = spec.cluster_ip.iter().filter(|ip| !ip.is_empty()).cloned().collect::<Vec<_>>();
    let listed = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty()).unwrap_or(&single);
    if listed.is_empty() {
        notes.note("spec.clusterIPs", "none assigned");
    }
    let mut found: Vec<IpAddr> = Vec::new();
    for (index, text) in listed.iter().enumerate() {
        let field = format!("spec.clusterIPs[{index}]");
        let Some(address) = notes.check(&field, unicast(text)) else { continue };
        let family = spec.ip_families.as_ref().and_then(|families| families.get(index));
        if let Some(family) = family.filter(|family| family.as_str() != family_name(address)) {
            notes.note(field, format!("{address} is not of the family {family} that spec.ipFamilies says"));
        } else if let Some(other) = found.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            notes.note(field, format!("{address} is of the same family as {other}"));
        } else {
            found.push(address);
        }
    }
    found
}

/// Addresses whose `ipMode` is Proxy are left to the load balancer.
fn load_balancer_ips(object: &core::Service, notes: &mut Notes) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for (index, entry) in ingress.iter().enumerate() {
        let Some(text) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        if entry.ip_mode.as_deref() == Some("Proxy") {
            continue;
        }
        let field = format!("status.loadBalancer.ingress[{index}].ip");
        found.extend(notes.check(field, unicast(text)).filter(|address| !found.contains(address)));
    }
    found
}

fn addresses(listed: &[String], path: &str, notes: &mut Notes) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (index, text) in listed.iter().enumerate() {
        let checked = notes.check(format!("{path}[{index}]"), unicast(text));
        found.extend(checked.filter(|address| !found.contains(address)));
    }
    found
}

fn policy(text: &Option<String>, field: &str, notes: &mut Notes) -> TrafficPolicy {
    match text.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            notes.note(field, format!("{other:?} is neither Cluster nor Local; taken as Cluster"));
            TrafficPolicy::Cluster
        }
    }
}

fn service_ports(spec: &core::ServiceSpec, notes: &mut Notes) -> Vec<ServicePort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut found = Vec::new();
    for (index, listed) in spec.ports.iter().flatten().enumerate() {
        let path = format!("spec.ports[{index}]");
        let protocol = notes.check(format!("{path}.protocol"), protocol(&listed.protocol));
        let number = notes.check(format!("{path}.port"), port_number(listed.port));
        let (Some(protocol), Some(port)) = (protocol, number) else { continue };
        let name = listed.name.clone().unwrap_or_default();
        if !numbers.insert((port, protocol)) {
            notes.note(format!("{path}.port"), format!("{port}/{protocol} appears twice"));
            continue;
        }
        if !names.insert(name.clone()) {
            notes.note(format!("{path}.name"), format!("{name:?} appears twice"));
            continue;
        }
        let node_port = match listed.node_port {
            None | Some(0) => None,
            Some(number) => notes.check(format!("{path}.nodePort"), port_number(number)),
        };
        found.push(ServicePort { index, name, protocol, port, node_port });
    }
    found
}

fn slice_value(object: &discovery::EndpointSlice, notes: &mut Notes) -> Option<EndpointSlice> {
    let name = object_name(&object.metadata, notes)?;
    let labels = object.metadata.labels.as_ref()?;
    let service = labels.get(SERVICE_NAME_LABEL).filter(|service| !service.is_empty())?;
    if labels.contains_key(HEADLESS_LABEL) || labels.contains_key(PROXY_NAME_LABEL) {
        return None;
    }
    if !matches!(object.address_type.as_str(), "IPv4" | "IPv6") {
        let message = format!("{:?} is neither IPv4 nor IPv6: the slice is skipped", object.address_type);
        notes.note("addressType", message);
        return None;
    }
    Some(EndpointSlice {
        service: ObjectName::new(&name.namespace, service),
        ports: slice_ports(object, notes),
        endpoints: slice_endpoints(object, notes),
        name,
    })
}

fn slice_ports(object: &discovery::EndpointSlice, notes: &mut Notes) -> Vec<SlicePort> {
    let mut found: Vec<SlicePort> = Vec::new();
    for (index, listed) in object.ports.iter().flatten().enumerate() {
        let path = format!("ports[{index}]");
        let number = listed.port.ok_or_else(|| "missing: no Service port is every port".to_owned());
        let number = notes.check(format!("{path}.port"), number.and_then(port_number));
        let protocol = notes.check(format!("{path}.protocol"), protocol(&listed.protocol));
        let (Some(port), Some(protocol)) = (number, protocol) else { continue };
        let port = SlicePort { name: listed.name.clone().unwrap_or_default(), protocol, port };
        if !found.contains(&port) {
            found.push(port);
        }
    }
    found
}

fn slice_endpoints(object: &discovery::EndpointSlice, notes: &mut Notes) -> Vec<SliceEndpoint> {
    let mut found = Vec::new();
    for (index, listed) in object.endpoints.iter().flatten().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        let Some(text) = listed.addresses.first() else {
            notes.note(path, "empty");
            continue;
        };
        let checked = unicast(text).and_then(|address| match family_name(address) {
            family if family == object.address_type => Ok(address),
            family => Err(format!("{address} is {family} in a slice of {}", object.address_type)),
        });
        let Some(address) = notes.check(format!("{path}[0]"), checked) else { continue };
        let conditions = listed.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        found.push(SliceEndpoint {
            address,
            ready,
            serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(ready),
            terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
            node: listed.node_name.clone(),
        });
    }
    found
}

fn node_value(object: &core::Node, notes: &mut Notes) -> Option<Node> {
    let Some(name) = object.metadata.name.clone() else {
        notes.note("metadata.name", "missing");
        return None;
    };
    let mut node = Node { name, addresses: Vec::new(), pod_cidrs: Vec::new() };
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    for (index, entry) in listed.iter().enumerate().filter(|(_, entry)| entry.type_ == "InternalIP") {
        let checked = notes.check(format!("status.addresses[{index}].address"), unicast(&entry.address));
        node.addresses.extend(checked);
    }
    let cidrs = object.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    for (index, text) in cidrs.iter().enumerate() {
        let parsed = text.parse::<IpNet>().map_err(|_| format!("{text:?} is not an address range"));
        node.pod_cidrs.extend(notes.check(format!("spec.podCIDRs[{index}]"), parsed));
    }
    Some(node)
}

fn object_name(meta: &ObjectMeta, notes: &mut Notes) -> Option<ObjectName> {
    match (&meta.namespace, &meta.name) {
        (Some(namespace), Some(name)) => Some(ObjectName::new(namespace, name)),
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

/// An address that a Service or an endpoint may have: neither unspecified, loopback, link-local, multicast
/// nor an IPv4 address in IPv6 clothes.
fn unicast(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn converted_service(spec: Value) -> Converted<Service> {
        let object = json!({ "metadata": { "namespace": "default", "name": "web" }, "spec": spec });
        service(&from_value(object).expect("a Service"))
    }

    fn converted_endpoint(conditions: Value) -> SliceEndpoint {
        let object = json!({
            "metadata": { "namespace": "default", "name": "web-1", "labels": { SERVICE_NAME_LABEL: "web" } },
            "addressType": "IPv6",
            "endpoints": [{ "addresses": ["fd00::1"], "conditions": conditions }],
        });
        let converted = slice(&from_value(object).expect("an EndpointSlice"));
        assert_eq!(converted.problems, []);
        converted.value.expect("a slice").endpoints.remove(0)
    }

    #[test]
    fn the_single_cluster_ip_serves_where_there_is_no_list() {
        let service = converted_service(json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] }));
        assert_eq!(service.problems, []);
        let service = service.value.expect("a Service");
        assert_eq!(service.cluster_ips, ["10.96.0.1".parse::<IpAddr>().expect("an address")]);
        assert_eq!(service.ports[0].protocol, Protocol::Tcp);
    }

    #[test]
    fn unknown_conditions_mean_ready_and_serving_follows_ready() {
        let state = |endpoint: SliceEndpoint| (endpoint.ready, endpoint.serving, endpoint.terminating);
        assert_eq!(state(converted_endpoint(json!({}))), (true, true, false));
        assert_eq!(state(converted_endpoint(json!({ "ready": false }))), (false, false, false));
        let draining = json!({ "ready": false, "serving": true, "terminating": true });
        assert_eq!(state(converted_endpoint(draining)), (false, true, true));
    }

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
    fn a_node_has_its_internal_addresses_and_its_pod_ranges() {
        let object = json!({
            "metadata": { "name": "a" },
            "spec": { "podCIDRs": ["10.244.0.0/24", "nonsense", "fd00:10:244::/64"] },
            "status": { "addresses": [
                { "type": "Hostname", "address": "a" },
                { "type": "ExternalIP", "address": "203.0.113.1" },
                { "type": "InternalIP", "address": "192.0.2.1" },
            ] },
        });
        let converted = node(&from_value(object).expect("a Node"));
        assert_eq!(converted.problems.len(), 1);
        assert_eq!(
            converted.problems[0].to_string(),
            "Node a: spec.podCIDRs[1]: \"nonsense\" is not an address range"
        );
        let node = converted.value.expect("a Node");
        assert_eq!((node.addresses.len(), node.pod_cidrs.len()), (1, 2));
    }
}
