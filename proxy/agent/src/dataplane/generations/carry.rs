//! Carries over what the maps of another generation hold, as a [plan](super::plan) says.
//!
//! What only agents write ([`STATE`]) is copied once, into maps that are new. What the programs write is copied again and
//! again while both generations' programs are at work: an entry that the new ones have made stays, and what they have not
//! yet is added.

use std::collections::BTreeMap;

use fairlead_abi::describe::Kind;
use fairlead_abi::{Affinity, Config, Flow, FlowKey, config_flags, flow_flags, maps};

use super::Generation;
use super::plan::{MapPlan, Plan};
use crate::dataplane::raw::{Entries, RawMap};
use crate::dataplane::sys::{bytes_of, value_of};
use crate::dataplane::{DataplaneError, Pins};

/// The maps that only agents write, what others refer to first.
const STATE: [&str; 15] = [
    maps::CONFIG,
    maps::BACKENDS,
    maps::SLOTS,
    maps::SOURCE_RANGES,
    maps::SERVICE_CIDRS,
    maps::FRONTENDS,
    maps::ENDPOINTS,
    maps::CLIENTS,
    maps::EGRESS,
    maps::ROWS,
    maps::CELLS,
    maps::PEERS,
    maps::POLICIES,
    maps::ISOLATED,
    maps::ISOLATION,
];

/// What says of a connection that another of the same tuple may take its place.
const ENDS: u32 = flow_flags::CLOSING | flow_flags::RESET;

/// How many entries were carried over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// Entries of flows, two for each connection.
    pub(super) flows: u64,
    /// Of the other tables that the programs write.
    pub(super) others: u64,
}

/// Which flows are carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flows {
    /// Those that go on. The other programs may still begin a connection in the place of one that has ended, and it would
    /// be taken for that.
    Open,
    /// All.
    All,
}

/// Two generations of maps.
pub(super) struct Carry {
    maps: BTreeMap<String, Pair>,
}

struct Pair {
    plan: MapPlan,
    from: RawMap,
    to: RawMap,
}

impl Carry {
    /// From these maps into those, which are there, as `plan` says.
    ///
    /// # Errors
    /// When a map can't be opened.
    pub(super) fn new(from: &Generation, to: &Pins, plan: &Plan) -> Result<Self, DataplaneError> {
        let mut maps = BTreeMap::new();
        for (name, plan) in &plan.maps {
            let kind = match plan.kind.as_str() {
                "hash" => Kind::Hash,
                "prefixes" => Kind::Prefixes,
                _ => Kind::Array,
            };
            let pair = Pair {
                plan: plan.clone(),
                from: RawMap::open(&from.pins.map(name), kind)?,
                to: RawMap::open(&to.map(name), kind)?,
            };
            if !pair.fits() {
                let why = "it is not as its description says";
                return Err(DataplaneError::new("read map", from.pins.map(name).display().to_string(), why));
            }
            maps.insert(name.clone(), pair);
        }
        Ok(Self { maps })
    }

    /// Copies what only agents write.
    pub(super) fn state(&self) -> Result<(), DataplaneError> {
        for name in STATE.into_iter().chain([maps::POLICY_STATE]) {
            let Some(pair) = self.maps.get(name) else { continue };
            pair.from.read(|entries| {
                let mut entries = pair.convert(&entries);
                if name == maps::CONFIG
                    && let Some(mut config) = value_of::<Config>(&entries.values)
                {
                    config.flags &= !config_flags::HANDOVER;
                    entries.values = bytes_of(&config).to_vec();
                }
                pair.write(&entries)
            })?;
        }
        Ok(())
    }

    /// Copies the places of connections into maps that are new.
    pub(super) fn places(&self) -> Result<(), DataplaneError> {
        let Some(pair) = self.maps.get(maps::PLACES) else { return Ok(()) };
        pair.from.read(|entries| pair.write(&pair.convert(&entries)))
    }

    /// Copies into an empty table the flows that go on, with what they need; returns how many entries.
    pub(super) fn flows_at_first(&self) -> Result<u64, DataplaneError> {
        let Some(pair) = self.maps.get(maps::FLOWS) else { return Ok(0) };
        let mut carried = 0;
        self.marks()?;
        pair.from.read(|entries| {
            let all = pair.convert(&entries);
            let mut open = Entries::default();
            for (key, value) in pair.each(&all) {
                if value_of::<Flow>(value).is_some_and(|flow| flow.flags & ENDS == 0) {
                    open.keys.extend_from_slice(key);
                    open.values.extend_from_slice(value);
                    carried += 1;
                }
            }
            pair.to.write(&open)
        })?;
        self.marks()?;
        Ok(carried)
    }

    /// Adds what the programs' tables lack.
    pub(super) fn tables(&self, which: Flows) -> Result<Carried, DataplaneError> {
        let mut others = 0;
        for name in [maps::SOCKETS, maps::FRAGMENTS] {
            others += self.missing(name)?;
        }
        self.marks()?;
        let flows = self.flows(which)?;
        self.marks()?;
        // Last, since a client that comes anew in the meantime is balanced anew.
        others += self.affinities()?;
        Ok(Carried { flows, others })
    }

    /// Adds the sockets that are not known; returns how many entries.
    pub(super) fn sockets(&self) -> Result<u64, DataplaneError> {
        self.missing(maps::SOCKETS)
    }

    /// Adds the entries that are not there.
    fn missing(&self, name: &str) -> Result<u64, DataplaneError> {
        let Some(pair) = self.maps.get(name) else { return Ok(0) };
        let mut added = 0;
        pair.from.read(|entries| {
            let entries = pair.convert(&entries);
            for (key, value) in pair.each(&entries) {
                added += u64::from(pair.to.add(key, value)?);
            }
            Ok(())
        })?;
        Ok(added)
    }

    /// Marks the endpoints that are marked there. A mark is never taken off.
    fn marks(&self) -> Result<(), DataplaneError> {
        let Some(pair) = self.maps.get(maps::MARKS) else { return Ok(()) };
        pair.from.read(|entries| {
            let entries = pair.convert(&entries);
            for (key, value) in pair.each(&entries).filter(|(_, value)| value.iter().any(|byte| *byte != 0)) {
                let Some(own) = pair.to.get(key)? else { continue };
                let both: Vec<u8> = own.iter().zip(value).map(|(own, other)| own | other).collect();
                if both != own {
                    pair.to.set(key, &both)?;
                }
            }
            Ok(())
        })
    }

    /// Has each client remembered with the backend that it had last.
    fn affinities(&self) -> Result<u64, DataplaneError> {
        let Some(pair) = self.maps.get(maps::AFFINITY) else { return Ok(0) };
        let last_used = |value: &[u8]| value_of::<Affinity>(value).map(|affinity| affinity.last_used);
        let mut carried = 0;
        pair.from.read(|entries| {
            let entries = pair.convert(&entries);
            for (key, value) in pair.each(&entries) {
                match pair.to.get(key)? {
                    Some(own) if last_used(&own) >= last_used(value) => {}
                    _ => carried += u64::from(pair.to.set(key, value)?),
                }
            }
            Ok(())
        })?;
        Ok(carried)
    }

    fn flows(&self, which: Flows) -> Result<u64, DataplaneError> {
        let Some(pair) = self.maps.get(maps::FLOWS) else { return Ok(0) };
        let places = self.maps.get(maps::PLACES).map(|pair| &pair.to);
        let mut added = 0;
        pair.from.read(|entries| {
            let entries = pair.convert(&entries);
            let mut missing = Vec::new();
            for (key, value) in pair.each(&entries) {
                let Some(flow) = value_of::<Flow>(value) else { continue };
                if which == Flows::Open && flow.flags & ENDS != 0 {
                    continue;
                }
                match pair.to.get(key)?.and_then(|own| value_of::<Flow>(&own)) {
                    None => missing.push((key, value, flow)),
                    Some(own) => {
                        if let Some(merged) = merged(&own, &flow) {
                            pair.to.set(key, bytes_of(&merged))?;
                        }
                    }
                }
            }
            if !missing.is_empty() {
                // Before the flow is there: its ends must ask for it.
                self.marks()?;
            }
            for (key, value, flow) in missing {
                added += u64::from(pair.to.add(key, value)?);
                if flow.flags & flow_flags::REPLY == 0
                    && let Some(places) = places
                {
                    enter(places, flow.place, key)?;
                }
            }
            Ok(())
        })?;
        Ok(added)
    }
}

/// Gives the flow of that key the place that it had, unless another has it now: then it is without one, until it is over.
fn enter(places: &RawMap, place: u32, key: &[u8]) -> Result<(), DataplaneError> {
    if place >= places.capacity {
        return Ok(());
    }
    let index = place.to_ne_bytes();
    let occupant = places.get(&index)?.and_then(|key| value_of::<FlowKey>(&key));
    if occupant.is_some_and(|occupant| occupant.protocol == 0) {
        places.set(&index, key)?;
    }
    Ok(())
}

/// What the entry becomes by what the other generation has seen of the same tuple since it was carried over; nothing if
/// that is nothing. Of two flows that lead to different ends the one that was at work later is the one that goes on.
fn merged(own: &Flow, other: &Flow) -> Option<Flow> {
    let leads_alike = own.source == other.source
        && own.destination == other.destination
        && own.source_port == other.source_port
        && own.destination_port == other.destination_port;
    if other.last_seen <= own.last_seen || leads_alike && other.flags & !own.flags == 0 {
        return None;
    }
    let flags = own.flags | other.flags;
    Some(if leads_alike { Flow { flags, last_seen: other.last_seen, ..*own } } else { *other })
}

impl Pair {
    /// Whether both maps have the sizes that the plan takes them to have.
    fn fits(&self) -> bool {
        let reaches =
            |moves: &super::plan::Moves, size| moves.moves.iter().all(|step| step.from + step.len <= size);
        reaches(&self.plan.key, self.from.key_size)
            && reaches(&self.plan.value, self.from.value_size)
            && (self.plan.key.size, self.plan.value.size) == (self.to.key_size, self.to.value_size)
    }

    fn convert(&self, entries: &Entries) -> Entries {
        let Entries { keys, values } = entries;
        let mut converted = Entries::default();
        for (key, value) in
            keys.chunks_exact(self.from.key_size).zip(values.chunks_exact(self.from.value_size))
        {
            self.plan.key.apply(key, &mut converted.keys);
            self.plan.value.apply(value, &mut converted.values);
        }
        converted
    }

    fn each<'a>(&self, entries: &'a Entries) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        entries.keys.chunks_exact(self.to.key_size).zip(entries.values.chunks_exact(self.to.value_size))
    }

    /// Writes the entries, over what is there; an array's only as far as it goes.
    fn write(&self, entries: &Entries) -> Result<(), DataplaneError> {
        if self.plan.kind == "prefixes" {
            return self.each(entries).try_for_each(|(key, value)| self.to.set(key, value).map(drop));
        }
        if self.plan.kind == "array" && self.to.capacity < self.from.capacity {
            let fits = |key: &[u8]| value_of::<u32>(key).is_some_and(|index| index < self.to.capacity);
            let mut fitting = Entries::default();
            for (key, value) in self.each(entries).filter(|(key, _)| fits(key)) {
                fitting.keys.extend_from_slice(key);
                fitting.values.extend_from_slice(value);
            }
            return self.to.write(&fitting);
        }
        self.to.write(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_generation_has_seen_since_is_taken_up() {
        let own = Flow { last_seen: 5, flags: flow_flags::ANSWERED, backend: 3, ..Flow::default() };
        let fin = Flow { last_seen: 6, flags: flow_flags::CLOSING, ..own };
        let both = Flow { last_seen: 6, flags: flow_flags::ANSWERED | flow_flags::CLOSING, ..own };
        assert_eq!(merged(&own, &fin), Some(both));
        assert_eq!(merged(&own, &Flow { last_seen: 5, ..fin }), None, "older than what is known");
        assert_eq!(merged(&own, &Flow { last_seen: 6, ..own }), None, "nothing new");
        let other = Flow { source_port: fairlead_abi::Port::new(7), ..fin };
        assert_eq!(merged(&own, &other), Some(other), "another flow, begun since");
        assert_eq!(merged(&own, &Flow { last_seen: 4, ..other }), None, "another flow, of before");
    }

    #[test]
    fn every_map_that_is_described_is_carried_by_somebody() {
        let tables = [maps::MARKS, maps::AFFINITY, maps::SOCKETS, maps::FRAGMENTS, maps::FLOWS, maps::PLACES];
        let carried = |name| STATE.contains(&name) || tables.contains(&name) || name == maps::POLICY_STATE;
        for map in fairlead_abi::describe::MAPS {
            assert!(carried(map.name), "{}", map.name);
        }
    }
}
