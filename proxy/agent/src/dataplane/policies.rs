//! The kernel's maps of policies, for the policy engine to write and for explanations to read.

use std::net::IpAddr;
use std::os::fd::AsFd;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError as KernelError, PerCpuArray};
use fairlead_abi::{
    Address, Cell, CellKey, Isolation, PolicyState, Port, RowKey, identities, policies, rows, verdicts,
};
use fairlead_core::dataplane::{MapAction, MapCause, MapError, PolicyMaps, RangeKey, RowPrefix};

use super::services::{Batched, failed, full_or_failed, unread};
use super::{removed, sys};

/// How many entries there is room for, for errors to name.
#[derive(Clone, Copy, Debug)]
pub struct PolicyCapacity {
    /// Compiled policies.
    pub policies: u32,
    /// Cells.
    pub cells: u32,
    /// Ranges of ports in rows.
    pub rows: u32,
    /// Prefixes of peers.
    pub peers: u32,
}

/// The maps that [`PolicyMaps`] names.
pub struct KernelPolicyMaps {
    /// [`fairlead_abi::maps::ISOLATION`].
    pub isolation: Array<MapData, Isolation>,
    /// [`fairlead_abi::maps::ISOLATED`].
    pub isolated: Array<MapData, u64>,
    /// [`fairlead_abi::maps::POLICIES`].
    pub policies: Array<MapData, u32>,
    /// [`fairlead_abi::maps::PEERS`].
    pub peers: LpmTrie<MapData, Address, u32>,
    /// [`fairlead_abi::maps::CELLS`].
    pub cells: Batched<HashMap<MapData, CellKey, Cell>>,
    /// [`fairlead_abi::maps::ROWS`].
    pub rows: LpmTrie<MapData, RowKey, u32>,
    /// [`fairlead_abi::maps::POLICY_STATE`].
    pub state: Array<MapData, PolicyState>,
    /// How much of each fits.
    pub capacity: PolicyCapacity,
}

/// How many packets each compiled policy dropped: [`fairlead_abi::maps::POLICY_DROPS`].
pub struct DropCounts(pub PerCpuArray<MapData, u64>);

/// What the maps say to one packet of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The peer's identity, with [`identities::OWN_NODE`].
    pub identity: u32,
    /// The row that counts.
    pub row: u32,
    /// One of [`verdicts`].
    pub verdict: u32,
}

impl KernelPolicyMaps {
    /// What the programs would find for a compiled policy, the peer's address and the server's port.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn look_up(&self, policy: u32, peer: IpAddr, protocol: u8, port: u16) -> Result<Looked, MapError> {
        if policy < policies::FIRST {
            let verdict = if policy == policies::OPEN { verdicts::ALLOW } else { verdicts::DENY_NETWORK };
            return Ok(Looked { identity: identities::UNKNOWN, row: verdict, verdict });
        }
        let peer = Key::new(Address::BITS, Address::from(peer));
        let identity = found(self.peers.get(&peer, 0)).map_err(|e| unread("peers", e))?.unwrap_or_default();
        let cell = CellKey { policy, identity: identity & !identities::OWN_NODE };
        let cell = found(self.cells.map.get(&cell, 0)).map_err(|e| unread("cells", e))?;
        let row = match cell {
            Some(cell) => cell.row,
            None => self.default_row(policy)?,
        };
        if row < rows::FIRST {
            return Ok(Looked { identity, row, verdict: row });
        }
        let key = Key::new(rows::PORT_BITS, RowKey::new(row, protocol, Port::new(port)));
        let verdict = found(self.rows.get(&key, 0)).map_err(|e| unread("rows", e))?;
        Ok(Looked { identity, row, verdict: verdict.unwrap_or(verdicts::DENY_NETWORK) })
    }
}

impl PolicyMaps for KernelPolicyMaps {
    fn write_row(&mut self, key: &RowPrefix, verdict: u32) -> Result<(), MapError> {
        let written = self.rows.insert(&Key::new(key.prefix_len, key.key), verdict, 0);
        written.map_err(|e| programming(key, full_or_failed(e, self.capacity.rows)))
    }

    fn remove_row(&mut self, key: &RowPrefix) -> Result<(), MapError> {
        removed(self.rows.remove(&Key::new(key.prefix_len, key.key))).map_err(|e| removing(key, e))
    }

    fn write_default(&mut self, policy: u32, row: u32) -> Result<(), MapError> {
        let written = self.policies.set(policy, row, 0);
        written.map_err(|e| programming(format_args!("policy {policy}"), out_of_bounds(e)))
    }

    fn write_cell(&mut self, key: &CellKey, row: u32) -> Result<(), MapError> {
        let written = self.cells.map.insert(key, Cell { row, check: key.check() }, 0);
        written.map_err(|e| programming(label(key), full_or_failed(e, self.capacity.cells)))
    }

    fn remove_cell(&mut self, key: &CellKey) -> Result<(), MapError> {
        removed(self.cells.map.remove(key)).map_err(|e| removing(label(key), e))
    }

    fn write_peer(&mut self, prefix: &RangeKey, identity: u32) -> Result<(), MapError> {
        let written = self.peers.insert(&Key::new(prefix.prefix_len, prefix.address), identity, 0);
        written
            .map_err(|e| programming(format_args!("peer {prefix}"), full_or_failed(e, self.capacity.peers)))
    }

    fn remove_peer(&mut self, prefix: &RangeKey) -> Result<(), MapError> {
        removed(self.peers.remove(&Key::new(prefix.prefix_len, prefix.address)))
            .map_err(|e| removing(format_args!("peer {prefix}"), e))
    }

    fn write_isolation(&mut self, index: u32, isolation: Isolation) -> Result<(), MapError> {
        let failed = |e| programming(format_args!("isolation of endpoint {index}"), out_of_bounds(e));
        let before = self.isolation.get(&index, 0).map_err(failed)?;
        if was_free(before.ingress, isolation.ingress) || was_free(before.egress, isolation.egress) {
            self.isolated.set(index, sys::coarse_clock(), 0).map_err(failed)?;
        }
        self.isolation.set(index, isolation, 0).map_err(failed)
    }

    fn write_state(&mut self, state: PolicyState) -> Result<(), MapError> {
        self.state.set(0, state, 0).map_err(|e| programming("the policies' revision", failed(e)))
    }

    fn rows(&self) -> Result<Vec<(RowPrefix, u32)>, MapError> {
        let prefix = |key: Key<RowKey>| RowPrefix { key: key.data(), prefix_len: key.prefix_len() };
        let entries = self.rows.iter().map(|found| found.map(|(key, verdict)| (prefix(key), verdict)));
        entries.collect::<Result<_, _>>().map_err(|e| unread("rows", e))
    }

    fn default_row(&self, policy: u32) -> Result<u32, MapError> {
        self.policies.get(&policy, 0).map_err(|e| unread("policies", e))
    }

    fn cells(&self) -> Result<Vec<(CellKey, u32)>, MapError> {
        let all: Vec<(CellKey, Cell)> =
            sys::read_all(self.cells.fd.as_fd()).map_err(|e| unread("cells", e))?;
        Ok(all.into_iter().map(|(key, cell)| (key, cell.row)).collect())
    }

    fn peers(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        let range = |key: Key<Address>| RangeKey { prefix_len: key.prefix_len(), address: key.data() };
        let entries = self.peers.iter().map(|found| found.map(|(key, identity)| (range(key), identity)));
        entries.collect::<Result<_, _>>().map_err(|e| unread("peers", e))
    }

    fn isolation(&self, index: u32) -> Result<Isolation, MapError> {
        self.isolation.get(&index, 0).map_err(|e| unread("isolation", e))
    }

    fn state(&self) -> Result<PolicyState, MapError> {
        self.state.get(&0, 0).map_err(|e| unread("the policies' revision", e))
    }
}

impl DropCounts {
    /// How many packets a compiled policy has dropped, and those that had its id before.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn of(&self, policy: u32) -> Result<u64, KernelError> {
        Ok(self.0.get(&policy, 0)?.iter().sum())
    }
}

/// Whether a pod comes under a policy in a direction in which it was under none.
fn was_free(before: u32, now: u32) -> bool {
    before == policies::OPEN && now != policies::OPEN
}

fn found<T>(result: Result<T, KernelError>) -> Result<Option<T>, KernelError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(KernelError::KeyNotFound) => Ok(None),
        Err(e) => Err(e),
    }
}

fn out_of_bounds(error: KernelError) -> MapCause {
    match error {
        KernelError::OutOfBounds { max_entries, .. } => MapCause::Full(max_entries),
        other => failed(other),
    }
}

fn programming(object: impl std::fmt::Display, cause: MapCause) -> MapError {
    MapError::policy(MapAction::Program, object, cause)
}

fn removing(object: impl std::fmt::Display, error: KernelError) -> MapError {
    MapError::policy(MapAction::Remove, object, failed(error))
}

fn label(key: &CellKey) -> String {
    format!("cell of policy {} for identity {}", key.policy, key.identity)
}
