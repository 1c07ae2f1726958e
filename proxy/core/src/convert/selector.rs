//! Label selectors.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::policy::selector::{Requirement, Selector, Test};

/// Reads a selector.
///
/// # Errors
/// The path within the selector of what makes no sense, and why: such a selector selects who knows what.
pub(super) fn convert(object: &LabelSelector) -> Result<Selector, (String, String)> {
    let exactly = |(key, value): (&String, &String)| Requirement {
        key: key.as_str().into(),
        test: Test::In(Box::from([value.as_str().into()])),
    };
    let mut requirements: Vec<Requirement> = object.match_labels.iter().flatten().map(exactly).collect();
    for (index, expression) in object.match_expressions.iter().flatten().enumerate() {
        let field = |name: &str| format!("matchExpressions[{index}].{name}");
        let listed = || {
            let mut values: Vec<Arc<str>> =
                expression.values.iter().flatten().map(|value| value.as_str().into()).collect();
            if values.is_empty() {
                let message = format!("{} needs values", expression.operator);
                return Err((field("values"), message));
            }
            values.sort();
            values.dedup();
            Ok(values.into())
        };
        let none = |test| match expression.values.as_deref().unwrap_or_default() {
            [] => Ok(test),
            _ => Err((field("values"), format!("{} takes no values", expression.operator))),
        };
        let test = match expression.operator.as_str() {
            "In" => Test::In(listed()?),
            "NotIn" => Test::NotIn(listed()?),
            "Exists" => none(Test::Exists)?,
            "DoesNotExist" => none(Test::DoesNotExist)?,
            other => {
                let message = format!("{other:?} is none of In, NotIn, Exists, DoesNotExist");
                return Err((field("operator"), message));
            }
        };
        if expression.key.is_empty() {
            return Err((field("key"), "missing".to_owned()));
        }
        requirements.push(Requirement { key: expression.key.as_str().into(), test });
    }
    Ok(Selector::new(requirements))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn read(object: Value) -> Result<String, (String, String)> {
        convert(&from_value(object).expect("a LabelSelector")).map(|selector| selector.to_string())
    }

    #[test]
    fn labels_and_all_four_operators_are_read() {
        let object = json!({
            "matchLabels": { "app": "web" },
            "matchExpressions": [
                { "key": "tier", "operator": "In", "values": ["b", "a", "a"] },
                { "key": "zone", "operator": "NotIn", "values": ["x"] },
                { "key": "up", "operator": "Exists" },
                { "key": "old", "operator": "DoesNotExist", "values": [] },
            ],
        });
        assert_eq!(read(object).as_deref(), Ok("app=web,!old,tier in (a,b),up,zone notin (x)"));
        assert_eq!(read(json!({})).as_deref(), Ok("any"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let fault = |expression: Value| {
            let (field, message) = read(json!({ "matchExpressions": [expression] })).expect_err("a fault");
            format!("{field}: {message}")
        };
        assert_eq!(
            fault(json!({ "key": "a", "operator": "Like", "values": ["b"] })),
            "matchExpressions[0].operator: \"Like\" is none of In, NotIn, Exists, DoesNotExist"
        );
        assert_eq!(
            fault(json!({ "key": "a", "operator": "In" })),
            "matchExpressions[0].values: In needs values"
        );
        assert_eq!(
            fault(json!({ "key": "a", "operator": "Exists", "values": ["b"] })),
            "matchExpressions[0].values: Exists takes no values"
        );
    }
}
