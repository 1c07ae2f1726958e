//! The objects that are watched, decoded no further than the agent reads them.
//!
//! Most of an object is of no use here: managed fields, conditions, the images on a node, the pod behind an
//! endpoint. The decoder passes over all that without keeping it, which is where time and memory go in a large
//! cluster. What is kept has the API's own field types, for [`fairlead_core::convert`] to check.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use fairlead_core::convert::{HEADLESS_LABEL, PROXY_NAME_LABEL, SERVICE_NAME_LABEL};
use fairlead_core::policy::api;
use k8s_openapi::ClusterResourceScope;
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

/// Labels of Services and EndpointSlices that anybody reads.
const LABELS: [&str; 3] = [SERVICE_NAME_LABEL, HEADLESS_LABEL, PROXY_NAME_LABEL];
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
    #[serde(deserialize_with = "labelled")]
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

/// A Pod: what policies select it by, its ports, and where it is.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    #[serde(deserialize_with = "labelled")]
    metadata: ObjectMeta,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    #[serde(default)]
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<core::ContainerPort>>,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<core::PodIP>>,
}

/// A Namespace: its labels.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Namespace {
    #[serde(deserialize_with = "labelled")]
    metadata: ObjectMeta,
}

/// A NetworkPolicy, whole but for its metadata.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NetworkPolicy {
    #[serde(deserialize_with = "trimmed")]
    metadata: ObjectMeta,
    spec: Option<networking::NetworkPolicySpec>,
}

/// A ClusterNetworkPolicy, whole but for its metadata.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ClusterNetworkPolicy {
    #[serde(deserialize_with = "trimmed")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: api::ClusterNetworkPolicySpec,
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

impl From<Pod> for core::Pod {
    fn from(Pod { metadata, spec, status }: Pod) -> Self {
        let containers = |list: Vec<Container>| list.into_iter().map(core::Container::from).collect();
        let spec =
            spec.map(|PodSpec { node_name, host_network, containers: own, init_containers }| core::PodSpec {
                node_name,
                host_network,
                containers: containers(own),
                init_containers: init_containers.map(containers),
                ..core::PodSpec::default()
            });
        let status = status.map(|PodStatus { phase, pod_ip, pod_ips }| core::PodStatus {
            phase,
            pod_ip,
            pod_ips,
            ..core::PodStatus::default()
        });
        Self { metadata, spec, status }
    }
}

impl From<Container> for core::Container {
    fn from(Container { ports, restart_policy }: Container) -> Self {
        Self { ports, restart_policy, ..Self::default() }
    }
}

impl From<Namespace> for core::Namespace {
    fn from(Namespace { metadata }: Namespace) -> Self {
        Self { metadata, ..Self::default() }
    }
}

impl From<NetworkPolicy> for networking::NetworkPolicy {
    fn from(NetworkPolicy { metadata, spec }: NetworkPolicy) -> Self {
        Self { metadata, spec }
    }
}

impl From<ClusterNetworkPolicy> for api::ClusterNetworkPolicy {
    fn from(ClusterNetworkPolicy { metadata, spec }: ClusterNetworkPolicy) -> Self {
        Self { metadata, spec }
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
    Namespace => core::Namespace;
    NetworkPolicy => networking::NetworkPolicy;
}

/// The trimmed kind that the API machinery of k8s-openapi does not know.
impl Resource for ClusterNetworkPolicy {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ClusterNetworkPolicy".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        api::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        api::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "clusternetworkpolicies".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Metadata without what nobody reads; `L` decodes the labels.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta<L: Default> {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    #[serde(default = "L::default")]
    labels: L,
    #[serde(default, deserialize_with = "annotations")]
    annotations: Option<BTreeMap<String, String>>,
}

impl<L: Default> Meta<L> {
    fn with(self, labels: impl FnOnce(L) -> Option<BTreeMap<String, String>>) -> ObjectMeta {
        ObjectMeta {
            name: self.name,
            namespace: self.namespace,
            uid: self.uid,
            resource_version: self.resource_version,
            creation_timestamp: self.creation_timestamp,
            deletion_timestamp: self.deletion_timestamp,
            labels: labels(self.labels),
            annotations: self.annotations,
            ..ObjectMeta::default()
        }
    }
}

/// Labels of which only some are kept.
#[derive(Default, Deserialize)]
struct Few(#[serde(deserialize_with = "labels")] Option<BTreeMap<String, String>>);

/// Decodes metadata, of which it keeps what anybody reads.
fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    Ok(Meta::<Few>::deserialize(deserializer)?.with(|Few(labels)| labels))
}

/// The same for objects that selectors choose by any label.
fn labelled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    Ok(Meta::<Option<BTreeMap<String, String>>>::deserialize(deserializer)?.with(|labels| labels))
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
            "metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": "z", "x": "y"}, "annotations": null,
                         "deletionTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"podCIDRs": ["10.244.0.0/24"], "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "images": [{"names": []}]},
        });
        let node = core::Node::from(from_str::<Node>(&text.to_string()).expect("a Node"));
        assert_eq!(node.labels()["topology.kubernetes.io/zone"], "z");
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

    #[test]
    fn a_pod_keeps_what_policies_ask_about() {
        let text = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "1", "labels": {"app": "web", "any": "label"},
                         "annotations": {STATIC_POD_ANNOTATION: "2", "other": "x"}},
            "spec": {
                "nodeName": "a", "hostNetwork": true, "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}],
                "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 9}]}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "conditions": []},
        });
        let pod = core::Pod::from(from_str::<Pod>(&text.to_string()).expect("a Pod"));
        assert_eq!(pod.labels().len(), 2);
        assert_eq!(pod.annotations().len(), 1);
        let spec = pod.spec.expect("a spec");
        assert_eq!((spec.node_name.as_deref(), spec.host_network), (Some("a"), Some(true)));
        let ports = |containers: &[core::Container]| -> Vec<i32> {
            let ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
            ports.map(|port| port.container_port).collect()
        };
        assert_eq!(ports(&spec.containers), [8080]);
        let sidecars = spec.init_containers.expect("init containers");
        assert_eq!((ports(&sidecars), sidecars[0].restart_policy.as_deref()), (vec![9], Some("Always")));
        let status = pod.status.expect("a status");
        assert_eq!(
            (status.phase.as_deref(), status.pod_ips.map(|ips| ips.len())),
            (Some("Running"), Some(1))
        );
    }

    #[test]
    fn a_cluster_network_policy_has_its_place_in_the_api_and_its_rules() {
        assert_eq!(
            ClusterNetworkPolicy::url_path(&(), None),
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
        );
        let text = json!({
            "metadata": {"name": "deny", "managedFields": []},
            "spec": {
                "tier": "Admin", "priority": 3, "subject": {"namespaces": {}},
                "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
            },
            "status": {"conditions": []},
        });
        let policy: ClusterNetworkPolicy = from_str(&text.to_string()).expect("a ClusterNetworkPolicy");
        let spec = api::ClusterNetworkPolicy::from(policy).spec;
        assert_eq!((spec.tier.as_str(), spec.priority, spec.ingress.len()), ("Admin", 3, 1));
    }
}
