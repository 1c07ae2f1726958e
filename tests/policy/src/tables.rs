//! What the maps of policies say, as the programs would read them: an evaluator of the tests' own.

use std::collections::HashMap;
use std::net::IpAddr;

use fairlead_abi::{Address, CellKey, Isolation, identities, policies, rows, verdicts};
use fairlead_core::dataplane::{MapError, PolicyMaps, RangeKey, RowPrefix};

use crate::case::{Endpoint, Probe};
use crate::cluster::Cluster;
use crate::oracle::{Cause, Direction, Verdict};

/// A copy of the maps.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    rows: HashMap<u32, Vec<(RowPrefix, u32)>>,
    defaults: HashMap<u32, u32>,
    cells: HashMap<CellKey, u32>,
    peers: Vec<(RangeKey, u32)>,
    isolation: HashMap<u32, Isolation>,
}

impl Tables {
    /// Copies them, for these local pods.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn read<'a>(
        maps: &impl PolicyMaps,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
    ) -> Result<Self, MapError> {
        let mut tables = Self { peers: maps.peers()?, ..Self::default() };
        for (prefix, verdict) in maps.rows()? {
            tables.rows.entry(prefix.key.row).or_default().push((prefix, verdict));
        }
        tables.cells.extend(maps.cells()?);
        for endpoint in endpoints {
            let isolation = maps.isolation(endpoint.index)?;
            tables.isolation.insert(endpoint.index, isolation);
            for policy in [isolation.ingress, isolation.egress] {
                tables.defaults.insert(policy, maps.default_row(policy)?);
            }
        }
        Ok(tables)
    }

    /// What becomes of the flow that this packet begins.
    #[must_use]
    pub fn judge(&self, cluster: &Cluster, probe: &Probe) -> Verdict {
        let denied = |direction| Some(Verdict::Denied(direction, self.side(direction, cluster, probe)?));
        denied(Direction::Egress).or_else(|| denied(Direction::Ingress)).unwrap_or(Verdict::Allowed)
    }

    /// Why one side's policies deny the flow that this packet begins, if they do.
    #[must_use]
    pub fn side(&self, direction: Direction, cluster: &Cluster, probe: &Probe) -> Option<Cause> {
        let (client, server) = (probe.from.ip(), probe.to.ip());
        let (subject, peer) = match direction {
            Direction::Ingress => (server, client),
            Direction::Egress => (client, server),
        };
        let endpoint = cluster.endpoint_at(subject)?;
        let isolation = self.isolation.get(&endpoint.index).copied().unwrap_or_default();
        let policy = match direction {
            Direction::Ingress => isolation.ingress,
            Direction::Egress => isolation.egress,
        };
        if policy == policies::OPEN {
            return None;
        }
        if policy == policies::CLOSED {
            return Some(Cause::Unknown);
        }
        let value = self.peer(peer);
        let key = CellKey { policy, identity: value & !identities::OWN_NODE };
        let row = *self.cells.get(&key).or_else(|| self.defaults.get(&policy))?;
        let is_exempt = value & identities::OWN_NODE != 0 || client == server;
        match self.verdict(row, probe) {
            verdicts::ALLOW => None,
            verdicts::DENY_NETWORK => (!is_exempt).then_some(Cause::Network),
            verdicts::DENY_ADMIN => Some(Cause::Admin),
            _ => Some(Cause::Baseline),
        }
    }

    fn peer(&self, address: IpAddr) -> u32 {
        let around = self.peers.iter().filter(|(prefix, _)| prefix.contains(Address::from(address)));
        around.max_by_key(|(prefix, _)| prefix.prefix_len).map_or(identities::UNKNOWN, |(_, value)| *value)
    }

    /// What a row says to the packet.
    ///
    /// # Panics
    /// When it has no entry for whatever no other one covers.
    fn verdict(&self, row: u32, probe: &Probe) -> u32 {
        if row < rows::FIRST {
            return row;
        }
        let covers = |prefix: &RowPrefix| match prefix.prefix_len.checked_sub(rows::PROTOCOL_BITS) {
            None => true,
            Some(bits) => {
                let differing = u32::from(u16::from_be_bytes(prefix.key.port) ^ probe.port());
                prefix.key.protocol == probe.protocol() && differing >> (16 - bits) == 0
            }
        };
        let entries = self.rows.get(&row).into_iter().flatten().filter(|(prefix, _)| covers(prefix));
        entries
            .max_by_key(|(prefix, _)| prefix.prefix_len)
            .expect("a row has an entry for whatever there is")
            .1
    }
}
