//! The tables beside frontends, backends and flows: affinities, source ranges, ServiceCIDRs, places.

use std::net::{IpAddr, SocketAddr};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use fairlead_abi::{
    Address, Affinity, AffinityKey, Flow, FlowKey, FragmentKey, Frontend, FrontendKey, SourceRange, maps,
};

use crate::node::{Node, PLACES, array, clear, hash, split};

/// How many bits of a mapped IPv4 address come before it.
const MAPPED: u32 = 96;
/// How many bits of a source range's key come before its address.
const SERVICE_BITS: u32 = 32;

impl Node {
    /// Writes a frontend as it is, but for its check, which is made to fit.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn put_frontend(&mut self, protocol: u8, address: SocketAddr, frontend: Frontend) {
        let (address, port) = split(address);
        let key = FrontendKey { address, port, protocol, reserved: 0 };
        self.put_unchecked(key, Frontend { check: key.check(), ..frontend });
    }

    /// Writes a frontend as it is.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn put_unchecked(&mut self, key: FrontendKey, frontend: Frontend) {
        hash(&mut self.ebpf, maps::FRONTENDS).insert(key, frontend, 0).expect("insert a frontend");
    }

    /// Admits clients of this range, of which `bits` of the address count, to the Service's guarded frontends.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn admit(&mut self, service: u32, address: IpAddr, bits: u32) {
        let range = SourceRange { service, address: address.into() };
        let key = Key::new(SERVICE_BITS + mapped_bits(address, bits), range);
        self.trie::<SourceRange>(maps::SOURCE_RANGES).insert(&key, 1, 0).expect("insert a range");
    }

    /// Makes the range, of which `bits` of the address count, one of ClusterIPs, with
    /// [`cidr_flags`](fairlead_abi::cidr_flags).
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn cover(&mut self, address: IpAddr, bits: u32, flags: u32) {
        let key = Key::new(mapped_bits(address, bits), Address::from(address));
        self.trie::<Address>(maps::SERVICE_CIDRS).insert(&key, flags, 0).expect("insert a range");
    }

    /// Has what pods send to the range, of which `bits` of the address count, leave with this address:
    /// [`egress`](fairlead_abi::egress).
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn leave(&mut self, address: IpAddr, bits: u32, egress: u32) {
        let key = Key::new(mapped_bits(address, bits), Address::from(address));
        self.trie::<Address>(maps::EGRESS).insert(&key, egress, 0).expect("insert a range");
    }

    /// What the Service remembers of this client.
    ///
    /// # Panics
    /// When the map can't be read.
    #[must_use]
    pub fn affinity(&self, client: IpAddr, service: u32) -> Option<Affinity> {
        let map = self.ebpf.map(maps::AFFINITY).expect("the map");
        let map: HashMap<&MapData, AffinityKey, Affinity> = map.try_into().expect("a hash");
        map.get(&AffinityKey { client: client.into(), service }, 0).ok()
    }

    /// Makes the Service remember that of this client.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_affinity(&mut self, client: IpAddr, service: u32, affinity: Affinity) {
        let key = AffinityKey { client: client.into(), service };
        hash(&mut self.ebpf, maps::AFFINITY).insert(key, affinity, 0).expect("insert an affinity");
    }

    /// The forward key of the connection that is entered at each place.
    ///
    /// # Panics
    /// When the map can't be read.
    #[must_use]
    pub fn places(&self) -> Vec<FlowKey> {
        let map = self.ebpf.map(maps::PLACES).expect("the map");
        let map: Array<&MapData, FlowKey> = map.try_into().expect("an array");
        (0..PLACES).map(|place| map.get(&place, 0).expect("read a place")).collect()
    }

    /// Writes a flow entry.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_flow(&mut self, key: FlowKey, flow: Flow) {
        hash(&mut self.ebpf, maps::FLOWS).insert(key, flow, 0).expect("write a flow");
    }

    /// Lets new regions begin at the first slot again; those before are void.
    pub fn rewind_slots(&mut self) {
        self.next_slot = 0;
    }

    /// Forgets every flow and fragment, and nothing else.
    ///
    /// # Panics
    /// When a map refuses.
    pub fn forget_flows(&mut self) {
        clear::<FlowKey, Flow>(&mut self.ebpf, maps::FLOWS);
        clear::<FragmentKey, Flow>(&mut self.ebpf, maps::FRAGMENTS);
    }

    /// Forgets all that these tables hold.
    pub(crate) fn clear_tables(&mut self) {
        clear::<AffinityKey, Affinity>(&mut self.ebpf, maps::AFFINITY);
        clear_trie(&mut self.trie::<SourceRange>(maps::SOURCE_RANGES));
        clear_trie(&mut self.trie::<Address>(maps::SERVICE_CIDRS));
        clear_trie(&mut self.trie::<Address>(maps::EGRESS));
        self.clear_policies();
        let mut places = array::<FlowKey>(&mut self.ebpf, maps::PLACES);
        for place in 0..PLACES {
            places.set(place, FlowKey::default(), 0).expect("clear a place");
        }
    }

    pub(crate) fn trie<K: aya::Pod>(&mut self, name: &str) -> LpmTrie<&mut MapData, K, u32> {
        self.ebpf.map_mut(name).expect("the map").try_into().expect("a trie of these types")
    }
}

/// Empties a trie.
pub(crate) fn clear_trie<K: aya::Pod>(trie: &mut LpmTrie<&mut MapData, K, u32>) {
    let keys: Vec<Key<K>> = trie.keys().map(|key| key.expect("read a key")).collect();
    for key in keys {
        trie.remove(&key).expect("remove a key");
    }
}

/// How many bits of the sixteen bytes count, if `bits` of the address do.
pub(crate) fn mapped_bits(address: IpAddr, bits: u32) -> u32 {
    if address.is_ipv4() { MAPPED + bits } else { bits }
}
