//! The pure half of the EndpointSlice controller: from a Service, its Pods and its present slices to the slices it
//! should have. The rules are those of Kubernetes' endpointslice controller.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::clock;
use crate::object::{Object, is_unset, items, text};

/// The label that ties a slice to its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who looks after a slice.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Who looks after the slices made here.
pub(crate) const CONTROLLER: &str = "endpointslice-controller.k8s.io";

const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "/metadata/labels/topology.kubernetes.io~1zone";
/// The controller's default `--max-endpoints-per-slice`.
const MAX_ENDPOINTS: usize = 100;

/// What to write so that the slices of one Service are right.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<Value>,
    pub(crate) update: Vec<Value>,
    /// Names of slices to delete.
    pub(crate) delete: Vec<String>,
}

/// Plans the slices of `service`, whose selected Pods are `pods`, from the ones there are.
pub(crate) fn plan(
    service: &Object,
    pods: &[Arc<Object>],
    node: impl Fn(&str) -> Option<Arc<Object>>,
    existing: &[Arc<Object>],
) -> Plan {
    let mut plan = Plan::default();
    let families = items(&service.value, "/spec/ipFamilies");
    for slice in existing.iter().filter(|s| !families.contains(&s.value["addressType"])) {
        plan.delete.push(slice.name().to_owned());
    }
    for family in families.iter().filter_map(Value::as_str) {
        let existing: Vec<&Object> =
            existing.iter().map(Arc::as_ref).filter(|s| s.value["addressType"] == family).collect();
        plan_family(service, family, groups(service, pods, &node, family), existing, &mut plan);
    }
    plan
}

/// The endpoints of one family by the ports they serve, ports as JSON text so that they can be a key.
fn groups(
    service: &Object,
    pods: &[Arc<Object>],
    node: impl Fn(&str) -> Option<Arc<Object>>,
    family: &str,
) -> BTreeMap<String, Vec<Value>> {
    let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for pod in pods {
        let Some(endpoint) = endpoint(service, pod, &node, family) else { continue };
        groups.entry(ports(service, pod).to_string()).or_default().push(endpoint);
    }
    groups
}

fn endpoint(
    service: &Object,
    pod: &Object,
    node: impl Fn(&str) -> Option<Arc<Object>>,
    family: &str,
) -> Option<Value> {
    if matches!(text(&pod.value, "/status/phase"), "Succeeded" | "Failed") {
        return None;
    }
    let address = pod_addresses(&pod.value).into_iter().find(|ip| ip.is_ipv6() == (family == "IPv6"))?;
    let publish_not_ready = service.value["spec"]["publishNotReadyAddresses"] == true;
    let node_name = text(&pod.value, "/spec/nodeName");
    let node = node(node_name);
    // A Pod on a Node that is not there (any more) counts only where even unready Pods do.
    if node.is_none() && !publish_not_ready {
        return None;
    }
    let terminating = !is_unset(&pod.value, "/metadata/deletionTimestamp");
    let serving =
        items(&pod.value, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let mut endpoint = json!({
        "addresses": [address.to_string()],
        "conditions": {
            "ready": publish_not_ready || (serving && !terminating),
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": {
            "kind": "Pod",
            "namespace": pod.namespace(),
            "name": pod.name(),
            "uid": pod.value["metadata"]["uid"],
        },
    });
    if !node_name.is_empty() {
        endpoint["nodeName"] = json!(node_name);
    }
    if let Some(zone) = node.as_ref().and_then(|node| node.value.pointer(ZONE)) {
        endpoint["zone"] = zone.clone();
    }
    let hostname = text(&pod.value, "/spec/hostname");
    if !hostname.is_empty() && text(&pod.value, "/spec/subdomain") == service.name() {
        endpoint["hostname"] = json!(hostname);
    }
    if let Some(hints) = hints(service, &endpoint) {
        endpoint["hints"] = hints;
    }
    Some(endpoint)
}

/// Whose the endpoint preferably is, as `spec.trafficDistribution` has it: a ready endpoint's own zone's, and its own
/// node's. The rules are those of Kubernetes' `endpointslice/trafficdist`.
fn hints(service: &Object, endpoint: &Value) -> Option<Value> {
    let wish = text(&service.value, "/spec/trafficDistribution");
    let is_close = matches!(wish, "PreferClose" | "PreferSameZone" | "PreferSameNode");
    if !is_close || endpoint["conditions"]["ready"] != true {
        return None;
    }
    let mut hints = Map::new();
    let mut hint = |name: &str, of: &Value| {
        if of.is_string() {
            hints.insert(name.to_owned(), json!([{"name": of}]));
        }
    };
    hint("forZones", &endpoint["zone"]);
    if wish == "PreferSameNode" {
        hint("forNodes", &endpoint["nodeName"]);
    }
    (!hints.is_empty()).then_some(Value::Object(hints))
}

fn pod_addresses(pod: &Value) -> Vec<IpAddr> {
    let all: Vec<IpAddr> =
        items(pod, "/status/podIPs").iter().filter_map(|ip| text(ip, "/ip").parse().ok()).collect();
    if all.is_empty() { text(pod, "/status/podIP").parse().into_iter().collect() } else { all }
}

/// The ports that `pod` serves the Service on. A port whose name the Pod does not know is left out.
fn ports(service: &Object, pod: &Object) -> Value {
    let resolve = |port: &Value| {
        let mut resolved = Map::new();
        resolved.insert("name".to_owned(), json!(text(port, "/name")));
        resolved.insert("protocol".to_owned(), port["protocol"].clone());
        resolved.insert("port".to_owned(), json!(target_port(pod, port)?));
        if let Some(protocol) = port.get("appProtocol") {
            resolved.insert("appProtocol".to_owned(), protocol.clone());
        }
        Some(Value::Object(resolved))
    };
    items(&service.value, "/spec/ports").iter().filter_map(resolve).collect()
}

fn target_port(pod: &Object, port: &Value) -> Option<u64> {
    let Some(name) = port["targetPort"].as_str() else { return port["targetPort"].as_u64() };
    let sidecars =
        items(&pod.value, "/spec/initContainers").iter().filter(|c| c["restartPolicy"] == "Always");
    items(&pod.value, "/spec/containers")
        .iter()
        .chain(sidecars)
        .flat_map(|container| items(container, "/ports"))
        .find(|p| p["name"] == name && p["protocol"] == port["protocol"])?["containerPort"]
        .as_u64()
}

/// Fits the groups into slices, moving as few endpoints as possible: an endpoint stays in its slice, and slices that
/// are no longer needed are given new content before new ones are made.
fn plan_family(
    service: &Object,
    family: &str,
    mut groups: BTreeMap<String, Vec<Value>>,
    existing: Vec<&Object>,
    plan: &mut Plan,
) {
    if groups.is_empty() {
        // A Service without endpoints has one slice that says so.
        groups.insert("null".to_owned(), Vec::new());
    }
    let mut spare: Vec<&Object> = Vec::new();
    let mut kept: BTreeMap<String, Vec<&Object>> = BTreeMap::new();
    for slice in existing {
        let ports = slice.value["ports"].to_string();
        if groups.contains_key(&ports) {
            kept.entry(ports).or_default().push(slice);
        } else {
            spare.push(slice);
        }
    }
    let mut unplaced: Vec<(Value, Vec<Value>)> = Vec::new();
    for (ports, mut endpoints) in groups {
        let ports_value: Value = serde_json::from_str(&ports).unwrap_or_default();
        let is_placeholder = endpoints.is_empty();
        let mut room: Vec<(&Object, Vec<Value>)> = Vec::new();
        for slice in kept.remove(&ports).unwrap_or_default() {
            let stays = |old: &Value| {
                let at = endpoints.iter().position(|new| same_endpoint(old, new))?;
                Some(endpoints.remove(at))
            };
            let staying: Vec<Value> = items(&slice.value, "/endpoints").iter().filter_map(stays).collect();
            room.push((slice, staying));
        }
        for (_, content) in &mut room {
            let free = MAX_ENDPOINTS.saturating_sub(content.len()).min(endpoints.len());
            content.extend(endpoints.drain(..free));
        }
        for (i, (slice, content)) in room.iter().enumerate() {
            if content.is_empty() && !(is_placeholder && i == 0) {
                spare.push(slice);
            } else {
                update(service, slice, &ports_value, content, plan);
            }
        }
        unplaced.extend(endpoints.chunks(MAX_ENDPOINTS).map(|chunk| (ports_value.clone(), chunk.to_vec())));
        if is_placeholder && room.is_empty() {
            unplaced.push((ports_value, Vec::new()));
        }
    }
    for (ports, endpoints) in unplaced {
        match spare.pop() {
            Some(slice) => update(service, slice, &ports, &endpoints, plan),
            None => plan.create.push(new_slice(service, family, &ports, &endpoints)),
        }
    }
    plan.delete.extend(spare.into_iter().map(|slice| slice.name().to_owned()));
}

fn same_endpoint(one: &Value, other: &Value) -> bool {
    one["targetRef"]["uid"] == other["targetRef"]["uid"] && one["addresses"] == other["addresses"]
}

fn update(service: &Object, slice: &Object, ports: &Value, endpoints: &[Value], plan: &mut Plan) {
    let mut wanted = slice.value.clone();
    wanted["ports"] = ports.clone();
    wanted["endpoints"] = endpoint_list(endpoints);
    wanted["metadata"]["labels"] = labels(service);
    if wanted != slice.value {
        wanted["metadata"]["annotations"][TRIGGER_TIME] = json!(clock::now_nano());
        plan.update.push(wanted);
    }
}

fn new_slice(service: &Object, family: &str, ports: &Value, endpoints: &[Value]) -> Value {
    json!({
        "metadata": {
            "generateName": format!("{}-", service.name()),
            "namespace": service.namespace(),
            "labels": labels(service),
            "annotations": {TRIGGER_TIME: clock::now_nano()},
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "Service",
                "name": service.name(),
                "uid": service.value["metadata"]["uid"],
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoint_list(endpoints),
    })
}

/// The list as the real controller's JSON has it: null when empty.
fn endpoint_list(endpoints: &[Value]) -> Value {
    if endpoints.is_empty() { Value::Null } else { json!(endpoints) }
}

fn labels(service: &Object) -> Value {
    let mut labels = service.value["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.value["spec"]["clusterIP"] == "None" {
        labels.insert(HEADLESS.to_owned(), json!(""));
    }
    labels.insert(SERVICE_NAME.to_owned(), json!(service.name()));
    labels.insert(MANAGED_BY.to_owned(), json!(CONTROLLER));
    Value::Object(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(families: Value, ports: Value) -> Object {
        Object::new(
            json!({"metadata": {"name": "web", "namespace": "default", "uid": "s", "labels": {"a": "b"}},
            "spec": {"ipFamilies": families, "ports": ports, "selector": {"app": "web"}}}),
        )
    }

    fn pod(number: usize, ready: bool) -> Arc<Object> {
        let (v4, v6) = (format!("10.244.{}.{}", number / 250, number % 250 + 1), format!("fd00::{number:x}"));
        let port = if number.is_multiple_of(2) { 8080 } else { 8081 };
        Arc::new(Object::new(json!({
            "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": format!("u{number}")},
            "spec": {"nodeName": "n1", "containers": [{"ports": [
                {"name": "http", "containerPort": port, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})))
    }

    fn node(name: &str) -> Option<Arc<Object>> {
        let node = json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "z1"}}});
        (name == "n1").then(|| Arc::new(Object::new(node)))
    }

    fn stored(plan: Plan) -> Vec<Arc<Object>> {
        let name = |(i, mut slice): (usize, Value)| {
            slice["metadata"]["name"] = json!(format!("web-{i}"));
            Arc::new(Object::new(slice))
        };
        plan.create.into_iter().enumerate().map(name).collect()
    }

    #[test]
    fn endpoints_are_grouped_by_family_and_by_what_a_named_port_means_to_each_pod() {
        let named = json!([{"name": "web", "port": 80, "protocol": "TCP", "targetPort": "http"}]);
        let service = service(json!(["IPv4", "IPv6"]), named);
        let plan = plan(&service, &[pod(0, true), pod(1, true), pod(2, false)], node, &[]);
        let mut made: Vec<_> = plan
            .create
            .iter()
            .map(|s| {
                (
                    text(s, "/addressType"),
                    s["ports"][0]["port"].as_u64().unwrap(),
                    items(s, "/endpoints").len(),
                )
            })
            .collect();
        made.sort_unstable();
        assert_eq!(made, [("IPv4", 8080, 2), ("IPv4", 8081, 1), ("IPv6", 8080, 2), ("IPv6", 8081, 1)]);
        let endpoint = &plan.create[0]["endpoints"][1];
        assert_eq!(endpoint["conditions"], json!({"ready": false, "serving": false, "terminating": false}));
        assert_eq!((text(endpoint, "/nodeName"), text(endpoint, "/zone")), ("n1", "z1"));
        assert_eq!(
            plan.create[0]["metadata"]["labels"],
            json!({"a": "b", SERVICE_NAME: "web", MANAGED_BY: CONTROLLER})
        );
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice_that_its_first_endpoint_takes_over() {
        let service = service(json!(["IPv4"]), json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
        let empty = stored(plan(&service, &[], node, &[]));
        assert_eq!(empty.len(), 1);
        assert_eq!(empty[0].value["endpoints"], Value::Null);
        assert_eq!(plan(&service, &[], node, &empty), Plan::default());
        let filled = plan(&service, &[pod(0, true)], node, &empty);
        assert_eq!((filled.create.len(), filled.update.len(), filled.delete.len()), (0, 1, 0));
    }

    #[test]
    fn endpoints_stay_in_their_slices_when_others_come_and_go() {
        let service = service(json!(["IPv4"]), json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
        let pods: Vec<_> = (0..250).map(|i| pod(i, true)).collect();
        let slices = stored(plan(&service, &pods, node, &[]));
        let sizes: Vec<_> = slices.iter().map(|s| items(&s.value, "/endpoints").len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let fewer = plan(&service, &pods[1..], node, &slices);
        assert_eq!((fewer.create.len(), fewer.update.len(), fewer.delete.len()), (0, 1, 0));
        let none = plan(&service, &[], node, &slices);
        assert_eq!((none.create.len(), none.update.len(), none.delete.len()), (0, 1, 2));
    }

    #[test]
    fn ready_endpoints_are_hinted_at_their_zone_and_node_as_the_service_wishes() {
        let port = json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]);
        let (zone, name) = (json!([{"name": "z1"}]), json!([{"name": "n1"}]));
        for (wish, ready, hints) in [
            (json!("PreferSameZone"), true, json!({"forZones": zone})),
            (json!("PreferClose"), true, json!({"forZones": zone})),
            (json!("PreferSameNode"), true, json!({"forZones": zone, "forNodes": name})),
            (json!("PreferSameNode"), false, Value::Null),
            (Value::Null, true, Value::Null),
        ] {
            let mut value = service(json!(["IPv4"]), port.clone()).value;
            value["spec"]["trafficDistribution"] = wish.clone();
            let plan = plan(&Object::new(value), &[pod(0, ready)], node, &[]);
            assert_eq!(plan.create[0]["endpoints"][0]["hints"], hints, "{wish}, ready: {ready}");
        }
    }

    #[test]
    fn a_pod_on_an_unknown_node_is_left_out() {
        let service = service(json!(["IPv4"]), json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
        let plan = plan(&service, &[pod(0, true)], |_| None, &[]);
        assert_eq!(plan.create[0]["endpoints"], Value::Null);
    }
}
