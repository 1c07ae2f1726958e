//! What the API holds and the node has at the end of a history.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

use crate::case::{Endpoint, Object, Step};

/// Namespace and name; the namespace of cluster-wide objects is empty.
pub type Name = (String, String);

/// The objects, each kind by name, and the node's own affairs.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Every Node.
    pub nodes: BTreeMap<Name, Node>,
    /// Every Namespace.
    pub namespaces: BTreeMap<Name, Namespace>,
    /// Every Pod.
    pub pods: BTreeMap<Name, Pod>,
    /// Every NetworkPolicy.
    pub network_policies: BTreeMap<Name, NetworkPolicy>,
    /// Every ClusterNetworkPolicy.
    pub cluster_policies: BTreeMap<Name, Value>,
    /// The local pods, by index.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// The addresses of the node's interfaces.
    pub addresses: Vec<IpAddr>,
    /// What the agent, when it last looked, knew of the Pods of the local pods. One whose Pod is deleted stays who it
    /// was while it is there.
    pub known: BTreeMap<u32, Pod>,
}

impl Cluster {
    /// What is left after these steps.
    #[must_use]
    pub fn after(history: &[Step]) -> Self {
        let mut cluster = Self::default();
        history.iter().for_each(|step| cluster.take(step));
        cluster.look();
        cluster
    }

    /// Goes one step on.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Apply(object) => self.set(object, true),
            Step::Delete(object) => self.set(object, false),
            Step::Attach(endpoint) => {
                self.known.remove(&endpoint.index);
                self.endpoints.insert(endpoint.index, endpoint.clone());
            }
            Step::Detach(index) => {
                self.known.remove(index);
                self.endpoints.remove(index);
            }
            Step::Addresses(addresses) => self.addresses.clone_from(addresses),
            Step::Reconcile => self.look(),
            Step::Restart => self.known.clear(),
        }
    }

    /// The agent brings the maps up to date.
    pub fn look(&mut self) {
        let pods = self
            .endpoints
            .iter()
            .filter_map(|(index, endpoint)| Some((*index, self.pod_of(endpoint)?.clone())));
        let pods: Vec<(u32, Pod)> = pods.collect();
        self.known.extend(pods);
    }

    /// The Pod that the endpoint is of: one of the same name is another if it has another UID.
    #[must_use]
    pub fn pod_of(&self, endpoint: &Endpoint) -> Option<&Pod> {
        let pod = self.pods.get(&(endpoint.namespace.clone(), endpoint.name.clone()))?;
        (endpoint.uid.is_empty() || pod.metadata.uid.as_ref() == Some(&endpoint.uid)).then_some(pod)
    }

    fn set(&mut self, object: &Object, there: bool) {
        let name = object.name();
        match object {
            Object::Node(node) => set(&mut self.nodes, name, node.as_ref(), there),
            Object::Namespace(namespace) => set(&mut self.namespaces, name, namespace.as_ref(), there),
            Object::Pod(pod) => set(&mut self.pods, name, pod.as_ref(), there),
            Object::NetworkPolicy(policy) => set(&mut self.network_policies, name, policy.as_ref(), there),
            Object::ClusterNetworkPolicy(policy) => set(&mut self.cluster_policies, name, policy, there),
        }
    }

    /// The local pod with this address.
    #[must_use]
    pub fn endpoint_at(&self, address: IpAddr) -> Option<&Endpoint> {
        self.endpoints.values().find(|endpoint| endpoint.addresses.contains(&address))
    }

    /// Steps after which a cluster is like this one.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let nodes = self.nodes.values().cloned().map(Box::new).map(Object::Node);
        let namespaces = self.namespaces.values().cloned().map(Box::new).map(Object::Namespace);
        let pods = self.pods.values().cloned().map(Box::new).map(Object::Pod);
        let policies = self.network_policies.values().cloned().map(Box::new).map(Object::NetworkPolicy);
        let cluster = self.cluster_policies.values().cloned().map(Object::ClusterNetworkPolicy);
        let objects = nodes.chain(namespaces).chain(pods).chain(policies).chain(cluster).map(Step::Apply);
        let endpoints = self.endpoints.values().cloned().map(Step::Attach);
        objects.chain(endpoints).chain([Step::Addresses(self.addresses.clone())]).collect()
    }
}

fn set<T: Clone>(kept: &mut BTreeMap<Name, T>, name: Name, object: &T, there: bool) {
    if there {
        kept.insert(name, object.clone());
    } else {
        kept.remove(&name);
    }
}
