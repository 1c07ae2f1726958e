//! Which lists are merged, and by what: the `patchMergeKey` and `listMapKeys` of the Kubernetes API types.

use serde_json::{Map, Value};

/// How a list is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListKind {
    /// A list of maps told apart by the first key; the second, where it is given on both sides, by its value
    /// (`protocol`, whose absence means TCP).
    Map(&'static str, Option<&'static str>),
    /// A list of scalars without order.
    Set,
    /// A value like any other: replaced as a whole.
    Atomic,
}

const BY_NAME: ListKind = ListKind::Map("name", None);

/// The kind of the list at `path` (field names joined by dots; elements of lists add nothing) of an object.
pub(super) fn list_kind(kind: &str, path: &str) -> ListKind {
    match (kind, path) {
        (_, "metadata.finalizers") | ("Node", "spec.podCIDRs") => ListKind::Set,
        (_, "metadata.ownerReferences") => ListKind::Map("uid", None),
        (_, "status.conditions") => ListKind::Map("type", None),
        ("ClusterNetworkPolicy", "spec.egress.to.networks" | "spec.egress.to.domainNames") => ListKind::Set,
        ("Service", "spec.ports") => ListKind::Map("port", Some("protocol")),
        ("Node", "status.addresses") => ListKind::Map("type", Some("address")),
        ("ServiceAccount", "secrets" | "imagePullSecrets") => BY_NAME,
        ("Pod", "status.podIPs" | "status.hostIPs" | "spec.hostAliases") => ListKind::Map("ip", None),
        ("Pod", "spec.topologySpreadConstraints") => ListKind::Map("topologyKey", None),
        ("Pod", path) => match path.strip_prefix("spec.").unwrap_or_default() {
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "imagePullSecrets"
            | "resourceClaims"
            | "schedulingGates" => BY_NAME,
            field => match field.split_once("ontainers.").unwrap_or_default().1 {
                "env" => BY_NAME,
                "ports" => ListKind::Map("containerPort", Some("protocol")),
                "volumeMounts" => ListKind::Map("mountPath", None),
                "volumeDevices" => ListKind::Map("devicePath", None),
                _ => ListKind::Atomic,
            },
        },
        _ => ListKind::Atomic,
    }
}

/// Whether two elements of a map list are the same one.
pub(super) fn same(keys: (&str, Option<&str>), one: &Value, other: &Value) -> bool {
    let second = |key: &str| match (one.get(key), other.get(key)) {
        (Some(one), Some(other)) => one == other,
        (Some(given), None) | (None, Some(given)) => key != "protocol" || given == "TCP",
        (None, None) => true,
    };
    one.get(keys.0).is_some() && one.get(keys.0) == other.get(keys.0) && keys.1.is_none_or(second)
}

/// The keys of an element, as managedFields spell them.
pub(super) fn key_of(keys: (&str, Option<&str>), element: &Value) -> String {
    let mut key = Map::new();
    for name in std::iter::once(keys.0).chain(keys.1) {
        let default = if name == "protocol" { Value::from("TCP") } else { Value::Null };
        key.insert(name.to_owned(), element.get(name).cloned().unwrap_or(default));
    }
    Value::Object(key).to_string()
}

/// The path of a field below `path`.
pub(super) fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
