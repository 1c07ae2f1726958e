//! Labels, and the selectors of them that objects hold: which the API takes, and how it prints them.

use serde_json::{Value, json};

use crate::object::{items, text};
use crate::status::FieldError;

const BAD_KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                       with an alphanumeric character";
const BAD_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                         '.', and must start and end with an alphanumeric character";

/// Checks the map of labels at `field`, a path of names joined by dots.
pub(crate) fn check(object: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let labels = object.pointer(&format!("/{}", field.replace('.', "/"))).unwrap_or(&Value::Null);
    check_map(labels, field, errors);
}

fn check_map(labels: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if !is_key(key) {
            errors.push(FieldError::invalid(field, &json!(key), BAD_KEY));
        }
        if !value.as_str().is_some_and(is_value) {
            errors.push(FieldError::invalid(field, value, BAD_VALUE));
        }
    }
}

/// Checks a `LabelSelector`.
pub(crate) fn check_selector(selector: &Value, field: &str, errors: &mut Vec<FieldError>) {
    check_map(&selector["matchLabels"], &format!("{field}.matchLabels"), errors);
    for (i, requirement) in items(selector, "/matchExpressions").iter().enumerate() {
        let field = |name: &str| format!("{field}.matchExpressions[{i}].{name}");
        let values = items(requirement, "/values");
        match text(requirement, "/operator") {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(field("values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(field("values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid(field("operator"), &requirement["operator"], why));
            }
        }
        if !is_key(text(requirement, "/key")) {
            errors.push(FieldError::invalid(field("key"), &requirement["key"], BAD_KEY));
        }
        for (j, value) in values.iter().enumerate() {
            if !value.as_str().is_some_and(is_value) {
                errors.push(FieldError::invalid(format!("{}[{j}]", field("values")), value, BAD_VALUE));
            }
        }
    }
}

/// A `LabelSelector` as kubectl prints it; empty if it takes all.
#[must_use]
pub(crate) fn show_selector(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let expressions = items(selector, "/matchExpressions").iter().map(|requirement| {
        let values: Vec<&str> = items(requirement, "/values").iter().filter_map(Value::as_str).collect();
        let (key, values) = (text(requirement, "/key"), values.join(","));
        match text(requirement, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        }
    });
    labels.chain(expressions).collect::<Vec<_>>().join(",")
}

/// A name of at most 63 characters, and before it, if there is a slash, a domain.
fn is_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_domain = |domain: &str| {
        (1..=253).contains(&domain.len())
            && domain.chars().all(inner)
            && domain.starts_with(ends)
            && domain.ends_with(ends)
    };
    !name.is_empty() && is_value(name) && prefix.is_none_or(is_domain)
}

fn is_value(value: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: char| c.is_ascii_alphanumeric();
    value.len() <= 63
        && value.chars().all(inner)
        && (value.is_empty() || (value.starts_with(ends) && value.ends_with(ends)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_those_of_the_api() {
        for (key, good) in [
            ("app", true),
            ("kubernetes.io/metadata.name", true),
            ("A_b.c-9", true),
            ("", false),
            ("-a", false),
            ("a/b/c", false),
            ("/a", false),
            ("Upper.io/a", false),
        ] {
            assert_eq!(is_key(key), good, "{key}");
        }
        for (value, good) in [("", true), ("v1.2_x", true), ("a b", false), ("x-", false)] {
            assert_eq!(is_value(value), good, "{value}");
        }
        assert!(!is_value(&"a".repeat(64)));
    }

    #[test]
    fn selectors_are_printed_as_kubectl_prints_them() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "old", "operator": "DoesNotExist"}]});
        assert_eq!(show_selector(&selector), "app=web,tier in (a,b),!old");
        assert_eq!(show_selector(&json!({})), "");
    }
}
