//! Empties Namespaces that are being deleted, and lets them go when nothing is left in them.

use std::sync::Arc;

use crate::cluster::{Cluster, DeleteOptions, Target};
use crate::object::is_unset;
use crate::selector::Selector;
use crate::{NAMESPACES, resource};

/// Runs until the server ends.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    let mut revisions = cluster.revisions();
    loop {
        let everything = Selector::default();
        for namespace in cluster.list(&NAMESPACES, None, &everything).1 {
            if !is_unset(&namespace.value, "/metadata/deletionTimestamp") && empty(&cluster, namespace.name())
            {
                cluster.finish_namespace(namespace.name());
            }
        }
        if revisions.changed().await.is_err() {
            return;
        }
    }
}

/// Deletes what is in the namespace; whether all of it is gone.
fn empty(cluster: &Cluster, namespace: &str) -> bool {
    let mut left = false;
    for resource in resource::ALL.into_iter().filter(|r| r.namespaced) {
        for object in cluster.list(resource, Some(namespace), &Selector::default()).1 {
            let target = Target::new(resource, namespace, object.name());
            // Gone in between is as good as deleted, and a marked one wakes this task again when it goes.
            let _ = cluster.delete(&target, &DeleteOptions::default());
            left |= cluster.get(&target).is_ok();
        }
    }
    !left
}
