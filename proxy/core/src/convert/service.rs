//! Services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use k8s_openapi::api::core::v1 as core;

use super::{Notes, family_name, is_opted_out, object_name, port_number, protocol, range, unicast};
use crate::model::{Service, ServicePort, TrafficPolicy};

/// spec.sessionAffinityConfig.clientIP.timeoutSeconds where nothing is said.
const DEFAULT_AFFINITY: i32 = 10_800;
/// The longest that it may be.
const LONGEST_AFFINITY: i32 = 86_400;

pub(super) fn convert(object: &core::Service, notes: &mut Notes) -> Option<Service> {
    let name = object_name(&object.metadata, notes)?;
    if is_opted_out(&object.metadata) {
        return None;
    }
    let Some(spec) = &object.spec else {
        notes.note("spec", "missing");
        return None;
    };
    let listed = spec.cluster_ips.iter().flatten();
    let is_headless = spec.cluster_ip.iter().chain(listed).any(|ip| ip == "None");
    if spec.type_.as_deref() == Some("ExternalName") || is_headless {
        return None;
    }
    let has_address =
        spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).any(|ip| !ip.is_empty());
    if !has_address {
        notes.note("spec.clusterIPs", "none assigned: the Service is skipped");
        return None;
    }
    let created = object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
    let external_policy = external_policy(spec, notes);
    Some(Service {
        name,
        created,
        cluster_ips: cluster_ips(spec, notes),
        load_balancer_ips: load_balancer_ips(object, notes),
        external_ips: addresses(spec.external_ips.as_deref().unwrap_or_default(), "spec.externalIPs", notes),
        external_policy,
        internal_policy: policy(&spec.internal_traffic_policy, "spec.internalTrafficPolicy", notes),
        affinity: affinity(spec, notes),
        source_ranges: source_ranges(spec, notes),
        health_check_port: health_check_port(spec, external_policy, notes),
        ports: service_ports(spec, notes),
    })
}

fn cluster_ips(spec: &core::ServiceSpec, notes: &mut Notes) -> Vec<IpAddr> {
    let single = spec.cluster_ip.iter().filter(|ip| !ip.is_empty()).cloned().collect::<Vec<_>>();
    let listed = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty()).unwrap_or(&single);
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

/// The policy of a Service that clients outside have no address for counts for nothing.
fn external_policy(spec: &core::ServiceSpec, notes: &mut Notes) -> TrafficPolicy {
    let stated = policy(&spec.external_traffic_policy, "spec.externalTrafficPolicy", notes);
    let is_accessible = match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") => true,
        _ => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
    };
    if is_accessible { stated } else { TrafficPolicy::Cluster }
}

fn affinity(spec: &core::ServiceSpec, notes: &mut Notes) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let message = format!("{other:?} is neither None nor ClientIP; taken as None");
            notes.note("spec.sessionAffinity", message);
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(DEFAULT_AFFINITY);
    if (1..=LONGEST_AFFINITY).contains(&seconds) {
        return Some(seconds.unsigned_abs());
    }
    notes.note(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        format!("{seconds} is not between 1 and {LONGEST_AFFINITY}; taken as {DEFAULT_AFFINITY}"),
    );
    Some(DEFAULT_AFFINITY.unsigned_abs())
}

/// Like kube-proxy, this reads the field alone: the annotation of the same purpose is for cloud controllers.
fn source_ranges(spec: &core::ServiceSpec, notes: &mut Notes) -> Vec<IpNet> {
    let mut found = BTreeSet::new();
    let (mut all_v4, mut all_v6) = (false, false);
    for (index, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        match notes.check(format!("spec.loadBalancerSourceRanges[{index}]"), range(text)) {
            Some(IpNet::V4(range)) => {
                all_v4 |= range.prefix_len() == 0;
                found.insert(IpNet::V4(range));
            }
            Some(IpNet::V6(range)) => {
                all_v6 |= range.prefix_len() == 0;
                found.extend(without_mapped(range).into_iter().map(IpNet::V6));
            }
            None => {}
        }
    }
    found.retain(|range| if range.addr().is_ipv4() { !all_v4 } else { !all_v6 });
    found.into_iter().collect()
}

/// The range less the addresses that stand for IPv4 ones in the maps, `::ffff:0:0/96`, as several ranges: an IPv6
/// range must not admit IPv4 clients.
fn without_mapped(range: Ipv6Net) -> Vec<Ipv6Net> {
    const MAPPED: u128 = 0xffff_0000_0000;
    const MAPPED_LEN: u8 = 96;
    if range.prefix_len() >= MAPPED_LEN || !range.contains(&Ipv6Addr::from(MAPPED)) {
        return vec![range];
    }
    // At each length, the half that the mapped addresses are not in.
    let lengths = range.prefix_len() + 1..=MAPPED_LEN;
    let half = |len| Ipv6Net::new(Ipv6Addr::from(MAPPED ^ 1 << (128 - u32::from(len))), len);
    lengths.filter_map(|len| half(len).ok()).map(|half| half.trunc()).collect()
}

/// Where a load balancer asks whether this node has endpoints. Only with a Local policy does that matter.
fn health_check_port(spec: &core::ServiceSpec, policy: TrafficPolicy, notes: &mut Notes) -> Option<u16> {
    if spec.type_.as_deref() != Some("LoadBalancer") || policy != TrafficPolicy::Local {
        return None;
    }
    let field = "spec.healthCheckNodePort";
    match spec.health_check_node_port {
        None | Some(0) => {
            notes.note(field, "none assigned");
            None
        }
        Some(number) => notes.check(field, port_number(number)),
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
        let name = listed.name.as_deref().unwrap_or_default();
        if !numbers.insert((port, protocol)) {
            notes.note(format!("{path}.port"), format!("{port}/{protocol} appears twice"));
            continue;
        }
        if !names.insert(name) {
            notes.note(format!("{path}.name"), format!("{name:?} appears twice"));
            continue;
        }
        let node_port = match listed.node_port {
            None | Some(0) => None,
            Some(number) => notes.check(format!("{path}.nodePort"), port_number(number)),
        };
        found.push(ServicePort { index, name: name.into(), protocol, port, node_port });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::{Converted, service};
    use crate::model::Protocol;
    use serde_json::{Value, from_value, json};

    fn converted_service(spec: Value) -> Converted<Service> {
        let object = json!({ "metadata": { "namespace": "default", "name": "web" }, "spec": spec });
        service(&from_value(object).expect("a Service"))
    }

    #[test]
    fn the_single_cluster_ip_serves_where_there_is_no_list() {
        let service = converted_service(json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] }));
        assert_eq!(service.problems, []);
        let service = service.value.expect("a Service");
        assert_eq!(service.cluster_ips, ["10.96.0.1".parse::<IpAddr>().expect("an address")]);
        assert_eq!(service.ports[0].protocol, Protocol::Tcp);
    }

    /// The Service of that specification, and its problems without the object's name.
    fn checked(spec: Value) -> (Service, Vec<String>) {
        let converted = converted_service(spec);
        let problem = |problem: &crate::model::Problem| format!("{}: {}", problem.field, problem.message);
        let problems = converted.problems.iter().map(problem).collect();
        (converted.value.expect("a Service"), problems)
    }

    #[test]
    fn affinity_lasts_three_hours_unless_the_service_says_how_long() {
        let of = |spec: Value| {
            let mut whole = json!({ "clusterIP": "10.96.0.1" });
            whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
            let (service, problems) = checked(whole);
            (service.affinity, problems.len())
        };
        let lasting = |seconds: i32| json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } } });
        assert_eq!(of(json!({})), (None, 0));
        assert_eq!(of(json!({ "sessionAffinity": "None" })), (None, 0));
        assert_eq!(of(json!({ "sessionAffinity": "ClientIP" })), (Some(10_800), 0));
        assert_eq!(of(lasting(1)), (Some(1), 0));
        assert_eq!(of(lasting(86_400)), (Some(86_400), 0));
        assert_eq!(of(lasting(86_401)), (Some(10_800), 1));
        assert_eq!(of(lasting(0)), (Some(10_800), 1));
        assert_eq!(of(json!({ "sessionAffinity": "Cookie" })), (None, 1));
    }

    #[test]
    fn source_ranges_are_trimmed_sorted_and_named_where_they_are_none() {
        let (service, problems) = checked(json!({
            "clusterIP": "10.96.0.1",
            "loadBalancerSourceRanges": [" 192.0.2.7/24 ", "10.0.0.0/8", "10.0.0.0", "2001:db8::/32", "10.0.0.0/8", ""],
        }));
        let ranges: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]);
        assert_eq!(problems, ["spec.loadBalancerSourceRanges[2]: \"10.0.0.0\" is not an address range"]);
        assert_eq!((service.ranges_of(true).count(), service.ranges_of(false).count()), (2, 1));
    }

    #[test]
    fn a_range_of_everything_opens_its_family_alone() {
        let ranges = |listed: &[&str]| {
            let (service, _) =
                checked(json!({ "clusterIP": "10.96.0.1", "loadBalancerSourceRanges": listed }));
            (service.ranges_of(true).count(), service.ranges_of(false).count())
        };
        assert_eq!(ranges(&["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32"]), (0, 1));
        assert_eq!(ranges(&["10.0.0.0/8", "2001:db8::/32", "::/0"]), (1, 0));
    }

    #[test]
    fn an_ipv6_range_admits_no_ipv4_client() {
        let split = without_mapped("::/64".parse().expect("a range"));
        let admits = |text: &str| {
            split.iter().any(|range| range.contains(&text.parse::<Ipv6Addr>().expect("an address")))
        };
        assert!(!admits("::ffff:10.0.0.1"));
        for address in ["::1", "::fffe:10.0.0.1", "::1:ffff:0:1", "::ffff:ffff:ffff:ffff"] {
            assert!(admits(address), "{address}");
        }
        assert!(!admits("0:0:0:1::"));
    }

    #[test]
    fn health_is_asked_for_where_a_load_balancer_keeps_to_local_endpoints() {
        let port = |kind: &str, policy: &str, port: i32| {
            let (service, problems) = checked(json!({
                "clusterIP": "10.96.0.1", "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port,
            }));
            (service.health_check_port, problems.len())
        };
        assert_eq!(port("LoadBalancer", "Local", 30_500), (Some(30_500), 0));
        assert_eq!(port("LoadBalancer", "Cluster", 30_500), (None, 0));
        assert_eq!(port("NodePort", "Local", 30_500), (None, 0));
        assert_eq!(port("LoadBalancer", "Local", 0), (None, 1));
        assert_eq!(port("LoadBalancer", "Local", 70_000), (None, 1));
    }

    #[test]
    fn a_local_policy_counts_only_where_clients_outside_have_an_address() {
        let policy = |spec: Value| checked(spec).0.external_policy;
        assert_eq!(
            policy(json!({ "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local" })),
            TrafficPolicy::Cluster
        );
        let external = json!({ "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"] });
        assert_eq!(policy(external), TrafficPolicy::Local);
    }
}
