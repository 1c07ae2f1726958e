//! Nodes.

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{Notes, TO_BE_DELETED_TAINT, ZONE_LABEL, unicast};
use crate::model::Node;

pub(super) fn convert(object: &core::Node, notes: &mut Notes) -> Option<Node> {
    let Some(name) = object.metadata.name.clone() else {
        notes.note("metadata.name", "missing");
        return None;
    };
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let is_tainted = taints.iter().any(|taint| taint.key == TO_BE_DELETED_TAINT);
    let mut node = Node {
        name,
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: object.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL)).cloned(),
        leaving: object.metadata.deletion_timestamp.is_some() || is_tainted,
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::node;
    use serde_json::{Value, from_value, json};

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

    #[test]
    fn a_node_leaves_when_it_is_deleted_or_the_autoscaler_says_so() {
        let leaves = |metadata: Value, spec: Value| {
            let object = json!({ "metadata": metadata, "spec": spec });
            node(&from_value(object).expect("a Node")).value.expect("a Node").leaving
        };
        assert!(!leaves(
            json!({ "name": "a" }),
            json!({ "taints": [{ "key": "other", "effect": "NoSchedule" }] })
        ));
        let deleted = json!({ "name": "a", "deletionTimestamp": "2025-01-01T00:00:00Z" });
        assert!(leaves(deleted, json!({})));
        let taint = json!({ "taints": [{ "key": TO_BE_DELETED_TAINT, "effect": "NoSchedule" }] });
        assert!(leaves(json!({ "name": "a" }), taint));
    }
}
