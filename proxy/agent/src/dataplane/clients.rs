//! Network namespaces whose sockets are translated before a packet exists ([`fairlead_abi::maps::CLIENTS`]).
//!
//! The host's own is always one, under the node's addresses ([`crate::uplinks`]); those of pods where the agent is
//! asked for that ([`super::endpoints`]). A namespace that is in the map by mistake costs nothing but an entry: its
//! cookie is never given out again while the machine runs.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::maps::{HashMap, MapData, MapError};
use fairlead_abi::{Address, SocketClient};

use super::{DataplaneError, removed};

/// The map, and what it holds.
pub struct Clients {
    table: HashMap<MapData, u64, SocketClient>,
    known: BTreeSet<u64>,
}

impl Clients {
    /// Over the map, with what an earlier agent left there.
    pub(super) fn new(table: HashMap<MapData, u64, SocketClient>) -> Self {
        let known = table.keys().flatten().collect();
        Self { table, known }
    }

    /// Has sockets of the namespace with this cookie translated, whose processes are known by these addresses, the
    /// first of each family.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&mut self, cookie: u64, addresses: &[IpAddr]) -> Result<(), DataplaneError> {
        let client = client(addresses);
        if self.known.contains(&cookie) && self.table.get(&cookie, 0).is_ok_and(|known| known == client) {
            return Ok(());
        }
        self.table.insert(cookie, client, 0).map_err(|e| failed("program", cookie, e))?;
        self.known.insert(cookie);
        Ok(())
    }

    /// Leaves the sockets of this namespace alone from now on; no error if they are.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, cookie: u64) -> Result<(), DataplaneError> {
        removed(self.table.remove(&cookie)).map_err(|e| failed("remove", cookie, e))?;
        self.known.remove(&cookie);
        Ok(())
    }

    /// Removes all but these.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn retain(&mut self, keep: &BTreeSet<u64>) -> Result<(), DataplaneError> {
        let strangers: Vec<u64> = self.known.difference(keep).copied().collect();
        strangers.into_iter().try_for_each(|cookie| self.remove(cookie))
    }

    /// Whether the namespace with this cookie is one of them.
    pub fn contains(&self, cookie: u64) -> bool {
        self.known.contains(&cookie)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// What the programs are told of a client with these addresses.
fn client(addresses: &[IpAddr]) -> SocketClient {
    let first = |is: fn(&IpAddr) -> bool| {
        addresses.iter().copied().find(is).map_or(Address::UNSPECIFIED, Address::from)
    };
    SocketClient { v4: first(IpAddr::is_ipv4), v6: first(IpAddr::is_ipv6) }
}

fn failed(step: &'static str, cookie: u64, error: MapError) -> DataplaneError {
    DataplaneError::new(step, format!("socket client {cookie}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_known_by_its_first_address_of_each_family() {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let addresses = [address("fd00::1"), address("10.0.0.1"), address("10.0.0.2")];
        let client = client(&addresses);
        assert_eq!((client.v4, client.v6), (addresses[1].into(), addresses[0].into()));
        assert!(super::client(&addresses[1..]).v6.is_unspecified());
    }
}
