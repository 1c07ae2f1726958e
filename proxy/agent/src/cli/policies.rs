//! `fairlead-proxy policies`.

use anyhow::Result;
use clap::Args;
use fairlead_net::agent::Request;
use serde_json::Value;

use super::ask::Ask;
use super::text::{Cell, ODD, Table, list};

/// Options of `policies`.
#[derive(Clone, Debug, Args)]
pub struct Policies {
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Policies {
    pub(super) fn perform(self) -> Result<()> {
        self.ask.print(&Request::Policies, show)
    }
}

/// The agent's answer to [`Request::Policies`], for people.
fn show(policies: &Value) -> String {
    let texts = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
    let rows = policies.as_array().into_iter().flatten().map(|policy| {
        let name = match policy["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{}", text(&policy["name"])),
            None => text(&policy["name"]),
        };
        let place = match policy["priority"].as_i64() {
            Some(priority) => format!("{} {priority}", text(&policy["tier"])),
            None => text(&policy["tier"]),
        };
        let directions = list(&texts(&policy["directions"]), "none");
        let pods = list(&texts(&policy["pods"]), "none here");
        let note = match (policy["pending"].as_str(), policy["problems"].as_u64()) {
            (Some(pending), _) => pending.to_owned(),
            (None, Some(1..)) => format!("{} problems: see status", policy["problems"]),
            _ => String::new(),
        };
        [
            text(&policy["kind"]).into(),
            name.into(),
            place.into(),
            directions.into(),
            pods.into(),
            Cell::styled(ODD, note),
        ]
    });
    let table = Table::of(["KIND", "NAME", "TIER", "DIRECTIONS", "PODS OF THIS NODE", ""], rows);
    if table.is_empty() { "there are no policies\n".to_owned() } else { table.to_string() }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::text::plain;
    use super::*;

    #[test]
    fn a_policy_is_shown_with_its_tier_and_what_is_wrong_with_it() {
        let policies = serde_json::json!([
            { "kind": "ClusterNetworkPolicy", "namespace": null, "name": "keep-out", "tier": "Admin", "priority": 10,
              "directions": ["ingress"], "pods": ["shop/web"], "pending": null, "problems": 2 },
            { "kind": "NetworkPolicy", "namespace": "shop", "name": "api", "tier": "NetworkPolicy",
              "priority": null, "directions": [], "pods": [], "pending": "map full (1)", "problems": 0 },
        ]);
        let text = plain(&show(&policies));
        assert!(text.contains("Admin 10") && text.contains("2 problems: see status"), "{text}");
        assert!(text.contains("shop/api") && text.contains("map full (1)"), "{text}");
    }
}
