//! How the entries of one layout become those of another: pure.
//!
//! Fields go by their names. One that is new is zero, which says what was so without it; one that is gone is dropped. A
//! field that has another size is another field. What is reserved holds nothing.

use std::collections::BTreeMap;
use std::fmt;

use super::description::{Description, MapShape, Shape};

/// Bytes that go from one place to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where they are.
    pub from: usize,
    /// Where they go.
    pub to: usize,
    /// How many.
    pub len: usize,
}

/// How one key or value becomes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// How many bytes it becomes.
    pub size: usize,
    /// Which go where; the others are zero.
    pub moves: Vec<Move>,
}

impl Moves {
    /// What `from` becomes, behind what `into` holds.
    pub fn apply(&self, from: &[u8], into: &mut Vec<u8>) {
        let begin = into.len();
        into.resize(begin + self.size, 0);
        let to = &mut into[begin..];
        for Move { from: at, to: there, len } in &self.moves {
            to[*there..there + len].copy_from_slice(&from[*at..at + len]);
        }
    }
}

/// How one map's entries become another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPlan {
    /// `hash`, `array` or `prefixes`.
    pub kind: String,
    /// Its keys.
    pub key: Moves,
    /// Its values.
    pub value: Moves,
}

/// Why a map is not carried over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// The other layout has none of that name.
    Absent,
    /// It is of another kind there.
    Kind,
    /// What tells its keys apart would be lost: this field of them.
    Key(String),
    /// Its keys are prefixes, which only the same layout can hold.
    Prefixes,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the other layout has no such map"),
            Self::Kind => f.write_str("it is of another kind there"),
            Self::Key(field) => write!(f, "its keys would lose {field:?}"),
            Self::Prefixes => f.write_str("its prefixes are of another form"),
        }
    }
}

/// What is carried over, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The maps that are carried over, by name.
    pub maps: BTreeMap<String, MapPlan>,
    /// Those that are not, and why.
    pub left: BTreeMap<String, Left>,
}

/// The plan for carrying over what maps of the layout `from` hold into maps of the layout `to`.
pub fn plan(from: &Description, to: &Description) -> Plan {
    let mut plan = Plan::default();
    for (name, to) in &to.maps {
        match from.maps.get(name).ok_or(Left::Absent).and_then(|from| of_map(from, to)) {
            Ok(map) => drop(plan.maps.insert(name.clone(), map)),
            Err(why) => drop(plan.left.insert(name.clone(), why)),
        }
    }
    plan
}

fn of_map(from: &MapShape, to: &MapShape) -> Result<MapPlan, Left> {
    if from.kind != to.kind {
        return Err(Left::Kind);
    }
    let mut key = moves(&from.key, &to.key);
    let is_kept = |(_, offset, size): &&(String, usize, usize)| {
        key.moves.iter().any(|step| step.from <= *offset && offset + size <= step.from + step.len)
    };
    if let Some((name, _, _)) = meaningful(&from.key).find(|field| !is_kept(field)) {
        return Err(Left::Key(name.clone()));
    }
    if to.kind == "prefixes" {
        if from.key != to.key {
            return Err(Left::Prefixes);
        }
        // The prefix's length stands before the key.
        let size = key.size + size_of::<u32>();
        key = Moves { size, moves: vec![Move { from: 0, to: 0, len: size }] };
    }
    Ok(MapPlan { kind: to.kind.clone(), key, value: moves(&from.value, &to.value) })
}

/// The fields that hold something.
fn meaningful(shape: &Shape) -> impl Iterator<Item = &(String, usize, usize)> {
    let last = |name: &str| name.rsplit('.').next().is_some_and(|last| last.starts_with("reserved"));
    shape.fields.iter().filter(move |(name, _, _)| !last(name))
}

fn moves(from: &Shape, to: &Shape) -> Moves {
    let mut moves: Vec<Move> = Vec::new();
    let mut fields: Vec<_> = meaningful(to).collect();
    fields.sort_by_key(|(_, offset, _)| *offset);
    for (name, offset, size) in fields {
        let Some((_, before, _)) = meaningful(from).find(|(other, _, len)| (other, len) == (name, size))
        else {
            continue;
        };
        match moves.last_mut() {
            // Neighbours that stay neighbours go together.
            Some(Move { from, to, len }) if *from + *len == *before && *to + *len == *offset => *len += size,
            _ => moves.push(Move { from: *before, to: *offset, len: *size }),
        }
    }
    Moves { size: to.size, moves }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(fields: &[(&str, usize)]) -> Shape {
        let mut offset = 0;
        let fields = fields.iter().map(|(name, size)| {
            offset += size;
            ((*name).to_owned(), offset - size, *size)
        });
        let fields: Vec<_> = fields.collect();
        Shape { size: offset, fields }
    }

    fn map(kind: &str, key: &[(&str, usize)], value: &[(&str, usize)]) -> MapShape {
        MapShape { kind: kind.to_owned(), key: shape(key), value: shape(value) }
    }

    fn described(map: MapShape) -> Description {
        Description { version: 1, maps: [("M".to_owned(), map)].into() }
    }

    fn become_of(from: &[(&str, usize)], to: &[(&str, usize)], bytes: &[u8]) -> Vec<u8> {
        let mut into = Vec::new();
        moves(&shape(from), &shape(to)).apply(bytes, &mut into);
        into
    }

    #[test]
    fn fields_go_by_their_names_new_ones_are_zero_and_others_are_dropped() {
        let before: &[(&str, usize)] = &[("a", 1), ("b", 2), ("gone", 1), ("reserved", 1)];
        let after: &[(&str, usize)] = &[("new", 2), ("b", 2), ("reserved", 2), ("a", 1)];
        assert_eq!(become_of(before, after, &[1, 2, 3, 4, 5]), [0, 0, 2, 3, 0, 0, 1]);
        assert_eq!(become_of(after, before, &[9, 9, 2, 3, 8, 8, 1]), [1, 2, 3, 0, 0]);
    }

    #[test]
    fn a_field_of_another_size_is_another_field() {
        assert_eq!(become_of(&[("a", 1), ("b", 1)], &[("a", 2), ("b", 1)], &[7, 8]), [0, 0, 8]);
    }

    #[test]
    fn what_stays_as_it_is_goes_in_one_piece() {
        let fields: &[(&str, usize)] = &[("a", 1), ("b", 2), ("c", 4)];
        assert_eq!(moves(&shape(fields), &shape(fields)).moves, [Move { from: 0, to: 0, len: 7 }]);
    }

    #[test]
    fn a_map_whose_keys_would_be_taken_for_each_other_is_left() {
        let value: &[(&str, usize)] = &[("", 4)];
        let long = described(map("hash", &[("a", 1), ("b", 1)], value));
        let short = described(map("hash", &[("a", 1), ("reserved", 1)], value));
        assert_eq!(plan(&long, &short).left["M"], Left::Key("b".to_owned()));
        assert!(plan(&short, &long).maps.contains_key("M"), "a new part of a key is zero");
    }

    #[test]
    fn a_map_of_another_kind_or_without_its_like_is_left() {
        let value: &[(&str, usize)] = &[("", 4)];
        let hash = described(map("hash", &[("a", 4)], value));
        let array = described(map("array", &[("a", 4)], value));
        assert_eq!(plan(&hash, &array).left["M"], Left::Kind);
        let nothing = Description { version: 2, maps: BTreeMap::new() };
        assert_eq!(plan(&nothing, &array).left["M"], Left::Absent);
        assert_eq!(plan(&array, &nothing), Plan::default());
    }

    #[test]
    fn prefixes_go_with_their_length_or_not_at_all() {
        let value: &[(&str, usize)] = &[("", 4)];
        let one = described(map("prefixes", &[("a", 4), ("b", 4)], value));
        let other = described(map("prefixes", &[("b", 4), ("a", 4)], value));
        assert_eq!(plan(&one, &one).maps["M"].key.size, 12);
        assert_eq!(plan(&one, &other).left["M"], Left::Prefixes);
    }

    #[test]
    fn between_two_of_one_layout_everything_is_carried() {
        let own = Description::own();
        let plan = plan(&own, &own);
        assert_eq!((plan.maps.len(), plan.left.len()), (own.maps.len(), 0));
    }
}
