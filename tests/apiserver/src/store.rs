//! The objects and the history of their changes. Plain data: no locks, no rules of any kind of object.
//!
//! One revision counter serves all collections, as in etcd. Each collection keeps its last changes so that a watch
//! can start in the past; a watch that asks for more than is kept is told so and lists again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock;
use crate::object::Object;
use crate::resource::{self, Resource};

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Change {
    /// The revision this change made; also in the object's metadata.
    pub revision: u64,
    /// The object before, unless it was created.
    pub before: Option<Arc<Object>>,
    /// The object after; for a removal its last state, under the removal's revision.
    pub object: Arc<Object>,
    /// Whether the object is gone.
    pub removed: bool,
}

/// The history asked for is no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {requested} is older than the history, which begins at {oldest}")]
pub(crate) struct Compacted {
    /// The revision asked for.
    pub requested: u64,
    /// The oldest revision that changes are known after.
    pub oldest: u64,
}

/// All objects by kind, namespace and name.
#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    /// Changes kept per collection.
    history: usize,
    collections: HashMap<&'static str, Collection>,
}

#[derive(Debug)]
struct Collection {
    objects: BTreeMap<(String, String), Arc<Object>>,
    changes: VecDeque<Change>,
    /// Every change after this revision is in `changes`.
    oldest: u64,
}

impl Store {
    /// An empty store that keeps the last `history` changes of each collection.
    #[must_use]
    pub(crate) fn new(history: usize) -> Self {
        // Starting at the wall clock makes every revision of an earlier run too old rather than from the future,
        // so that clients that outlive a restart of the server list again, as they would after a restored backup.
        let revision = clock::since_epoch().as_micros() as u64;
        let empty = || Collection { objects: BTreeMap::new(), changes: VecDeque::new(), oldest: revision };
        let collections = resource::ALL.into_iter().map(|resource| (resource.plural, empty())).collect();
        Self { revision, history, collections }
    }

    /// The revision of the last change.
    #[must_use]
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// One object. `namespace` is empty for cluster-scoped kinds.
    #[must_use]
    pub(crate) fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.collection(resource).objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The objects of one namespace, or of all, in order of namespace and name.
    pub(crate) fn list<'a>(
        &'a self,
        resource: &Resource,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        let first = (namespace.unwrap_or_default().to_owned(), String::new());
        self.collection(resource)
            .objects
            .range(first..)
            .take_while(move |((of, _), _)| namespace.is_none_or(|namespace| namespace == of))
            .map(|(_, object)| object)
    }

    /// Stores an object under the name in its metadata, with the next revision.
    pub(crate) fn put(&mut self, resource: &Resource, mut value: Value) -> Arc<Object> {
        let revision = self.advance();
        value["metadata"]["resourceVersion"] = json!(revision.to_string());
        let object = Arc::new(Object::new(value));
        let key = (object.namespace().to_owned(), object.name().to_owned());
        let before = self.collection_mut(resource).objects.insert(key, Arc::clone(&object));
        self.record(resource, Change { revision, before, object: Arc::clone(&object), removed: false });
        object
    }

    /// Removes an object; its last state, if it was there.
    pub(crate) fn remove(&mut self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let key = (namespace.to_owned(), name.to_owned());
        let before = self.collection_mut(resource).objects.remove(&key)?;
        let revision = self.advance();
        let mut value = before.value.clone();
        value["metadata"]["resourceVersion"] = json!(revision.to_string());
        let object = Arc::new(Object::new(value));
        self.record(
            resource,
            Change { revision, before: Some(before), object: Arc::clone(&object), removed: true },
        );
        Some(object)
    }

    /// The changes of a collection after `revision`, oldest first.
    ///
    /// # Errors
    /// [`Compacted`] if some of them are no longer kept.
    pub(crate) fn changes_after(&self, resource: &Resource, revision: u64) -> Result<Vec<Change>, Compacted> {
        let collection = self.collection(resource);
        if revision < collection.oldest {
            return Err(Compacted { requested: revision, oldest: collection.oldest });
        }
        let from = collection.changes.partition_point(|change| change.revision <= revision);
        Ok(collection.changes.range(from..).cloned().collect())
    }

    /// Forgets all history, so that only watches from now on are possible.
    pub(crate) fn compact(&mut self) {
        // One revision further, so that a watch from the last change known until now is too old as well.
        let revision = self.advance();
        for collection in self.collections.values_mut() {
            collection.changes.clear();
            collection.oldest = revision;
        }
    }

    fn advance(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn collection(&self, resource: &Resource) -> &Collection {
        &self.collections[resource.plural]
    }

    fn collection_mut(&mut self, resource: &Resource) -> &mut Collection {
        // Every resource of the table got its collection in `new`, and a `Resource` outside it can't be found.
        self.collections.get_mut(resource.plural).expect("a collection per known resource")
    }

    fn record(&mut self, resource: &Resource, change: Change) {
        let history = self.history;
        let collection = self.collection_mut(resource);
        collection.changes.push_back(change);
        while collection.changes.len() > history {
            if let Some(dropped) = collection.changes.pop_front() {
                collection.oldest = dropped.revision;
            }
        }
    }
}
