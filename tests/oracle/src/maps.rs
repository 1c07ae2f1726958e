//! The maps of the loaded programs, as the reconciler writes them.

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError as KernelError};
use fairlead_abi::{Address, Backend, Flow, FlowKey, Frontend, FrontendKey, Region, SourceRange, maps};
use fairlead_core::dataplane::{MapAction, MapError, RangeKey, ServiceMaps, SourceRangeKey};
use fairlead_core::reconcile::Capacity;
use fairlead_prog_tests::Node;

use crate::kernel::{array, failed, gone, hash, trie, typed, unread};

/// The node's maps.
pub struct NodeMaps<'a>(pub &'a mut Node);

impl NodeMaps<'_> {
    fn all_backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        let map: Array<&MapData, Backend> = typed(self.0, maps::BACKENDS);
        let all = (0..map.len()).map(|id| Ok((id, map.get(&id, 0)?)));
        all.collect::<Result<_, KernelError>>().map_err(|error| unread("backends", &error))
    }
}

impl ServiceMaps for NodeMaps<'_> {
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        let written = array::<Backend>(self.0, maps::BACKENDS).set(id, backend, 0);
        written.map_err(|error| MapError::backend(MapAction::Program, id, backend, failed(&error)))
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError> {
        let region = Region { base, len: ids.len() as u32 };
        let mut slots = array::<u32>(self.0, maps::SLOTS);
        for (slot, id) in (base..).zip(ids) {
            let written = slots.set(slot, *id, 0);
            written.map_err(|error| MapError::slots(MapAction::Program, region, failed(&error)))?;
        }
        Ok(())
    }

    fn write_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), MapError> {
        let written = hash::<FrontendKey, Frontend>(self.0, maps::FRONTENDS).insert(key, frontend, 0);
        written.map_err(|error| MapError::frontend(MapAction::Program, key, failed(&error)))
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        let removed = hash::<FrontendKey, Frontend>(self.0, maps::FRONTENDS).remove(key);
        gone(removed).map_err(|error| MapError::frontend(MapAction::Remove, key, failed(&error)))
    }

    fn write_source_range(&mut self, range: &SourceRangeKey, present: bool) -> Result<(), MapError> {
        let key = Key::new(range.prefix_len, range.range);
        let mut ranges = trie::<SourceRange>(self.0, maps::SOURCE_RANGES);
        let (action, written) = if present {
            (MapAction::Program, ranges.insert(&key, 1, 0))
        } else {
            (MapAction::Remove, gone(ranges.remove(&key)))
        };
        written.map_err(|error| MapError::source_range(action, range, failed(&error)))
    }

    fn write_service_cidr(&mut self, cidr: &RangeKey, flags: u32) -> Result<(), MapError> {
        let key = Key::new(cidr.prefix_len, cidr.address);
        let written = trie(self.0, maps::SERVICE_CIDRS).insert(&key, flags, 0);
        written.map_err(|error| MapError::service_cidr(MapAction::Program, cidr, failed(&error)))
    }

    fn remove_service_cidr(&mut self, cidr: &RangeKey) -> Result<(), MapError> {
        let key = Key::new(cidr.prefix_len, cidr.address);
        let removed = gone(trie::<Address>(self.0, maps::SERVICE_CIDRS).remove(&key));
        removed.map_err(|error| MapError::service_cidr(MapAction::Remove, cidr, failed(&error)))
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        Ok(self.all_backends()?.into_iter().filter(|(_, backend)| backend.has_tenant()).collect())
    }

    fn last_generation(&self) -> Result<u32, MapError> {
        Ok(self.all_backends()?.iter().map(|(_, backend)| backend.generation).max().unwrap_or_default())
    }

    fn slots(&self, region: Region) -> Result<Vec<u32>, MapError> {
        let map: Array<&MapData, u32> = typed(self.0, maps::SLOTS);
        let slots = (region.base..region.base + region.len).map(|slot| map.get(&slot, 0));
        slots.collect::<Result<_, _>>().map_err(|error| unread("slots", &error))
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapError> {
        let map: HashMap<&MapData, FrontendKey, Frontend> = typed(self.0, maps::FRONTENDS);
        map.iter().collect::<Result<_, _>>().map_err(|error| unread("frontends", &error))
    }

    fn source_ranges(&self) -> Result<Vec<SourceRangeKey>, MapError> {
        let map: LpmTrie<&MapData, SourceRange, u32> = typed(self.0, maps::SOURCE_RANGES);
        let keys = map
            .keys()
            .map(|key| key.map(|key| SourceRangeKey { prefix_len: key.prefix_len(), range: key.data() }));
        keys.collect::<Result<_, _>>().map_err(|error| unread("source ranges", &error))
    }

    fn service_cidrs(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        let map: LpmTrie<&MapData, Address, u32> = typed(self.0, maps::SERVICE_CIDRS);
        let entries = map.iter().map(|entry| {
            entry.map(|(key, flags)| (RangeKey { prefix_len: key.prefix_len(), address: key.data() }, flags))
        });
        entries.collect::<Result<_, _>>().map_err(|error| unread("service ranges", &error))
    }
}

/// How much the maps hold.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn capacity(node: &Node) -> Capacity {
    let slots: Array<&MapData, u32> = typed(node, maps::SLOTS);
    let backends: Array<&MapData, Backend> = typed(node, maps::BACKENDS);
    Capacity { slots: slots.len(), backends: backends.len() }
}

/// Ends every connection.
///
/// # Panics
/// When the map refuses.
pub fn clear_flows(node: &mut Node) {
    let mut flows = hash::<FlowKey, Flow>(node, maps::FLOWS);
    let keys: Vec<FlowKey> = flows.keys().map(|key| key.expect("read a flow")).collect();
    for key in keys {
        flows.remove(&key).expect("remove a flow");
    }
}
