//! What the API server itself does to a NetworkPolicy: defaults, and the rules it must keep.

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::labels::check_selector;
use crate::object::{default_to, items, map_mut, text};
use crate::service::{is_port, is_port_name};
use crate::status::FieldError;

/// Fills in what a policy leaves out: its types, and the protocol of its ports.
pub(crate) fn complete(policy: &mut Value) {
    let egress = !items(policy, "/spec/egress").is_empty();
    let spec = map_mut(policy, "spec");
    default_to(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    for direction in ["ingress", "egress"] {
        let rules = spec.get_mut(direction).and_then(Value::as_array_mut).into_iter().flatten();
        let ports = rules.filter_map(|rule| rule.get_mut("ports")?.as_array_mut()).flatten();
        for port in ports.filter_map(Value::as_object_mut) {
            default_to(port, "protocol", "TCP");
        }
    }
}

/// Everything that is wrong with a completed policy.
pub(crate) fn check(policy: &Value, errors: &mut Vec<FieldError>) {
    let spec = &policy["spec"];
    check_selector(&spec["podSelector"], "spec.podSelector", errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in items(spec, &format!("/{direction}")).iter().enumerate() {
            for (j, port) in items(rule, "/ports").iter().enumerate() {
                check_port(port, &format!("spec.{direction}[{i}].ports[{j}]"), errors);
            }
            for (j, peer) in items(rule, &format!("/{peers}")).iter().enumerate() {
                check_peer(peer, &format!("spec.{direction}[{i}].{peers}[{j}]"), errors);
            }
        }
    }
    let types = items(spec, "/policyTypes");
    if types.len() > 2 {
        let why = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid("spec.policyTypes", &spec["policyTypes"], why));
        return;
    }
    for (i, kind) in types.iter().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            let allowed = ["Egress", "Ingress"];
            errors.push(FieldError::unsupported(format!("spec.policyTypes[{i}]"), kind, &allowed));
        }
    }
}

fn check_port(port: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let below = |name: &str| format!("{field}.{name}");
    if !["SCTP", "TCP", "UDP"].iter().any(|p| port["protocol"] == *p) {
        errors.push(FieldError::unsupported(below("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]));
    }
    let (first, last) = (&port["port"], &port["endPort"]);
    if let Some(name) = first.as_str() {
        if !is_port_name(name) {
            let why = "must be a number between 1 and 65535, inclusive, or the name of a port";
            errors.push(FieldError::invalid(below("port"), first, why));
        }
    } else if !first.is_null() && !is_port(first) {
        errors.push(FieldError::invalid(below("port"), first, "must be between 1 and 65535, inclusive"));
    }
    if last.is_null() {
        return;
    }
    let why = if first.is_null() {
        "may not be specified when `port` is not specified"
    } else if first.is_string() {
        "may not be specified when `port` is non-numeric"
    } else if last.as_i64() < first.as_i64() {
        "must be greater than or equal to `port`"
    } else if !is_port(last) {
        "must be between 1 and 65535, inclusive"
    } else {
        return;
    };
    errors.push(FieldError::invalid(below("endPort"), last, why));
}

fn check_peer(peer: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let (pods, namespaces, block) = (&peer["podSelector"], &peer["namespaceSelector"], &peer["ipBlock"]);
    for (selector, name) in [(pods, "podSelector"), (namespaces, "namespaceSelector")] {
        check_selector(selector, &format!("{field}.{name}"), errors);
    }
    let selects = !pods.is_null() || !namespaces.is_null();
    if block.is_null() {
        if !selects {
            errors.push(FieldError::required(field, "must specify a peer"));
        }
        return;
    }
    if selects {
        errors.push(FieldError::forbidden(field, "may not specify both ipBlock and another peer"));
    }
    check_block(block, &format!("{field}.ipBlock"), errors);
}

fn check_block(block: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let (cidr, field_of_cidr) = (text(block, "/cidr"), format!("{field}.cidr"));
    if cidr.is_empty() {
        errors.push(FieldError::required(field_of_cidr, ""));
        return;
    }
    let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let Ok(whole) = cidr.parse::<IpNet>() else {
        errors.push(FieldError::invalid(field_of_cidr, &block["cidr"], why));
        return;
    };
    for (i, except) in items(block, "/except").iter().enumerate() {
        let field = format!("{field}.except[{i}]");
        match except.as_str().unwrap_or_default().parse::<IpNet>() {
            Err(_) => errors.push(FieldError::invalid(field, except, why)),
            Ok(part) if !whole.contains(&part) || part.prefix_len() == whole.prefix_len() => {
                let why = "must be a strict subset of `cidr`";
                errors.push(FieldError::invalid(field, except, why));
            }
            Ok(_) => {}
        }
    }
}
