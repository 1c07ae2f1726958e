//! What `fairlead-proxy status` and `services` print: one structure for JSON and for people.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dataplane::endpoints::EndpointView;
use crate::dataplane::sizes::MapSize;
use crate::masquerade::MasqueradeView;
use crate::policy::PolicyStatus;
use crate::service_health::CheckView;
use crate::takeover::drain::DrainView;
use crate::uplinks::NodeView;
use crate::watch::WatchState;

/// The state of a running agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The node's name in the API.
    pub node_name: String,
    /// Whether the maps have held everything once.
    pub ready: bool,
    /// When the agent started; RFC 3339, like all times here.
    pub started: String,
    /// When the maps were last brought up to date.
    pub last_programmed: Option<String>,
    /// How programs are attached.
    pub attachment: String,
    /// The directory that everything is pinned in.
    pub pins: String,
    /// The cgroup whose sockets are translated.
    pub cgroup: String,
    /// The node's addresses and uplinks.
    pub node: NodeView,
    /// With whose address pods' packets leave.
    #[serde(default)]
    pub masquerade: MasqueradeView,
    /// Connections that kube-proxy's rules have translated.
    #[serde(default)]
    pub drain: DrainView,
    /// The watches by kind.
    pub watches: BTreeMap<String, WatchState>,
    /// How many Services are the agent's business.
    pub services: usize,
    /// How policies are doing.
    #[serde(default)]
    pub policies: PolicyStatus,
    /// What is not as its object asks, and why.
    pub pending: Vec<String>,
    /// What was left out of objects.
    pub problems: Vec<ProblemView>,
    /// Map writes that succeeded since the agent started.
    pub writes: u64,
    /// Map writes that failed since the agent started.
    pub failed_writes: u64,
    /// How many instructions the verifier walked for each program, where the kernel says.
    pub programs: BTreeMap<String, u32>,
    /// The maps.
    pub maps: Vec<MapView>,
    /// The pods of this node.
    pub endpoints: Vec<EndpointView>,
    /// The servers that load balancers ask about Services.
    #[serde(default)]
    pub health_checks: Vec<CheckView>,
    /// Packets by what happened to them.
    pub packets: BTreeMap<String, u64>,
    /// Packets dropped or refused, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Something in an object that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    /// Kind and name.
    pub object: String,
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// A map, and how full it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapView {
    /// Its name and size.
    #[serde(flatten)]
    pub size: MapSize,
    /// How many entries it holds, where that is counted.
    pub entries: Option<usize>,
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, node_name, node, watches, pending, problems, maps, endpoints, .. } = self;
        let ready = if self.ready { "ready" } else { "not ready: the first programming is not done" };
        writeln!(f, "fairlead-proxy {version} on node {node_name}: {ready}")?;
        writeln!(f, "  started      {}", self.started)?;
        writeln!(f, "  programmed   {}", self.last_programmed.as_deref().unwrap_or("never"))?;
        writeln!(f, "  addresses    {}", list(&node.addresses, "unknown: the API has no such Node"))?;
        writeln!(f, "  uplinks      {} (by {})", list(&node.uplinks, "none"), self.attachment)?;
        if !node.pod_interfaces.is_empty() {
            writeln!(f, "  other pods   behind {}", list(&node.pod_interfaces, "none"))?;
        }
        let MasqueradeView { outside, inside, errors } = &self.masquerade;
        let leaves = if *outside { "with the node's address, but to" } else { "with the pod's address," };
        writeln!(f, "  pods leave   {leaves} {inside} ranges of the cluster")?;
        if self.drain.draining {
            let rules =
                if self.drain.rules { ", and its rules are there: see fairlead-proxy takeover" } else { "" };
            writeln!(f, "  kube-proxy   {} connections of before are left{rules}", self.drain.left)?;
        }
        writeln!(f, "  pins         {}", self.pins)?;
        writeln!(f, "  cgroup       {}", self.cgroup)?;
        writeln!(f, "  services     {}, {} pending", self.services, pending.len())?;
        let PolicyStatus { synced, objects, compiled } = self.policies;
        let policies = if synced { "in force" } else { "not known yet: no pod is added" };
        writeln!(f, "  policies     {objects} objects, {compiled} compiled here, {policies}")?;
        writeln!(f, "  writes       {}, {} failed", self.writes, self.failed_writes)?;
        let rows = watches.iter().map(|(kind, state)| {
            let doing = match (state.listed, state.connected) {
                (true, true) => "watching",
                (false, true) => "listing",
                (_, false) => "not connected",
            };
            let error = state.last_error.clone().unwrap_or_default();
            [kind.clone(), doing.to_owned(), state.events.to_string(), state.failures.to_string(), error]
        });
        table(f, ["WATCH", "STATE", "EVENTS", "FAILURES", "LAST ERROR"], rows)?;
        let rows = maps.iter().map(|map| {
            let MapSize { name, capacity, wanted } = &map.size;
            let entries = map.entries.map_or("-".to_owned(), |entries| entries.to_string());
            let note = if wanted == capacity {
                String::new()
            } else {
                format!("{wanted} asked for: takes effect after fairlead-proxy cleanup")
            };
            [name.clone(), entries, capacity.to_string(), note]
        });
        table(f, ["MAP", "ENTRIES", "CAPACITY", ""], rows)?;
        let rows = self.programs.iter().map(|(name, verified)| [name.clone(), verified.to_string()]);
        table(f, ["PROGRAM", "VERIFIED INSTRUCTIONS"], rows)?;
        let rows = endpoints.iter().map(|endpoint| {
            let yes_or_no = |is| if is { "yes" } else { "no" }.to_owned();
            let addresses = list(&endpoint.addresses, "-");
            let (translated, sockets) = (yes_or_no(endpoint.translated), yes_or_no(endpoint.sockets));
            [endpoint.pod.clone(), endpoint.interface.clone(), addresses, translated, sockets]
        });
        table(f, ["POD", "INTERFACE", "ADDRESSES", "TRANSLATED", "SOCKETS"], rows)?;
        let rows = self.health_checks.iter().map(|check| {
            let note = check.error.clone().unwrap_or_default();
            [check.service.clone(), check.place.clone(), check.local_endpoints.to_string(), note]
        });
        table(f, ["HEALTH CHECK OF", "AT", "LOCAL ENDPOINTS", ""], rows)?;
        let counts = self.packets.iter().map(|(what, count)| [what.clone(), count.to_string()]);
        table(f, ["PACKETS", "COUNT"], counts)?;
        let drops = self.drops.iter().filter(|(_, count)| **count > 0);
        table(f, ["DROPPED", "COUNT"], drops.map(|(reason, count)| [reason.clone(), count.to_string()]))?;
        for error in node.errors.iter().chain(errors).chain(&self.drain.error) {
            writeln!(f, "error: {error}")?;
        }
        for waiting in pending {
            writeln!(f, "pending: {waiting}")?;
        }
        for ProblemView { object, field, message } in problems {
            writeln!(f, "problem: {object}: {field}: {message}")?;
        }
        Ok(())
    }
}

/// The agent's answer to [`fairlead_net::agent::Request::Services`], for people.
pub struct Services<'a>(pub &'a Value);

impl Display for Services<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = Vec::new();
        for service in self.0.as_array().into_iter().flatten() {
            let name = format!("{}/{}", text(&service["namespace"]), text(&service["name"]));
            let port = format!("{}/{}", text(&service["port"]), text(&service["protocol"]));
            for frontend in service["frontends"].as_array().into_iter().flatten() {
                let (internal, external) = (&frontend["internal"], &frontend["external"]);
                let empty = format!("none: {}", text(&frontend["without_backend"]));
                let mut backends = backends(internal, &empty);
                if internal != external {
                    backends = format!("{backends}; from outside {}", self::backends(external, &empty));
                }
                let programmed = if frontend["id"].is_null() { "no" } else { "yes" };
                rows.push([
                    name.clone(),
                    port.trim_start_matches('/').to_owned(),
                    text(&frontend["kind"]),
                    text(&frontend["address"]),
                    programmed.to_owned(),
                    backends,
                ]);
            }
        }
        table(f, ["SERVICE", "PORT", "KIND", "FRONTEND", "PROGRAMMED", "BACKENDS"], rows)
    }
}

/// The agent's answer to [`fairlead_net::agent::Request::Policies`], for people.
pub struct Policies<'a>(pub &'a Value);

impl Display for Policies<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts =
            |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
        let rows = self.0.as_array().into_iter().flatten().map(|policy| {
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
            [text(&policy["kind"]), name, place, directions, pods, note]
        });
        table(f, ["KIND", "NAME", "TIER", "DIRECTIONS", "PODS OF THIS NODE", ""], rows)
    }
}

fn backends(list: &Value, empty: &str) -> String {
    let backends: Vec<String> = list.as_array().into_iter().flatten().map(text).collect();
    self::list(&backends, empty)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list(items: &[impl Display], empty: &str) -> String {
    if items.is_empty() {
        return empty.to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Columns as wide as their widest cell; nothing at all without rows.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> fmt::Result {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    if rows.is_empty() {
        return Ok(());
    }
    let mut widths = header.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &[&str]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(f, "{}", padded.join("  ").trim_end())
    };
    line(&header)?;
    rows.iter().try_for_each(|row| line(&row.each_ref().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_shows_what_is_wrong() {
        let status = Status {
            node_name: "a".into(),
            pending: vec!["Service default/web: program frontend 10.96.0.1:80/tcp: map full (1)".into()],
            problems: vec![ProblemView {
                object: "Service default/bad".into(),
                field: "spec.ports[0].port".into(),
                message: "0 is no port".into(),
            }],
            maps: vec![MapView {
                size: MapSize { name: "FRONTENDS".into(), capacity: 1, wanted: 2 },
                entries: Some(1),
            }],
            ..Status::default()
        };
        let text = status.to_string();
        for expected in [
            "node a: not ready",
            "pending: Service default/web: program frontend 10.96.0.1:80/tcp: map full (1)",
            "problem: Service default/bad: spec.ports[0].port: 0 is no port",
            "FRONTENDS  1        1         2 asked for",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_status_survives_its_json() {
        let status = Status { node_name: "a".into(), ready: true, ..Status::default() };
        let text = serde_json::to_string(&status).expect("written");
        assert_eq!(serde_json::from_str::<Status>(&text).expect("read"), status);
    }

    #[test]
    fn services_are_shown_with_their_backends_for_either_kind_of_client() {
        let services = serde_json::json!([{
            "namespace": "default", "name": "web", "port": "http", "protocol": "TCP", "pending": null,
            "frontends": [
                {"address": "10.96.0.1:80", "kind": "ClusterIP", "id": 1, "without_backend": "reject",
                 "internal": ["10.0.0.1:8080"], "external": ["10.0.0.1:8080"]},
                {"address": "192.0.2.1:30000", "kind": "NodePort", "id": null, "without_backend": "drop",
                 "internal": ["10.0.0.1:8080"], "external": []},
            ],
        }]);
        let text = Services(&services).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[1].contains("10.96.0.1:80") && lines[1].ends_with("yes         10.0.0.1:8080"),
            "{text}"
        );
        assert!(lines[2].ends_with("no          10.0.0.1:8080; from outside none: drop"), "{text}");
    }
}
