//! Tables: the columns that `kubectl get` prints.

use serde_json::{Value, json};

use super::format::{Include, metadata};
use crate::clock;
use crate::object::{Object, is_unset, items, text};
use crate::resource::Resource;
use crate::{
    CLUSTER_NETWORK_POLICIES, ENDPOINT_SLICES, NAMESPACES, NETWORK_POLICIES, NODES, PODS, SERVICES, labels,
};

const NONE: &str = "<none>";

/// A column: its heading, and whether only `-o wide` shows it.
type Column = (&'static str, bool);

/// The table of `objects`.
pub(super) fn table<'a>(
    resource: &Resource,
    revision: Value,
    objects: impl IntoIterator<Item = &'a Object>,
    include: Include,
) -> Value {
    let row = |object: &Object| {
        let beside = match include {
            Include::Nothing => Value::Null,
            Include::Metadata => metadata(object),
            Include::Object => object.value.clone(),
        };
        json!({"cells": cells(resource, &object.value), "object": beside})
    };
    let rows: Vec<Value> = objects.into_iter().map(row).collect();
    let column = |(i, (name, wide)): (usize, &Column)| {
        let format = if i == 0 { "name" } else { "" };
        json!({"name": name, "type": "string", "format": format, "description": name, "priority": i32::from(*wide)})
    };
    let columns: Vec<Value> = columns(resource).iter().enumerate().map(column).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision},
        "columnDefinitions": columns, "rows": rows})
}

fn columns(resource: &Resource) -> &'static [Column] {
    if resource == &PODS {
        &[
            ("Name", false),
            ("Ready", false),
            ("Status", false),
            ("Restarts", false),
            ("Age", false),
            ("IP", true),
            ("Node", true),
        ]
    } else if resource == &SERVICES {
        &[
            ("Name", false),
            ("Type", false),
            ("Cluster-IP", false),
            ("External-IP", false),
            ("Port(s)", false),
            ("Age", false),
            ("Selector", true),
        ]
    } else if resource == &ENDPOINT_SLICES {
        &[("Name", false), ("AddressType", false), ("Ports", false), ("Endpoints", false), ("Age", false)]
    } else if resource == &NODES {
        &[
            ("Name", false),
            ("Status", false),
            ("Roles", false),
            ("Age", false),
            ("Version", false),
            ("Internal-IP", true),
            ("External-IP", true),
            ("OS-Image", true),
            ("Kernel-Version", true),
            ("Container-Runtime", true),
        ]
    } else if resource == &NAMESPACES {
        &[("Name", false), ("Status", false), ("Age", false)]
    } else if resource == &NETWORK_POLICIES {
        &[("Name", false), ("Pod-Selector", false), ("Age", false)]
    } else if resource == &CLUSTER_NETWORK_POLICIES {
        &[("Name", false), ("Tier", false), ("Priority", false), ("Age", false)]
    } else {
        &[("Name", false), ("Age", false)]
    }
}

fn cells(resource: &Resource, object: &Value) -> Vec<String> {
    let name = text(object, "/metadata/name").to_owned();
    let age = clock::age(text(object, "/metadata/creationTimestamp"));
    if resource == &PODS {
        pod(object, name, age)
    } else if resource == &SERVICES {
        service(object, name, age)
    } else if resource == &ENDPOINT_SLICES {
        let ports = items(object, "/ports").iter().map(|p| p["port"].to_string()).collect();
        let addresses = items(object, "/endpoints").iter().flat_map(|e| items(e, "/addresses"));
        let addresses = addresses.filter_map(|a| a.as_str().map(str::to_owned)).collect();
        let kind = text(object, "/addressType").to_owned();
        vec![name, kind, first_three(ports, "<unset>"), first_three(addresses, "<unset>"), age]
    } else if resource == &NODES {
        node(object, name, age)
    } else if resource == &NAMESPACES {
        vec![name, text(object, "/status/phase").to_owned(), age]
    } else if resource == &NETWORK_POLICIES {
        vec![name, or_none(&labels::show_selector(&object["spec"]["podSelector"])), age]
    } else if resource == &CLUSTER_NETWORK_POLICIES {
        vec![name, text(object, "/spec/tier").to_owned(), object["spec"]["priority"].to_string(), age]
    } else {
        vec![name, age]
    }
}

fn pod(pod: &Value, name: String, age: String) -> Vec<String> {
    let containers = items(pod, "/status/containerStatuses");
    let ready = containers.iter().filter(|c| c["ready"] == true).count();
    let restarts: u64 = containers.iter().filter_map(|c| c["restartCount"].as_u64()).sum();
    let waiting =
        containers.iter().map(|c| text(c, "/state/waiting/reason")).find(|reason| !reason.is_empty());
    let status = if !is_unset(pod, "/metadata/deletionTimestamp") {
        "Terminating"
    } else if let Some(reason) = waiting {
        reason
    } else if is_unset(pod, "/status/reason") {
        text(pod, "/status/phase")
    } else {
        text(pod, "/status/reason")
    };
    let ready = format!("{ready}/{}", items(pod, "/spec/containers").len());
    let (ip, node) = (or_none(text(pod, "/status/podIP")), or_none(text(pod, "/spec/nodeName")));
    vec![name, ready, status.to_owned(), restarts.to_string(), age, ip, node]
}

fn service(service: &Value, name: String, age: String) -> Vec<String> {
    let kind = text(service, "/spec/type").to_owned();
    let ingress = items(service, "/status/loadBalancer/ingress").iter();
    let ingress = ingress.map(|i| if is_unset(i, "/ip") { text(i, "/hostname") } else { text(i, "/ip") });
    let external = items(service, "/spec/externalIPs").iter().filter_map(Value::as_str);
    let outside: Vec<&str> = ingress.chain(external).collect();
    let outside = match kind.as_str() {
        "ExternalName" => or_none(text(service, "/spec/externalName")),
        "LoadBalancer" if outside.is_empty() => "<pending>".to_owned(),
        _ => or_none(&outside.join(",")),
    };
    let port = |p: &Value| match p["nodePort"].as_u64() {
        Some(node_port) if node_port > 0 => format!("{}:{node_port}/{}", p["port"], text(p, "/protocol")),
        _ => format!("{}/{}", p["port"], text(p, "/protocol")),
    };
    let ports: Vec<String> = items(service, "/spec/ports").iter().map(port).collect();
    let selector = service["spec"]["selector"].as_object().into_iter().flatten();
    let selector: Vec<String> =
        selector.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let cluster_ip = or_none(text(service, "/spec/clusterIP"));
    vec![name, kind, cluster_ip, outside, or_none(&ports.join(",")), age, or_none(&selector.join(","))]
}

fn node(node: &Value, name: String, age: String) -> Vec<String> {
    let ready = items(node, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let roles: Vec<&str> =
        labels.filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/")).collect();
    let address = |kind: &str| {
        let found = items(node, "/status/addresses").iter().find(|a| a["type"] == kind);
        or_none(found.map_or("", |a| text(a, "/address")))
    };
    let info = |field: &str| text(node, &format!("/status/nodeInfo/{field}")).to_owned();
    vec![
        name,
        status,
        or_none(&roles.join(",")),
        age,
        info("kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn or_none(text: &str) -> String {
    if text.is_empty() { NONE.to_owned() } else { text.to_owned() }
}

fn first_three(mut all: Vec<String>, empty: &str) -> String {
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    match (all.is_empty(), more) {
        (true, _) => empty.to_owned(),
        (false, 0) => all.join(","),
        (false, more) => format!("{} + {more} more...", all.join(",")),
    }
}
