//! Label selectors (meta/v1, `LabelSelector`).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// An object's labels.
pub(super) type Labels = Option<BTreeMap<String, String>>;

/// Whether the selector matches these labels; `None` if it can't be understood.
pub(super) fn matches(selector: &LabelSelector, labels: &Labels) -> Option<bool> {
    let of = |key: &str| labels.as_ref().and_then(|labels| labels.get(key));
    let mut all = true;
    for (key, value) in selector.match_labels.iter().flatten() {
        all &= of(key) == Some(value);
    }
    for requirement in selector.match_expressions.iter().flatten() {
        all &= meets(requirement, of(&requirement.key))?;
    }
    Some(all)
}

fn meets(requirement: &LabelSelectorRequirement, label: Option<&String>) -> Option<bool> {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_one = label.is_some_and(|label| values.contains(label));
    if requirement.key.is_empty() {
        return None;
    }
    match (requirement.operator.as_str(), values.is_empty()) {
        ("In", false) => Some(is_one),
        ("NotIn", false) => Some(!is_one),
        ("Exists", true) => Some(label.is_some()),
        ("DoesNotExist", true) => Some(label.is_none()),
        _ => None,
    }
}
