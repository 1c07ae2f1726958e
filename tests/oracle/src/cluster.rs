//! What the API holds at the end of a history.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::case::{Object, Step};

/// Namespace and name; the namespace of cluster-wide objects is empty.
pub type Name = (String, String);

/// The objects, each kind by name.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Every Node.
    pub nodes: BTreeMap<Name, Node>,
    /// Every Service.
    pub services: BTreeMap<Name, Service>,
    /// Every EndpointSlice.
    pub slices: BTreeMap<Name, EndpointSlice>,
    /// Every ServiceCIDR.
    pub service_cidrs: BTreeMap<Name, ServiceCIDR>,
}

impl Cluster {
    /// What is left after these steps.
    #[must_use]
    pub fn after(history: &[Step]) -> Self {
        let mut cluster = Self::default();
        history.iter().for_each(|step| cluster.take(step));
        cluster
    }

    /// Goes one step on.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Apply(object) => self.set(object, true),
            Step::Delete(object) => self.set(object, false),
            Step::Reconcile | Step::Restart => {}
        }
    }

    fn set(&mut self, object: &Object, there: bool) {
        match object {
            Object::Node(node) => set(&mut self.nodes, &node.metadata, node, there),
            Object::Service(service) => set(&mut self.services, &service.metadata, service, there),
            Object::EndpointSlice(slice) => set(&mut self.slices, &slice.metadata, slice, there),
            Object::ServiceCIDR(cidr) => set(&mut self.service_cidrs, &cidr.metadata, cidr, there),
        }
    }

    /// Every object.
    pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        let nodes = self.nodes.values().cloned().map(Box::new).map(Object::Node);
        let services = self.services.values().cloned().map(Box::new).map(Object::Service);
        let slices = self.slices.values().cloned().map(Box::new).map(Object::EndpointSlice);
        let cidrs = self.service_cidrs.values().cloned().map(Box::new).map(Object::ServiceCIDR);
        nodes.chain(services).chain(slices).chain(cidrs)
    }
}

/// The name that the metadata gives.
#[must_use]
pub fn name_of(meta: &ObjectMeta) -> Name {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn set<T: Clone>(kept: &mut BTreeMap<Name, T>, meta: &ObjectMeta, object: &T, there: bool) {
    if there {
        kept.insert(name_of(meta), object.clone());
    } else {
        kept.remove(&name_of(meta));
    }
}
