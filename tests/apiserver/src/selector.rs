//! Label and field selectors, as lists, watches and collection deletes take them in their query.

use serde_json::Value;

use crate::object::text;

/// What a list or watch is narrowed to. The default selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<LabelRequirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelRequirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldRequirement {
    pointer: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads the `labelSelector` and `fieldSelector` parameters.
    ///
    /// # Errors
    /// What could not be understood.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, String> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(fields)? })
    }

    /// Whether `object` is selected.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
        self.labels.iter().all(|requirement| match requirement {
            LabelRequirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|x| x == v)),
            LabelRequirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|x| x != v)),
            LabelRequirement::Exists(key) => label(key).is_some(),
            LabelRequirement::DoesNotExist(key) => label(key).is_none(),
        }) && self.fields.iter().all(|f| (field(object, &f.pointer) == f.value) == f.equal)
    }
}

/// A field's value as field selectors compare it: absent is the empty string.
fn field(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Number(value)) => value.to_string(),
        _ => text(object, pointer).to_owned(),
    }
}

fn parse_fields(selector: &str) -> Result<Vec<FieldRequirement>, String> {
    let parse = |part: &str| {
        let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (path, value, true)
        } else {
            return Err(format!("invalid field selector {selector:?}: can't understand {part:?}"));
        };
        Ok(FieldRequirement {
            pointer: format!("/{}", path.trim().replace('.', "/")),
            value: value.to_owned(),
            equal,
        })
    };
    selector.split(',').filter(|part| !part.is_empty()).map(parse).collect()
}

fn parse_labels(selector: &str) -> Result<Vec<LabelRequirement>, String> {
    let mut requirements = Vec::new();
    let mut rest = selector.trim();
    while !rest.is_empty() {
        // Commas inside the parentheses of a set belong to the set.
        let close = match (rest.find('('), rest.find(',')) {
            (Some(open), comma) if comma.is_none_or(|comma| open < comma) => {
                let close = rest[open..].find(')').ok_or_else(|| format!("{selector:?}: missing )"))?;
                open + close + 1
            }
            (_, comma) => comma.unwrap_or(rest.len()),
        };
        let (part, after) = rest.split_at(close);
        requirements.push(parse_label(part.trim()).ok_or_else(|| {
            format!("unable to parse requirement: {part:?} of the label selector {selector:?}")
        })?);
        rest = after.trim_start();
        if let Some(more) = rest.strip_prefix(',') {
            rest = more.trim_start();
        } else if !rest.is_empty() {
            return Err(format!("unable to parse requirement: found {rest:?}, expected , or end"));
        }
    }
    Ok(requirements)
}

fn parse_label(part: &str) -> Option<LabelRequirement> {
    if let Some(set) = part.strip_suffix(')') {
        let (head, values) = set.split_once('(')?;
        let mut words = head.split_whitespace();
        let (key, operator) = (words.next()?.to_owned(), words.next()?);
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        return match operator {
            "in" => Some(LabelRequirement::In(key, values)),
            "notin" => Some(LabelRequirement::NotIn(key, values)),
            _ => None,
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Some(LabelRequirement::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(LabelRequirement::In(key.trim().to_owned(), vec![value.trim().to_owned()]));
    }
    if part.contains(char::is_whitespace) || part.is_empty() {
        return None;
    }
    Some(match part.strip_prefix('!') {
        Some(key) => LabelRequirement::DoesNotExist(key.trim().to_owned()),
        None => LabelRequirement::Exists(part.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_operator_of_label_selectors_is_understood() {
        let pod = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        for (selector, selected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=db", false),
            ("app!=db", true),
            ("absent!=db", true),
            ("app in (web, db),tier", true),
            ("app in (db)", false),
            ("app notin (db),!absent", true),
            ("absent notin (db)", true),
            ("!app", false),
        ] {
            assert_eq!(Selector::parse(selector, "").unwrap().matches(&pod), selected, "{selector}");
        }
        for nonsense in ["a b", "a in (x", "a of (x)", "a in (x) b"] {
            Selector::parse(nonsense, "").unwrap_err();
        }
    }

    #[test]
    fn field_selectors_compare_absent_fields_as_empty() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}});
        for (selector, selected) in [
            ("metadata.name=a,spec.nodeName=n1", true),
            ("spec.nodeName!=n1", false),
            ("status.phase!=Failed", true),
            ("status.phase=", true),
        ] {
            assert_eq!(Selector::parse("", selector).unwrap().matches(&pod), selected, "{selector}");
        }
        Selector::parse("", "nonsense").unwrap_err();
    }
}
