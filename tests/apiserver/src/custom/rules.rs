//! The rules of schemas that are expressions of the Common Expression Language: each is known here by its text.

use ipnet::IpNet;
use serde_json::Value;

use crate::object::items;

/// Whether a value keeps a rule.
type Rule = fn(&Value) -> bool;

/// The rule written as `text`, if it is known.
#[must_use]
pub(super) fn find(text: &str) -> Option<Rule> {
    match text {
        "self.start < self.end" => Some(|range| range["start"].as_i64() < range["end"].as_i64()),
        "isCIDR(self)" => Some(|text| text.as_str().is_some_and(|text| text.parse::<IpNet>().is_ok())),
        "!(self.to.exists(peer, has(peer.networks) || has(peer.nodes) || has(peer.domainNames)) && \
         has(self.protocols) && self.protocols.exists(protocol, has(protocol.destinationNamedPort)))" => {
            Some(|rule| {
                let portless = |peer: &Value| {
                    ["networks", "nodes", "domainNames"].iter().any(|kind| peer.get(kind).is_some())
                };
                let named = |protocol: &Value| protocol.get("destinationNamedPort").is_some();
                !(items(rule, "/to").iter().any(portless) && items(rule, "/protocols").iter().any(named))
            })
        }
        _ => None,
    }
}
