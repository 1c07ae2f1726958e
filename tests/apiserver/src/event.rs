//! The rules that an Event of the group events.k8s.io must keep; those of an update are what makes it one of a series.

use serde_json::Value;

use crate::object::{is_unset, text};
use crate::status::FieldError;

/// The longest note, in bytes.
const NOTE: usize = 1024;
/// The longest action, reason and name of who reports, in bytes.
const NAME: usize = 128;
/// What an update may not change: all but the series.
const FIXED: [&str; 9] = [
    "reportingController",
    "reportingInstance",
    "action",
    "reason",
    "regarding",
    "related",
    "note",
    "type",
    "eventTime",
];

/// Everything that is wrong with an Event that is about to replace `before`.
pub(crate) fn check(event: &Value, before: Option<&Value>, errors: &mut Vec<FieldError>) {
    for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
        if is_unset(event, &format!("/{field}")) {
            errors.push(FieldError::required(field, ""));
        }
    }
    for (field, most) in [("action", NAME), ("reason", NAME), ("reportingInstance", NAME), ("note", NOTE)] {
        if text(event, &format!("/{field}")).len() > most {
            let why = format!("can have at most {most} characters");
            errors.push(FieldError::invalid(field, &event[field], why));
        }
    }
    if !["Normal", "Warning"].iter().any(|kind| event["type"] == *kind) {
        errors.push(FieldError::invalid("type", &event["type"], "has invalid value"));
    }
    // Of what has no namespace it is in "default".
    let about = match text(event, "/regarding/namespace") {
        "" => "default",
        namespace => namespace,
    };
    if about != text(event, "/metadata/namespace") {
        let namespace = &event["regarding"]["namespace"];
        errors.push(FieldError::invalid("regarding.namespace", namespace, "does not match event.namespace"));
    }
    let Some(before) = before else { return };
    for field in FIXED.into_iter().filter(|field| event[*field] != before[*field]) {
        errors.push(FieldError::invalid(field, &event[field], "field is immutable"));
    }
    if event["series"]["count"].as_u64().is_none_or(|count| count < 2) {
        errors.push(FieldError::invalid("series.count", &event["series"]["count"], "should be at least 2"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": "web.1"}, "eventTime": "2024-01-01T00:00:00.000000Z",
            "reportingController": "fairlead.io/fairlead-proxy", "reportingInstance": "node1",
            "action": "Program", "reason": "FieldsLeftOut", "type": "Warning", "note": "spec: no",
            "regarding": {"kind": "Service", "namespace": "shop", "name": "web"},
        })
    }

    fn wrong(event: &Value, before: Option<&Value>) -> usize {
        let mut errors = Vec::new();
        check(event, before, &mut errors);
        errors.len()
    }

    #[test]
    fn an_event_is_complete_and_where_its_object_is() {
        assert_eq!(wrong(&event(), None), 0);
        for (field, value) in [
            ("eventTime", json!(null)),
            ("action", json!("")),
            ("type", json!("Bad")),
            ("note", json!("x".repeat(1025))),
            ("regarding", json!({"kind": "Node", "name": "a"})),
        ] {
            let mut event = event();
            event[field] = value;
            assert_eq!(wrong(&event, None), 1, "{field}");
        }
    }

    #[test]
    fn an_update_makes_it_one_of_a_series_and_changes_nothing_else() {
        let (before, mut after) = (event(), event());
        after["series"] = json!({"count": 2, "lastObservedTime": "2024-01-01T00:05:00.000000Z"});
        assert_eq!(wrong(&after, Some(&before)), 0);
        after["note"] = json!("another");
        assert_eq!(wrong(&after, Some(&before)), 1);
        assert_eq!(wrong(&before, Some(&before)), 1, "no series");
    }
}
