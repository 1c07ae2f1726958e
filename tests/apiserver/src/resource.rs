//! The kinds this server knows, and how their URLs, names and short names are spelled.
//!
//! One [`Resource`] per kind, all of them in [`ALL`]; discovery, routing and storage read this table and nothing
//! else, so a kind is added by adding an entry.

/// One kind of object and its place in the API.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version inside the group.
    pub version: &'static str,
    /// The name in URLs, as in `services`. Unique in [`ALL`], so it also names the collection in the store.
    pub plural: &'static str,
    /// The singular name kubectl accepts.
    pub singular: &'static str,
    /// The `kind` of its objects.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it has the `status` subresource, in which case writes of the object leave `status` alone.
    pub has_status: bool,
    /// Abbreviations kubectl accepts.
    pub short_names: &'static [&'static str],
    /// Groups of kinds that kubectl knows it by, as in `kubectl get all`.
    pub categories: &'static [&'static str],
    /// Whether a CustomResourceDefinition stands behind it, whose schema its objects must keep.
    pub custom: bool,
}

impl Resource {
    /// `v1`, or `group/version`: the `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `services`, or `endpointslices.discovery.k8s.io`: how error messages name it.
    #[must_use]
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Service`, or `EndpointSlice.discovery.k8s.io`: how the refusal of an object names it.
    #[must_use]
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }
}

const CORE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    namespaced: true,
    has_status: false,
    short_names: &[],
    categories: &[],
    custom: false,
};

/// Namespaces.
pub static NAMESPACES: Resource = Resource {
    plural: "namespaces",
    singular: "namespace",
    kind: "Namespace",
    namespaced: false,
    has_status: true,
    short_names: &["ns"],
    ..CORE
};
/// Nodes.
pub static NODES: Resource = Resource {
    plural: "nodes",
    singular: "node",
    kind: "Node",
    namespaced: false,
    has_status: true,
    short_names: &["no"],
    ..CORE
};
/// Pods.
pub static PODS: Resource = Resource {
    plural: "pods",
    singular: "pod",
    kind: "Pod",
    has_status: true,
    short_names: &["po"],
    categories: &["all"],
    ..CORE
};
/// Services.
pub static SERVICES: Resource = Resource {
    plural: "services",
    singular: "service",
    kind: "Service",
    has_status: true,
    short_names: &["svc"],
    categories: &["all"],
    ..CORE
};
/// Endpoints: stored for those who ask, never filled.
pub static ENDPOINTS: Resource =
    Resource { plural: "endpoints", singular: "endpoints", kind: "Endpoints", short_names: &["ep"], ..CORE };
/// ConfigMaps.
pub static CONFIG_MAPS: Resource =
    Resource { plural: "configmaps", singular: "configmap", kind: "ConfigMap", short_names: &["cm"], ..CORE };
/// Secrets.
pub static SECRETS: Resource = Resource { plural: "secrets", singular: "secret", kind: "Secret", ..CORE };
/// Events, in their own group alone; a real server shows them in the core group too, in an older form.
pub static EVENTS: Resource = Resource {
    group: "events.k8s.io",
    plural: "events",
    singular: "event",
    kind: "Event",
    short_names: &["ev"],
    ..CORE
};
/// ServiceAccounts.
pub static SERVICE_ACCOUNTS: Resource = Resource {
    plural: "serviceaccounts",
    singular: "serviceaccount",
    kind: "ServiceAccount",
    short_names: &["sa"],
    ..CORE
};
/// EndpointSlices.
pub static ENDPOINT_SLICES: Resource = Resource {
    group: "discovery.k8s.io",
    plural: "endpointslices",
    singular: "endpointslice",
    kind: "EndpointSlice",
    ..CORE
};
/// NetworkPolicies.
pub static NETWORK_POLICIES: Resource = Resource {
    group: "networking.k8s.io",
    plural: "networkpolicies",
    singular: "networkpolicy",
    kind: "NetworkPolicy",
    short_names: &["netpol"],
    ..CORE
};
/// ServiceCIDRs.
pub static SERVICE_CIDRS: Resource = Resource {
    group: "networking.k8s.io",
    plural: "servicecidrs",
    singular: "servicecidr",
    kind: "ServiceCIDR",
    namespaced: false,
    has_status: true,
    ..CORE
};
/// ClusterNetworkPolicies.
pub static CLUSTER_NETWORK_POLICIES: Resource = Resource {
    group: "policy.networking.k8s.io",
    version: "v1alpha2",
    plural: "clusternetworkpolicies",
    singular: "clusternetworkpolicy",
    kind: "ClusterNetworkPolicy",
    namespaced: false,
    has_status: true,
    short_names: &["cnp"],
    custom: true,
    ..CORE
};
/// Leases.
pub static LEASES: Resource =
    Resource { group: "coordination.k8s.io", plural: "leases", singular: "lease", kind: "Lease", ..CORE };

/// Every kind this server knows.
pub static ALL: [&Resource; 14] = [
    &NAMESPACES,
    &NODES,
    &PODS,
    &SERVICES,
    &ENDPOINTS,
    &CONFIG_MAPS,
    &SECRETS,
    &EVENTS,
    &SERVICE_ACCOUNTS,
    &ENDPOINT_SLICES,
    &NETWORK_POLICIES,
    &SERVICE_CIDRS,
    &CLUSTER_NETWORK_POLICIES,
    &LEASES,
];

/// The resource that a URL names, if this server knows it.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    ALL.into_iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The kinds served where the CustomResourceDefinitions are installed, or aren't, in the order of [`ALL`].
pub(crate) fn served(custom: bool) -> impl Iterator<Item = &'static Resource> {
    ALL.into_iter().filter(move |resource| custom || !resource.custom)
}

/// The groups of the kinds [`served`], but for the core one, with their single version.
#[must_use]
pub(crate) fn groups(custom: bool) -> Vec<(&'static str, &'static str)> {
    let mut groups: Vec<(&str, &str)> = Vec::new();
    for resource in served(custom) {
        if !resource.group.is_empty() && !groups.contains(&(resource.group, resource.version)) {
            groups.push((resource.group, resource.version));
        }
    }
    groups
}
