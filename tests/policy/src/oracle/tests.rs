//! The interpreter, where tables do not show what it does.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, from_value, json};

use super::network::is_between;
use super::selector::matches;
use super::*;

fn labels(value: Value) -> Option<BTreeMap<String, String>> {
    Some(from_value(value).expect("labels"))
}

fn is_match(selector: Value, of: &Option<BTreeMap<String, String>>) -> Option<bool> {
    let selector: LabelSelector = from_value(selector).expect("a selector");
    matches(&selector, of)
}

#[test]
fn a_selector_matches_who_meets_all_of_it() {
    let web = labels(json!({ "app": "web", "tier": "front" }));
    let one = |key: &str, operator: &str, values: &[&str]| {
        let requirement = json!({ "key": key, "operator": operator, "values": values });
        is_match(json!({ "matchExpressions": [requirement] }), &web)
    };
    assert_eq!(is_match(json!({}), &web), Some(true));
    assert_eq!(is_match(json!({}), &None), Some(true));
    assert_eq!(is_match(json!({ "matchLabels": { "app": "web", "tier": "back" } }), &web), Some(false));
    assert_eq!(one("app", "In", &["db", "web"]), Some(true));
    assert_eq!(one("team", "In", &["red"]), Some(false));
    assert_eq!(one("app", "NotIn", &["web"]), Some(false));
    assert_eq!(one("team", "NotIn", &["red"]), Some(true));
    assert_eq!(one("team", "Exists", &[]), Some(false));
    assert_eq!(one("team", "DoesNotExist", &[]), Some(true));
}

#[test]
fn a_selector_with_a_part_that_makes_no_sense_is_not_understood_whatever_the_rest_says() {
    for (operator, values) in
        [("Like", vec!["web"]), ("In", vec![]), ("NotIn", vec![]), ("Exists", vec!["web"])]
    {
        let requirement = json!({ "key": "app", "operator": operator, "values": values });
        let selector = json!({ "matchLabels": { "app": "db" }, "matchExpressions": [requirement] });
        assert_eq!(is_match(selector, &labels(json!({ "app": "web" }))), None, "{operator}");
    }
}

#[test]
fn a_range_of_ports_holds_both_its_ends() {
    assert_eq!(
        [52, 53, 80, 81].map(|port| is_between(53, 80, port) == Some(true)),
        [false, true, true, false]
    );
    for (first, last) in [(0, 80), (81, 80), (80, 65_536), (-1, 80)] {
        assert_eq!(is_between(first, last, 80), None, "{first}-{last}");
    }
}

#[test]
fn verdicts_are_displayed_as_tables_have_them() {
    let denied = |direction, cause| Verdict::Denied(direction, cause).to_string();
    assert_eq!(Verdict::Allowed.to_string(), "+");
    assert_eq!(denied(Direction::Egress, Cause::Network), "e");
    assert_eq!(denied(Direction::Ingress, Cause::Admin), "iA");
    assert_eq!(denied(Direction::Egress, Cause::Baseline), "eB");
    assert_eq!(denied(Direction::Ingress, Cause::Unknown), "i?");
}
