//! A table that counts its changes, so that who copies it need not do so while nothing changes.

use std::collections::BTreeMap;

/// A table that counts its changes.
#[derive(Clone, Debug)]
pub(crate) struct Tracked<K, V> {
    entries: BTreeMap<K, V>,
    version: u64,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), version: 0 }
    }
}

impl<K: Clone + Ord, V: PartialEq> Tracked<K, V> {
    /// Makes `value` that of `key`, or removes it.
    pub(crate) fn set(&mut self, key: &K, value: Option<V>) {
        if self.entries.get(key) == value.as_ref() {
            return;
        }
        self.version += 1;
        match value {
            Some(value) => self.entries.insert(key.clone(), value),
            None => self.entries.remove(key),
        };
    }

    /// Grows with each change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// The keys that have a value, in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    /// The values, in order of key.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_something_counts() {
        let mut table = Tracked::default();
        for value in [Some(1), Some(1), None, None, Some(2)] {
            table.set(&"key", value);
        }
        assert_eq!((table.version(), table.values().copied().collect::<Vec<i32>>()), (3, vec![2]));
    }
}
