//! Pods, namespaces and nodes, as policies see them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{Notes, object_name, port_number, protocol, unicast};
use crate::policy::model::{NamedPort, Namespace, Pod, PolicyNode};
use crate::policy::selector::Labels;
use crate::stamp::Version;

/// The uid that the kubelet knows a static pod by.
pub const CONFIG_HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
/// The label of a namespace that is its name; the API server sets it on every one.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn convert(object: &core::Pod, notes: &mut Notes) -> Option<Pod> {
    let name = object_name(&object.metadata, notes)?;
    let meta = &object.metadata;
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let phase = status.and_then(|status| status.phase.as_deref());
    let annotation =
        meta.annotations.as_ref().and_then(|annotations| annotations.get(CONFIG_HASH_ANNOTATION));
    Some(Pod {
        name,
        version: meta.resource_version.as_deref().and_then(Version::new),
        uid: meta.uid.as_deref().unwrap_or_default().into(),
        config_hash: annotation.map(|hash| hash.as_str().into()),
        created: meta.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
        labels: labels(meta.labels.as_ref()).into(),
        ports: spec.map(|spec| named_ports(spec, notes)).unwrap_or_default().into(),
        addresses: if host_network { Vec::new() } else { addresses(object, notes) },
        host_network,
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        terminating: meta.deletion_timestamp.is_some(),
        node: spec.and_then(|spec| spec.node_name.as_deref()).map(Into::into),
    })
}

pub(super) fn namespace(object: &core::Namespace, notes: &mut Notes) -> Option<Namespace> {
    let Some(name) = object.metadata.name.clone() else {
        notes.note("metadata.name", "missing");
        return None;
    };
    let mut given = object.metadata.labels.clone().unwrap_or_default();
    given.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone());
    Some(Namespace { name: name.into(), labels: Labels::from(&given) })
}

/// Hostnames among its addresses are no fault.
pub(super) fn node(object: &core::Node, notes: &mut Notes) -> Option<PolicyNode> {
    let Some(name) = object.metadata.name.as_deref() else {
        notes.note("metadata.name", "missing");
        return None;
    };
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (index, entry) in listed.iter().enumerate() {
        if matches!(entry.type_.as_str(), "InternalIP" | "ExternalIP") {
            let checked = notes.check(format!("status.addresses[{index}].address"), unicast(&entry.address));
            addresses.extend(checked.filter(|address| !addresses.contains(address)));
        }
    }
    Some(PolicyNode { name: name.into(), labels: labels(object.metadata.labels.as_ref()), addresses })
}

fn labels(given: Option<&BTreeMap<String, String>>) -> Labels {
    given.map(Labels::from).unwrap_or_default()
}

fn addresses(object: &core::Pod, notes: &mut Notes) -> Vec<IpAddr> {
    let Some(status) = &object.status else { return Vec::new() };
    let listed: Vec<&str> = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str()).collect();
    let (field, listed) = match (listed.is_empty(), &status.pod_ip) {
        (true, Some(single)) => ("status.podIP", vec![single.as_str()]),
        _ => ("status.podIPs", listed),
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for text in listed.into_iter().filter(|text| !text.is_empty()) {
        let checked = notes.check(field, unicast(text));
        found.extend(checked.filter(|address| !found.contains(address)));
    }
    found
}

/// Of init containers only those count that go on running beside the others.
fn named_ports(spec: &core::PodSpec, notes: &mut Notes) -> Vec<NamedPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let mut found = Vec::new();
    for container in spec.containers.iter().chain(sidecars) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else { continue };
            let field = |part: &str| format!("spec.containers[{}].ports[{index}].{part}", container.name);
            let Some(number) = notes.check(field("containerPort"), port_number(port.container_port)) else {
                continue;
            };
            let Some(protocol) = notes.check(field("protocol"), protocol(&port.protocol)) else { continue };
            found.push(NamedPort { name: name.into(), protocol, port: number });
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use crate::convert;
    use serde_json::{Value, from_value, json};

    fn pod(object: Value) -> crate::policy::model::Pod {
        convert::pod(&from_value(object).expect("a Pod")).value.expect("a Pod")
    }

    #[test]
    fn a_pod_has_its_addresses_and_the_named_ports_of_its_running_containers() {
        let pod = pod(json!({
            "metadata": { "namespace": "shop", "name": "web", "uid": "1", "labels": { "app": "web" } },
            "spec": {
                "containers": [
                    { "name": "a", "ports": [
                        { "name": "http", "containerPort": 8080 }, { "containerPort": 9 },
                        { "name": "far", "containerPort": 70_000 },
                    ] },
                ],
                "initContainers": [
                    { "name": "proxy", "restartPolicy": "Always", "ports": [
                        { "name": "dns", "containerPort": 53, "protocol": "UDP" },
                    ] },
                    { "name": "once", "ports": [{ "name": "gone", "containerPort": 1 }] },
                ],
            },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.244.0.2" }, { "ip": "fd00::2" }] },
        }));
        assert_eq!(pod.addresses.len(), 2);
        let ports: Vec<String> =
            pod.ports.iter().map(|port| format!("{}={}/{}", port.name, port.protocol, port.port)).collect();
        assert_eq!(ports, ["dns=udp/53", "http=tcp/8080"]);
        assert!(!pod.finished && !pod.terminating && !pod.host_network);
    }

    #[test]
    fn a_pod_on_its_nodes_network_has_no_address_of_its_own() {
        let pod = pod(json!({
            "metadata": { "namespace": "shop", "name": "agent", "deletionTimestamp": "2025-01-01T00:00:00Z" },
            "spec": { "hostNetwork": true, "containers": [] },
            "status": { "phase": "Failed", "podIP": "192.0.2.1" },
        }));
        assert!(pod.host_network && pod.addresses.is_empty() && pod.finished && pod.terminating);
    }

    #[test]
    fn a_namespace_has_its_name_among_its_labels() {
        let object = json!({ "metadata": { "name": "shop", "labels": { "team": "a" } } });
        let namespace = convert::namespace(&from_value(object).expect("a Namespace")).value.expect("one");
        let value = |key: &str| namespace.labels.get(key).map(|value| value.to_string());
        assert_eq!(value("kubernetes.io/metadata.name").as_deref(), Some("shop"));
        assert_eq!(value("team").as_deref(), Some("a"));
    }
}
