//! The maps of policies in memory, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use fairlead_abi::{Address, CellKey, Isolation, PolicyState, Port, Reason, RowKey};
use fairlead_abi::{identities, policies, rows, verdicts};

use super::{MapAction, MapCause, MapError, PolicyMaps, RangeKey, RowPrefix};
use crate::policy::Capacity;

/// The maps of policies in memory.
///
/// They watch the order of writes. Each write panics that would let a program see, even for a moment, a cell whose row
/// is not all there or changes under it, or an endpoint under a policy that has no default row.
#[derive(Clone, Debug, Default)]
pub struct MemoryPolicyMaps {
    /// How many writes there have been.
    pub writes: usize,
    /// How much fits; `None`: any number.
    pub capacity: Option<Capacity>,
    rows: BTreeMap<u32, BTreeMap<RowPrefix, u32>>,
    defaults: BTreeMap<u32, u32>,
    cells: BTreeMap<CellKey, u32>,
    /// How many cells and default rows refer to each row.
    references: BTreeMap<u32, usize>,
    peers: BTreeMap<RangeKey, u32>,
    isolation: BTreeMap<u32, Isolation>,
    state: PolicyState,
}

/// One side of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSide {
    /// Its address.
    pub address: IpAddr,
    /// The index of its endpoint, if it is a local pod.
    pub endpoint: Option<u32>,
}

impl MemoryPolicyMaps {
    /// Maps in which so much fits.
    pub fn with_capacity(capacity: Capacity) -> Self {
        Self { capacity: Some(capacity), ..Self::default() }
    }

    /// What the programs do with a packet of the flow that `client` began to `port` of `server`: nothing, or drop it.
    /// Port 0 is of protocols that have no ports.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn judge(&self, client: FlowSide, server: FlowSide, protocol: u8, port: u16) -> Result<(), Reason> {
        let is_itself = client.address == server.address;
        let of = |endpoint: Option<u32>| {
            endpoint.map(|index| self.isolation.get(&index).copied().unwrap_or_default())
        };
        if let Some(Isolation { egress, .. }) = of(client.endpoint) {
            self.ask(egress, server.address, is_itself, protocol, port, Reason::PolicyEgress)?;
        }
        if let Some(Isolation { ingress, .. }) = of(server.endpoint) {
            self.ask(ingress, client.address, is_itself, protocol, port, Reason::PolicyIngress)?;
        }
        Ok(())
    }

    /// The value that the longest prefix around an address has.
    pub fn peer(&self, address: IpAddr) -> u32 {
        let address = Address::from(address);
        let around = self.peers.iter().filter(|(prefix, _)| prefix.contains(address));
        around.max_by_key(|(prefix, _)| prefix.prefix_len).map_or(identities::UNKNOWN, |(_, value)| *value)
    }

    /// The policies of the endpoint at `index`.
    pub fn isolation_of(&self, index: u32) -> Isolation {
        self.isolation.get(&index).copied().unwrap_or_default()
    }

    /// The revision.
    pub fn revision(&self) -> u32 {
        self.state.revision
    }

    /// How many entries there are: default rows of policies in use, cells, ranges of ports, prefixes.
    pub fn sizes(&self) -> [usize; 4] {
        let defaults = self.defaults.values().filter(|row| **row != verdicts::DENY_NETWORK).count();
        [defaults, self.cells.len(), self.rows.values().map(BTreeMap::len).sum(), self.peers.len()]
    }

    /// What the maps say, with identities and rows by what they say rather than by number, so that two dumps are equal
    /// if the programs would do the same:
    ///
    /// ```text
    /// 10.244.1.2/32 #1
    /// 192.0.2.1/32 #0 own
    /// endpoint 3 ingress: * deny; #1 deny tcp/80 allow
    /// endpoint 3 egress: open
    /// ```
    ///
    /// Cells and rows that nothing refers to come last.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let mut numbers: BTreeMap<u32, usize> = BTreeMap::from([(identities::UNKNOWN, 0)]);
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_by_key(|(prefix, _)| (IpAddr::from(prefix.address), prefix.prefix_len));
        for (prefix, value) in peers {
            let next = numbers.len();
            let number = *numbers.entry(value & !identities::OWN_NODE).or_insert(next);
            let own = if value & identities::OWN_NODE == 0 { "" } else { " own" };
            // Writing to a String can't fail.
            let _ = writeln!(text, "{prefix} #{number}{own}");
        }
        let mut used = BTreeSet::new();
        for (index, isolation) in self.isolation.iter().filter(|(_, one)| **one != Isolation::default()) {
            for (word, id) in [("ingress", isolation.ingress), ("egress", isolation.egress)] {
                let says = match id {
                    policies::CLOSED => "closed".to_owned(),
                    policies::OPEN => "open".to_owned(),
                    _ => self.dump_policy(id, &numbers),
                };
                used.insert(id);
                let _ = writeln!(text, "endpoint {index} {word}: {says}");
            }
        }
        for (key, row) in &self.cells {
            if !used.contains(&key.policy) || !numbers.contains_key(&key.identity) {
                let _ = writeln!(text, "unused cell {key:?} {row}");
            }
        }
        for row in self.rows.keys().filter(|row| !self.references.contains_key(row)) {
            let _ = writeln!(text, "unused row {row}");
        }
        text
    }

    fn dump_policy(&self, id: u32, numbers: &BTreeMap<u32, usize>) -> String {
        let mut cells: BTreeMap<usize, u32> = BTreeMap::new();
        for (identity, number) in numbers {
            let row = self.cells.get(&CellKey { policy: id, identity: *identity });
            cells.extend(row.map(|row| (*number, *row)));
        }
        let default = self.defaults.get(&id).copied().unwrap_or_default();
        let mut says = format!("* {}", self.dump_row(default));
        for (number, row) in cells {
            let _ = write!(says, "; #{number} {}", self.dump_row(row));
        }
        says
    }

    fn dump_row(&self, row: u32) -> String {
        if row < rows::FIRST {
            return word(row).to_owned();
        }
        let mut says = String::new();
        for (prefix, verdict) in self.rows.get(&row).into_iter().flatten() {
            let place = prefix.to_string();
            let place =
                place.split_once(' ').and_then(|(_, rest)| rest.split_once(' ')).map(|(_, ports)| ports);
            let space = if says.is_empty() { "" } else { " " };
            let _ = match place {
                Some(ports) => write!(says, "{space}{ports} {}", word(*verdict)),
                None => write!(says, "{space}{}", word(*verdict)),
            };
        }
        says
    }

    fn ask(
        &self,
        policy: u32,
        peer: IpAddr,
        is_itself: bool,
        protocol: u8,
        port: u16,
        reason: Reason,
    ) -> Result<(), Reason> {
        match policy {
            policies::CLOSED => return Err(Reason::PolicyUnknown),
            policies::OPEN => return Ok(()),
            _ => {}
        }
        let value = self.peer(peer);
        let identity = value & !identities::OWN_NODE;
        let default = || self.defaults.get(&policy).copied().unwrap_or_default();
        let row = self.cells.get(&CellKey { policy, identity }).copied().unwrap_or_else(default);
        match self.verdict(row, protocol, port) {
            verdicts::ALLOW => Ok(()),
            verdicts::DENY_NETWORK if is_itself || value & identities::OWN_NODE != 0 => Ok(()),
            _ => Err(reason),
        }
    }

    fn verdict(&self, row: u32, protocol: u8, port: u16) -> u32 {
        if row < rows::FIRST {
            return row;
        }
        let data = |key: &RowKey| {
            let [high, low] = key.port;
            u64::from(key.row) << 32
                | u64::from(key.protocol) << 24
                | u64::from(high) << 16
                | u64::from(low) << 8
        };
        let asked = data(&RowKey::new(row, protocol, Port::new(port)));
        let covers = |prefix: &RowPrefix| (data(&prefix.key) ^ asked) >> (64 - prefix.prefix_len) == 0;
        let entries = self.rows.get(&row).into_iter().flatten().filter(|(prefix, _)| covers(prefix));
        let longest = entries.max_by_key(|(prefix, _)| prefix.prefix_len);
        *longest.expect("every row has an entry for whatever no other one covers").1
    }

    fn expect_whole(&self, row: u32) {
        let is_whole = row < rows::FIRST
            || self.rows.get(&row).is_some_and(|entries| entries.contains_key(&RowPrefix::whole(row)));
        assert!(is_whole, "row {row} has no entry for whatever no other one covers, and is referred to");
    }

    fn expect_idle(&self, key: &RowPrefix, what: &str) {
        assert!(!self.references.contains_key(&key.key.row), "{key} is in use and {what}");
    }

    fn refer(&mut self, new: Option<u32>, old: Option<u32>) {
        if let Some(row) = new {
            *self.references.entry(row).or_default() += 1;
        }
        if let Some(row) = old
            && let Some(count) = self.references.get_mut(&row)
        {
            *count -= 1;
            if *count == 0 {
                self.references.remove(&row);
            }
        }
    }

    fn check(&self, used: usize, room: impl Fn(Capacity) -> u32, object: &str) -> Result<(), MapError> {
        match self.capacity.map(room) {
            Some(room) if used >= room as usize => {
                Err(MapError::policy(MapAction::Program, object, MapCause::Full(room)))
            }
            _ => Ok(()),
        }
    }
}

impl PolicyMaps for MemoryPolicyMaps {
    fn write_row(&mut self, key: &RowPrefix, verdict: u32) -> Result<(), MapError> {
        assert!(key.key.row >= rows::FIRST && verdict < rows::FIRST, "{key} can't be {verdict}");
        self.expect_idle(key, "changes");
        if !self.rows.get(&key.key.row).is_some_and(|entries| entries.contains_key(key)) {
            let used = self.rows.values().map(BTreeMap::len).sum();
            self.check(used, |capacity| capacity.rows, &key.to_string())?;
        }
        self.writes += 1;
        self.rows.entry(key.key.row).or_default().insert(*key, verdict);
        Ok(())
    }

    fn remove_row(&mut self, key: &RowPrefix) -> Result<(), MapError> {
        self.expect_idle(key, "is removed");
        self.writes += 1;
        if let Some(entries) = self.rows.get_mut(&key.key.row) {
            entries.remove(key);
            if entries.is_empty() {
                self.rows.remove(&key.key.row);
            }
        }
        Ok(())
    }

    fn write_default(&mut self, policy: u32, row: u32) -> Result<(), MapError> {
        assert!(policy >= policies::FIRST, "policy {policy} is not compiled");
        self.expect_whole(row);
        self.check(policy as usize, |capacity| capacity.policies, "default row")?;
        self.writes += 1;
        let old = self.defaults.insert(policy, row);
        self.refer(Some(row), old);
        Ok(())
    }

    fn write_cell(&mut self, key: &CellKey, row: u32) -> Result<(), MapError> {
        assert_eq!(key.identity & identities::OWN_NODE, 0, "{key:?} has a flag in its identity");
        assert!(
            key.policy >= policies::FIRST && key.identity >= identities::FIRST,
            "{key:?} is never looked up"
        );
        self.expect_whole(row);
        if !self.cells.contains_key(key) {
            self.check(self.cells.len(), |capacity| capacity.cells, "cell")?;
        }
        self.writes += 1;
        let old = self.cells.insert(*key, row);
        self.refer(Some(row), old);
        Ok(())
    }

    fn remove_cell(&mut self, key: &CellKey) -> Result<(), MapError> {
        self.writes += 1;
        let old = self.cells.remove(key);
        self.refer(None, old);
        Ok(())
    }

    fn write_peer(&mut self, prefix: &RangeKey, identity: u32) -> Result<(), MapError> {
        if !self.peers.contains_key(prefix) {
            self.check(self.peers.len(), |capacity| capacity.peers, &format!("identity of {prefix}"))?;
        }
        self.writes += 1;
        self.peers.insert(*prefix, identity);
        Ok(())
    }

    fn remove_peer(&mut self, prefix: &RangeKey) -> Result<(), MapError> {
        self.writes += 1;
        self.peers.remove(prefix);
        Ok(())
    }

    fn write_isolation(&mut self, index: u32, isolation: Isolation) -> Result<(), MapError> {
        for id in [isolation.ingress, isolation.egress] {
            let is_there = id < policies::FIRST || self.defaults.contains_key(&id);
            assert!(is_there, "endpoint {index} is put under policy {id}, which has no default row");
        }
        self.writes += 1;
        self.isolation.insert(index, isolation);
        Ok(())
    }

    fn write_state(&mut self, state: PolicyState) -> Result<(), MapError> {
        self.writes += 1;
        self.state = state;
        Ok(())
    }

    fn rows(&self) -> Result<Vec<(RowPrefix, u32)>, MapError> {
        Ok(self.rows.values().flatten().map(|(key, verdict)| (*key, *verdict)).collect())
    }

    fn default_row(&self, policy: u32) -> Result<u32, MapError> {
        Ok(self.defaults.get(&policy).copied().unwrap_or_default())
    }

    fn cells(&self) -> Result<Vec<(CellKey, u32)>, MapError> {
        Ok(self.cells.iter().map(|(key, row)| (*key, *row)).collect())
    }

    fn peers(&self) -> Result<Vec<(RangeKey, u32)>, MapError> {
        Ok(self.peers.iter().map(|(prefix, value)| (*prefix, *value)).collect())
    }

    fn isolation(&self, index: u32) -> Result<Isolation, MapError> {
        Ok(self.isolation_of(index))
    }

    fn state(&self) -> Result<PolicyState, MapError> {
        Ok(self.state)
    }
}

fn word(verdict: u32) -> &'static str {
    match verdict {
        verdicts::ALLOW => "allow",
        verdicts::DENY_ADMIN => "deny-admin",
        verdicts::DENY_BASELINE => "deny-baseline",
        _ => "deny",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    #[should_panic(expected = "row 7 has no entry for whatever no other one covers")]
    fn a_cell_never_refers_to_half_a_row() {
        let mut maps = MemoryPolicyMaps::default();
        maps.write_row(&RowPrefix::ports(7, Protocol::Tcp, 80, 16), 1).expect("room");
        let _ = maps.write_cell(&CellKey { policy: 2, identity: 1 }, 7);
    }

    #[test]
    #[should_panic(expected = "row 7 tcp/80 is in use and changes")]
    fn a_row_in_use_never_changes() {
        let mut maps = MemoryPolicyMaps::default();
        maps.write_row(&RowPrefix::whole(7), 0).expect("room");
        maps.write_default(2, 7).expect("room");
        let _ = maps.write_row(&RowPrefix::ports(7, Protocol::Tcp, 80, 16), 1);
    }

    #[test]
    #[should_panic(expected = "endpoint 3 is put under policy 2, which has no default row")]
    fn an_endpoint_is_never_under_a_policy_that_is_not_there() {
        let mut maps = MemoryPolicyMaps::default();
        let _ = maps.write_isolation(3, Isolation { ingress: 2, egress: 1 });
    }

    #[test]
    fn a_packet_is_judged_by_the_longest_prefixes() {
        let mut maps = MemoryPolicyMaps::default();
        let side = |text: &str, endpoint| FlowSide { address: text.parse().expect("an address"), endpoint };
        let (pod, other) = (side("10.244.0.2", Some(3)), side("10.244.1.2", None));
        let of = |maps: &MemoryPolicyMaps, protocol, port| maps.judge(other, pod, protocol, port);
        assert_eq!(of(&maps, 6, 80), Err(Reason::PolicyUnknown), "nothing is known");
        maps.write_row(&RowPrefix::whole(7), 0).expect("room");
        maps.write_row(&RowPrefix::ports(7, Protocol::Tcp, 80, 12), 1).expect("room");
        maps.write_default(2, 0).expect("room");
        maps.write_cell(&CellKey { policy: 2, identity: 5 }, 7).expect("room");
        maps.write_isolation(3, Isolation { ingress: 2, egress: policies::OPEN }).expect("room");
        assert_eq!(of(&maps, 6, 80), Err(Reason::PolicyIngress));
        let prefix = RangeKey::from("10.244.1.0/24".parse::<ipnet::IpNet>().expect("a range"));
        maps.write_peer(&prefix, 5).expect("room");
        assert_eq!([of(&maps, 6, 80), of(&maps, 6, 95)], [Ok(()), Ok(())]);
        assert_eq!([of(&maps, 6, 96), of(&maps, 17, 80)], [Err(Reason::PolicyIngress); 2]);
        assert_eq!(maps.judge(pod, pod, 6, 96), Ok(()), "a pod reaches itself");
        maps.write_peer(&prefix, 5 | identities::OWN_NODE).expect("room");
        assert_eq!(of(&maps, 6, 96), Ok(()), "the own node");
        assert_eq!(
            maps.dump(),
            "10.244.1.0/24 #1 own\n\
             endpoint 3 ingress: * deny; #1 deny tcp/80-95 allow\n\
             endpoint 3 egress: open\n"
        );
    }
}
