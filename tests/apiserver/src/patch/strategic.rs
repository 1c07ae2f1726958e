//! Strategic merge patch: a merge patch in which some lists are merged by key, with directives (`$patch`,
//! `$setElementOrder/…`, `$deleteFromPrimitiveList/…`, `$retainKeys`).
//!
//! Server-side apply merges by the same rules, without the directives.

use serde_json::{Map, Value};

use super::keys::{ListKind, below, list_kind, same};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DROP: &str = "$deleteFromPrimitiveList/";

/// `current`, an object of `kind`, with `patch` merged in.
pub(super) fn merge(kind: &str, current: &Value, patch: &Value) -> Value {
    merge_at(kind, "", Some(current), patch)
}

fn merge_at(kind: &str, path: &str, current: Option<&Value>, patch: &Value) -> Value {
    match patch {
        Value::Object(patch) => {
            let empty = Map::new();
            let current = current.and_then(Value::as_object).unwrap_or(&empty);
            Value::Object(merge_maps(kind, path, current, patch))
        }
        Value::Array(patch) => {
            let current = current.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            Value::Array(merge_lists(kind, path, current, patch))
        }
        scalar => scalar.clone(),
    }
}

fn merge_maps(
    kind: &str,
    path: &str,
    current: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Map<String, Value> {
    let directive = patch.get(DIRECTIVE).and_then(Value::as_str);
    let mut merged = if directive == Some("replace") { Map::new() } else { current.clone() };
    if let Some(Value::Array(retained)) = patch.get(RETAIN) {
        merged.retain(|key, _| retained.iter().any(|r| r == key));
    }
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN || key.starts_with(ORDER) {
            continue;
        }
        if let Some(list) = key.strip_prefix(DROP) {
            if let (Some(Value::Array(have)), Value::Array(drop)) = (merged.get_mut(list), value) {
                have.retain(|item| !drop.contains(item));
            }
            continue;
        }
        let deleted = value.is_null() || value.get(DIRECTIVE).is_some_and(|d| d == "delete");
        if deleted {
            merged.remove(key);
        } else {
            let value = merge_at(kind, &below(path, key), merged.get(key), value);
            merged.insert(key.clone(), value);
        }
    }
    for (key, order) in patch {
        if let (Some(list), Value::Array(order)) = (key.strip_prefix(ORDER), order)
            && let Some(Value::Array(have)) = merged.get_mut(list)
        {
            reorder(list_kind(kind, &below(path, list)), have, order);
        }
    }
    merged
}

fn merge_lists(kind: &str, path: &str, current: &[Value], patch: &[Value]) -> Vec<Value> {
    let list = list_kind(kind, path);
    let replaced = patch.iter().any(|item| item.get(DIRECTIVE).is_some_and(|d| d == "replace"));
    let mut merged = if list == ListKind::Atomic || replaced { Vec::new() } else { current.to_vec() };
    for item in patch {
        let directive = item.get(DIRECTIVE).and_then(Value::as_str);
        if directive == Some("replace") && item.as_object().is_some_and(|o| o.len() == 1) {
            continue;
        }
        match list {
            ListKind::Atomic => merged.push(without_directive(item)),
            ListKind::Set => {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            ListKind::Map(key, second) => {
                let keys = (key, second);
                if directive == Some("delete") {
                    merged.retain(|have| !same(keys, have, item));
                } else if let Some(have) = merged.iter_mut().find(|have| same(keys, have, item)) {
                    *have = merge_at(kind, path, Some(have), item);
                } else {
                    merged.push(merge_at(kind, path, None, item));
                }
            }
        }
    }
    merged
}

fn without_directive(item: &Value) -> Value {
    let mut item = item.clone();
    if let Some(map) = item.as_object_mut() {
        map.remove(DIRECTIVE);
    }
    item
}

/// Puts the elements named in `order` in that order, and those it does not name after them.
fn reorder(list: ListKind, have: &mut [Value], order: &[Value]) {
    let position = |item: &Value| {
        let found = order.iter().position(|o| match list {
            ListKind::Map(key, second) => same((key, second), o, item),
            ListKind::Set | ListKind::Atomic => o == item,
        });
        found.unwrap_or(usize::MAX)
    };
    have.sort_by_key(position);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_merge_by_name_and_their_ports_and_variables_by_their_keys() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}],
             "ports": [{"containerPort": 80, "protocol": "TCP"}]},
            {"name": "b", "image": "1"}]}});
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
            "containers": [{"name": "a", "env": [{"name": "X", "$patch": "delete"}, {"name": "Y", "value": "3"}],
                "ports": [{"containerPort": 80, "protocol": "UDP"}]}]}});
        let expected = json!({"spec": {"containers": [
            {"name": "b", "image": "1"},
            {"name": "a", "image": "1", "env": [{"name": "Y", "value": "3"}],
             "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]}]}});
        assert_eq!(merge("Pod", &pod, &patch), expected);
    }

    #[test]
    fn null_removes_replace_replaces_and_unkeyed_lists_are_whole() {
        let service = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]},
            "spec": {"selector": {"app": "web"}, "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}});
        let patch = json!({
            "metadata": {"labels": {"a": null}, "$deleteFromPrimitiveList/finalizers": ["x"]},
            "spec": {"selector": {"$patch": "replace", "tier": "front"}, "externalIPs": ["192.0.2.2"],
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}, {"port": 443}]}});
        let expected = json!({"metadata": {"labels": {"b": "2"}, "finalizers": ["y"]},
            "spec": {"selector": {"tier": "front"}, "externalIPs": ["192.0.2.2"],
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}, {"port": 443}]}});
        assert_eq!(merge("Service", &service, &patch), expected);
    }
}
