//! Objects as stored: JSON with its serialised form, and the metadata every kind shares.

use std::hash::{BuildHasher, Hasher, RandomState};

use bytes::Bytes;
use serde_json::{Map, Value};

/// An object of any kind at one resourceVersion. Immutable: a write stores a new one.
#[derive(Debug, PartialEq)]
pub struct Object {
    /// The object itself.
    pub value: Value,
    /// `value` as it goes over the wire, so that a list or a watch of thousands serialises nothing.
    pub json: Bytes,
}

impl Object {
    /// Wraps an object that has all its metadata.
    #[must_use]
    pub fn new(value: Value) -> Self {
        let json = Bytes::from(value.to_string());
        Self { value, json }
    }

    /// `metadata.resourceVersion`.
    #[must_use]
    pub fn revision(&self) -> u64 {
        text(&self.value, "/metadata/resourceVersion").parse().unwrap_or_default()
    }

    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        text(&self.value, "/metadata/name")
    }

    /// `metadata.namespace`, empty for cluster-scoped objects.
    #[must_use]
    pub fn namespace(&self) -> &str {
        text(&self.value, "/metadata/namespace")
    }
}

/// The string at a JSON pointer; empty if there is none, which is how the API treats absent strings too.
#[must_use]
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The array at a JSON pointer; empty if there is none.
#[must_use]
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether the value at a JSON pointer is absent, null or an empty string.
#[must_use]
pub(crate) fn is_unset(value: &Value, pointer: &str) -> bool {
    match value.pointer(pointer) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    }
}

/// The map under `key`, made one if it was absent or anything else.
///
/// # Panics
/// Never: a value that is no map is replaced by an empty one first.
pub(crate) fn map_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let entry = &mut value[key];
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    entry.as_object_mut().expect("made a map above")
}

/// Sets `key` of a map unless it has a value (null and the empty string count as none).
pub(crate) fn default_to(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let unset = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if unset {
        map.insert(key.to_owned(), value.into());
    }
}

/// A random (version 4) UUID.
#[must_use]
pub(crate) fn new_uid() -> String {
    let (high, low) = (random(), random());
    let (high, low) = ((high & !0xf000) | 0x4000, (low & !(3 << 62)) | (2 << 62));
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// Five random characters of the alphabet Kubernetes uses after `generateName`: no vowels, so no words.
#[must_use]
pub(crate) fn name_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bits = random();
    (0..5)
        .map(|_| {
            let index = (bits % ALPHABET.len() as u64) as usize;
            bits /= ALPHABET.len() as u64;
            char::from(ALPHABET[index])
        })
        .collect()
}

/// Sixty-four random bits: the standard library seeds every hasher from the system's source of randomness.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_version_4_uuids_and_differ() {
        let (one, other) = (new_uid(), new_uid());
        assert_ne!(one, other);
        assert_eq!(one.len(), 36);
        assert_eq!(&one[14..15], "4");
        assert!("89ab".contains(&one[19..20]), "{one}");
    }
}
