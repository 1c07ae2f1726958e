//! Validation by a structural schema, in the API server's words. What a schema says beyond the keywords known here
//! would go unchecked; a test sees to it that there is nothing of the kind.

use regex::Regex;
use serde_json::{Value, json};

use super::rules;
use crate::object::{items, text};
use crate::status::FieldError;

/// Checks `value`, which is at `field`, and all below it.
pub(super) fn check(schema: &Value, value: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "/type");
    let fits = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => true,
    };
    if !fits {
        let why = format!("{field} in body must be of type {kind}");
        errors.push(FieldError::invalid(field, value, why));
        return;
    }
    let before = errors.len();
    match value {
        Value::Object(map) => {
            at_least(schema, "minProperties", map.len(), "properties", field, errors);
            at_most(schema, "maxProperties", map.len(), field, errors);
            for name in items(schema, "/required").iter().filter_map(Value::as_str) {
                if map.get(name).is_none_or(Value::is_null) {
                    errors.push(FieldError::required(below(field, name), ""));
                }
            }
            for (name, member) in map.iter().filter(|(_, member)| !member.is_null()) {
                let known = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                if let Some(schema) = known {
                    check(schema, member, &below(field, name), errors);
                }
            }
        }
        Value::Array(list) => {
            at_least(schema, "minItems", list.len(), "items", field, errors);
            at_most(schema, "maxItems", list.len(), field, errors);
            for (i, item) in list.iter().enumerate() {
                check(&schema["items"], item, &format!("{field}[{i}]"), errors);
                if list[..i].iter().any(|earlier| is_same_element(schema, earlier, item)) {
                    errors.push(FieldError::duplicate(format!("{field}[{i}]"), item));
                }
            }
        }
        Value::String(text) => check_text(schema, text, field, errors),
        Value::Number(_) => {
            let number = value.as_i64();
            if schema["minimum"].as_i64().is_some_and(|least| number < Some(least)) {
                let why = format!("{field} in body should be greater than or equal to {}", schema["minimum"]);
                errors.push(FieldError::invalid(field, value, why));
            }
            if schema["maximum"].as_i64().is_some_and(|most| number > Some(most)) {
                let why = format!("{field} in body should be less than or equal to {}", schema["maximum"]);
                errors.push(FieldError::invalid(field, value, why));
            }
        }
        Value::Bool(_) | Value::Null => {}
    }
    if errors.len() > before {
        // Expressions are evaluated over values that are well formed.
        return;
    }
    for validation in items(schema, "/x-kubernetes-validations") {
        let keeps = rules::find(text(validation, "/rule")).is_none_or(|rule| rule(value));
        if !keeps {
            errors.push(FieldError::invalid(field, value, text(validation, "/message")));
        }
    }
}

fn check_text(schema: &Value, value: &str, field: &str, errors: &mut Vec<FieldError>) {
    let allowed: Vec<&str> = items(schema, "/enum").iter().filter_map(Value::as_str).collect();
    if !allowed.is_empty() && !allowed.contains(&value) {
        errors.push(FieldError::unsupported(field, &json!(value), &allowed));
    }
    at_least(schema, "minLength", value.chars().count(), "chars long", field, errors);
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| value.chars().count() as u64 > *most) {
        errors.push(FieldError::too_long(field, most));
    }
    let pattern = text(schema, "/pattern");
    if !Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(value)) {
        let why = format!("{field} in body should match '{pattern}'");
        errors.push(FieldError::invalid(field, &json!(value), why));
    }
}

fn at_least(
    schema: &Value,
    keyword: &str,
    count: usize,
    what: &str,
    field: &str,
    errors: &mut Vec<FieldError>,
) {
    if let Some(least) = schema[keyword].as_u64().filter(|least| (count as u64) < *least) {
        let why = format!("{field} in body should have at least {least} {what}");
        errors.push(FieldError::invalid(field, &json!(count), why));
    }
}

fn at_most(schema: &Value, keyword: &str, count: usize, field: &str, errors: &mut Vec<FieldError>) {
    if let Some(most) = schema[keyword].as_u64().filter(|most| count as u64 > *most) {
        errors.push(FieldError::too_many(field, count, most));
    }
}

/// Whether two elements of a list may not both be in it.
fn is_same_element(schema: &Value, one: &Value, other: &Value) -> bool {
    match text(schema, "/x-kubernetes-list-type") {
        "set" => one == other,
        "map" => items(schema, "/x-kubernetes-list-map-keys")
            .iter()
            .filter_map(Value::as_str)
            .all(|key| one.get(key) == other.get(key)),
        _ => false,
    }
}

fn below(field: &str, name: &str) -> String {
    if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const KEYWORDS: [&str; 21] = [
        "additionalProperties",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
        "x-kubernetes-validations",
    ];

    /// A schema says nothing but what is checked here.
    pub(in crate::custom) fn assert_is_understood(schema: &Value, at: &str) {
        let keywords = schema.as_object().unwrap_or_else(|| panic!("{at} has no schema"));
        for keyword in keywords.keys() {
            assert!(KEYWORDS.contains(&keyword.as_str()), "{at} has {keyword}");
        }
        assert!(schema["type"].is_string(), "{at} has no type");
        Regex::new(text(schema, "/pattern")).unwrap_or_else(|e| panic!("{at}: {e}"));
        for validation in items(schema, "/x-kubernetes-validations") {
            assert!(rules::find(text(validation, "/rule")).is_some(), "{at} has a rule that is not known");
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            assert_is_understood(schema, &below(at, name));
        }
        for keyword in ["items", "additionalProperties"] {
            if let Some(schema) = schema.get(keyword) {
                assert_is_understood(schema, &below(at, keyword));
            }
        }
    }
}
