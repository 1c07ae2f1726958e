//! OpenAPI documents that hold no more than kubectl reads before it writes: that the server validates fields itself
//! (version 3, so that kubectl need not), and that there are no schemas to validate against (version 2, which older
//! kubectls ask for as protobuf and then validate nothing).

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::resource::{self, Resource};

/// Asked for with an `@` before the version, which is no media type that clients could read in an answer.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v2`: content type and document.
pub(super) fn v2(accept: &str) -> (&'static str, Bytes) {
    if accept.contains("protobuf") {
        // Document { swagger (field 1): "2.0", info (2): Info { title (1): "fairlead", version (2): "1" } }
        return (PROTOBUF, Bytes::from_static(b"\x0a\x032.0\x12\x0d\x0a\x08fairlead\x12\x011"));
    }
    let document = json!({"swagger": "2.0", "info": info(), "paths": {}, "definitions": {}});
    ("application/json", Bytes::from(document.to_string()))
}

/// `/openapi/v3` and the documents of each group and version below it.
pub(super) fn v3(path: &str, custom: bool) -> Option<Value> {
    let rest = path.strip_prefix("/openapi/v3")?;
    let mut prefixes = vec![("api/v1".to_owned(), "", "v1")];
    prefixes.extend(resource::groups(custom).into_iter().map(|(g, v)| (format!("apis/{g}/{v}"), g, v)));
    if rest.is_empty() {
        let link = |prefix: &str| json!({"serverRelativeURL": format!("/openapi/v3/{prefix}")});
        let paths: Map<String, Value> =
            prefixes.iter().map(|(prefix, _, _)| (prefix.clone(), link(prefix))).collect();
        return Some(json!({"paths": paths}));
    }
    let (prefix, group, version) = prefixes.into_iter().find(|(prefix, _, _)| *prefix == rest[1..])?;
    let of_group = resource::served(custom).filter(|r| r.group == group && r.version == version);
    let paths: Map<String, Value> =
        of_group.map(|resource| (url(&prefix, resource), operations(resource))).collect();
    Some(json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": {}}}))
}

fn info() -> Value {
    json!({"title": "fairlead", "version": "1"})
}

fn url(prefix: &str, resource: &Resource) -> String {
    let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
    format!("/{prefix}/{scope}{}/{{name}}", resource.plural)
}

fn operations(resource: &Resource) -> Value {
    let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation"]
        .into_iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    json!({
        "patch": {
            "parameters": parameters,
            "responses": {},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": kind,
        },
    })
}
