//! Server-side apply: the applied fields are merged in, and what the same manager applied before and now leaves out
//! is removed unless another manager applies it too. Conflicts between managers are not detected: the last one wins.

use serde_json::{Map, Value, json};

use super::keys::{ListKind, below, key_of, list_kind};
use super::strategic;
use crate::clock;
use crate::object::{items, text};
use crate::resource::Resource;

/// `current` (null if the object is new) with `applied` merged in on behalf of `manager`.
pub(super) fn apply(resource: &Resource, current: &Value, applied: &Value, manager: &str) -> Value {
    let mut owned = fields(resource.kind, "", applied);
    for identity in ["f:apiVersion", "f:kind"] {
        owned.remove(identity);
    }
    if let Some(Value::Object(metadata)) = owned.get_mut("f:metadata") {
        metadata.retain(|key, _| !matches!(key.as_str(), "f:name" | "f:namespace"));
    }

    let is_mine = |e: &&Value| e["manager"] == manager && e["operation"] == "Apply";
    let entries = items(current, "/metadata/managedFields");
    let before = entries.iter().find(is_mine).map(|e| e["fieldsV1"].clone()).unwrap_or_default();
    let others: Vec<&Value> = entries.iter().filter(|e| !is_mine(e)).collect();

    let mut result = current.clone();
    let owners: Vec<&Value> = others.iter().map(|e| &e["fieldsV1"]).collect();
    remove_unapplied(resource.kind, "", &mut result, &before, &Value::Object(owned.clone()), &owners);
    let mut result = strategic::merge(resource.kind, &result, applied);

    let mut entries: Vec<Value> = others.into_iter().cloned().collect();
    entries.push(json!({
        "manager": manager,
        "operation": "Apply",
        "apiVersion": text(applied, "/apiVersion"),
        "time": clock::now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": owned,
    }));
    result["metadata"]["managedFields"] = Value::Array(entries);
    result
}

/// The fields of a value in the notation of managedFields.
fn fields(kind: &str, path: &str, value: &Value) -> Map<String, Value> {
    let mut set = Map::new();
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                set.insert(format!("f:{key}"), Value::Object(fields(kind, &below(path, key), value)));
            }
        }
        Value::Array(list) => match list_kind(kind, path) {
            ListKind::Map(key, second) => {
                for item in list {
                    let mut members = fields(kind, path, item);
                    members.insert(".".to_owned(), json!({}));
                    set.insert(format!("k:{}", key_of((key, second), item)), Value::Object(members));
                }
            }
            ListKind::Set => set.extend(list.iter().map(|item| (format!("v:{item}"), json!({})))),
            ListKind::Atomic => {}
        },
        _ => {}
    }
    set
}

/// Takes out of `live` what is in the set `before` but neither in `now` nor in a set of `others`.
fn remove_unapplied(
    kind: &str,
    path: &str,
    live: &mut Value,
    before: &Value,
    now: &Value,
    others: &[&Value],
) {
    let Some(before) = before.as_object() else { return };
    for (step, members) in before.iter().filter(|(step, _)| *step != ".") {
        let deeper: Vec<&Value> = others.iter().filter_map(|o| o.get(step)).collect();
        let kept = now.get(step);
        let gone = kept.is_none() && deeper.is_empty();
        let kept = kept.unwrap_or(&Value::Null);
        if let Some(key) = step.strip_prefix("f:") {
            let Some(map) = live.as_object_mut() else { continue };
            if gone {
                map.remove(key);
            } else if let Some(child) = map.get_mut(key) {
                remove_unapplied(kind, &below(path, key), child, members, kept, &deeper);
            }
        } else if let (Some(key), ListKind::Map(first, second)) =
            (step.strip_prefix("k:"), list_kind(kind, path))
        {
            let Some(list) = live.as_array_mut() else { continue };
            if gone {
                list.retain(|item| key_of((first, second), item) != key);
            } else if let Some(item) = list.iter_mut().find(|item| key_of((first, second), item) == key) {
                remove_unapplied(kind, path, item, members, kept, &deeper);
            }
        } else if let (Some(text), Some(list), true) = (step.strip_prefix("v:"), live.as_array_mut(), gone) {
            let value: Value = serde_json::from_str(text).unwrap_or_default();
            list.retain(|item| *item != value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::SERVICES;

    #[test]
    fn what_a_manager_no_longer_applies_goes_unless_another_applies_it() {
        let service = |labels: Value, ports: Value| {
            json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "labels": labels}, "spec": {"ports": ports}})
        };
        let first = service(json!({"x": "1", "y": "1"}), json!([{"port": 80}, {"port": 81}]));
        let live = apply(&SERVICES, &json!({}), &first, "me");
        let live = apply(&SERVICES, &live, &service(json!({"y": "1"}), json!([])), "you");
        let live = apply(&SERVICES, &live, &service(json!({"z": "1"}), json!([{"port": 80}])), "me");
        assert_eq!(live["metadata"]["labels"], json!({"y": "1", "z": "1"}));
        assert_eq!(live["spec"]["ports"], json!([{"port": 80}]));
        assert_eq!(items(&live, "/metadata/managedFields").len(), 2);
    }
}
