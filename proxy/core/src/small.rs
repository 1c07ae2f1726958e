//! A table of few entries: there are many of them, and a tree or a hash table each would cost more than it holds.

/// A table as a sorted vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmallMap<K, V>(Vec<(K, V)>);

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> SmallMap<K, V> {
    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        let place = self.place(key).ok()?;
        self.0.get(place).map(|(_, value)| value)
    }

    /// Whether `key` has a value.
    pub fn contains_key(&self, key: &K) -> bool {
        self.place(key).is_ok()
    }

    /// Sets the value of `key`; what was there is returned.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.place(&key) {
            Ok(place) => Some(std::mem::replace(&mut self.0[place].1, value)),
            Err(place) => {
                if self.0.len() == self.0.capacity() {
                    // Exactly one more for the first few, since most tables stay that small.
                    self.0.reserve_exact(1.max(self.0.len() / 2));
                }
                self.0.insert(place, (key, value));
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.place(key).ok()?;
        Some(self.0.remove(place).1)
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        self.0.retain(|(key, value)| keep(key, value));
    }

    /// Keys and values, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// The values, in order of key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    fn place(&self, key: &K) -> Result<usize, usize> {
        match self.0.last() {
            // What is added in order is added fast.
            Some((last, _)) if last < key => Err(self.0.len()),
            _ => self.0.binary_search_by(|(other, _)| other.cmp(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_a_tree_would() {
        let mut small = SmallMap::default();
        let mut tree = std::collections::BTreeMap::new();
        let mut state = 1_u32;
        for turn in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = (state >> 16) % 50;
            match state >> 30 {
                0 => assert_eq!(small.remove(&key), tree.remove(&key)),
                _ => assert_eq!(small.insert(key, turn), tree.insert(key, turn)),
            }
            assert_eq!(small.get(&key), tree.get(&key));
        }
        assert!(small.iter().eq(tree.iter()) && small.keys().eq(tree.keys()));
        small.retain(|key, _| key.is_multiple_of(2));
        tree.retain(|key, _| key.is_multiple_of(2));
        assert!(small.iter().eq(tree.iter()) && !small.contains_key(&1) && !small.is_empty());
    }
}
