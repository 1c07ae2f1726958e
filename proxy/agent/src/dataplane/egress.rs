//! The kernel's map of with whose address pods' packets leave.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData, MapError};
use fairlead_abi::{Address, Config, egress, maps};
use fairlead_core::dataplane::RangeKey;
use fairlead_core::egress::Write;

use super::{DataplaneError, Pins, removed};

/// The map [`fairlead_abi::maps::EGRESS`].
pub struct EgressMap(pub LpmTrie<MapData, Address, u32>);

impl EgressMap {
    /// All that it holds.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn read(&self) -> Result<BTreeMap<RangeKey, u32>, DataplaneError> {
        let range = |key: Key<Address>| RangeKey { prefix_len: key.prefix_len(), address: key.data() };
        let entries = self.0.iter().map(|found| found.map(|(key, source)| (range(key), source)));
        entries.collect::<Result<_, MapError>>().map_err(|e| DataplaneError::new("read", "the map EGRESS", e))
    }

    /// Carries out a write.
    ///
    /// # Errors
    /// When the map is full, or the kernel refuses.
    pub fn write(&mut self, write: Write) -> Result<(), DataplaneError> {
        let key = |range: RangeKey| Key::new(range.prefix_len, range.address);
        let (range, written) = match write {
            Write::Set(range, source) => (range, self.0.insert(&key(range), source, 0)),
            Write::Remove(range) => (range, removed(self.0.remove(&key(range)))),
        };
        written.map_err(|e| DataplaneError::new("write the map EGRESS:", range.to_string(), e))
    }
}

/// The node's address, by the pinned maps, if that is what pods' packets to `destination` leave with.
///
/// # Errors
/// When a pin is missing or the kernel refuses to read.
pub fn source_of(pins: &Pins, destination: IpAddr) -> Result<Option<IpAddr>, DataplaneError> {
    let open = |name: &'static str| {
        MapData::from_pin(pins.map(name)).map_err(|e| DataplaneError::new("open pinned map", name, e))
    };
    let unread = |name: &'static str| move |e: MapError| DataplaneError::new("read map", name, e);
    let ranges: LpmTrie<_, Address, u32> =
        Map::LpmTrie(open(maps::EGRESS)?).try_into().map_err(unread(maps::EGRESS))?;
    match ranges.get(&Key::new(Address::BITS, destination.into()), 0) {
        Ok(egress::NODE) => {}
        Ok(_) | Err(MapError::KeyNotFound) => return Ok(None),
        Err(e) => return Err(unread(maps::EGRESS)(e)),
    }
    let Config { node_v4, node_v6, .. } = config(pins)?;
    Ok(Some(if destination.is_ipv4() { node_v4 } else { node_v6 }.into()))
}

/// The node's configuration as the programs read it, from the pinned map.
///
/// # Errors
/// When the pin is missing or the kernel refuses to read.
pub fn config(pins: &Pins) -> Result<Config, DataplaneError> {
    let failed = |e: MapError| DataplaneError::new("read map", maps::CONFIG, e);
    let map = MapData::from_pin(pins.map(maps::CONFIG)).map_err(failed)?;
    let config: Array<_, Config> = Map::Array(map).try_into().map_err(failed)?;
    config.get(&0, 0).map_err(failed)
}
