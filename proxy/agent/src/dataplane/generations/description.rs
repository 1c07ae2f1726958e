//! What a generation's maps look like, as it says itself, in a map that it pins beside them.
//!
//! So an agent can read the maps of one that is newer than itself; and the description is gone when the maps are.

use std::collections::BTreeMap;

use fairlead_abi::describe::{self, Kind};
use fairlead_abi::{LAYOUT_VERSION, maps};
use serde::{Deserialize, Serialize};

use crate::dataplane::raw::RawMap;
use crate::dataplane::{DataplaneError, Pins};

/// How many bytes the map's one value has.
const BYTES: u32 = 32 * 1024;

/// The maps of one layout, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// [`LAYOUT_VERSION`].
    pub version: u32,
    /// Those of [`describe::MAPS`].
    pub maps: BTreeMap<String, MapShape>,
}

/// A map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapShape {
    /// `hash`, `array` or `prefixes`.
    pub kind: String,
    /// Its keys; of a table of prefixes, what follows the prefix's length.
    pub key: Shape,
    /// Its values.
    pub value: Shape,
}

/// A key or a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// How many bytes it has.
    pub size: usize,
    /// Its fields: name, offset and size in bytes. One that has fields itself is not among them, but these are, named
    /// `outer.inner`. What is only a number has one without a name.
    pub fields: Vec<(String, usize, usize)>,
}

impl Description {
    /// That of this executable.
    pub fn own() -> Self {
        let maps = describe::MAPS.map(|map| (map.name.to_owned(), MapShape::from(&map)));
        Self { version: LAYOUT_VERSION, maps: maps.into() }
    }

    /// What is pinned beside these maps.
    ///
    /// # Errors
    /// When nothing is, or it can't be understood.
    pub fn read(pins: &Pins) -> Result<Self, DataplaneError> {
        let path = pins.map(maps::LAYOUT);
        let map = RawMap::open(&path, Kind::Array)?;
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            DataplaneError::new("understand the description", path.display().to_string(), e)
        };
        let bytes = map.get(&0_u32.to_ne_bytes())?.unwrap_or_default();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        serde_json::from_slice(&bytes[..end]).map_err(|e| failed(e.into()))
    }

    /// Pins it beside these maps, in the place of what is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn write(&self, pins: &Pins) -> Result<(), DataplaneError> {
        let failed = |e| DataplaneError::new("write the description", pins.maps().display().to_string(), e);
        let mut bytes = serde_json::to_vec(self).map_err(|e| failed(e.to_string()))?;
        if bytes.len() >= BYTES as usize {
            return Err(failed(format!("it has {} bytes, of {BYTES}", bytes.len())));
        }
        bytes.resize(BYTES as usize, 0);
        let map = RawMap::make_single(&pins.map(maps::LAYOUT), maps::LAYOUT, BYTES)?;
        map.set(&0_u32.to_ne_bytes(), &bytes).map(drop)
    }
}

impl From<&describe::MapLayout> for MapShape {
    fn from(map: &describe::MapLayout) -> Self {
        let kind = match map.kind {
            Kind::Hash => "hash",
            Kind::Array => "array",
            Kind::Prefixes => "prefixes",
        };
        Self { kind: kind.to_owned(), key: (&map.key).into(), value: (&map.value).into() }
    }
}

impl From<&describe::Shape> for Shape {
    fn from(shape: &describe::Shape) -> Self {
        let mut fields = Vec::new();
        if shape.fields.is_empty() {
            fields.push((String::new(), 0, shape.size));
        }
        flatten("", 0, shape.fields, &mut fields);
        Self { size: shape.size, fields }
    }
}

fn flatten(outer: &str, base: usize, of: &[describe::Field], into: &mut Vec<(String, usize, usize)>) {
    for field in of {
        let name = format!("{outer}{}", field.name);
        if field.fields.is_empty() {
            into.push((name, base + field.offset, field.size));
        } else {
            flatten(&format!("{name}."), base + field.offset, field.fields, into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_fits_into_its_map_twice_over() {
        let text = serde_json::to_vec(&Description::own()).expect("plain data");
        assert!(text.len() < BYTES as usize / 2, "{} bytes", text.len());
        assert_eq!(serde_json::from_slice::<Description>(&text).expect("the same"), Description::own());
    }

    #[test]
    fn fields_of_fields_are_named_by_both() {
        let own = Description::own();
        let frontend = &own.maps[maps::FRONTENDS].value;
        assert!(frontend.fields.iter().any(|(name, _, size)| name == "internal.base" && *size == 4));
        let total: usize = frontend.fields.iter().map(|(_, _, size)| size).sum();
        assert_eq!(total, frontend.size);
        assert_eq!(own.maps[maps::SLOTS].value.fields, [(String::new(), 0, 4)]);
    }
}
