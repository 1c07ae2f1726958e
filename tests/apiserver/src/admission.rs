//! What happens to an object between a client's write and the store, kind by kind: defaults, rules, allocations.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde_json::{Value, json};

use crate::object::{default_to, is_unset, items, map_mut, text};
use crate::resource::Resource;
use crate::service::{self, Claims};
use crate::status::{ApiError, FieldError};
use crate::store::Store;
use crate::{ENDPOINT_SLICES, EVENTS, NAMESPACES, NETWORK_POLICIES, NODES, PODS, SERVICE_CIDRS, SERVICES};
use crate::{clock, custom, event, labels, network_policy, pod};

/// Completes and checks `object`, which is about to replace `before`.
///
/// # Errors
/// Everything that is wrong with the object, by field.
pub(crate) fn admit(
    resource: &'static Resource,
    object: &mut Value,
    before: Option<&Value>,
    store: &Store,
    claims: &Claims,
    cluster_cidrs: &[IpNet],
) -> Result<(), ApiError> {
    let name = text(object, "/metadata/name").to_owned();
    let mut errors = Vec::new();
    if before.is_none() {
        check_name(resource, &name, &mut errors);
    }
    labels::check(object, "metadata.labels", &mut errors);
    if resource == &SERVICES {
        if let Err(more) = service::admit(object, before, claims) {
            errors.extend(more);
        }
    } else if resource == &PODS {
        pod::complete(object);
        pod::check(object, &mut errors);
    } else if resource == &NODES {
        give_pod_cidrs(object, store, cluster_cidrs);
    } else if resource == &NAMESPACES {
        default_to(map_mut(object, "status"), "phase", "Active");
        let labels = map_mut(&mut object["metadata"], "labels");
        labels.insert("kubernetes.io/metadata.name".to_owned(), json!(name));
        if before.is_none() {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
        }
    } else if resource == &ENDPOINT_SLICES {
        check_slice(object, before, &mut errors);
    } else if resource == &NETWORK_POLICIES {
        network_policy::complete(object);
        network_policy::check(object, &mut errors);
        count_generation(object, before);
    } else if resource == &EVENTS {
        event::check(object, before, &mut errors);
    } else if resource == &SERVICE_CIDRS {
        check_service_cidr(object, before, &mut errors);
    } else if resource.custom {
        custom::check(resource, object, &mut errors);
        count_generation(object, before);
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(resource, &name, &errors)) }
}

fn check_name(resource: &Resource, name: &str, errors: &mut Vec<FieldError>) {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_subdomain =
        name.len() <= 253 && name.chars().all(inner) && name.starts_with(ends) && name.ends_with(ends);
    let is_label = is_subdomain && name.len() <= 63 && !name.contains('.');
    let (good, rule) = if resource == &SERVICES {
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
        (
            is_label && starts_well,
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-'",
        )
    } else if resource == &NAMESPACES {
        (is_label, "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'")
    } else {
        (
            is_subdomain,
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'",
        )
    };
    if !good {
        errors.push(FieldError::invalid("metadata.name", &json!(name), rule));
    }
}

/// `metadata.generation`: how often what is wanted was written, metadata and status aside.
fn count_generation(object: &mut Value, before: Option<&Value>) {
    let generation = match before {
        None => 1,
        Some(before) => {
            let earlier = before["metadata"]["generation"].as_u64().unwrap_or_default();
            earlier + u64::from(before["spec"] != object["spec"])
        }
    };
    object["metadata"]["generation"] = json!(generation);
}

/// Gives a Node the first subnets of the cluster's ranges that no other Node has: /24 of IPv4, /64 of IPv6. In a
/// cluster this is the controller manager's work; here a Node has them from its creation.
fn give_pod_cidrs(node: &mut Value, store: &Store, cluster_cidrs: &[IpNet]) {
    let spec = map_mut(node, "spec");
    if let Some(first) = spec.get("podCIDR").filter(|c| !c.is_null()).cloned() {
        default_to(spec, "podCIDRs", json!([first]));
    }
    if is_unset(node, "/spec/podCIDRs/0") {
        let own = text(node, "/metadata/name").to_owned();
        let taken: BTreeSet<String> = store
            .list(&NODES, None)
            .filter(|other| other.name() != own)
            .flat_map(|other| items(&other.value, "/spec/podCIDRs").iter().filter_map(Value::as_str))
            .map(str::to_owned)
            .collect();
        let free = |range: &IpNet| -> Option<String> {
            let mut subnets: Box<dyn Iterator<Item = String>> = match range {
                IpNet::V4(range) => {
                    let (first, last) = (range.network(), range.broadcast());
                    Box::new(Ipv4Subnets::new(first, last, 24).map(|s| s.to_string()))
                }
                IpNet::V6(range) => {
                    let (first, last) = (range.network(), range.broadcast());
                    Box::new(Ipv6Subnets::new(first, last, 64).map(|s| s.to_string()))
                }
            };
            subnets.find(|subnet| !taken.contains(subnet))
        };
        let given: Vec<String> = cluster_cidrs.iter().filter_map(free).collect();
        if !given.is_empty() {
            node["spec"]["podCIDRs"] = json!(given);
        }
    }
    if let Some(first) = node.pointer("/spec/podCIDRs/0").cloned() {
        node["spec"]["podCIDR"] = first;
    }
}

/// One range of each family, for life but for a second one that is added. A ServiceCIDR is ready at once, as it soon
/// is where a controller has to see to it.
fn check_service_cidr(cidr: &mut Value, before: Option<&Value>, errors: &mut Vec<FieldError>) {
    let given = items(cidr, "/spec/cidrs");
    if given.is_empty() {
        errors.push(FieldError::required("spec.cidrs", "at least one CIDR required"));
    }
    let mut seen = Vec::new();
    for (i, text) in given.iter().enumerate() {
        let field = format!("spec.cidrs[{i}]");
        match text.as_str().unwrap_or_default().parse::<IpNet>() {
            Ok(range) if range.addr() == range.network() => {
                if seen.contains(&range.max_prefix_len()) {
                    errors.push(FieldError::invalid(
                        field,
                        text,
                        "may specify no more than one IP for each IP family",
                    ));
                }
                seen.push(range.max_prefix_len());
            }
            _ => errors.push(FieldError::invalid(field, text, "must be a valid CIDR value")),
        }
    }
    let kept = before.map_or(&[][..], |before| items(before, "/spec/cidrs"));
    if !given.starts_with(kept) {
        errors.push(FieldError::invalid("spec.cidrs", &json!(given), "field is immutable"));
    }
    let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": clock::now()}]);
    default_to(map_mut(cidr, "status"), "conditions", ready);
}

fn check_slice(slice: &mut Value, before: Option<&Value>, errors: &mut Vec<FieldError>) {
    let kind = &slice["addressType"];
    if !["IPv4", "IPv6", "FQDN"].iter().any(|k| kind == k) {
        errors.push(FieldError::unsupported("addressType", kind, &["FQDN", "IPv4", "IPv6"]));
    } else if before.is_some_and(|before| &before["addressType"] != kind) {
        errors.push(FieldError::invalid("addressType", kind, "field is immutable"));
    }
    for (i, endpoint) in items(slice, "/endpoints").iter().enumerate() {
        if items(endpoint, "/addresses").is_empty() {
            errors.push(FieldError::required(
                format!("endpoints[{i}].addresses"),
                "must contain at least 1 address",
            ));
        }
    }
    for port in slice
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        port.entry("name").or_insert(json!(""));
        default_to(port, "protocol", "TCP");
    }
}
