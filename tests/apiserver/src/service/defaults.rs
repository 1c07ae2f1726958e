//! The fields of a Service that are filled in when the client leaves them out.

use serde_json::{Value, json};

use super::{has_node_ports, is_headless, kind};
use crate::object::{default_to, is_unset, items, map_mut, text};

/// Keeps what was allocated when an update leaves it out, as clients that PUT what they once wrote do.
pub(super) fn carry_over(service: &mut Value, before: &Value) {
    let external_name = |s: &Value| text(s, "/spec/type") == "ExternalName";
    if !external_name(service) && !external_name(before) {
        let (unset, first) = (is_unset(service, "/spec/clusterIP"), is_unset(service, "/spec/clusterIPs/0"));
        if unset && (first || service["spec"]["clusterIPs"] == before["spec"]["clusterIPs"]) {
            service["spec"]["clusterIP"] = before["spec"]["clusterIP"].clone();
            service["spec"]["clusterIPs"] = before["spec"]["clusterIPs"].clone();
        } else if !unset && service["spec"]["clusterIPs"] == before["spec"]["clusterIPs"] && !first {
            service["spec"]["clusterIPs"][0] = service["spec"]["clusterIP"].clone();
        }
    }
    if has_node_ports(service) && has_node_ports(before) {
        let old = items(before, "/spec/ports").to_vec();
        for port in ports_mut(service) {
            let protocol = |p: &Value| p["protocol"].as_str().unwrap_or("TCP").to_owned();
            let same = old.iter().find(|o| o["port"] == port["port"] && protocol(o) == protocol(port));
            if let (true, Some(same)) = (is_unset(port, "/nodePort"), same)
                && !is_unset(same, "/nodePort")
            {
                port["nodePort"] = same["nodePort"].clone();
            }
        }
    }
    let has_health_port =
        |s: &Value| kind(s) == "LoadBalancer" && s["spec"]["externalTrafficPolicy"] == "Local";
    if has_health_port(service) && has_health_port(before) && is_unset(service, "/spec/healthCheckNodePort") {
        service["spec"]["healthCheckNodePort"] = before["spec"]["healthCheckNodePort"].clone();
    }
    forget_what_no_longer_applies(service, before);
}

/// Drops fields that only the old type had and that the client sent back unchanged.
fn forget_what_no_longer_applies(service: &mut Value, before: &Value) {
    if has_node_ports(before) && !has_node_ports(service) && kind(service) != "LoadBalancer" {
        let old = items(before, "/spec/ports").to_vec();
        for port in ports_mut(service) {
            if old.iter().any(|o| o["nodePort"] == port["nodePort"]) {
                port.as_object_mut().map(|p| p.remove("nodePort"));
            }
        }
    }
    let unchanged = |s: &Value, field: &str| s["spec"][field] == before["spec"][field];
    let mut stale = Vec::new();
    if kind(service) != "LoadBalancer" && kind(before) == "LoadBalancer" {
        stale.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if kind(service) != "LoadBalancer" || service["spec"]["externalTrafficPolicy"] != "Local" {
        stale.push("healthCheckNodePort");
    }
    if kind(service) == "ClusterIP" && kind(before) != "ClusterIP" {
        stale.push("externalTrafficPolicy");
    }
    stale.retain(|field| unchanged(service, field));
    let spec = map_mut(service, "spec");
    for field in stale {
        spec.remove(field);
    }
}

/// Fills in everything that does not need an allocator.
pub(super) fn fill(service: &mut Value) {
    let spec = map_mut(service, "spec");
    default_to(spec, "type", "ClusterIP");
    default_to(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        let config = map_mut(spec.entry("sessionAffinityConfig").or_insert(json!({})), "clientIP");
        default_to(config, "timeoutSeconds", 10_800);
    } else {
        spec.remove("sessionAffinityConfig");
    }
    let external_name = spec["type"] == "ExternalName";
    if !external_name {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    let outside = spec["type"] == "NodePort"
        || spec["type"] == "LoadBalancer"
        || spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    if outside && !external_name {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if spec["type"] == "LoadBalancer" {
        default_to(spec, "allocateLoadBalancerNodePorts", true);
    }
    default_to(map_mut(service, "status"), "loadBalancer", json!({}));
    let headless = is_headless(service);
    for port in ports_mut(service) {
        let number = port["port"].clone();
        if let Some(port) = port.as_object_mut() {
            default_to(port, "protocol", "TCP");
            let unset = port.get("targetPort").is_none_or(|t| t.is_null() || t == 0 || t == "");
            // A headless Service's target port is what its clients dial, so the port itself as well.
            if unset || (headless && port["targetPort"] == 0) {
                port.insert("targetPort".to_owned(), number);
            }
        }
    }
}

/// The ports, to be changed in place.
pub(super) fn ports_mut(service: &mut Value) -> &mut [Value] {
    service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}
