//! The EndpointSlice controller: follows Services, Pods, Nodes and slices, and keeps the slices of every Service
//! that has a selector as [`super::slices`] plans them. Slices it did not make are left alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::slices::{self, CONTROLLER, MANAGED_BY, Plan, SERVICE_NAME};
use crate::cluster::{Cluster, DeleteOptions, Target};
use crate::object::{Object, text};
use crate::resource::Resource;
use crate::selector::Selector;
use crate::status::ApiError;
use crate::{ENDPOINT_SLICES, NODES, PODS, SERVICES};

type ObjectName = (String, String);

/// Runs until the server ends.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    let mut revisions = cluster.revisions();
    let mut controller = Controller::new(cluster);
    loop {
        controller.sync();
        if revisions.changed().await.is_err() {
            return;
        }
    }
}

struct Controller {
    cluster: Arc<Cluster>,
    services: Mirror,
    pods: Mirror,
    nodes: Mirror,
    slices: Mirror,
    /// The slices made here, by Service.
    slices_of: HashMap<ObjectName, BTreeSet<String>>,
    dirty: BTreeSet<ObjectName>,
}

/// The objects of one kind as of a revision, brought up to date by the changes since.
struct Mirror {
    resource: &'static Resource,
    revision: u64,
    /// By namespace, then name.
    objects: HashMap<String, HashMap<String, Arc<Object>>>,
}

impl Mirror {
    fn new(resource: &'static Resource) -> Self {
        Self { resource, revision: 0, objects: HashMap::new() }
    }

    /// Catches up; the states that objects had before and have now.
    fn catch_up(&mut self, cluster: &Cluster) -> Vec<Arc<Object>> {
        let mut touched = Vec::new();
        match cluster.changes_after(self.resource, self.revision) {
            Ok((revision, changes)) => {
                self.revision = revision;
                for change in changes {
                    let of_namespace = self.objects.entry(change.object.namespace().to_owned()).or_default();
                    if change.removed {
                        of_namespace.remove(change.object.name());
                    } else {
                        of_namespace.insert(change.object.name().to_owned(), Arc::clone(&change.object));
                    }
                    touched.extend(change.before);
                    touched.push(change.object);
                }
            }
            Err(_) => {
                // The history was cut off: whatever was or is there may have changed.
                touched.extend(self.objects.drain().flat_map(|(_, objects)| objects.into_values()));
                let (revision, all) = cluster.list(self.resource, None, &Selector::default());
                self.revision = revision;
                for object in all {
                    let of_namespace = self.objects.entry(object.namespace().to_owned()).or_default();
                    of_namespace.insert(object.name().to_owned(), Arc::clone(&object));
                    touched.push(object);
                }
            }
        }
        touched
    }

    fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(namespace)?.get(name)
    }

    fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.get(namespace).into_iter().flat_map(HashMap::values)
    }
}

impl Controller {
    fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            services: Mirror::new(&SERVICES),
            pods: Mirror::new(&PODS),
            nodes: Mirror::new(&NODES),
            slices: Mirror::new(&ENDPOINT_SLICES),
            slices_of: HashMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    fn sync(&mut self) {
        for slice in self.slices.catch_up(&self.cluster).iter().filter(|slice| is_ours(&slice.value)) {
            let service = name_of_service(slice);
            let present = self
                .slices
                .get(slice.namespace(), slice.name())
                .is_some_and(|s| name_of_service(s) == service);
            let names = self.slices_of.entry(service.clone()).or_default();
            if present {
                names.insert(slice.name().to_owned())
            } else {
                names.remove(slice.name())
            };
            self.dirty.insert(service);
        }
        let zones_before: HashMap<String, Value> = self.zones();
        if !self.nodes.catch_up(&self.cluster).is_empty() && self.zones() != zones_before {
            let all = self.services.objects.values().flat_map(HashMap::values);
            self.dirty.extend(all.map(|service| name_of(service)));
        }
        for service in self.services.catch_up(&self.cluster) {
            self.dirty.insert(name_of(&service));
        }
        for pod in self.pods.catch_up(&self.cluster) {
            let affected =
                self.services.in_namespace(pod.namespace()).filter(|service| selects(service, &pod));
            self.dirty.extend(affected.map(|service| name_of(service)));
        }
        for service in std::mem::take(&mut self.dirty) {
            if let Err(error) = self.sync_service(&service) {
                // Someone else wrote the slice in between: its change is already on its way here.
                tracing::debug!(service = service.1, namespace = service.0, %error, "sync endpoint slices");
                self.dirty.insert(service);
            }
        }
    }

    /// The zone of every Node there is.
    fn zones(&self) -> HashMap<String, Value> {
        let nodes = self.nodes.in_namespace("");
        let zone = |node: &Arc<Object>| {
            let zone = text(&node.value, "/metadata/labels/topology.kubernetes.io~1zone");
            (node.name().to_owned(), Value::from(zone))
        };
        nodes.map(zone).collect()
    }

    fn sync_service(&self, key: &ObjectName) -> Result<(), ApiError> {
        let (namespace, name) = (key.0.as_str(), key.1.as_str());
        let existing: Vec<Arc<Object>> = self
            .slices_of
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|slice| self.slices.get(namespace, slice).cloned())
            .collect();
        let plan = match self.services.get(namespace, name) {
            // The garbage collector of a cluster does this, after the slices' owner references.
            None => {
                Plan { delete: existing.iter().map(|s| s.name().to_owned()).collect(), ..Plan::default() }
            }
            Some(service) if !has_selector(service) || service.value["spec"]["type"] == "ExternalName" => {
                return Ok(());
            }
            Some(service) => {
                let mut pods: Vec<Arc<Object>> =
                    self.pods.in_namespace(namespace).filter(|pod| selects(service, pod)).cloned().collect();
                pods.sort_by(|a, b| a.name().cmp(b.name()));
                slices::plan(service, &pods, |node| self.nodes.get("", node).cloned(), &existing)
            }
        };
        for slice in plan.update {
            let target = Target::new(&ENDPOINT_SLICES, namespace, text(&slice, "/metadata/name"));
            self.cluster.update(&target, slice, false)?;
        }
        for slice in plan.create {
            self.cluster.create(&ENDPOINT_SLICES, namespace, slice, false)?;
        }
        for slice in plan.delete {
            let target = Target::new(&ENDPOINT_SLICES, namespace, &slice);
            self.cluster.delete(&target, &DeleteOptions::default())?;
        }
        Ok(())
    }
}

fn name_of(object: &Object) -> ObjectName {
    (object.namespace().to_owned(), object.name().to_owned())
}

fn name_of_service(slice: &Object) -> ObjectName {
    let labels = &slice.value["metadata"]["labels"];
    (slice.namespace().to_owned(), labels[SERVICE_NAME].as_str().unwrap_or_default().to_owned())
}

fn is_ours(slice: &Value) -> bool {
    slice["metadata"]["labels"][MANAGED_BY] == CONTROLLER
}

fn has_selector(service: &Object) -> bool {
    service.value["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty())
}

fn selects(service: &Object, pod: &Object) -> bool {
    let labels = &pod.value["metadata"]["labels"];
    let selector = service.value["spec"]["selector"].as_object();
    selector.is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| &labels[key] == value)
    })
}
