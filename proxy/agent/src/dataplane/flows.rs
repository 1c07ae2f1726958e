//! The flow table as user space sees it: how full it is, and the sweep that removes what is over.
//!
//! The programs give the place of a connection that is over to a new one by themselves. The sweep keeps the numbers
//! honest, and finds free places for the programs where a burst of short connections has left none.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{HashMap, MapData};
use fairlead_abi::{Flow, FlowKey, flow_flags, maps, protocol};
use fairlead_flow::life;

use super::services::Batched;
use super::{DataplaneError, Pins, sys};

/// How many entries are read in one call. The kernel locks one bucket at a time, however many it is asked for.
const CHUNK: usize = 1024;
/// The pause between two chunks, so that the sweep of a large table never holds a processor for long.
const BREATH: Duration = Duration::from_micros(500);

/// The map [`fairlead_abi::maps::FLOWS`].
pub struct FlowTable {
    flows: Batched<HashMap<MapData, FlowKey, Flow>>,
    places: u32,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Live connections by protocol and [state](state_of).
    pub connections: BTreeMap<(&'static str, &'static str), u64>,
    /// Entries that are left.
    pub entries: u64,
    /// Entries that were removed.
    pub removed: u64,
}

impl Census {
    /// Connections that hold their place: all but those that have ended, which make way when room is scarce.
    pub fn held(&self) -> u64 {
        self.connections.iter().filter(|((_, state), _)| *state != CLOSED).map(|(_, count)| count).sum()
    }
}

impl FlowTable {
    /// Over the map, in which there is room for so many connections.
    pub(super) fn new(flows: Batched<HashMap<MapData, FlowKey, Flow>>, places: u32) -> Self {
        Self { flows, places }
    }

    /// How many connections there is room for.
    pub fn places(&self) -> u32 {
        self.places
    }

    /// Counts the connections, and removes those that are over. Takes a while in a large table.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn sweep(&mut self) -> Result<Census, DataplaneError> {
        let now = sys::coarse_clock();
        let mut census = Census::default();
        let map = &mut self.flows.map;
        sys::read_chunks(self.flows.fd.as_fd(), CHUNK, |keys: &[FlowKey], flows: &[Flow]| {
            for (key, flow) in keys.iter().zip(flows) {
                if life::is_over(flow, key.protocol, now) && is_over(map, key, flow, now) {
                    census.removed += remove(map, key, flow, now);
                    continue;
                }
                census.entries += 1;
                if flow.flags & (flow_flags::REPLY | flow_flags::TRACKED) == 0 {
                    *census.connections.entry((protocol_of(key), state_of(flow))).or_default() += 1;
                }
            }
            std::thread::sleep(BREATH);
        })
        .map_err(|e| DataplaneError::new("read", "flows", e))?;
        Ok(census)
    }
}

/// A connection as the pinned table has it: its forward entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The tuple of the client's packets as they come.
    pub key: FlowKey,
    /// What that becomes.
    pub flow: Flow,
    /// How long ago the client last sent something, to half a second.
    pub idle: Duration,
}

impl Connection {
    /// What it last did, for people: see [`Census::connections`].
    pub fn state(&self) -> &'static str {
        state_of(&self.flow)
    }
}

/// Reads the pinned table in chunks, and hands on each connection that is not over. Returns how many entries there are.
/// Costs the programs nothing but the lock of one bucket at a time.
///
/// # Errors
/// When the pin is missing or the kernel refuses to read.
pub fn read(pins: &Pins, mut take: impl FnMut(Connection)) -> Result<u64, DataplaneError> {
    let map = sys::open_pin(&pins.map(maps::FLOWS))
        .map_err(|e| DataplaneError::new("open pinned map", maps::FLOWS, e))?;
    let now = sys::coarse_clock();
    let mut entries = 0;
    sys::read_chunks(map.as_fd(), CHUNK, |keys: &[FlowKey], flows: &[Flow]| {
        entries += keys.len() as u64;
        for (key, flow) in keys.iter().zip(flows) {
            if flow.flags & flow_flags::REPLY == 0 && !life::is_over(flow, key.protocol, now) {
                let idle = Duration::from_nanos(now.saturating_sub(flow.last_seen));
                take(Connection { key: *key, flow: *flow, idle });
            }
        }
    })
    .map_err(|e| DataplaneError::new("read", "flows", e))?;
    Ok(entries)
}

/// Has the calling thread give way to others: the sweep is never urgent.
pub fn lower_priority() {
    sys::lower_priority();
}

/// Whether the connection of an entry that is over is so too: its other entry is over, or belongs to another.
fn is_over(map: &HashMap<MapData, FlowKey, Flow>, key: &FlowKey, flow: &Flow, now: u64) -> bool {
    match map.get(&flow.leaving(key.protocol).reversed(), 0) {
        Ok(partner) => !partner.leads_to(key) || life::is_over(&partner, key.protocol, now),
        Err(_) => true,
    }
}

/// Removes the connection of this entry, unless a packet has just woken it; returns how many entries. The forward one first:
/// no packet may find that whose answers find nothing any more.
fn remove(map: &mut HashMap<MapData, FlowKey, Flow>, key: &FlowKey, flow: &Flow, now: u64) -> u64 {
    let partner = flow.leaving(key.protocol).reversed();
    let is_reply = flow.flags & flow_flags::REPLY != 0;
    let [forward, reply] = if is_reply { [partner, *key] } else { [*key, partner] };
    let mut count = 0;
    for (at, other) in [(forward, reply), (reply, forward)] {
        match map.get(&at, 0) {
            Ok(held) if !held.leads_to(&other) => {}
            Ok(held) if !life::is_over(&held, at.protocol, now) => break,
            Ok(_) => count += u64::from(map.remove(&at).is_ok()),
            Err(_) => {}
        }
    }
    count
}

/// The state of a connection that has ended.
const CLOSED: &str = "closed";

pub(crate) fn protocol_of(key: &FlowKey) -> &'static str {
    match key.protocol {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::SCTP => "sctp",
        _ => "other",
    }
}

/// What a connection last did: "opening" until it is answered, then "established", "closing" after one FIN, and
/// "closed" after both or an RST.
pub(crate) fn state_of(flow: &Flow) -> &'static str {
    let has = |flags| flow.flags & flags != 0;
    if has(flow_flags::RESET | flow_flags::CLOSED) {
        CLOSED
    } else if has(flow_flags::CLOSING) {
        "closing"
    } else if has(flow_flags::ANSWERED) {
        "established"
    } else {
        "opening"
    }
}

#[cfg(test)]
mod tests {
    use fairlead_abi::{Address, Port};

    use super::*;

    #[test]
    fn each_of_a_connections_entries_leads_to_the_other() {
        let address = |last: u8| Address::from(std::net::Ipv4Addr::new(10, 0, 0, last));
        let (client, frontend, backend) = (address(1), address(2), address(3));
        let forward = FlowKey {
            source: client,
            destination: frontend,
            source_port: Port::new(40000),
            destination_port: Port::new(80),
            protocol: protocol::TCP,
            reserved: [0; 3],
        };
        let there = Flow {
            source: client,
            destination: backend,
            source_port: Port::new(40000),
            destination_port: Port::new(8080),
            ..Flow::default()
        };
        let reply = there.leaving(protocol::TCP).reversed();
        assert_eq!((reply.source, reply.source_port), (backend, Port::new(8080)));
        let back = Flow {
            source: frontend,
            destination: client,
            source_port: Port::new(80),
            destination_port: Port::new(40000),
            ..Flow::default()
        };
        assert_eq!(back.leaving(protocol::TCP).reversed(), forward);
        assert!(there.leads_to(&reply) && back.leads_to(&forward) && !back.leads_to(&reply));
    }

    #[test]
    fn a_connections_state_is_what_it_last_did() {
        let state = |flags| state_of(&Flow { flags, ..Flow::default() });
        assert_eq!(state(0), "opening");
        assert_eq!(state(flow_flags::ANSWERED), "established");
        assert_eq!(state(flow_flags::ANSWERED | flow_flags::CLOSING | flow_flags::FIN), "closing");
        assert_eq!(state(flow_flags::CLOSING | flow_flags::CLOSED), "closed");
        assert_eq!(state(flow_flags::ANSWERED | flow_flags::RESET), "closed");
    }
}
