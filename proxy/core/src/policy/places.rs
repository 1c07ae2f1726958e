//! Addresses and ranges, which identity each should have, and which each has in the map.
//!
//! ```text
//! ranges of peers in use ─┐
//! pods' addresses ────────┼──► places ──► signature ──► number ──► entry of PEERS, where the number
//! nodes' addresses ───────┘    (a tree of prefixes)                is not that of the range around it
//! ```
//!
//! A range's peers hold for all in it down to the next longer prefix, because every exception is a prefix too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_abi::identities;

use super::census::{Census, ElementId};
use super::identity::{Change, Identities, Move, Signature};
use super::model::Peer;
use super::prefix::{Prefix, Tree};
use crate::dataplane::RangeKey;
use crate::model::ObjectName;

/// An address or range that something is known of.
#[derive(Debug, Default)]
struct Place {
    /// Peers whose range it is.
    begins: Vec<ElementId>,
    /// Peers whose exception it is.
    ends: Vec<ElementId>,
    /// Pods that have the address.
    pods: Vec<ObjectName>,
    /// Nodes that have the address.
    nodes: Vec<Arc<str>>,
    /// Whether the address is the node's own.
    own: bool,
    /// Whether an endpoint here has the address, whatever Pods claim it.
    held: bool,
    /// Whether it is all of IPv4, and there are IPv6 ranges around that.
    border: bool,
    /// The peers whose ranges hold here; none: not known yet.
    ranges: Option<Signature>,
    number: u32,
    /// The value that it should have in the map; none: that of the range around it will do.
    value: Option<u32>,
}

impl Place {
    /// Whether it is a range, or an exception of one, that a peer in use names.
    fn is_range(&self) -> bool {
        !self.begins.is_empty() || !self.ends.is_empty()
    }

    fn is_empty(&self) -> bool {
        let Self { begins, ends, pods, nodes, own, held, border, .. } = self;
        let is_nobodys = pods.is_empty() && nodes.is_empty() && !own && !held;
        begins.is_empty() && ends.is_empty() && is_nobodys && !border
    }
}

/// All addresses and ranges.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: Tree<Place>,
    /// How many of them are ranges.
    ranges: usize,
    dirty: BTreeSet<Prefix>,
    /// What is in the map.
    actual: Tree<u32>,
    /// Prefixes that may be other in the map than they should.
    unwritten: BTreeSet<Prefix>,
    /// Prefixes that an earlier run left, of which nothing is known any more. Nobody has those addresses: they keep no
    /// number from those who have it now.
    strays: Vec<Prefix>,
}

impl Places {
    /// How many prefixes the map holds.
    pub(super) fn held(&self) -> usize {
        self.actual.entries.len()
    }

    /// A range came into use for a peer.
    pub(super) fn take_network(&mut self, element: ElementId, peer: &Peer) {
        let Peer::Network { cidr, except } = peer else { return };
        self.change((*cidr).into(), |place| place.begins.push(element));
        for range in except {
            self.change((*range).into(), |place| place.ends.push(element));
        }
    }

    /// A range is no longer in use for a peer.
    pub(super) fn leave_network(&mut self, element: ElementId, peer: &Peer) {
        let Peer::Network { cidr, except } = peer else { return };
        self.change((*cidr).into(), |place| place.begins.retain(|other| *other != element));
        for range in except {
            self.change((*range).into(), |place| place.ends.retain(|other| *other != element));
        }
    }

    /// A pod has an address, or no longer.
    pub(super) fn set_pod(&mut self, address: IpAddr, name: &ObjectName, present: bool) {
        self.change(address.into(), |place| {
            place.pods.retain(|other| other != name);
            place.pods.extend(present.then(|| name.clone()));
            place.pods.sort();
        });
    }

    /// A node has an address, or no longer.
    pub(super) fn set_node(&mut self, address: IpAddr, name: &Arc<str>, present: bool) {
        self.change(address.into(), |place| {
            place.nodes.retain(|other| other != name);
            place.nodes.extend(present.then(|| name.clone()));
            place.nodes.sort();
        });
    }

    /// An address is the node's own, or no longer.
    pub(super) fn set_own(&mut self, address: IpAddr, own: bool) {
        self.change(address.into(), |place| place.own = own);
    }

    /// An endpoint here has the address, or no longer.
    pub(super) fn set_held(&mut self, address: IpAddr, held: bool) {
        self.change(address.into(), |place| place.held = held);
    }

    /// Whoever has this address may be something else than before.
    pub(super) fn touch(&mut self, address: IpAddr) {
        self.dirty.insert(address.into());
    }

    /// The pod that has an address: of several the one that lives longest.
    pub(super) fn pod<'a>(&'a self, address: IpAddr, census: &Census) -> Option<&'a ObjectName> {
        winner(self.places.entries.get(&address.into())?, census)
    }

    /// The node that has an address.
    pub(super) fn node(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.places.entries.get(&address.into())?.nodes.first()
    }

    /// Whether the address is the node's own.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.places.entries.get(&address.into()).is_some_and(|place| place.own)
    }

    /// Learns what is in the map, before anything else.
    pub(super) fn adopt(&mut self, entries: impl Iterator<Item = (RangeKey, u32)>) {
        for (key, value) in entries {
            self.actual.insert(key.into(), value);
        }
    }

    /// Takes every place for what the map says it is.
    pub(super) fn assume(&mut self, numbers: &mut Identities) {
        for (prefix, place) in &mut self.places.entries {
            place.number = self.actual.at(*prefix).map_or(0, |(_, value)| number(*value));
            numbers.assume(place.number);
        }
        let is_stray = |prefix: &&Prefix| !self.places.entries.contains_key(prefix);
        self.strays = self.actual.entries.keys().filter(is_stray).copied().collect();
    }

    /// Gives all that changed a number, and notes what the map should hold.
    pub(super) fn settle(&mut self, census: &Census, numbers: &mut Identities) -> Vec<Change> {
        // By prefix: what lies around the last IPv6 range may be looked at twice.
        let mut moves: BTreeMap<Prefix, Move> = BTreeMap::new();
        while let Some(prefix) = self.dirty.pop_first() {
            moves.extend(self.refresh(prefix, census).map(|one| (prefix, one)));
        }
        let moves: Vec<Move> = moves.into_values().collect();
        let pinned = self.pinned();
        let (given, changes) = numbers.assign(&moves, &pinned);
        for (Move { prefix, .. }, number) in moves.iter().zip(given) {
            if let Some(place) = self.places.entries.get_mut(prefix) {
                place.number = number;
            }
        }
        for Move { prefix, .. } in &moves {
            let around = self.places.parent(*prefix).map_or(identities::UNKNOWN, |(_, place)| place.number);
            let mut wanted = None;
            if let Some(place) = self.places.entries.get_mut(prefix) {
                let own = if place.own { identities::OWN_NODE } else { 0 };
                place.value = Some(place.number | own).filter(|value| *value != around);
                wanted = place.value;
            }
            if wanted == self.actual.entries.get(prefix).copied() {
                self.unwritten.remove(prefix);
            } else {
                self.unwritten.insert(*prefix);
            }
        }
        self.unwritten.extend(std::mem::take(&mut self.strays));
        changes
    }

    /// What is to be written, in order: longer prefixes first, so that no address falls to a range that means
    /// something else while its own entry is on its way, and the node's own first, should there not be room for all;
    /// then removals, shorter prefixes first.
    pub(super) fn plan(&mut self) -> Vec<(Prefix, Option<u32>)> {
        let wanted = |prefix: &Prefix| self.places.entries.get(prefix).and_then(|place| place.value);
        let actual = &self.actual.entries;
        self.unwritten.retain(|prefix| wanted(prefix) != actual.get(prefix).copied());
        let (mut upserts, mut removals): (Vec<_>, Vec<_>) = self
            .unwritten
            .iter()
            .map(|prefix| (*prefix, wanted(prefix)))
            .partition(|(_, value)| value.is_some());
        let is_other = |value: &Option<u32>| value.is_some_and(|value| value & identities::OWN_NODE == 0);
        upserts.sort_by_key(|(prefix, value)| (std::cmp::Reverse(prefix.bits()), is_other(value)));
        removals.sort_by_key(|(prefix, _)| prefix.bits());
        upserts.extend(removals);
        upserts
    }

    /// Notes that the map now has this value, or none.
    pub(super) fn written(&mut self, prefix: Prefix, value: Option<u32>) {
        match value {
            Some(value) => self.actual.insert(prefix, value),
            None => self.actual.remove(prefix),
        }
        self.unwritten.remove(&prefix);
    }

    /// Numbers that the map gives to prefixes which should have another one.
    pub(super) fn pinned(&self) -> BTreeSet<u32> {
        self.unwritten.iter().map(|prefix| self.actual_number(*prefix)).collect()
    }

    /// Pairs of values that the map gives, and should give, to addresses that it does not do right by.
    pub(super) fn mistaken(&self) -> BTreeSet<(u32, u32)> {
        let pair = |prefix: &Prefix| {
            let actual = self.actual.at(*prefix).map_or(identities::UNKNOWN, |(_, value)| *value);
            let wanted = self.places.at(*prefix).map_or(identities::UNKNOWN, |(_, place)| {
                place.number | if place.own { identities::OWN_NODE } else { 0 }
            });
            (actual, wanted)
        };
        let pairs = self.unwritten.iter().map(pair);
        pairs.filter(|(actual, wanted)| actual != wanted).collect()
    }

    /// Whether any place may be something else than its number says.
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether nothing is other in the map than it should.
    pub(super) fn is_written(&self) -> bool {
        self.unwritten.is_empty()
    }

    /// Whether the map has an entry for this very prefix.
    pub(super) fn has_entry(&self, prefix: Prefix) -> bool {
        self.actual.entries.contains_key(&prefix)
    }

    /// How many entries the map has.
    pub(super) fn entries(&self) -> usize {
        self.actual.entries.len()
    }

    /// How many ranges there would be with those of `peers`.
    pub(super) fn ranges_with<'a>(&self, peers: impl Iterator<Item = &'a Peer>) -> usize {
        let ranges = peers.flat_map(|peer| match peer {
            Peer::Network { cidr, except } => std::iter::once(cidr).chain(except.iter()).copied().collect(),
            Peer::Pods(_) | Peer::Nodes(_) => Vec::new(),
        });
        let ranges: BTreeSet<Prefix> = ranges.map(Prefix::from).collect();
        let is_known = |prefix: &Prefix| self.places.entries.get(prefix).is_some_and(Place::is_range);
        self.ranges + ranges.iter().filter(|prefix| !is_known(prefix)).count()
    }

    fn actual_number(&self, prefix: Prefix) -> u32 {
        self.actual.at(prefix).map_or(identities::UNKNOWN, |(_, value)| number(*value))
    }

    fn change(&mut self, prefix: Prefix, change: impl FnOnce(&mut Place)) {
        if !self.places.entries.contains_key(&prefix) {
            self.places.insert(prefix, Place::default());
            self.set_border(prefix);
        }
        if let Some(place) = self.places.entries.get_mut(&prefix) {
            self.ranges -= usize::from(place.is_range());
            change(place);
            self.ranges += usize::from(place.is_range());
        }
        self.dirty.insert(prefix);
    }

    /// Keeps IPv6 ranges from holding for the IPv4 addresses that are mapped into them.
    fn set_border(&mut self, changed: Prefix) {
        if !changed.may_hold_v4() {
            return;
        }
        let needed = self.places.has_any_that_may_hold_v4();
        let is_there = self.places.entries.get(&Prefix::V4).is_some_and(|place| place.border);
        if needed != is_there {
            self.change(Prefix::V4, |place| place.border = needed);
        }
    }

    /// What a place that may have changed is now.
    fn refresh(&mut self, prefix: Prefix, census: &Census) -> Option<Move> {
        let place = self.places.entries.get(&prefix)?;
        let old = place.number;
        if place.is_empty() {
            self.places.remove(prefix);
            self.set_border(prefix);
            self.touch_within(prefix);
            return Some(Move { prefix, old, signature: None });
        }
        let ranges = self.ranges(prefix, place);
        let is_new = place.ranges.as_ref() != Some(&ranges);
        let mut signature = ranges.to_vec();
        if let Some(pod) = winner(place, census) {
            signature.extend(census.elements_of_pod(pod));
        }
        for node in &place.nodes {
            signature.extend(census.elements_of_node(node));
        }
        signature.sort_unstable();
        signature.dedup();
        if is_new {
            if let Some(place) = self.places.entries.get_mut(&prefix) {
                place.ranges = Some(ranges);
            }
            self.touch_within(prefix);
        }
        Some(Move { prefix, old, signature: Some(signature.into()) })
    }

    /// The peers whose ranges hold here, in order. Whatever lies around was refreshed before.
    fn ranges(&self, prefix: Prefix, place: &Place) -> Signature {
        let around = (prefix != Prefix::V4).then(|| self.places.parent(prefix)).flatten();
        let inherited = around.and_then(|(_, around)| around.ranges.as_ref());
        if place.begins.is_empty() && place.ends.is_empty() {
            return inherited.cloned().unwrap_or_default();
        }
        let mut ranges: Vec<ElementId> =
            inherited.into_iter().flat_map(|inherited| inherited.iter()).copied().collect();
        ranges.extend(&place.begins);
        ranges.retain(|element| !place.ends.contains(element));
        ranges.sort_unstable();
        ranges.dedup();
        ranges.into()
    }

    /// Marks all that lies in `prefix`.
    fn touch_within(&mut self, prefix: Prefix) {
        self.dirty.extend(self.places.within(prefix));
    }
}

/// The number in a value of the map.
pub(super) fn number(value: u32) -> u32 {
    value & !identities::OWN_NODE
}

/// Of pods that claim one address: one with an endpoint here, one that stays, the newest. Where an endpoint has the
/// address it is that one's pod or nobody: another does not inherit it.
fn winner<'a>(place: &'a Place, census: &Census) -> Option<&'a ObjectName> {
    let members = place.pods.iter().filter_map(|name| Some((name, census.member(name)?)));
    let members = members.filter(|(_, member)| member.local || !place.held);
    let best = members.max_by_key(|(_, member)| (member.local, !member.terminating, member.created));
    best.map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(cidr: &str, except: &[&str]) -> Peer {
        let range = |text: &str| text.parse().expect("a range");
        Peer::Network { cidr: range(cidr), except: except.iter().map(|text| range(text)).collect() }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Writes what is planned.
    fn write(places: &mut Places, numbers: &mut Identities) -> Vec<String> {
        places.settle(&Census::default(), numbers);
        let plan = places.plan();
        plan.iter().for_each(|(prefix, value)| places.written(*prefix, *value));
        plan.iter().map(|(prefix, value)| format!("{prefix} {value:?}")).collect()
    }

    /// The peers that an address is, by its entry in the map.
    fn elements(places: &Places, numbers: &Identities, of: &str) -> Vec<ElementId> {
        let number = places.actual_number(address(of).into());
        numbers.signature(number).expect("a number that means something").to_vec()
    }

    #[test]
    fn an_exception_of_one_range_may_lie_in_another() {
        let (mut places, mut numbers) = (Places::default(), Identities::default());
        places.take_network(1, &network("10.0.0.0/8", &["10.1.0.0/16"]));
        places.take_network(2, &network("10.1.2.0/24", &[]));
        places.take_network(3, &network("10.1.0.0/16", &["10.1.2.0/25"]));
        write(&mut places, &mut numbers);
        for (of, expected) in [
            ("10.9.0.1", &[1][..]),
            ("10.1.9.1", &[3]),
            ("10.1.2.200", &[2, 3]),
            ("10.1.2.1", &[2]),
            ("11.0.0.1", &[]),
        ] {
            assert_eq!(elements(&places, &numbers, of), expected, "{of}");
        }
        places.leave_network(3, &network("10.1.0.0/16", &["10.1.2.0/25"]));
        write(&mut places, &mut numbers);
        assert_eq!(elements(&places, &numbers, "10.1.9.1"), [] as [ElementId; 0]);
        assert_eq!(elements(&places, &numbers, "10.1.2.1"), [2]);
        places.leave_network(1, &network("10.0.0.0/8", &["10.1.0.0/16"]));
        places.leave_network(2, &network("10.1.2.0/24", &[]));
        write(&mut places, &mut numbers);
        assert_eq!((places.places.entries.len(), places.ranges, places.entries()), (0, 0, 0));
        assert!(!numbers.bury(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_range_of_one_family_does_not_hold_for_the_other() {
        let (mut places, mut numbers) = (Places::default(), Identities::default());
        places.take_network(1, &network("::/0", &[]));
        write(&mut places, &mut numbers);
        assert_eq!(elements(&places, &numbers, "fd00::1"), [1]);
        assert_eq!(elements(&places, &numbers, "10.0.0.1"), [] as [ElementId; 0]);
        places.take_network(2, &network("0.0.0.0/0", &[]));
        write(&mut places, &mut numbers);
        assert_eq!(elements(&places, &numbers, "10.0.0.1"), [2]);
        places.leave_network(1, &network("::/0", &[]));
        write(&mut places, &mut numbers);
        assert_eq!(elements(&places, &numbers, "10.0.0.1"), [2]);
        assert_eq!(elements(&places, &numbers, "fd00::1"), [] as [ElementId; 0]);
    }

    #[test]
    fn an_address_has_an_entry_only_where_the_range_around_it_says_otherwise() {
        let (mut places, mut numbers) = (Places::default(), Identities::default());
        places.set_own(address("10.0.0.1"), true);
        places.set_node(address("10.0.0.2"), &"b".into(), true);
        assert_eq!(write(&mut places, &mut numbers), ["10.0.0.1/32 Some(2147483648)"]);
        places.take_network(1, &network("10.0.0.0/8", &[]));
        let plan = write(&mut places, &mut numbers);
        assert_eq!(plan, ["10.0.0.1/32 Some(2147483649)", "10.0.0.0/8 Some(1)"], "the longer prefix first");
        places.set_own(address("10.0.0.1"), false);
        assert_eq!(write(&mut places, &mut numbers), ["10.0.0.1/32 None"]);
    }

    #[test]
    fn shorter_prefixes_are_removed_before_longer_ones() {
        let (mut places, mut numbers) = (Places::default(), Identities::default());
        let peer = network("10.0.0.0/8", &["10.1.0.0/16"]);
        places.take_network(1, &peer);
        write(&mut places, &mut numbers);
        places.leave_network(1, &peer);
        assert_eq!(write(&mut places, &mut numbers), ["10.0.0.0/8 None", "10.1.0.0/16 None"]);
    }
}
