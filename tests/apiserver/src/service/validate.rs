//! The rules a Service must keep whatever else is in the cluster.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{is_headless, kind};
use crate::object::{is_unset, items, text};
use crate::status::FieldError;

/// Everything that is wrong with a defaulted Service.
pub(super) fn check(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &service["spec"];
    one_of(&mut errors, spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    one_of(&mut errors, spec, "sessionAffinity", &["ClientIP", "None"]);
    one_of(&mut errors, spec, "internalTrafficPolicy", &["Cluster", "Local"]);
    one_of(&mut errors, spec, "externalTrafficPolicy", &["Cluster", "Local"]);
    one_of(&mut errors, spec, "ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    one_of(&mut errors, spec, "trafficDistribution", &distributions);
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if spec["sessionAffinity"] == "ClientIP" && !timeout.as_i64().is_some_and(|t| (1..=86_400).contains(&t)) {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.push(FieldError::invalid(field, timeout, "must be greater than 0 and less than 86400"));
    }
    if kind(service) == "ExternalName" && is_unset(service, "/spec/externalName") {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    if is_headless(service) && matches!(kind(service), "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {} services", kind(service));
        errors.push(FieldError::invalid("spec.clusterIPs[0]", &json!("None"), why));
    }
    if let Some(selector) = spec.get("selector").filter(|s| !s.is_null()) {
        let strings = selector.as_object().is_some_and(|s| s.values().all(Value::is_string));
        if !strings {
            errors.push(FieldError::invalid("spec.selector", selector, "must be a map of strings"));
        }
    }
    addresses(&mut errors, service);
    ports(&mut errors, service);
    errors
}

fn one_of(errors: &mut Vec<FieldError>, spec: &Value, field: &str, allowed: &[&str]) {
    let value = &spec[field];
    if !value.is_null() && !allowed.iter().any(|a| value == a) {
        errors.push(FieldError::unsupported(format!("spec.{field}"), value, allowed));
    }
}

fn addresses(errors: &mut Vec<FieldError>, service: &Value) {
    for (i, address) in items(service, "/spec/externalIPs").iter().enumerate() {
        let field = format!("spec.externalIPs[{i}]");
        match address.as_str().unwrap_or_default().parse::<IpAddr>() {
            Err(_) => errors.push(FieldError::invalid(field, address, "must be a valid IP address")),
            Ok(ip) if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => {
                let why = "may not be in the loopback, multicast or unspecified range";
                errors.push(FieldError::invalid(field, address, why));
            }
            Ok(_) => {}
        }
    }
    for (i, range) in items(service, "/spec/loadBalancerSourceRanges").iter().enumerate() {
        if range.as_str().unwrap_or_default().trim().parse::<ipnet::IpNet>().is_err() {
            let field = format!("spec.loadBalancerSourceRanges[{i}]");
            errors.push(FieldError::invalid(field, range, "must be a valid CIDR value"));
        }
    }
    if !items(service, "/spec/loadBalancerSourceRanges").is_empty() && kind(service) != "LoadBalancer" {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.loadBalancerSourceRanges", why));
    }
}

fn ports(errors: &mut Vec<FieldError>, service: &Value) {
    let ports = items(service, "/spec/ports");
    if ports.is_empty() && !is_headless(service) && kind(service) != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    for (i, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let name = text(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(field("name"), ""));
        } else if !name.is_empty() && !is_label(name) {
            let why = "must consist of lower case alphanumeric characters or '-', and be at most 63 long";
            errors.push(FieldError::invalid(field("name"), &port["name"], why));
        }
        if !is_port(&port["port"]) {
            errors.push(FieldError::invalid(
                field("port"),
                &port["port"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        if !["SCTP", "TCP", "UDP"].iter().any(|p| port["protocol"] == *p) {
            let allowed = ["SCTP", "TCP", "UDP"];
            errors.push(FieldError::unsupported(field("protocol"), &port["protocol"], &allowed));
        }
        let target = &port["targetPort"];
        let target_is_good = match target.as_str() {
            Some(name) => is_port_name(name),
            None => is_port(target),
        };
        if !target_is_good {
            let why = "must be between 1 and 65535, inclusive, or the name of a port";
            errors.push(FieldError::invalid(field("targetPort"), target, why));
        }
        let node_port = &port["nodePort"];
        if matches!(kind(service), "ClusterIP" | "ExternalName") && node_port.as_u64().is_some_and(|n| n > 0)
        {
            let why = format!("may not be used when `type` is '{}'", kind(service));
            errors.push(FieldError::forbidden(field("nodePort"), why));
        }
        for earlier in &ports[..i] {
            if !name.is_empty() && text(earlier, "/name") == name {
                errors.push(FieldError::duplicate(field("name"), &port["name"]));
            }
            if earlier["port"] == port["port"] && earlier["protocol"] == port["protocol"] {
                let what = json!({"port": port["port"], "protocol": port["protocol"]});
                errors.push(FieldError::duplicate(format!("spec.ports[{i}]"), &what));
            }
        }
    }
}

/// Whether a number is one of a port.
pub(crate) fn is_port(value: &Value) -> bool {
    value.as_u64().is_some_and(|port| (1..=65_535).contains(&port))
}

/// RFC 1123: a label of a domain name.
fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// RFC 6335, section 5.1: at most 15 characters, at least one of them a letter.
pub(crate) fn is_port_name(name: &str) -> bool {
    is_label(name)
        && name.len() <= 15
        && name.contains(|c: char| c.is_ascii_lowercase())
        && !name.contains("--")
}
