//! `fairlead-proxy flow-table`: what the flow table holds, by one reading of it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use fairlead_abi::FlowKey;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, lock};
use crate::dataplane::flows::{self, Connection, protocol_of};
use crate::dataplane::{DataplaneError, egress};
use crate::ends::{End, Names, protocol_name};
use crate::sweep::Sweeps;

/// How many places a new connection tries before its packet is dropped, as the programs do.
const TRIES: i32 = 32;

/// Bounds of the histogram of silence, in seconds.
const BOUNDS: [u64; 7] = [1, 10, 60, 600, 3600, 21_600, 86_400];

/// What the flow table holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTableView {
    /// How many connections there is room for.
    pub places: u32,
    /// How many entries there are, two for each connection, those that are over included.
    pub entries: u64,
    /// How many connections hold a place: all but those that have ended, which make way.
    pub held: u64,
    /// The part of the places that those take.
    pub pressure: f64,
    /// How likely it is that a new connection finds no place among those it tries, and waits for its sender's retry.
    pub chance_of_no_place: f64,
    /// Entries of ended connections that sweeps have removed since the agent started.
    pub swept: u64,
    /// Connections by protocol and state.
    pub connections: Vec<Group>,
    /// Connections by how long their client has been silent.
    pub silence: Vec<Silence>,
    /// The Services with the most connections.
    pub services: Vec<Top>,
    /// The clients with the most connections.
    pub clients: Vec<Top>,
    /// The backends with the most connections.
    pub backends: Vec<Top>,
    /// How close masquerading is to having no port left.
    pub masquerade: Masquerade,
}

/// Connections of one protocol in one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// "tcp", "udp", "sctp" or "other".
    pub protocol: String,
    /// "opening", "established", "closing" or "closed".
    pub state: String,
    /// How many.
    pub count: u64,
}

/// Connections whose client has been silent for less than this, and at least for what the group before says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Silence {
    /// In seconds; none: for any longer time.
    pub below_seconds: Option<u64>,
    /// How many.
    pub count: u64,
}

/// Somebody with many connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Top {
    /// Who, as in `Service shop/web` or `10.0.0.1:80 (Pod shop/web-1)`.
    pub name: String,
    /// How many.
    pub count: u64,
}

/// The ports that masqueraded flows leave with: each receiver's address, port and protocol has all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// How many ports there are.
    pub ports: u16,
    /// The receiver that most flows are masqueraded to, and how many.
    pub busiest: Option<Top>,
}

/// Counts while the table is read.
#[derive(Default)]
struct Counts {
    groups: BTreeMap<(&'static str, &'static str), u64>,
    silence: [u64; BOUNDS.len() + 1],
    frontends: HashMap<(IpAddr, u16, u8), u64>,
    clients: HashMap<IpAddr, u64>,
    backends: HashMap<(IpAddr, u16), u64>,
    masqueraded: HashMap<(IpAddr, u16, u8), u64>,
}

impl Counts {
    fn add(&mut self, connection: &Connection) {
        let Connection { key, flow, idle } = connection;
        let FlowKey { source, destination, destination_port, protocol, .. } = *key;
        *self.groups.entry((protocol_of(key), connection.state())).or_default() += 1;
        let bound = BOUNDS.iter().position(|bound| idle.as_secs() < *bound);
        self.silence[bound.unwrap_or(BOUNDS.len())] += 1;
        if flow.backend != 0 {
            count(&mut self.frontends, (destination.into(), destination_port.number(), protocol));
        }
        count(&mut self.clients, source.into());
        let backend = (flow.destination.into(), flow.destination_port.number());
        count(&mut self.backends, backend);
        if flow.source != source {
            count(&mut self.masqueraded, (backend.0, backend.1, protocol));
        }
    }
}

fn count<K: Hash + Eq>(counts: &mut HashMap<K, u64>, key: K) {
    *counts.entry(key).or_default() += 1;
}

/// Reads the table; the `top` of each kind are named.
///
/// # Errors
/// When it can't be read.
pub fn look(agent: &Agent, top: usize) -> Result<FlowTableView, DataplaneError> {
    let Sweeps { places, removed, .. } = *lock(&agent.sweeps);
    let mut counts = Counts::default();
    let entries = flows::read(&agent.pins, |connection| counts.add(&connection))?;
    let mut names = Names::new(agent);
    let Counts { groups, silence, frontends, clients, backends, masqueraded } = counts;
    let held = groups.iter().filter(|((_, state), _)| *state != "closed").map(|(_, count)| count).sum();
    let connections = groups.into_iter().map(|((protocol, state), count)| Group {
        protocol: protocol.to_owned(),
        state: state.to_owned(),
        count,
    });
    let pressure = part(held, places);
    // A Service's frontends are counted together.
    let mut services: HashMap<String, u64> = HashMap::new();
    for ((address, port, protocol), count) in frontends {
        let name = match names.dialled(address, port, protocol) {
            End { name: Some(name), .. } => name,
            end => format!("{end}, which no Service has any more"),
        };
        *services.entry(name).or_default() += count;
    }
    let busiest = most(masqueraded, 1).pop().map(|((address, port, protocol), count)| Top {
        name: format!("{}/{}", names.end(address, port), protocol_name(protocol)),
        count,
    });
    let mut named = |address, port, count| Top { name: names.end(address, port).to_string(), count };
    Ok(FlowTableView {
        places,
        entries,
        held,
        pressure,
        chance_of_no_place: pressure.powi(TRIES),
        swept: removed,
        connections: connections.collect(),
        silence: silence
            .into_iter()
            .enumerate()
            .map(|(place, count)| Silence { below_seconds: BOUNDS.get(place).copied(), count })
            .collect(),
        services: most(services, top).into_iter().map(|(name, count)| Top { name, count }).collect(),
        clients: most(clients, top).into_iter().map(|(address, count)| named(address, 0, count)).collect(),
        backends: most(backends, top).into_iter().map(|((ip, port), count)| named(ip, port, count)).collect(),
        masquerade: Masquerade { ports: egress::config(&agent.pins)?.snat_count, busiest },
    })
}

fn part(held: u64, places: u32) -> f64 {
    (held as f64 / f64::from(places.max(1))).min(1.0)
}

/// The `top` with the highest counts; of equal ones in order of key.
fn most<K: Ord>(counts: HashMap<K, u64>, top: usize) -> Vec<(K, u64)> {
    let mut counts: Vec<(K, u64)> = counts.into_iter().collect();
    counts.sort_by(|(a, few), (b, many)| many.cmp(few).then_with(|| a.cmp(b)));
    counts.truncate(top);
    counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fairlead_abi::{Address, Flow, Port, protocol};

    use super::*;

    fn connection(client: u8, port: u16, backend: u32, masked: bool, idle: u64) -> Connection {
        let address = |last: u8| Address::from(std::net::Ipv4Addr::new(10, 0, 0, last));
        let key = FlowKey {
            source: address(client),
            destination: address(100),
            source_port: Port::new(port),
            destination_port: Port::new(80),
            protocol: protocol::TCP,
            reserved: [0; 3],
        };
        let source = if masked { address(1) } else { key.source };
        let flow = Flow {
            source,
            destination: address(9),
            destination_port: Port::new(8080),
            backend,
            ..Flow::default()
        };
        Connection { key, flow, idle: Duration::from_secs(idle) }
    }

    #[test]
    fn connections_are_counted_by_whom_they_are_of_and_how_long_they_are_silent() {
        let mut counts = Counts::default();
        for (client, port, backend, masked, idle) in
            [(2, 1, 7, false, 0), (2, 2, 7, true, 9), (3, 3, 0, true, 100_000)]
        {
            counts.add(&connection(client, port, backend, masked, idle));
        }
        assert_eq!(counts.groups, BTreeMap::from([(("tcp", "opening"), 3)]));
        assert_eq!(counts.silence, [1, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(counts.frontends.values().sum::<u64>(), 2);
        let clients = most(counts.clients, 1);
        assert_eq!(clients, [(IpAddr::from([10, 0, 0, 2]), 2)]);
        assert_eq!(most(counts.masqueraded, 1)[0].1, 2);
    }

    #[test]
    fn a_table_that_is_half_full_keeps_almost_nobody_waiting() {
        assert!(part(50, 100).powi(TRIES) < 1e-9);
        assert!((part(90, 100).powi(TRIES) - 0.034).abs() < 0.001);
        assert_eq!(part(200, 100), 1.0);
    }
}
