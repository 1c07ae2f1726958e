//! The EndpointSlice controller: follows Services, Pods, Nodes and slices, and keeps the slices of every Service
//! that has a selector as [`super::slices`] plans them. Slices it did not make are left alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::mirror::{Mirror, Pair, pairs_of};
use super::slices::{self, CONTROLLER, MANAGED_BY, Plan, SERVICE_NAME};
use crate::cluster::{Cluster, DeleteOptions, Target};
use crate::object::{Object, text};
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

impl Controller {
    fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            services: Mirror::new(&SERVICES, |service| wanted(service).into_iter().take(1).collect()),
            pods: Mirror::new(&PODS, labels),
            nodes: Mirror::new(&NODES, |_| Vec::new()),
            slices: Mirror::new(&ENDPOINT_SLICES, |_| Vec::new()),
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
            self.dirty.extend(self.services.all().map(|service| name_of(service)));
        }
        for service in self.services.catch_up(&self.cluster) {
            self.dirty.insert(name_of(&service));
        }
        for pod in self.pods.catch_up(&self.cluster) {
            // A Service that selects the pod is found by the first label that it wants.
            for label in labels(&pod.value) {
                let found = self.services.with_pair(pod.namespace(), label);
                let affected = found.filter(|service| selects(service, &pod));
                self.dirty.extend(affected.map(|service| name_of(service)));
            }
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
        let zone = |node: &Arc<Object>| {
            let zone = text(&node.value, "/metadata/labels/topology.kubernetes.io~1zone");
            (node.name().to_owned(), Value::from(zone))
        };
        self.nodes.all().map(zone).collect()
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
            Some(service) => {
                let Some(&first) = wanted(&service.value).first() else { return Ok(()) };
                if service.value["spec"]["type"] == "ExternalName" {
                    return Ok(());
                }
                let pods = self.pods.with_pair(namespace, first).filter(|pod| selects(service, pod));
                let pods: Vec<Arc<Object>> = pods.cloned().collect();
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

/// The labels that a Service's pods have; none if it selects no pods.
fn wanted(service: &Value) -> Vec<Pair<'_>> {
    pairs_of(&service["spec"]["selector"])
}

fn labels(object: &Value) -> Vec<Pair<'_>> {
    pairs_of(&object["metadata"]["labels"])
}

fn selects(service: &Object, pod: &Object) -> bool {
    let (wanted, present) = (wanted(&service.value), &pod.value["metadata"]["labels"]);
    !wanted.is_empty() && wanted.into_iter().all(|(key, value)| present[key] == value)
}
