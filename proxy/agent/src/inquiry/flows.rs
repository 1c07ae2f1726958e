//! `fairlead-proxy flows`: connections in the flow table, under the names of the API.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::SocketAddr;

use fairlead_net::agent::FlowFilter;
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::dataplane::DataplaneError;
use crate::dataplane::flows::{self, Connection};
use crate::ends::{End, Names, Seen, admits, protocol_name};

/// The connections that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// How many there are that the filter admits.
    pub matched: usize,
    /// How many of them are shown: those that were heard of last, in this order.
    pub flows: Vec<FlowView>,
}

/// Why a connection is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A pod or client dialled a Service, or a port of the node that leads to a pod.
    Service,
    /// A pod sends to the outside, and leaves with the node's address.
    Masqueraded,
    /// Its packets leave as they came: policies admit its answers by it, or it must not be taken for another.
    Plain,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowView {
    /// "tcp", "udp", "sctp", or a protocol's number.
    pub protocol: String,
    /// Why it is in the table.
    pub kind: Kind,
    /// Who began it.
    pub client: End,
    /// What was dialled.
    pub frontend: End,
    /// Who serves it.
    pub backend: End,
    /// The address and port that the backend sees, where it is not the client's.
    pub masqueraded_as: Option<SocketAddr>,
    /// "opening" until it is answered, "established", "closing" after one side's FIN, "closed".
    pub state: String,
    /// For how many seconds the client has been silent, to half a second.
    pub idle_seconds: f64,
    /// The backend's id; 0 where it is no Service's.
    pub backend_id: u32,
    /// The backend's generation when the connection began.
    pub generation: u32,
}

/// What makes a connection the same at two looks.
pub type Identity = (String, End, End);

impl FlowView {
    /// What makes it the same at two looks at the table: protocol, client and frontend.
    pub fn identity(&self) -> Identity {
        (self.protocol.clone(), self.client.clone(), self.frontend.clone())
    }
}

/// A connection, newest first: by how long it is silent, and then by what it is.
#[derive(PartialEq, Eq)]
struct Newest(Connection);

impl Ord for Newest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let order = |Connection { key, idle, .. }: &Connection| {
            (*idle, key.source_port.number(), key.destination_port.number(), key.source.words())
        };
        order(&self.0).cmp(&order(&other.0))
    }
}

impl PartialOrd for Newest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The connections that the filter admits, at most `limit` of them.
///
/// # Errors
/// When the table can't be read.
pub fn list(agent: &Agent, filter: &FlowFilter, limit: usize) -> Result<Flows, DataplaneError> {
    let mut names = Names::new(agent);
    let mut matched = 0;
    // The one that is silent longest is on top, and the first to go.
    let mut newest = BinaryHeap::new();
    let is_open = *filter == FlowFilter::default();
    flows::read(&agent.pins, |connection| {
        if !is_open {
            let view = view(&mut names, &connection);
            if !is_admitted(filter, &view) {
                return;
            }
        }
        matched += 1;
        newest.push(Newest(connection));
        if newest.len() > limit {
            newest.pop();
        }
    })?;
    let flows =
        newest.into_sorted_vec().iter().map(|Newest(connection)| view(&mut names, connection)).collect();
    Ok(Flows { matched, flows })
}

fn is_admitted(filter: &FlowFilter, view: &FlowView) -> bool {
    let FlowView { protocol, client, frontend, backend, state, .. } = view;
    admits(filter, Seen { protocol, client, dialled: frontend, server: backend, state: Some(state) })
}

fn view(names: &mut Names<'_>, connection: &Connection) -> FlowView {
    let Connection { key, flow, idle } = connection;
    let frontend = (key.destination.into(), key.destination_port.number());
    let is_masqueraded = (flow.source, flow.source_port) != (key.source, key.source_port);
    let kind = match flow.backend {
        0 if is_masqueraded => Kind::Masqueraded,
        0 => Kind::Plain,
        _ => Kind::Service,
    };
    FlowView {
        protocol: protocol_name(key.protocol),
        kind,
        client: names.end(key.source.into(), key.source_port.number()),
        frontend: match kind {
            Kind::Service => names.dialled(frontend.0, frontend.1, key.protocol),
            Kind::Masqueraded | Kind::Plain => names.end(frontend.0, frontend.1),
        },
        backend: names.end(flow.destination.into(), flow.destination_port.number()),
        masqueraded_as: is_masqueraded
            .then(|| SocketAddr::new(flow.source.into(), flow.source_port.number())),
        state: connection.state().to_owned(),
        idle_seconds: idle.as_secs_f64(),
        backend_id: flow.backend,
        generation: flow.generation,
    }
}

/// What happened between two looks at the table: connections that began, and those that ended or are gone.
pub fn compare<'a>(before: &'a [FlowView], now: &'a [FlowView]) -> Vec<(Happened, &'a FlowView)> {
    let known: HashMap<Identity, &FlowView> = before.iter().map(|flow| (flow.identity(), flow)).collect();
    let still: HashSet<Identity> = now.iter().map(FlowView::identity).collect();
    let mut happened = Vec::new();
    for flow in now {
        match known.get(&flow.identity()) {
            None => happened.push((Happened::Began, flow)),
            Some(before) if before.backend != flow.backend => happened.push((Happened::Rebalanced, flow)),
            Some(before) if before.state == flow.state => {}
            Some(_) if flow.state == "closed" => happened.push((Happened::Ended, flow)),
            Some(before) if before.state == "closed" => happened.push((Happened::Began, flow)),
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|flow| flow.state != "closed" && !still.contains(&flow.identity()));
    happened.extend(gone.map(|flow| (Happened::Ended, flow)));
    happened.sort_by_key(|(happened, _)| Reverse(*happened == Happened::Began));
    happened
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Happened {
    /// It was not there at the look before.
    Began,
    /// Both sides have closed it, or it was reset, or it is gone.
    Ended,
    /// It has another backend: the former is gone.
    Rebalanced,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16, backend: &str, state: &str) -> FlowView {
        let end =
            |address: &str, port| End { address: address.parse().expect("an address"), port, name: None };
        FlowView {
            protocol: "tcp".into(),
            kind: Kind::Service,
            client: end("10.244.0.2", port),
            frontend: end("10.96.0.1", 80),
            backend: end(backend, 8080),
            masqueraded_as: None,
            state: state.into(),
            idle_seconds: 0.0,
            backend_id: 1,
            generation: 1,
        }
    }

    #[test]
    fn two_looks_tell_what_began_what_ended_and_what_got_another_backend() {
        let before = [
            flow(1, "10.244.0.3", "established"),
            flow(2, "10.244.0.3", "established"),
            flow(3, "10.244.0.3", "established"),
            flow(4, "10.244.0.3", "closed"),
            flow(5, "10.244.0.3", "opening"),
        ];
        let now = [
            flow(1, "10.244.0.3", "closed"),
            flow(3, "10.244.0.4", "established"),
            flow(5, "10.244.0.3", "established"),
            flow(6, "10.244.0.3", "opening"),
        ];
        let told: Vec<(Happened, u16)> =
            compare(&before, &now).into_iter().map(|(what, flow)| (what, flow.client.port)).collect();
        assert_eq!(
            told,
            [(Happened::Began, 6), (Happened::Ended, 1), (Happened::Rebalanced, 3), (Happened::Ended, 2)]
        );
    }
}
