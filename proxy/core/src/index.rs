//! What the API holds now, as far as the proxy needs it, and which Services that change touched.
//!
//! Owned by the [`Reconciler`](crate::reconcile::Reconciler), fed by the agent's watches through
//! synchronous apply, delete and replace. Order and repetition of events do not matter: only the last
//! state counts. Every operation costs what it changes, never the number of Services.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

use crate::convert::{self, Converted};
use crate::model::{EndpointSlice, Node, ObjectName, Problem, Service};

/// Services, their slices and the nodes.
#[derive(Debug, Default)]
pub struct Index {
    node_name: String,
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    slices_of: HashMap<ObjectName, BTreeSet<ObjectName>>,
    with_node_port: BTreeSet<ObjectName>,
    nodes: BTreeMap<String, Node>,
    service_problems: BTreeMap<ObjectName, Vec<Problem>>,
    slice_problems: BTreeMap<ObjectName, Vec<Problem>>,
    node_problems: BTreeMap<String, Vec<Problem>>,
    dirty: BTreeSet<ObjectName>,
}

impl Index {
    /// An empty index of the node of that name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self { node_name: node_name.into(), ..Self::default() }
    }

    /// A Service was added or changed.
    pub fn apply_service(&mut self, object: &core::Service) {
        let Some(name) = name_of(&object.metadata) else { return };
        let Converted { value, problems } = convert::service(object);
        keep_problems(&mut self.service_problems, &name, problems);
        self.set_service(name, value);
    }

    /// A Service was deleted.
    pub fn delete_service(&mut self, name: &ObjectName) {
        self.service_problems.remove(name);
        self.set_service(name.clone(), None);
    }

    /// These are all Services: what a list answered.
    pub fn replace_services(&mut self, objects: &[core::Service]) {
        let listed: BTreeSet<ObjectName> =
            objects.iter().filter_map(|object| name_of(&object.metadata)).collect();
        let known: Vec<ObjectName> =
            self.services.keys().chain(self.service_problems.keys()).cloned().collect();
        for name in known.iter().filter(|name| !listed.contains(name)) {
            self.delete_service(name);
        }
        objects.iter().for_each(|object| self.apply_service(object));
    }

    /// An EndpointSlice was added or changed.
    pub fn apply_slice(&mut self, object: &discovery::EndpointSlice) {
        let Some(name) = name_of(&object.metadata) else { return };
        let Converted { value, problems } = convert::slice(object);
        keep_problems(&mut self.slice_problems, &name, problems);
        self.set_slice(name, value);
    }

    /// An EndpointSlice was deleted.
    pub fn delete_slice(&mut self, name: &ObjectName) {
        self.slice_problems.remove(name);
        self.set_slice(name.clone(), None);
    }

    /// These are all EndpointSlices: what a list answered.
    pub fn replace_slices(&mut self, objects: &[discovery::EndpointSlice]) {
        let listed: BTreeSet<ObjectName> =
            objects.iter().filter_map(|object| name_of(&object.metadata)).collect();
        let known: Vec<ObjectName> = self.slices.keys().chain(self.slice_problems.keys()).cloned().collect();
        for name in known.iter().filter(|name| !listed.contains(name)) {
            self.delete_slice(name);
        }
        objects.iter().for_each(|object| self.apply_slice(object));
    }

    /// A Node was added or changed.
    pub fn apply_node(&mut self, object: &core::Node) {
        let Some(name) = object.metadata.name.clone() else { return };
        let Converted { value, problems } = convert::node(object);
        keep_problems(&mut self.node_problems, &name, problems);
        self.set_node(name, value);
    }

    /// A Node was deleted.
    pub fn delete_node(&mut self, name: &str) {
        self.node_problems.remove(name);
        self.set_node(name.to_owned(), None);
    }

    /// These are all Nodes: what a list answered.
    pub fn replace_nodes(&mut self, objects: &[core::Node]) {
        let listed: BTreeSet<&str> =
            objects.iter().filter_map(|object| object.metadata.name.as_deref()).collect();
        let gone: Vec<String> =
            self.nodes.keys().filter(|name| !listed.contains(name.as_str())).cloned().collect();
        gone.iter().for_each(|name| self.delete_node(name));
        objects.iter().for_each(|object| self.apply_node(object));
    }

    /// The name of the proxy's own node.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The proxy's own node, once it is known.
    pub fn node(&self) -> Option<&Node> {
        self.nodes.get(&self.node_name)
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The Service of that name, if it is the proxy's business.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Every Service that is the proxy's business, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// What was left out of the objects that the API holds now.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let services = self.service_problems.values().flatten();
        let slices = self.slice_problems.values().flatten();
        services.chain(slices).chain(self.node_problems.values().flatten())
    }

    /// How many Services changed since they were last taken.
    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// The Services that changed since this was last called.
    pub fn take_dirty(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.dirty)
    }

    fn set_service(&mut self, name: ObjectName, value: Option<Service>) {
        if self.services.get(&name) == value.as_ref() {
            return;
        }
        if value.iter().flat_map(|service| &service.ports).any(|port| port.node_port.is_some()) {
            self.with_node_port.insert(name.clone());
        } else {
            self.with_node_port.remove(&name);
        }
        match value {
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(&name),
        };
        self.dirty.insert(name);
    }

    fn set_slice(&mut self, name: ObjectName, value: Option<EndpointSlice>) {
        let old = self.slices.get(&name);
        if old == value.as_ref() {
            return;
        }
        if let Some(service) = old.map(|old| old.service.clone()) {
            if let Some(names) = self.slices_of.get_mut(&service) {
                names.remove(&name);
                if names.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            self.dirty.insert(service);
        }
        match value {
            Some(slice) => {
                self.slices_of.entry(slice.service.clone()).or_default().insert(name.clone());
                self.dirty.insert(slice.service.clone());
                self.slices.insert(name, slice);
            }
            None => {
                self.slices.remove(&name);
            }
        }
    }

    fn set_node(&mut self, name: String, value: Option<Node>) {
        let primary = |node: Option<&Node>| node.map(|node| node.primary_addresses().collect::<Vec<_>>());
        if name == self.node_name && primary(self.nodes.get(&name)) != primary(value.as_ref()) {
            self.dirty.extend(self.with_node_port.iter().cloned());
        }
        match value {
            Some(node) => self.nodes.insert(name, node),
            None => self.nodes.remove(&name),
        };
    }
}

/// An object without a name can be neither deleted nor replaced, and the API holds none.
fn name_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

fn keep_problems<K: Clone + Ord>(kept: &mut BTreeMap<K, Vec<Problem>>, name: &K, problems: Vec<Problem>) {
    if problems.is_empty() {
        kept.remove(name);
    } else {
        kept.insert(name.clone(), problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn service(name: &str, port: Value) -> core::Service {
        from_value(json!({
            "metadata": { "namespace": "default", "name": name },
            "spec": { "clusterIPs": ["10.96.0.1"], "ports": [port] },
        }))
        .expect("a Service")
    }

    fn slice(name: &str, service: &str) -> discovery::EndpointSlice {
        from_value(json!({
            "metadata": { "namespace": "default", "name": name, "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.244.0.2"] }],
        }))
        .expect("an EndpointSlice")
    }

    fn node(name: &str, address: &str) -> core::Node {
        from_value(json!({
            "metadata": { "name": name },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
        }))
        .expect("a Node")
    }

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    #[test]
    fn a_slice_that_changes_hands_touches_both_services() {
        let mut index = Index::new("a");
        index.apply_slice(&slice("one", "web"));
        assert_eq!(index.take_dirty(), BTreeSet::from([name("web")]));
        index.apply_slice(&slice("one", "api"));
        assert_eq!(index.take_dirty(), BTreeSet::from([name("api"), name("web")]));
        assert_eq!((index.slices(&name("web")).count(), index.slices(&name("api")).count()), (0, 1));
        index.delete_slice(&name("one"));
        assert_eq!(index.take_dirty(), BTreeSet::from([name("api")]));
        assert!(index.slices_of.is_empty());
    }

    #[test]
    fn the_own_nodes_addresses_touch_services_with_node_ports_alone() {
        let mut index = Index::new("a");
        index.apply_service(&service("plain", json!({ "port": 80 })));
        index.apply_service(&service("open", json!({ "port": 80, "nodePort": 30080 })));
        index.take_dirty();
        index.apply_node(&node("b", "192.0.2.2"));
        assert_eq!(index.dirty_len(), 0);
        index.apply_node(&node("a", "192.0.2.1"));
        assert_eq!(index.take_dirty(), BTreeSet::from([name("open")]));
        index.apply_node(&node("a", "192.0.2.1"));
        assert_eq!(index.dirty_len(), 0);
        index.delete_node("a");
        assert_eq!(index.take_dirty(), BTreeSet::from([name("open")]));
    }

    #[test]
    fn problems_last_as_long_as_their_object() {
        let mut index = Index::new("a");
        index.apply_service(&service("web", json!({ "port": 0 })));
        index.apply_node(&node("a", "nonsense"));
        assert_eq!(index.problems().count(), 2);
        index.apply_service(&service("web", json!({ "port": 80 })));
        index.replace_nodes(&[]);
        assert_eq!(index.problems().count(), 0);
        let mut headless = service("broken", json!({ "port": 80 }));
        headless.spec = None;
        index.apply_service(&headless);
        assert_eq!(index.problems().count(), 1);
        index.replace_services(&[]);
        assert_eq!(index.problems().count(), 0);
    }
}
