//! Policies of the node's pods.

use std::net::IpAddr;
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues, RingBuf};
use aya::util::nr_cpus;
use fairlead_abi::{
    Address, Asked, Cell, CellKey, DropEvent, FlowKey, Isolation, PeerKey, PolicyState, Port, Reason, RowKey,
    maps, policies, rows,
};
use nix::time::{ClockId, clock_gettime};

use crate::node::{Node, array, clear, hash};
use crate::place::Pod;
use crate::tables::{clear_trie, mapped_bits};

impl Node {
    /// Puts the pod under these policies.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_isolation(&mut self, pod: Pod, ingress: u32, egress: u32) {
        let isolation = Isolation { ingress, egress };
        array(&mut self.ebpf, maps::ISOLATION).set(pod as u32, isolation, 0).expect("isolate a pod");
    }

    /// Lets the pod have come under a policy, after none, so long ago; false if the machine, whose clock it is, is younger.
    ///
    /// # Panics
    /// When the map refuses it.
    #[must_use]
    pub fn set_isolated(&mut self, pod: Pod, ago: Duration) -> bool {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("read the clock");
        let Some(since) = Duration::from(now).checked_sub(ago) else { return false };
        let nanoseconds = u64::try_from(since.as_nanos()).expect("a time that the kernel can tell");
        array(&mut self.ebpf, maps::ISOLATED).set(pod as u32, nanoseconds, 0).expect("write when");
        true
    }

    /// Makes `row` what the policy says to identities without a cell.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_policy(&mut self, policy: u32, row: u32) {
        array(&mut self.ebpf, maps::POLICIES).set(policy, row, 0).expect("write a policy");
        self.forget_admitted();
    }

    /// Makes `row` what the policy says to the identity.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_cell(&mut self, policy: u32, identity: u32, row: u32) {
        let key = CellKey { policy, identity };
        self.put_cell(key, Cell { row, check: key.check() });
    }

    /// Writes a cell as it is.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn put_cell(&mut self, key: CellKey, cell: Cell) {
        hash(&mut self.ebpf, maps::CELLS).insert(key, cell, 0).expect("write a cell");
        self.forget_admitted();
    }

    /// Takes a cell away.
    ///
    /// # Panics
    /// When there is none.
    pub fn remove_cell(&mut self, policy: u32, identity: u32) {
        let key = CellKey { policy, identity };
        hash::<CellKey, Cell>(&mut self.ebpf, maps::CELLS).remove(&key).expect("remove a cell");
        self.forget_admitted();
    }

    /// Gives the identity to a range of addresses, of which `bits` count.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_peer(&mut self, address: IpAddr, bits: u32, identity: u32) {
        let key = Key::new(mapped_bits(address, bits), PeerKey::from(address));
        self.trie::<PeerKey>(maps::PEERS).insert(&key, identity, 0).expect("write a peer");
        self.forget_admitted();
    }

    /// Gives the identity to one address.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_identity(&mut self, address: IpAddr, identity: u32) {
        self.set_peer(address, if address.is_ipv4() { 32 } else { 128 }, identity);
    }

    /// Makes the verdict what the row says to all that no longer entry covers.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_row(&mut self, row: u32, verdict: u32) {
        self.put_row(row, 0, 0, rows::ROW_BITS, verdict);
    }

    /// Makes the verdict what the row says to the ports that have the first `bits` bits of `port`; 0: to all.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_ports(&mut self, row: u32, protocol: u8, port: u16, bits: u32, verdict: u32) {
        self.put_row(row, protocol, port, rows::PROTOCOL_BITS + bits, verdict);
    }

    fn put_row(&mut self, row: u32, protocol: u8, port: u16, bits: u32, verdict: u32) {
        let key = Key::new(bits, RowKey::new(row, protocol, Port::new(port)));
        self.trie::<RowKey>(maps::ROWS).insert(&key, verdict, 0).expect("write a row");
        self.forget_admitted();
    }

    /// Writes what all policies have in common.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_policy_state(&mut self, revision: u32, flags: u32) {
        let state = PolicyState { revision, flags };
        array(&mut self.ebpf, maps::POLICY_STATE).set(0, state, 0).expect("write the state");
    }

    /// Says that the maps of policies have changed.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn revise(&mut self) {
        let map: Array<_, PolicyState> =
            self.ebpf.map(maps::POLICY_STATE).expect("the map").try_into().expect("an array");
        let state = map.get(&0, 0).expect("read the state");
        self.set_policy_state(state.revision + 1, state.flags);
    }

    /// Has the programs ask anew about what is in no flow, as a new revision has, which has them judge flows anew too.
    /// What writes to the maps of policies does so by itself.
    ///
    /// # Panics
    /// When the map refuses.
    pub fn forget_admitted(&mut self) {
        clear::<Asked, u64>(&mut self.ebpf, "ADMITTED");
    }

    /// What the programs have noted of admitted questions.
    ///
    /// # Panics
    /// When the map can't be read.
    #[must_use]
    pub fn admitted(&mut self) -> Vec<(Asked, u64)> {
        let noted = hash::<Asked, u64>(&mut self.ebpf, "ADMITTED");
        noted.iter().map(|entry| entry.expect("read a note")).collect()
    }

    /// Writes such a note.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn note_admitted(&mut self, asked: Asked, noted: u64) {
        hash(&mut self.ebpf, "ADMITTED").insert(asked, noted, 0).expect("write a note");
    }

    /// The events that nobody has read yet.
    ///
    /// # Panics
    /// When one is no event.
    pub fn events(&mut self) -> Vec<DropEvent> {
        let mut ring: RingBuf<&mut MapData> =
            self.ebpf.map_mut(maps::EVENTS).expect("the map").try_into().expect("a ring buffer");
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            events.push(event(&item));
        }
        events
    }

    /// Lets the next packets be told of as if none had been dropped yet: takes the events, and forgets that others were
    /// left out.
    ///
    /// # Panics
    /// When a map refuses.
    pub fn quiet(&mut self) {
        self.events();
        self.forget_event_rates();
    }

    /// Lets every pod and every reason have as many events as it may in a second.
    ///
    /// # Panics
    /// When a map refuses.
    pub fn forget_event_rates(&mut self) {
        let reasons = (0..Reason::COUNT).map(|reason| RATES_OF_REASONS + reason);
        for element in Pod::ALL.map(|pod| pod as u32).into_iter().chain(reasons) {
            array(&mut self.ebpf, "EVENT_RATES").set(element, 0_u64, 0).expect("forget a rate");
        }
    }

    /// How many packets the policy has dropped.
    ///
    /// # Panics
    /// When the map can't be read.
    #[must_use]
    pub fn policy_drops(&self, policy: u32) -> u64 {
        let map = self.ebpf.map(maps::POLICY_DROPS).expect("the map");
        let map: PerCpuArray<_, u64> = map.try_into().expect("an array");
        map.get(&policy, 0).expect("read a count").iter().sum()
    }

    fn clear_policy_drops(&mut self) {
        let map = self.ebpf.map_mut(maps::POLICY_DROPS).expect("the map");
        let mut map: PerCpuArray<_, u64> = map.try_into().expect("an array");
        for policy in 0..POLICIES {
            let zeroes = PerCpuValues::try_from(vec![0; nr_cpus().expect("count CPUs")]);
            map.set(policy, zeroes.expect("one for each CPU"), 0).expect("clear a count");
        }
    }

    /// Forgets every policy: the pods are open.
    pub(crate) fn clear_policies(&mut self) {
        clear::<CellKey, Cell>(&mut self.ebpf, maps::CELLS);
        clear_trie(&mut self.trie::<PeerKey>(maps::PEERS));
        clear_trie(&mut self.trie::<RowKey>(maps::ROWS));
        for policy in policies::FIRST..POLICIES {
            self.set_policy(policy, 0);
        }
        self.clear_policy_drops();
        for pod in Pod::ALL {
            self.set_isolation(pod, policies::OPEN, policies::OPEN);
            array(&mut self.ebpf, maps::ISOLATED).set(pod as u32, 0_u64, 0).expect("forget when");
        }
        self.set_policy_state(0, 0);
        self.forget_admitted();
        self.quiet();
    }
}

/// Where in the map of rates those of the reasons begin, after the pods'.
const RATES_OF_REASONS: u32 = 4096;

/// How many of the compiled policies tests use.
const POLICIES: u32 = 16;

/// The event in these bytes, which are as the machine has them.
fn event(bytes: &[u8]) -> DropEvent {
    assert_eq!(bytes.len(), size_of::<DropEvent>(), "an event's length");
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let address = |at: usize| Address::from_v6_words([0, 4, 8, 12].map(|offset| word(at + offset)));
    let port = |at: usize| Port::from_wire(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
    let tuple = FlowKey {
        source: address(8),
        destination: address(24),
        source_port: port(40),
        destination_port: port(42),
        protocol: bytes[44],
        reserved: [0; 3],
    };
    let time = u64::from(word(4)) << 32 | u64::from(word(0));
    let [reason, interface, policy, identity, verdict, flags] = [48, 52, 56, 60, 64, 68].map(word);
    DropEvent { time, tuple, reason, interface, policy, identity, verdict, flags }
}
