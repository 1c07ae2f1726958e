//! How much the maps hold: from options, and from the machine's memory.

use fairlead_abi::maps;
use serde::{Deserialize, Serialize};

/// What a connection costs in [`maps::FLOWS`] (two entries, each with the kernel's overhead and its share of the
/// buckets), [`maps::PLACES`] and [`maps::SOCKETS`], in bytes.
const CONNECTION_BYTES: u64 = 700;
/// The part of the memory that the flow table gets by default.
const MEMORY_SHARE: u64 = 200;
/// The fewest connections that there is room for by default.
const FEWEST_PLACES: u32 = 1 << 15;
/// The most connections that there is room for by default.
const MOST_PLACES: u32 = 1 << 20;

/// Slots that the regions of backends get by default.
const REGION_SLOTS: u32 = 262_144;
/// How many Maglev tables the default number of slots has room for.
const MAGLEV_TABLES: u32 = 2048;

/// How many entries the maps are wanted to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Entries of [`maps::FRONTENDS`].
    pub frontends: u32,
    /// Entries of [`maps::SLOTS`].
    pub slots: u32,
    /// Entries of [`maps::BACKENDS`].
    pub backends: u32,
    /// Local pods; [`maps::ENDPOINTS`] has room for two addresses of each.
    pub endpoints: u32,
    /// Connections: entries of [`maps::PLACES`]; a power of two.
    pub places: u32,
    /// Entries of [`maps::AFFINITY`].
    pub affinities: u32,
    /// Entries of [`maps::SOURCE_RANGES`].
    pub source_ranges: u32,
    /// Compiled policies: entries of [`maps::POLICIES`].
    pub policies: u32,
    /// Entries of [`maps::CELLS`].
    pub cells: u32,
    /// Entries of [`maps::ROWS`].
    pub rows: u32,
    /// Entries of [`maps::PEERS`].
    pub peers: u32,
}

impl Sizes {
    /// The wanted size of each map that has one.
    pub(super) fn wanted(&self) -> [(&'static str, u32); 19] {
        let flows = flow_entries(self.places);
        [
            (maps::FRONTENDS, self.frontends),
            (maps::SLOTS, self.slots),
            (maps::BACKENDS, self.backends),
            (maps::ENDPOINTS, self.endpoints.saturating_mul(2)),
            (maps::MARKS, self.endpoints),
            (maps::FLOWS, flows),
            (maps::PLACES, self.places),
            (maps::SOCKETS, flows),
            // The host is a client too.
            (maps::CLIENTS, self.endpoints.saturating_add(1)),
            (maps::AFFINITY, self.affinities),
            (maps::SOURCE_RANGES, self.source_ranges),
            (maps::ISOLATION, self.endpoints),
            (maps::ISOLATED, self.endpoints),
            (maps::POLICIES, self.policies),
            (maps::POLICY_DROPS, self.policies),
            (maps::CELLS, self.cells),
            (maps::ROWS, self.rows),
            (maps::PEERS, self.peers),
            // Where the API has no ServiceCIDR, every ClusterIP has an entry of its own.
            (maps::SERVICE_CIDRS, self.frontends),
        ]
    }
}

/// How many connections `entries` of the flow table are, two each: a power of two, at least 1.
pub fn places_for(entries: u32) -> u32 {
    let places = (entries / 2).max(1);
    1 << places.ilog2()
}

/// How many connections a machine of so much memory, in bytes, has room for by default.
pub fn places_of_memory(memory: u64) -> u32 {
    let places = (memory / MEMORY_SHARE / CONNECTION_BYTES).max(1);
    let power = 1_u64 << places.ilog2();
    u32::try_from(power).unwrap_or(MOST_PLACES).clamp(FEWEST_PLACES, MOST_PLACES)
}

/// How many slots there are by default, with Maglev tables of this size or without any.
pub fn default_slots(maglev: Option<u32>) -> u32 {
    REGION_SLOTS.saturating_add(maglev.map_or(0, |table| table.saturating_mul(MAGLEV_TABLES)))
}

/// Two for each connection, and a few that are being replaced or kept apart.
fn flow_entries(places: u32) -> u32 {
    places.saturating_mul(2).saturating_add(places / 32).saturating_add(256)
}

/// The size of a map, as it is and as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapSize {
    /// The map's name.
    pub name: String,
    /// How many entries it has room for.
    pub capacity: u32,
    /// How many it was asked to have room for. Another number than `capacity` if the map was there before:
    /// its size can't change while flows depend on it.
    pub wanted: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_flow_table_grows_with_the_memory_between_two_bounds() {
        assert_eq!(places_of_memory(GIB), 1 << 15);
        assert_eq!(places_of_memory(24 * GIB), 1 << 17);
        assert_eq!(places_of_memory(4096 * GIB), 1 << 20);
    }

    #[test]
    fn places_are_a_power_of_two_of_which_each_has_two_entries() {
        assert_eq!((places_for(262_144), places_for(262_143), places_for(1)), (131_072, 65_536, 1));
        let sizes = Sizes {
            frontends: 1,
            slots: 1,
            backends: 1,
            endpoints: 1,
            places: places_for(1 << 20),
            affinities: 1,
            source_ranges: 1,
            policies: 1,
            cells: 1,
            rows: 1,
            peers: 1,
        };
        let wanted = std::collections::BTreeMap::from(sizes.wanted());
        assert!(wanted[maps::FLOWS] > 2 * wanted[maps::PLACES], "{wanted:?}");
    }

    #[test]
    fn the_default_slots_have_room_for_maglev_tables_where_these_are_on() {
        assert_eq!(default_slots(None), 262_144);
        assert!(default_slots(Some(1021)) >= 262_144 + 1000 * 1021);
        assert_eq!(default_slots(Some(u32::MAX)), u32::MAX);
    }
}
