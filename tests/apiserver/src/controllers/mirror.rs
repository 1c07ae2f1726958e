//! What a controller knows of the objects of one kind, found by name and by label.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::object::Object;
use crate::resource::Resource;
use crate::selector::Selector;

/// A label, or what a selector wants one to be.
pub(super) type Pair<'a> = (&'a str, &'a str);

/// The objects of one kind as of a revision, brought up to date by the changes since.
pub(super) struct Mirror {
    resource: &'static Resource,
    revision: u64,
    /// By namespace, then name.
    objects: HashMap<String, HashMap<String, Arc<Object>>>,
    /// The pairs under which an object is found.
    pairs: fn(&Value) -> Vec<Pair<'_>>,
    /// Names by namespace and pair.
    index: HashMap<(String, String, String), BTreeSet<String>>,
}

impl Mirror {
    /// An empty mirror, whose objects will be found by what `pairs` says of each.
    pub(super) fn new(resource: &'static Resource, pairs: fn(&Value) -> Vec<Pair<'_>>) -> Self {
        Self { resource, revision: 0, objects: HashMap::new(), pairs, index: HashMap::new() }
    }

    /// Catches up; the states that objects had before and have now.
    pub(super) fn catch_up(&mut self, cluster: &Cluster) -> Vec<Arc<Object>> {
        let mut touched = Vec::new();
        match cluster.changes_after(self.resource, self.revision) {
            Ok((revision, changes)) => {
                self.revision = revision;
                for change in changes {
                    self.remove(&change.object);
                    if !change.removed {
                        self.insert(&change.object);
                    }
                    touched.extend(change.before);
                    touched.push(change.object);
                }
            }
            Err(_) => {
                // The history was cut off: whatever was or is there may have changed.
                self.index.clear();
                touched.extend(self.objects.drain().flat_map(|(_, objects)| objects.into_values()));
                let (revision, all) = cluster.list(self.resource, None, &Selector::default());
                self.revision = revision;
                all.iter().for_each(|object| self.insert(object));
                touched.extend(all);
            }
        }
        touched
    }

    /// The object of that name.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(namespace)?.get(name)
    }

    /// Every object.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values().flat_map(HashMap::values)
    }

    /// The objects of a namespace that have the pair, in order of their names.
    pub(super) fn with_pair(
        &self,
        namespace: &str,
        (key, value): Pair<'_>,
    ) -> impl Iterator<Item = &Arc<Object>> {
        let names = self.index.get(&(namespace.to_owned(), key.to_owned(), value.to_owned()));
        names.into_iter().flatten().filter_map(move |name| self.get(namespace, name))
    }

    fn insert(&mut self, object: &Arc<Object>) {
        for key in self.keys(object) {
            self.index.entry(key).or_default().insert(object.name().to_owned());
        }
        let of_namespace = self.objects.entry(object.namespace().to_owned()).or_default();
        of_namespace.insert(object.name().to_owned(), Arc::clone(object));
    }

    /// Removes the object of the name that `object` has.
    fn remove(&mut self, object: &Object) {
        let of_namespace = self.objects.get_mut(object.namespace());
        let Some(old) = of_namespace.and_then(|objects| objects.remove(object.name())) else { return };
        for key in self.keys(&old) {
            if let Some(names) = self.index.get_mut(&key) {
                names.remove(object.name());
                if names.is_empty() {
                    self.index.remove(&key);
                }
            }
        }
    }

    fn keys(&self, object: &Object) -> Vec<(String, String, String)> {
        let key = |(key, value): Pair<'_>| (object.namespace().to_owned(), key.to_owned(), value.to_owned());
        (self.pairs)(&object.value).into_iter().map(key).collect()
    }
}

/// The pairs of a map of strings.
pub(super) fn pairs_of(map: &Value) -> Vec<Pair<'_>> {
    let entries = map.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{CONFIG_MAPS, DeleteOptions, NAMESPACES, Target};

    #[test]
    fn objects_are_found_by_the_labels_that_they_have_now() {
        let ranges = crate::service::Ranges { cluster_ips: Vec::new(), node_ports: 1..=2 };
        let cluster = Cluster::new(ranges, Vec::new(), 3);
        cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "n"}}), false).unwrap();
        let mut mirror = Mirror::new(&CONFIG_MAPS, |object| pairs_of(&object["metadata"]["labels"]));
        let found = |mirror: &Mirror, pair| -> Vec<String> {
            mirror.with_pair("n", pair).map(|object| object.name().to_owned()).collect()
        };
        for (name, app) in [("b", "x"), ("a", "x"), ("c", "y")] {
            let object = json!({"metadata": {"name": name, "labels": {"app": app}}});
            cluster.create(&CONFIG_MAPS, "n", object, false).unwrap();
        }
        assert_eq!(mirror.catch_up(&cluster).len(), 3);
        assert_eq!(found(&mirror, ("app", "x")), ["a", "b"]);
        let target = |name| Target::new(&CONFIG_MAPS, "n", name);
        cluster.update(&target("a"), json!({"metadata": {"labels": {"app": "y"}}}), false).unwrap();
        cluster.delete(&target("c"), &DeleteOptions::default()).unwrap();
        assert_eq!(mirror.catch_up(&cluster).len(), 4, "before and after of each");
        assert_eq!(
            (found(&mirror, ("app", "x")), found(&mirror, ("app", "y"))),
            (vec!["b".into()], vec!["a".into()])
        );
        for app in ["p", "q", "r", "s"] {
            cluster.update(&target("a"), json!({"metadata": {"labels": {"app": app}}}), false).unwrap();
        }
        assert_eq!(
            mirror.catch_up(&cluster).len(),
            4,
            "what was and what is there, the history being too short"
        );
        assert_eq!(
            (found(&mirror, ("app", "y")), found(&mirror, ("app", "s"))),
            (vec![], vec!["a".to_owned()])
        );
    }
}
