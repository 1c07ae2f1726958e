//! What the API holds now, as far as policies go, and what changed since the engine last looked.
//!
//! Order and repetition of events do not matter: only the last state counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::api::ClusterNetworkPolicy;
use super::model::{ClusterPolicy, Namespace, NetworkPolicy, Pod, PolicyName, PolicyNode};
use super::selector::Labels;
use crate::convert::{self, Converted};
use crate::intern::Pool;
use crate::model::{ObjectName, Problem};
use crate::policy::model::NamedPort;
use crate::stamp::{Stamp, Version};
use crate::tracked::Tracked;

/// Pods, namespaces, nodes and policies.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) pods: HashMap<ObjectName, Pod>,
    pub(super) namespaces: HashMap<Arc<str>, Namespace>,
    pub(super) nodes: BTreeMap<Arc<str>, PolicyNode>,
    pub(super) network_policies: BTreeMap<ObjectName, NetworkPolicy>,
    pub(super) cluster_policies: BTreeMap<Arc<str>, ClusterPolicy>,
    /// The addresses of the node's interfaces.
    pub(super) local_addresses: Vec<IpAddr>,
    pub(super) dirty: Dirty,
    /// Which object each policy is, and at which version.
    pub(super) stamps: BTreeMap<PolicyName, Stamp>,
    pub(super) behind: Behind,
    problems: Problems,
    labels: Pool<Labels>,
    ports: Pool<[NamedPort]>,
}

/// What changed since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) pods: BTreeSet<ObjectName>,
    pub(super) namespaces: BTreeSet<Arc<str>>,
    pub(super) nodes: BTreeSet<Arc<str>>,
    pub(super) policies: BTreeSet<PolicyName>,
    pub(super) local_addresses: bool,
}

impl Dirty {
    /// How many objects changed.
    pub(super) fn len(&self) -> usize {
        let Self { pods, namespaces, nodes, policies, local_addresses } = self;
        pods.len() + namespaces.len() + nodes.len() + policies.len() + usize::from(*local_addresses)
    }
}

/// Which versions the maps hold of objects that changed since they were last written; none: nothing of that one.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// Whether anything has been written: before, all objects are new, and nobody is told of any.
    pub(super) is_begun: bool,
    pub(super) pods: BTreeMap<ObjectName, Option<Version>>,
    pub(super) policies: BTreeMap<PolicyName, Option<Version>>,
}

impl Behind {
    fn note_pod(&mut self, name: &ObjectName, before: Option<Version>) {
        if self.is_begun {
            self.pods.entry(name.clone()).or_insert(before);
        }
    }

    fn note_policy(&mut self, name: PolicyName, before: Option<Version>) {
        if self.is_begun {
            self.policies.entry(name).or_insert(before);
        }
    }
}

/// What makes no sense, by the object that it is in.
#[derive(Debug, Default)]
struct Problems {
    pods: Tracked<ObjectName, Vec<Problem>>,
    nodes: Tracked<Arc<str>, Vec<Problem>>,
    policies: Tracked<PolicyName, Vec<Problem>>,
}

impl Objects {
    pub(super) fn apply_pod(&mut self, object: &core::Pod) {
        let Some(name) = name_of(&object.metadata) else { return };
        let Converted { value, problems } = convert::pod(object);
        self.problems.pods.set(&name, some(problems));
        let shared = value.map(|pod| Pod {
            labels: self.labels.share(pod.labels),
            ports: self.ports.share(pod.ports),
            ..pod
        });
        self.set_pod(name, shared);
    }

    pub(super) fn delete_pod(&mut self, name: &ObjectName) {
        self.problems.pods.set(name, None);
        self.set_pod(name.clone(), None);
    }

    pub(super) fn apply_namespace(&mut self, object: &core::Namespace) {
        let Some(namespace) = convert::namespace(object).value else { return };
        if self.namespaces.get(&namespace.name) != Some(&namespace) {
            self.dirty.namespaces.insert(namespace.name.clone());
            self.namespaces.insert(namespace.name.clone(), namespace);
        }
    }

    pub(super) fn delete_namespace(&mut self, name: &str) {
        if let Some(namespace) = self.namespaces.remove(name) {
            self.dirty.namespaces.insert(namespace.name);
        }
    }

    pub(super) fn apply_node(&mut self, object: &core::Node) {
        let Converted { value, problems } = convert::policy_node(object);
        let Some(node) = value else { return };
        self.problems.nodes.set(&node.name, some(problems));
        if self.nodes.get(&node.name) != Some(&node) {
            self.dirty.nodes.insert(node.name.clone());
            self.nodes.insert(node.name.clone(), node);
        }
    }

    pub(super) fn delete_node(&mut self, name: &str) {
        self.problems.nodes.set(&name.into(), None);
        if let Some(node) = self.nodes.remove(name) {
            self.dirty.nodes.insert(node.name);
        }
    }

    pub(super) fn apply_network_policy(&mut self, object: &networking::NetworkPolicy) {
        let Some(name) = name_of(&object.metadata) else { return };
        let Converted { value, problems } = convert::network_policy(object);
        let policy = PolicyName::Network(name.clone());
        self.problems.policies.set(&policy, some(problems));
        let before = self.stamp(policy, Some(Stamp::of(&object.metadata)));
        self.set_network_policy(name, value, before);
    }

    pub(super) fn delete_network_policy(&mut self, name: &ObjectName) {
        let policy = PolicyName::Network(name.clone());
        self.problems.policies.set(&policy, None);
        let before = self.stamp(policy, None);
        self.set_network_policy(name.clone(), None, before);
    }

    pub(super) fn apply_cluster_policy(&mut self, object: &ClusterNetworkPolicy) {
        let Some(name) = object.metadata.name.as_deref() else { return };
        let Converted { value, problems } = convert::cluster_policy(object);
        let policy = PolicyName::Cluster(name.into());
        self.problems.policies.set(&policy, some(problems));
        let before = self.stamp(policy, Some(Stamp::of(&object.metadata)));
        self.set_cluster_policy(name.into(), value, before);
    }

    pub(super) fn delete_cluster_policy(&mut self, name: &str) {
        let policy = PolicyName::Cluster(name.into());
        self.problems.policies.set(&policy, None);
        let before = self.stamp(policy, None);
        self.set_cluster_policy(name.into(), None, before);
    }

    pub(super) fn set_local_addresses(&mut self, mut addresses: Vec<IpAddr>) {
        addresses.retain(|address| !address.is_loopback() && !address.is_unspecified());
        addresses.sort();
        addresses.dedup();
        if self.local_addresses != addresses {
            self.local_addresses = addresses;
            self.dirty.local_addresses = true;
        }
    }

    /// The NetworkPolicies of a namespace, in order of name.
    pub(super) fn policies_of<'a>(
        &'a self,
        namespace: &'a Arc<str>,
    ) -> impl Iterator<Item = &'a NetworkPolicy> {
        let from = ObjectName::new(namespace.clone(), "");
        let own = self.network_policies.range(from..);
        own.take_while(|(name, _)| name.namespace == *namespace).map(|(_, policy)| policy)
    }

    /// What was left out of the objects that the API holds now.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let Problems { pods, nodes, policies } = &self.problems;
        pods.values().chain(nodes.values()).chain(policies.values()).flatten()
    }

    /// The parts of a policy that make no sense.
    pub(super) fn problems_of(&self, name: &PolicyName) -> &[Problem] {
        self.problems.policies.get(name).map_or(&[], Vec::as_slice)
    }

    /// The parts of a Pod that make no sense.
    pub(super) fn problems_of_pod(&self, name: &ObjectName) -> &[Problem] {
        self.problems.pods.get(name).map_or(&[], Vec::as_slice)
    }

    /// Grows with each change of [`Self::problems`].
    pub(super) fn problems_version(&self) -> u64 {
        let Problems { pods, nodes, policies } = &self.problems;
        pods.version() + nodes.version() + policies.version()
    }

    /// Notes which object a policy is now; returns its version before.
    fn stamp(&mut self, name: PolicyName, stamp: Option<Stamp>) -> Option<Version> {
        let before = match stamp {
            Some(stamp) => self.stamps.insert(name, stamp),
            None => self.stamps.remove(&name),
        };
        before.and_then(|before| before.version)
    }

    fn set_pod(&mut self, name: ObjectName, value: Option<Pod>) {
        let before = match (self.pods.get_mut(&name), &value) {
            (None, None) => return,
            (Some(old), Some(new)) if old.is_like(new) => {
                old.version = new.version;
                return;
            }
            (old, _) => old.and_then(|old| old.version),
        };
        self.behind.note_pod(&name, before);
        match value {
            Some(pod) => self.pods.insert(name.clone(), pod),
            None => self.pods.remove(&name),
        };
        self.dirty.pods.insert(name);
    }

    fn set_network_policy(
        &mut self,
        name: ObjectName,
        value: Option<NetworkPolicy>,
        before: Option<Version>,
    ) {
        if self.network_policies.get(&name) == value.as_ref() {
            return;
        }
        self.behind.note_policy(PolicyName::Network(name.clone()), before);
        match value {
            Some(policy) => self.network_policies.insert(name.clone(), policy),
            None => self.network_policies.remove(&name),
        };
        self.dirty.policies.insert(PolicyName::Network(name));
    }

    fn set_cluster_policy(&mut self, name: Arc<str>, value: Option<ClusterPolicy>, before: Option<Version>) {
        if self.cluster_policies.get(&name) == value.as_ref() {
            return;
        }
        self.behind.note_policy(PolicyName::Cluster(name.clone()), before);
        match value {
            Some(policy) => self.cluster_policies.insert(name.clone(), policy),
            None => self.cluster_policies.remove(&name),
        };
        self.dirty.policies.insert(PolicyName::Cluster(name));
    }
}

/// An object without a name can be neither deleted nor replaced, and the API holds none.
fn name_of(meta: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

fn some(problems: Vec<Problem>) -> Option<Vec<Problem>> {
    (!problems.is_empty()).then_some(problems)
}
