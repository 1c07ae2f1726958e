//! What the server says of itself: groups, versions, kinds. The unaggregated form alone; clients that would rather
//! have the aggregated one fall back to it by the answer's content type.

use serde_json::{Value, json};

use crate::resource::{self, Resource};

/// The document at a fixed path, if it is one of these, of a server with or without the kinds that CustomResourceDefinitions
/// add.
pub(super) fn document(path: &str, custom: bool) -> Option<Value> {
    let steps: Vec<&str> = path.split('/').skip(1).collect();
    match steps.as_slice() {
        [""] => Some(
            json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}),
        ),
        ["version"] => Some(version()),
        ["api"] => Some(json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        })),
        ["apis"] => {
            let groups: Vec<Value> = resource::groups(custom)
                .into_iter()
                .map(|(group, _)| group_document(group, custom))
                .collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", "v1"] => Some(resources("", "v1", custom)),
        ["apis", group] if resource::groups(custom).iter().any(|(g, _)| g == group) => {
            let mut document = group_document(group, custom);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            Some(document)
        }
        ["apis", group, version] if resource::groups(custom).contains(&(*group, *version)) => {
            Some(resources(group, version, custom))
        }
        _ => None,
    }
}

fn group_document(group: &str, custom: bool) -> Value {
    let versions: Vec<Value> = resource::groups(custom)
        .into_iter()
        .filter(|(g, _)| *g == group)
        .map(|(g, version)| json!({"groupVersion": format!("{g}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "preferredVersion": versions[0], "versions": versions})
}

fn resources(group: &str, version: &str, custom: bool) -> Value {
    let of_group = resource::served(custom).filter(|r| r.group == group && r.version == version);
    let listed: Vec<Value> = of_group.flat_map(entries).collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed})
}

fn entries(resource: &Resource) -> Vec<Value> {
    let mut entries = vec![json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        "shortNames": resource.short_names,
        "categories": resource.categories,
    })];
    if resource.has_status {
        entries.push(json!({
            "name": format!("{}/status", resource.plural),
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": ["get", "patch", "update"],
        }));
    }
    entries
}

/// The version of Kubernetes whose behaviour is imitated; clients choose what they ask for by it.
fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "gitVersion": "v1.36.0+fairlead.stand-in",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}
