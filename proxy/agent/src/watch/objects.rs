//! The objects that are watched, decoded no further than the agent reads them.
//!
//! Most of an object is of no use here: managed fields, conditions, the images on a node, the pod behind an
//! endpoint. The decoder passes over all that without keeping it, which is where time and memory go in a large
//! cluster. What is kept has the API's own field types, for [`fairlead_core::convert`] to check.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use fairlead_core::convert::{HEADLESS_LABEL, PROXY_NAME_LABEL, SERVICE_NAME_LABEL, ZONE_LABEL};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// When the change was made that an EndpointSlice's last write is due to.
pub const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Whether a Pod's sockets are translated: "off" if not.
pub const SOCKET_LB_ANNOTATION: &str = "fairlead.io/socket-lb";
/// The UID under which the kubelet runs a static pod, whose mirror in the API has another one.
pub const STATIC_POD_ANNOTATION: &str = "kubernetes.io/config.hash";

/// Labels that anybody reads.
const LABELS: [&str; 4] = [SERVICE_NAME_LABEL, HEADLESS_LABEL, PROXY_NAME_LABEL, ZONE_LABEL];
/// Annotations that anybody reads.
const ANNOTATIONS: [&str; 3] = [TRIGGER_ANNOTATION, SOCKET_LB_ANNOTATION, STATIC_POD_ANNOTATION];

/// A Service, whole but for its metadata: almost every field counts.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Service {
    #[serde(deserialize_with = "trimmed")]
    metadata: ObjectMeta,
    spec: Option<core::ServiceSpec>,
    status: Option<core::ServiceStatus>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    #[serde(deserialize_with = "trimmed")]
    metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<discovery::EndpointPort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    conditions: Option<discovery::EndpointConditions>,
    node_name: Option<String>,
    zone: Option<String>,
    hints: Option<discovery::EndpointHints>,
}

/// A Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Node {
    #[serde(deserialize_with = "trimmed")]
    metadata: ObjectMeta,
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<core::Taint>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeStatus {
    addresses: Option<Vec<core::NodeAddress>>,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceCidr {
    #[serde(deserialize_with = "trimmed")]
    metadata: ObjectMeta,
    spec: Option<networking::ServiceCIDRSpec>,
}

/// A Pod: its name, UID and annotations.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    #[serde(deserialize_with = "trimmed")]
    metadata: ObjectMeta,
}

impl EndpointSlice {
    /// When the change was made that the last write of the slice is due to, if it says so.
    pub fn caused(&self) -> Option<SystemTime> {
        let stamp: Timestamp = self.annotations().get(TRIGGER_ANNOTATION)?.parse().ok()?;
        Some(stamp.into())
    }
}

impl From<Service> for core::Service {
    fn from(Service { metadata, spec, status }: Service) -> Self {
        Self { metadata, spec, status }
    }
}

impl From<EndpointSlice> for discovery::EndpointSlice {
    fn from(EndpointSlice { metadata, address_type, endpoints, ports }: EndpointSlice) -> Self {
        let endpoints = endpoints.map(|list| list.into_iter().map(discovery::Endpoint::from).collect());
        Self { metadata, address_type, endpoints, ports }
    }
}

impl From<Endpoint> for discovery::Endpoint {
    fn from(Endpoint { addresses, conditions, node_name, zone, hints }: Endpoint) -> Self {
        Self { addresses, conditions, node_name, zone, hints, ..Self::default() }
    }
}

impl From<Node> for core::Node {
    fn from(Node { metadata, spec, status }: Node) -> Self {
        let spec = spec.map(|NodeSpec { pod_cidrs, taints }| core::NodeSpec {
            pod_cidrs,
            taints,
            ..core::NodeSpec::default()
        });
        let status = status
            .map(|NodeStatus { addresses }| core::NodeStatus { addresses, ..core::NodeStatus::default() });
        Self { metadata, spec, status }
    }
}

impl From<ServiceCidr> for networking::ServiceCIDR {
    fn from(ServiceCidr { metadata, spec }: ServiceCidr) -> Self {
        Self { metadata, spec, status: None }
    }
}

/// Says of a trimmed type whose place in the API it has.
macro_rules! stands_for {
    ($($trimmed:ty => $whole:ty;)+) => {
        $(impl Resource for $trimmed {
            type DynamicType = ();
            type Scope = <$whole as Resource>::Scope;

            fn kind((): &()) -> Cow<'_, str> {
                <$whole>::kind(&())
            }

            fn group((): &()) -> Cow<'_, str> {
                <$whole>::group(&())
            }

            fn version((): &()) -> Cow<'_, str> {
                <$whole>::version(&())
            }

            fn plural((): &()) -> Cow<'_, str> {
                <$whole>::plural(&())
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        })+
    };
}

stands_for! {
    Service => core::Service;
    EndpointSlice => discovery::EndpointSlice;
    Node => core::Node;
    ServiceCidr => networking::ServiceCIDR;
    Pod => core::Pod;
}

/// Decodes metadata, of which it keeps what anybody reads.
fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        #[serde(default, deserialize_with = "labels")]
        labels: Option<BTreeMap<String, String>>,
        #[serde(default, deserialize_with = "annotations")]
        annotations: Option<BTreeMap<String, String>>,
    }
    let Meta {
        name,
        namespace,
        uid,
        resource_version,
        creation_timestamp,
        deletion_timestamp,
        labels,
        annotations,
    } = Meta::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        creation_timestamp,
        deletion_timestamp,
        labels,
        annotations,
        ..ObjectMeta::default()
    })
}

fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    deserializer.deserialize_option(Only(&LABELS))
}

fn annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    deserializer.deserialize_option(Only(&ANNOTATIONS))
}

/// Takes of a map of texts the entries with these keys.
struct Only(&'static [&'static str]);

impl<'de> Visitor<'de> for Only {
    type Value = Option<BTreeMap<String, String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut kept = BTreeMap::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if self.0.contains(&&*key) {
                kept.insert(key.into_owned(), map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Some(kept))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, json};

    use super::*;

    #[test]
    fn a_slice_keeps_what_its_endpoints_are_chosen_by() {
        let text = json!({
            "metadata": {
                "name": "web-1", "namespace": "default", "resourceVersion": "7",
                "creationTimestamp": "2024-01-01T00:00:00Z",
                "labels": {SERVICE_NAME_LABEL: "web", "other": "x"},
                "annotations": {TRIGGER_ANNOTATION: "2024-01-01T00:00:00.5Z", "other": "x\ny"},
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:a": {}}}],
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": ["10.0.0.1"], "nodeName": "a", "zone": "z", "hints": {"forZones": [{"name": "z"}]},
                "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "a"},
            }],
        });
        let slice: EndpointSlice = from_str(&text.to_string()).expect("a slice");
        assert_eq!(slice.resource_version().as_deref(), Some("7"));
        let whole = discovery::EndpointSlice::from(slice);
        assert_eq!(whole.labels().keys().collect::<Vec<_>>(), [SERVICE_NAME_LABEL]);
        assert_eq!(whole.annotations().keys().collect::<Vec<_>>(), [TRIGGER_ANNOTATION]);
        let endpoint = &whole.endpoints.as_deref().expect("endpoints")[0];
        assert_eq!((endpoint.node_name.as_deref(), endpoint.zone.as_deref()), (Some("a"), Some("z")));
        assert!(endpoint.hints.is_some() && endpoint.conditions.is_some() && endpoint.target_ref.is_none());
        assert_eq!(whole.ports.expect("ports")[0].port, Some(8080));
    }

    #[test]
    fn a_node_keeps_its_addresses_zone_and_taints() {
        let text = json!({
            "metadata": {"name": "a", "labels": {ZONE_LABEL: "z", "x": "y"}, "annotations": null,
                         "deletionTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"podCIDRs": ["10.244.0.0/24"], "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "images": [{"names": []}]},
        });
        let node = core::Node::from(from_str::<Node>(&text.to_string()).expect("a Node"));
        assert_eq!(node.labels()[ZONE_LABEL], "z");
        assert!(node.metadata.deletion_timestamp.is_some());
        let (spec, status) = (node.spec.expect("a spec"), node.status.expect("a status"));
        assert_eq!(spec.pod_cidrs.expect("ranges"), ["10.244.0.0/24"]);
        assert_eq!(spec.taints.expect("taints")[0].key, "k");
        assert_eq!(status.addresses.expect("addresses")[0].address, "192.0.2.1");
    }

    #[test]
    fn objects_are_asked_for_where_the_api_has_them() {
        let path = EndpointSlice::url_path(&(), None);
        assert_eq!(path, "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(ServiceCidr::url_path(&(), None), "/apis/networking.k8s.io/v1/servicecidrs");
        assert_eq!(Pod::url_path(&(), Some("shop")), "/api/v1/namespaces/shop/pods");
    }
}
