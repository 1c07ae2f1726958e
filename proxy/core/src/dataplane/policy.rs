//! The maps of policies as the policy engine sees them.

use std::fmt;

use fairlead_abi::{CellKey, Isolation, PolicyState, Port, RowKey, rows};

use super::{MapAction, MapCause, MapError, RangeKey};
use crate::model::Protocol;

/// The maps [`fairlead_abi::maps::ISOLATION`], [`fairlead_abi::maps::POLICIES`], [`fairlead_abi::maps::PEERS`],
/// [`fairlead_abi::maps::CELLS`], [`fairlead_abi::maps::ROWS`] and [`fairlead_abi::maps::POLICY_STATE`].
pub trait PolicyMaps {
    /// Creates or replaces one range of ports in a row.
    fn write_row(&mut self, key: &RowPrefix, verdict: u32) -> Result<(), MapError>;

    /// Removes one range of ports from a row; one that is not there is no error.
    fn remove_row(&mut self, key: &RowPrefix) -> Result<(), MapError>;

    /// Sets the row of identities that `policy` has no cell for.
    fn write_default(&mut self, policy: u32, row: u32) -> Result<(), MapError>;

    /// Creates or switches a cell in one step.
    fn write_cell(&mut self, key: &CellKey, row: u32) -> Result<(), MapError>;

    /// Removes a cell; one that is not there is no error.
    fn remove_cell(&mut self, key: &CellKey) -> Result<(), MapError>;

    /// Creates or replaces the identity of the addresses that `prefix` is the longest for.
    fn write_peer(&mut self, prefix: &RangeKey, identity: u32) -> Result<(), MapError>;

    /// Removes a prefix; one that is not there is no error.
    fn remove_peer(&mut self, prefix: &RangeKey) -> Result<(), MapError>;

    /// Puts the endpoint at `index` under other policies, both directions in one step.
    fn write_isolation(&mut self, index: u32, isolation: Isolation) -> Result<(), MapError>;

    /// Writes what all policies have in common.
    fn write_state(&mut self, state: PolicyState) -> Result<(), MapError>;

    /// Every range of ports of every row.
    fn rows(&self) -> Result<Vec<(RowPrefix, u32)>, MapError>;

    /// The default row of a policy.
    fn default_row(&self, policy: u32) -> Result<u32, MapError>;

    /// Every cell, with its row.
    fn cells(&self) -> Result<Vec<(CellKey, u32)>, MapError>;

    /// Every prefix, with its identity.
    fn peers(&self) -> Result<Vec<(RangeKey, u32)>, MapError>;

    /// The policies of the endpoint at `index`.
    fn isolation(&self, index: u32) -> Result<Isolation, MapError>;

    /// What all policies have in common.
    fn state(&self) -> Result<PolicyState, MapError>;
}

/// A range of ports of a row: the key of [`fairlead_abi::maps::ROWS`], of which a prefix counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPrefix {
    /// The row, the protocol and the first port; what lies behind the prefix is zero.
    pub key: RowKey,
    /// How many bits count.
    pub prefix_len: u32,
}

impl RowPrefix {
    /// All that a row says of what no other entry covers.
    pub const fn whole(row: u32) -> Self {
        Self { key: RowKey { row, protocol: 0, port: [0; 2], reserved: 0 }, prefix_len: rows::ROW_BITS }
    }

    /// The `bits` first bits of a protocol's `port`: 0 for all its ports, 16 for that one.
    pub const fn ports(row: u32, protocol: Protocol, port: u16, bits: u32) -> Self {
        let key = RowKey::new(row, protocol.number(), Port::new(port));
        Self { key, prefix_len: rows::PROTOCOL_BITS + bits }
    }
}

/// Reads as `row 7 tcp/80`, `row 7 udp/1024-2047`, `row 7`.
impl fmt::Display for RowPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {}", self.key.row)?;
        let Some(bits) = self.prefix_len.checked_sub(rows::PROTOCOL_BITS) else { return Ok(()) };
        match Protocol::from_number(self.key.protocol) {
            Some(protocol) => write!(f, " {protocol}")?,
            None => write!(f, " {}", self.key.protocol)?,
        }
        let first = u16::from_be_bytes(self.key.port);
        let last = first | u16::MAX.checked_shr(bits).unwrap_or(0);
        if first == last { write!(f, "/{first}") } else { write!(f, "/{first}-{last}") }
    }
}

impl MapError {
    /// The failure of `action` on what `object` names, as in `cell of policy 7 for identity 9`.
    pub fn policy(action: MapAction, object: impl fmt::Display, cause: MapCause) -> Self {
        Self { action, object: object.to_string(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_as_people_write_them() {
        assert_eq!(RowPrefix::whole(7).to_string(), "row 7");
        assert_eq!(RowPrefix::ports(7, Protocol::Tcp, 80, 16).to_string(), "row 7 tcp/80");
        assert_eq!(RowPrefix::ports(7, Protocol::Udp, 1024, 6).to_string(), "row 7 udp/1024-2047");
        assert_eq!(RowPrefix::ports(7, Protocol::Sctp, 0, 0).to_string(), "row 7 sctp/0-65535");
    }
}
