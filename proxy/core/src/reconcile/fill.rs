//! How full the maps of Services are, without reading them.

use fairlead_abi::maps;

use super::Reconciler;

impl Reconciler {
    /// How many entries the maps hold by what was written to them, by name of map. What an earlier run left and no
    /// Service has taken over counts among the frontends and slots alone.
    pub fn entries(&self) -> [(&'static str, usize); 4] {
        let holdings = || self.ledger.holdings.values();
        [
            (maps::FRONTENDS, self.ledger.frontends.len()),
            (maps::SLOTS, self.ledger.regions.values().map(|region| region.len as usize).sum()),
            (maps::BACKENDS, holdings().map(|holding| holding.backends.len()).sum()),
            (maps::SOURCE_RANGES, holdings().map(|holding| holding.ranges.len()).sum()),
        ]
    }
}
