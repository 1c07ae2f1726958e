//! The kernel's map of with whose address pods' packets leave.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use fairlead_abi::Address;
use fairlead_core::dataplane::RangeKey;
use fairlead_core::egress::Write;

use super::{DataplaneError, removed};

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
