//! The maps of the loaded programs, as the policy engine writes them, and the local pods.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData};
use fairlead_abi::{Address, Cell, CellKey, Endpoint, Isolation, PeerKey, PolicyState, RowKey, maps};
use fairlead_core::dataplane::{MapAction, MapError, PolicyMaps, RangeKey, RowPrefix};
use fairlead_oracle::kernel::{array, failed, gone, hash, trie, typed, unread};
use fairlead_prog_tests::{Family, Node, Pod};

use crate::case;
use crate::world;

/// The node's maps.
pub struct NodeMaps<'a>(pub &'a mut Node);

impl PolicyMaps for NodeMaps<'_> {
    fn write_row(&mut self, key: &RowPrefix, verdict: u32) -> Result<(), MapError> {
        let written = trie::<RowKey>(self.0, maps::ROWS).insert(&row(key), verdict, 0);
        written.map_err(|error| MapError::policy(MapAction::Program, key, failed(&error)))
    }

    fn remove_row(&mut self, key: &RowPrefix) -> Result<(), MapError> {
        let removed = gone(trie::<RowKey>(self.0, maps::ROWS).remove(&row(key)));
        removed.map_err(|error| MapError::policy(MapAction::Remove, key, failed(&error)))
    }

    fn write_default(&mut self, policy: u32, row: u32) -> Result<(), MapError> {
        let written = array::<u32>(self.0, maps::POLICIES).set(policy, row, 0);
        written
            .map_err(|error| MapError::policy(MapAction::Program, format!("policy {policy}"), failed(&error)))
    }

    fn write_cell(&mut self, key: &CellKey, row: u32) -> Result<(), MapError> {
        let cell = Cell { row, check: key.check() };
        let written = hash::<CellKey, Cell>(self.0, maps::CELLS).insert(key, cell, 0);
        written.map_err(|error| MapError::policy(MapAction::Program, format!("{key:?}"), failed(&error)))
    }

    fn remove_cell(&mut self, key: &CellKey) -> Result<(), MapError> {
        let removed = gone(hash::<CellKey, Cell>(self.0, maps::CELLS).remove(key));
        removed.map_err(|error| MapError::policy(MapAction::Remove, format!("{key:?}"), failed(&error)))
    }

    fn write_peer(&mut self, prefix: &RangeKey, identity: u32) -> Result<(), MapError> {
        let written = trie::<PeerKey>(self.0, maps::PEERS).insert(&peer(prefix), identity, 0);
        written.map_err(|error| MapError::policy(MapAction::Program, prefix, failed(&error)))
    }

    fn remove_peer(&mut self, prefix: &RangeKey) -> Result<(), MapError> {
        let removed = gone(trie::<PeerKey>(self.0, maps::PEERS).remove(&peer(prefix)));
        removed.map_err(|error| MapError::policy(MapAction::Remove, prefix, failed(&error)))
    }

    fn write_isolation(&mut self, index: u32, isolation: Isolation) -> Result<(), MapError> {
        let written = array::<Isolation>(self.0, maps::ISOLATION).set(index, isolation, 0);
        written.map_err(|error| {
            MapError::policy(MapAction::Program, format!("endpoint {index}"), failed(&error))
        })
    }

    fn write_state(&mut self, state: PolicyState) -> Result<(), MapError> {
        let written = array::<PolicyState>(self.0, maps::POLICY_STATE).set(0, state, 0);
        written.map_err(|error| MapError::policy(MapAction::Program, "the state", failed(&error)))
    }

    fn rows(&self) -> Result<Vec<(RowPrefix, u32)>, MapError> {
        let map: LpmTrie<&MapData, RowKey, u32> = typed(self.0, maps::ROWS);
        let entries = map.iter().map(|entry| {
            entry.map(|(key, verdict)| (RowPrefix { key: key.data(), prefix_len: key.prefix_len() }, verdict))
        });
        entries.collect::<Result<_, _>>().map_err(|error| unread("rows", &error))
    }

    fn default_row(&self, policy: u32) -> Result<u32, MapError> {
        let map: Array<&MapData, u32> = typed(self.0, maps::POLICIES);
        map.get(&policy, 0).map_err(|error| unread("policies", &error))
    }

    fn cells(&self) -> Result<Vec<(CellKey, u32)>, MapError> {
        let map: HashMap<&MapData, CellKey, Cell> = typed(self.0, maps::CELLS);
        let entries = map.iter().map(|entry| entry.map(|(key, cell)| (key, cell.row)));
        entries.collect::<Result<_, _>>().map_err(|error| unread("cells", &error))
    }

    fn peers(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        let map: LpmTrie<&MapData, PeerKey, u32> = typed(self.0, maps::PEERS);
        let entries = map.iter().map(|entry| {
            entry.map(|(key, identity)| {
                (RangeKey { prefix_len: key.prefix_len(), address: key.data() }, identity)
            })
        });
        entries.collect::<Result<_, _>>().map_err(|error| unread("peers", &error))
    }

    fn isolation(&self, index: u32) -> Result<Isolation, MapError> {
        let map: Array<&MapData, Isolation> = typed(self.0, maps::ISOLATION);
        map.get(&index, 0).map_err(|error| unread("isolation", &error))
    }

    fn state(&self) -> Result<PolicyState, MapError> {
        let map: Array<&MapData, PolicyState> = typed(self.0, maps::POLICY_STATE);
        map.get(&0, 0).map_err(|error| unread("the state", &error))
    }
}

/// How many entries a map has room for.
///
/// # Panics
/// When there is no such map.
#[must_use]
pub fn room(node: &Node, name: &str) -> u32 {
    let map = node.ebpf.map(name).expect("the map");
    let (Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data)) = map else {
        panic!("{name} is of another kind")
    };
    data.info().expect("information about a map").max_entries()
}

/// Makes the maps of policies as they are before the agent's first run.
///
/// # Panics
/// When a map refuses.
pub fn clear(node: &mut Node) {
    let maps = NodeMaps(node);
    let (rows, cells) = (maps.rows().expect("the rows"), maps.cells().expect("the cells"));
    let peers = maps.peers().expect("the peers");
    let mut maps = maps;
    rows.iter().for_each(|(key, _)| maps.remove_row(key).expect("remove a row"));
    cells.iter().for_each(|(key, _)| maps.remove_cell(key).expect("remove a cell"));
    peers.iter().for_each(|(prefix, _)| maps.remove_peer(prefix).expect("remove a peer"));
    for policy in 0..POLICIES {
        maps.write_default(policy, 0).expect("clear a policy");
    }
    for index in 0..ENDPOINTS {
        maps.write_isolation(index, Isolation::default()).expect("clear an isolation");
    }
    maps.write_state(PolicyState::default()).expect("clear the state");
}

/// No case has more compiled policies than these, nor more local pods.
pub const POLICIES: u32 = 128;
const ENDPOINTS: u32 = 16;

/// The interfaces of the pods that a new node has: there may be more pods than these.
///
/// # Panics
/// When a pod lacks its own.
#[must_use]
pub fn interfaces(node: &Node) -> [Endpoint; 2] {
    let map: HashMap<&MapData, Address, Endpoint> = typed(node, maps::ENDPOINTS);
    Pod::ALL.map(|pod| map.get(&Address::from(pod.ip(Family::V4)), 0).expect("the pod's interface"))
}

/// Makes these the local pods, on the interfaces in turn.
///
/// # Panics
/// When the map refuses.
pub fn place_pods(node: &mut Node, interfaces: [Endpoint; 2], endpoints: &BTreeMap<u32, case::Endpoint>) {
    let mut map = hash::<Address, Endpoint>(node, maps::ENDPOINTS);
    let taken: Vec<Address> = map.keys().map(|key| key.expect("read an endpoint")).collect();
    for address in &taken {
        map.remove(address).expect("remove an endpoint");
    }
    for endpoint in endpoints.values() {
        let pod = world::interface(endpoint.index);
        for address in &endpoint.addresses {
            let value = Endpoint { index: endpoint.index, ..interfaces[pod as usize] };
            map.insert(Address::from(*address), value, 0).expect("insert an endpoint");
        }
    }
}

fn row(key: &RowPrefix) -> Key<RowKey> {
    Key::new(key.prefix_len, key.key)
}

fn peer(prefix: &RangeKey) -> Key<PeerKey> {
    Key::new(prefix.prefix_len, prefix.address)
}
