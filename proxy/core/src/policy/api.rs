//! ClusterNetworkPolicy v1alpha2 as the API has it, field for field.
//!
//! From the types of kubernetes-sigs/network-policy-api, `apis/v1alpha2/clusternetworkpolicy_types.go`. Everything is
//! optional here that an object of another version might lack; [`crate::convert::cluster_policy`] checks.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

/// The API group.
pub const GROUP: &str = "policy.networking.k8s.io";
/// The version of the API group.
pub const VERSION: &str = "v1alpha2";
/// The kind.
pub const KIND: &str = "ClusterNetworkPolicy";
/// The resource's name in paths.
pub const PLURAL: &str = "clusternetworkpolicies";

/// A cluster-wide network policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterNetworkPolicy {
    /// Standard metadata; the object has no namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is asked for.
    #[serde(default)]
    pub spec: ClusterNetworkPolicySpec,
}

/// The spec of a [`ClusterNetworkPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterNetworkPolicySpec {
    /// `Admin` or `Baseline`.
    pub tier: String,
    /// 0–1000; policies with lower numbers are asked first.
    pub priority: i32,
    /// The pods that the policy applies to.
    pub subject: Subject,
    /// Rules for what the pods are sent, at most 25, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<IngressRule>,
    /// Rules for what the pods send, at most 25, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
}

/// The pods that a policy applies to: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// All pods of the namespaces with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Pods with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// Pods by their own labels and those of their namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedPod {
    /// Labels of the namespace; empty: any.
    pub namespace_selector: LabelSelector,
    /// Labels of the pod; empty: any.
    pub pod_selector: LabelSelector,
}

/// A rule for what pods are sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// What people call it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// Who sends.
    pub from: Vec<Peer>,
    /// To which ports; empty: whatever is sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<Protocol>,
}

/// A rule for what pods send.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    /// What people call it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// Who is sent to.
    pub to: Vec<Peer>,
    /// At which ports; empty: whatever is sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<Protocol>,
}

/// Whom a rule is about: exactly one field is set. One without any is of a kind that a newer version knows.
///
/// Ingress rules know only `namespaces` and `pods`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// All pods of the namespaces with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Pods with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// The addresses of the nodes with these labels (experimental).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// The addresses in these ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// The addresses that these names stand for (experimental).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
}

/// Ports that a rule is about: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Protocol {
    /// TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ProtocolPorts>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<ProtocolPorts>,
    /// SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ProtocolPorts>,
    /// The ports, of whatever protocol, that the destination pod's containers give this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

/// Ports of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolPorts {
    /// Which ports; none: all of the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<Port>,
}

/// A port or a range of them: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// One port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    /// Several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// The ports from `start` to `end`, both among them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PortRange {
    /// The first port.
    pub start: i32,
    /// The last port, greater than the first.
    pub end: i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn an_object_is_read_field_for_field_and_written_as_it_came() {
        let object = json!({
            "metadata": { "name": "guard" },
            "spec": {
                "tier": "Admin", "priority": 10,
                "subject": { "pods": {
                    "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": "web" } },
                } },
                "egress": [{
                    "name": "out", "action": "Deny",
                    "to": [
                        { "nodes": {} }, { "networks": ["10.0.0.0/8"] }, { "domainNames": ["*.example.com"] },
                    ],
                    "protocols": [
                        { "tcp": { "destinationPort": { "number": 80 } } },
                        { "udp": { "destinationPort": { "range": { "start": 1, "end": 9 } } } },
                        { "sctp": {} }, { "destinationNamedPort": "http" },
                    ],
                }],
            },
        });
        let read: ClusterNetworkPolicy = from_value(object.clone()).expect("a ClusterNetworkPolicy");
        assert_eq!(serde_json::to_value(&read).expect("a value"), object);
        let newer: Peer = from_value(json!({ "services": {} })).expect("a peer");
        assert_eq!(newer, Peer::default());
    }
}
