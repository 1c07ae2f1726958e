//! What the pinned maps look like, field by field, for an agent of another layout.
//!
//! Each agent pins a description of its maps beside them. Whoever comes after it, newer or older, compares that with its
//! own, and carries over what the fields hold, by their names. For user space only.

use crate::{
    Address, Affinity, AffinityKey, Backend, Cell, CellKey, Config, Endpoint, Flow, FlowKey, FragmentKey,
    Frontend, FrontendKey, Isolation, PolicyState, Port, RowKey, SocketClient, SocketKey, SocketPeer,
    SourceRange, maps,
};

/// A field of a key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Where it begins, in bytes from the beginning of what it is a field of.
    pub offset: usize,
    /// How many bytes it has.
    pub size: usize,
    /// The fields that it has itself; none if it is a number, an address, or an array of numbers.
    pub fields: &'static [Self],
}

/// A key or value that says what its fields are.
pub trait Described: aya::Pod {
    /// Its fields; none if it is one itself.
    const FIELDS: &'static [Field] = &[];
}

macro_rules! plain {
    ($($type:ty),+) => { $(impl Described for $type {})+ };
}
plain!(u8, u16, u32, u64, [u8; 2], [u8; 3], [u8; 6], [u16; 3], [u32; 2], Address, Port);

/// The size and the fields of a field.
pub(crate) const fn of_field<T, F: Described>(_: fn(&T) -> &F) -> (usize, &'static [Field]) {
    (size_of::<F>(), F::FIELDS)
}

/// How many bytes the fields have together.
pub(crate) const fn total(fields: &[Field]) -> usize {
    let (mut bytes, mut at) = (0, 0);
    while at < fields.len() {
        bytes += fields[at].size;
        at += 1;
    }
    bytes
}

/// A kind of map that can be carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A hash, whether or not it evicts.
    Hash,
    /// An array, whose key is an index.
    Array,
    /// A table of prefixes, whose key stands behind the prefix's length.
    Prefixes,
}

/// A key's or a value's size in bytes, and its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many bytes it has.
    pub size: usize,
    /// Its fields; none if it is one itself.
    pub fields: &'static [Field],
}

/// What a map looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLayout {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its keys.
    pub key: Shape,
    /// Its values.
    pub value: Shape,
}

const fn map<K: Described, V: Described>(name: &'static str, kind: Kind) -> MapLayout {
    MapLayout {
        name,
        kind,
        key: Shape { size: size_of::<K>(), fields: K::FIELDS },
        value: Shape { size: size_of::<V>(), fields: V::FIELDS },
    }
}

/// All pinned maps but those that only count or tell.
pub const MAPS: [MapLayout; 22] = [
    map::<u32, Config>(maps::CONFIG, Kind::Array),
    map::<FrontendKey, Frontend>(maps::FRONTENDS, Kind::Hash),
    map::<u32, u32>(maps::SLOTS, Kind::Array),
    map::<u32, Backend>(maps::BACKENDS, Kind::Array),
    map::<Address, Endpoint>(maps::ENDPOINTS, Kind::Hash),
    map::<u32, u32>(maps::MARKS, Kind::Array),
    map::<FlowKey, Flow>(maps::FLOWS, Kind::Hash),
    map::<u32, FlowKey>(maps::PLACES, Kind::Array),
    map::<FragmentKey, Flow>(maps::FRAGMENTS, Kind::Hash),
    map::<SocketKey, SocketPeer>(maps::SOCKETS, Kind::Hash),
    map::<u64, SocketClient>(maps::CLIENTS, Kind::Hash),
    map::<AffinityKey, Affinity>(maps::AFFINITY, Kind::Hash),
    map::<SourceRange, u32>(maps::SOURCE_RANGES, Kind::Prefixes),
    map::<Address, u32>(maps::SERVICE_CIDRS, Kind::Prefixes),
    map::<Address, u32>(maps::EGRESS, Kind::Prefixes),
    map::<u32, Isolation>(maps::ISOLATION, Kind::Array),
    map::<u32, u64>(maps::ISOLATED, Kind::Array),
    map::<u32, u32>(maps::POLICIES, Kind::Array),
    map::<Address, u32>(maps::PEERS, Kind::Prefixes),
    map::<CellKey, Cell>(maps::CELLS, Kind::Hash),
    map::<RowKey, u32>(maps::ROWS, Kind::Prefixes),
    map::<u32, PolicyState>(maps::POLICY_STATE, Kind::Array),
];

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;

    /// The bytes that the fields describe, marked one by one.
    fn covered(shape: Shape) -> Vec<u8> {
        let mut bytes = vec![0; shape.size];
        for field in shape.fields {
            bytes[field.offset..field.offset + field.size].iter_mut().for_each(|byte| *byte += 1);
            if !field.fields.is_empty() {
                assert!(
                    covered(Shape { size: field.size, fields: field.fields }).iter().all(|byte| *byte == 1)
                );
            }
        }
        bytes
    }

    #[test]
    fn every_byte_of_a_key_and_a_value_is_described_once() {
        for map in MAPS {
            for shape in [map.key, map.value].into_iter().filter(|shape| !shape.fields.is_empty()) {
                assert!(covered(shape).iter().all(|byte| *byte == 1), "{}: {shape:?}", map.name);
            }
        }
    }

    #[test]
    fn each_map_is_described_once() {
        for (at, map) in MAPS.iter().enumerate() {
            assert!(MAPS[..at].iter().all(|other| other.name != map.name), "{}", map.name);
        }
    }
}
