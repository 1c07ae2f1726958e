//! The state of a running agent, as `fairlead-proxy status -o json` prints it; [`crate::cli`] makes text of it.

use std::collections::BTreeMap;

use fairlead_core::model::Problem;
use serde::{Deserialize, Serialize};

use crate::dataplane::endpoints::EndpointView;
use crate::dataplane::sizes::MapSize;
use crate::kernel::KernelView;
use crate::masquerade::MasqueradeView;
use crate::policy::PolicyStatus;
use crate::service_health::CheckView;
use crate::sweep::Sweeps;
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
    /// When this was; RFC 3339, like all times here.
    #[serde(default)]
    pub time: String,
    /// When the agent started.
    pub started: String,
    /// When the maps first held everything.
    #[serde(default)]
    pub first_programmed: Option<String>,
    /// When the maps were last brought up to date.
    pub last_programmed: Option<String>,
    /// Since when a change waits for the next reconcile, if one does.
    #[serde(default)]
    pub queued_since: Option<String>,
    /// How many Services and EndpointSlices have changed since the last reconcile.
    #[serde(default)]
    pub queued_changes: u64,
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
    /// The programs.
    pub programs: Vec<ProgramView>,
    /// The maps.
    pub maps: Vec<MapView>,
    /// How full the flow table is.
    #[serde(default)]
    pub flow_table: FlowTableStatus,
    /// The pods of this node.
    pub endpoints: Vec<EndpointView>,
    /// The servers that load balancers ask about Services.
    #[serde(default)]
    pub health_checks: Vec<CheckView>,
    /// Packets by what happened to them.
    pub packets: BTreeMap<String, u64>,
    /// Packets dropped or refused, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What the kernel has of what is asked of it.
    #[serde(default)]
    pub kernel: Option<KernelView>,
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

impl From<Problem> for ProblemView {
    fn from(Problem { object, field, message }: Problem) -> Self {
        Self { object, field, message }
    }
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

/// A program in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramView {
    /// Its name.
    pub name: String,
    /// The interfaces that it is attached to, or the cgroup.
    pub attached_to: Vec<String>,
    /// How many instructions the verifier walked, where the kernel says (5.16).
    pub verified_instructions: Option<u32>,
    /// How often it ran while the kernel counted (`sysctl kernel.bpf_stats_enabled`).
    pub runs: u64,
    /// For how long in all, in nanoseconds.
    pub nanoseconds: u64,
}

/// How full the flow table is, as of the last sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTableStatus {
    /// How many connections there is room for.
    pub places: u32,
    /// How many connections hold a place: all but those that have ended.
    pub held: u64,
    /// The part of the places that they take.
    pub pressure: f64,
}

impl From<&Sweeps> for FlowTableStatus {
    fn from(sweeps: &Sweeps) -> Self {
        Self { places: sweeps.places, held: sweeps.census.held(), pressure: sweeps.pressure() }
    }
}

/// What is wrong, worst first: what an operator is to look at. Nothing, if all is as the objects ask.
pub fn faults(status: &Status) -> Vec<String> {
    let Status { node, watches, pending, problems, maps, flow_table, masquerade, .. } = status;
    let mut faults = Vec::new();
    if !status.ready {
        let waiting: Vec<&str> =
            watches.iter().filter(|(_, state)| !state.listed).map(|(kind, _)| kind.as_str()).collect();
        faults.push(match waiting.as_slice() {
            [] => "not ready: the first programming is not done".to_owned(),
            kinds => format!("not ready: the first lists are not done: {}", kinds.join(", ")),
        });
    }
    for (kind, state) in
        watches.iter().filter(|(_, state)| !state.connected && (state.failures > 0 || state.listed))
    {
        let why = state.last_error.as_deref().unwrap_or("no answer");
        faults.push(format!("the watch of {kind} is not connected, what is programmed stays: {why}"));
    }
    faults.extend(pending.iter().map(|waiting| format!("pending: {waiting}")));
    faults.extend(node.errors.iter().chain(&masquerade.errors).chain(&status.drain.error).cloned());
    if node.addresses.is_empty() && status.ready {
        faults.push(format!("the API has no Node {}: its addresses are not known", status.node_name));
    }
    if !status.policies.synced && status.ready {
        faults.push("policies are not known yet: no pod is added".to_owned());
    }
    if flow_table.pressure >= FULL {
        let FlowTableStatus { places, held, .. } = flow_table;
        faults
            .push(format!("the flow table is nearly full, {held} of {places} connections: see --max-flows"));
    }
    for map in maps {
        let MapSize { name, capacity, .. } = &map.size;
        if let Some(entries) = map.entries
            && name != fairlead_abi::maps::FLOWS
            && entries as f64 >= FULL * f64::from(*capacity)
            && entries > 1
        {
            faults.push(format!("map {name} is nearly full: {entries} of {capacity} entries"));
        }
    }
    for check in &status.health_checks {
        if let Some(error) = &check.error {
            faults.push(format!("health check of Service {} at {}: {error}", check.service, check.place));
        }
    }
    for ProblemView { object, field, message } in problems {
        faults.push(format!("left out of {object}: {field}: {message}"));
    }
    faults
}

/// The part of a map or table from which it is nearly full.
const FULL: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Status {
        Status {
            node_name: "a".into(),
            ready: true,
            node: NodeView {
                addresses: vec!["192.0.2.1".parse().expect("an address")],
                ..NodeView::default()
            },
            policies: PolicyStatus { synced: true, ..PolicyStatus::default() },
            ..Status::default()
        }
    }

    #[test]
    fn a_status_survives_its_json() {
        let status = Status { node_name: "a".into(), ready: true, ..Status::default() };
        let text = serde_json::to_string(&status).expect("written");
        assert_eq!(serde_json::from_str::<Status>(&text).expect("read"), status);
    }

    #[test]
    fn nothing_is_wrong_where_all_is_as_the_objects_ask() {
        assert_eq!(faults(&well()), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_names_the_object_and_the_field() {
        let status = Status {
            pending: vec!["Service shop/web: program frontend 10.96.0.1:80/tcp: map full (1)".into()],
            problems: vec![ProblemView {
                object: "Service shop/bad".into(),
                field: "spec.ports[0].port".into(),
                message: "0 is no port".into(),
            }],
            ..well()
        };
        assert_eq!(
            faults(&status),
            [
                "pending: Service shop/web: program frontend 10.96.0.1:80/tcp: map full (1)",
                "left out of Service shop/bad: spec.ports[0].port: 0 is no port",
            ]
        );
    }

    #[test]
    fn an_agent_that_is_not_ready_says_what_it_waits_for() {
        let watches = [("Service", true), ("Node", false)];
        let watches = watches.map(|(kind, listed)| {
            (kind.to_owned(), WatchState { listed, connected: true, ..WatchState::default() })
        });
        let status = Status { ready: false, watches: watches.into(), ..well() };
        assert_eq!(faults(&status), ["not ready: the first lists are not done: Node"]);
    }

    #[test]
    fn a_map_or_the_flow_table_is_named_before_it_is_full() {
        let map = |entries| MapView {
            size: MapSize { name: "FRONTENDS".into(), capacity: 100, wanted: 100 },
            entries: Some(entries),
        };
        let flow_table = FlowTableStatus { places: 100, held: 95, pressure: 0.95 };
        let told = faults(&Status { maps: vec![map(91)], flow_table, ..well() });
        assert!(
            told[0].contains("flow table") && told[1].contains("FRONTENDS is nearly full: 91 of 100"),
            "{told:?}"
        );
        assert!(faults(&Status { maps: vec![map(80)], ..well() }).is_empty());
    }

    #[test]
    fn a_watch_that_broke_says_why_and_that_nothing_is_lost() {
        let broken = WatchState {
            listed: true,
            failures: 3,
            last_error: Some("connection refused".into()),
            ..WatchState::default()
        };
        let told = faults(&Status { watches: [("Pod".to_owned(), broken)].into(), ..well() });
        assert!(told[0].contains("watch of Pod") && told[0].ends_with("connection refused"), "{told:?}");
    }
}
