//! What the API server itself does to a Pod: defaults, and the rules for its ports, which policies and Services name.

use serde_json::{Value, json};

use crate::object::{default_to, items, map_mut, text};
use crate::service::{is_port, is_port_name};
use crate::status::FieldError;

/// Fills in what a Pod leaves out, and the one of its two fields for addresses that was not written.
pub(crate) fn complete(pod: &mut Value) {
    let spec = map_mut(pod, "spec");
    default_to(spec, "restartPolicy", "Always");
    default_to(spec, "terminationGracePeriodSeconds", 30);
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "enableServiceLinks", true);
    default_to(spec, "serviceAccountName", "default");
    default_to(spec, "securityContext", json!({}));
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                default_to(container, "imagePullPolicy", "IfNotPresent");
                default_to(container, "resources", json!({}));
            }
            let ports = container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten();
            for port in ports.filter_map(Value::as_object_mut) {
                default_to(port, "protocol", "TCP");
            }
        }
    }
    let status = map_mut(pod, "status");
    default_to(status, "phase", "Pending");
    default_to(status, "qosClass", "BestEffort");
    // The first of a pod's addresses is in both fields, whichever of them was written.
    if let Some(first) = status.get("podIPs").and_then(|ips| ips.get(0)?.get("ip")).cloned() {
        status.insert("podIP".to_owned(), first);
    } else if let Some(only) = status.get("podIP").filter(|ip| ip.is_string()).cloned() {
        status.insert("podIPs".to_owned(), json!([{"ip": only}]));
    }
}

/// Everything that is wrong with the ports of a completed Pod.
pub(crate) fn check(pod: &Value, errors: &mut Vec<FieldError>) {
    for list in ["containers", "initContainers"] {
        for (i, container) in items(pod, &format!("/spec/{list}")).iter().enumerate() {
            let ports = items(container, "/ports");
            for (j, port) in ports.iter().enumerate() {
                let field = |name: &str| format!("spec.{list}[{i}].ports[{j}].{name}");
                let name = text(port, "/name");
                if !name.is_empty() && !is_port_name(name) {
                    let why =
                        "must be at most 15 lower case alphanumeric characters or '-', one of them a letter";
                    errors.push(FieldError::invalid(field("name"), &port["name"], why));
                } else if !name.is_empty() && ports[..j].iter().any(|earlier| text(earlier, "/name") == name)
                {
                    errors.push(FieldError::duplicate(field("name"), &port["name"]));
                }
                if !is_port(&port["containerPort"]) {
                    let why = "must be between 1 and 65535, inclusive";
                    errors.push(FieldError::invalid(field("containerPort"), &port["containerPort"], why));
                }
                if !["SCTP", "TCP", "UDP"].iter().any(|p| port["protocol"] == *p) {
                    let allowed = ["SCTP", "TCP", "UDP"];
                    errors.push(FieldError::unsupported(field("protocol"), &port["protocol"], &allowed));
                }
            }
        }
    }
}
