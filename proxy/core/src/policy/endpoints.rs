//! Local pods: what is known of each, and under which policies it should be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{Direction, Handle, NamedPort, Pod, PodId};
use super::selector::Labels;
use crate::model::ObjectName;

/// The endpoints of the node, by index.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    table: BTreeMap<u32, Endpoint>,
    of_pod: HashMap<ObjectName, BTreeSet<u32>>,
    /// Indices that were given back, and must not be left under their policies.
    pub(super) gone: BTreeSet<u32>,
    /// Endpoints whose policies may be others than before.
    pub(super) dirty: BTreeSet<u32>,
}

/// A local pod.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) pod: PodId,
    pub(super) addresses: Vec<IpAddr>,
    /// What was last known of the pod: one that is deleted stays under its policies while it is there.
    pub(super) subject: Option<Subject>,
    pub(super) ingress: Under,
    pub(super) egress: Under,
}

/// What decides which policies a pod is under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) labels: Arc<Labels>,
    pub(super) ports: Arc<[NamedPort]>,
}

/// What a pod should be under in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Under {
    /// Nothing selects it.
    Open,
    /// Nobody can tell, because of what is not known.
    Closed(Unknown),
    /// A compiled policy.
    Policy(Handle),
}

/// What is not known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The pod.
    Pod,
    /// Its namespace.
    Namespace,
}

impl Endpoint {
    /// The pod's name; none if the API has no such Pod.
    pub(super) fn name(&self) -> Option<ObjectName> {
        let PodId { namespace, name, .. } = &self.pod;
        (!name.is_empty()).then(|| ObjectName::new(namespace.as_str(), name.as_str()))
    }

    /// Whether this is its Pod, rather than a former or later one of the same name.
    pub(super) fn is_of(&self, pod: &Pod) -> bool {
        self.pod.is(pod)
    }

    pub(super) fn under(&self, direction: Direction) -> Under {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    pub(super) fn set_under(&mut self, direction: Direction, under: Under) {
        match direction {
            Direction::Ingress => self.ingress = under,
            Direction::Egress => self.egress = under,
        }
    }
}

impl Endpoints {
    /// The endpoint at `index` is this pod's. Returns whose it was.
    pub(super) fn add(&mut self, index: u32, pod: PodId, addresses: Vec<IpAddr>) -> Option<Endpoint> {
        let closed = Under::Closed(Unknown::Pod);
        let endpoint = Endpoint { pod, addresses, subject: None, ingress: closed, egress: closed };
        let old = self.remove(index);
        if let Some(name) = endpoint.name() {
            self.of_pod.entry(name).or_default().insert(index);
        }
        self.table.insert(index, endpoint);
        self.gone.remove(&index);
        self.dirty.insert(index);
        old
    }

    /// The endpoint at `index` is gone. Returns whose it was.
    pub(super) fn remove(&mut self, index: u32) -> Option<Endpoint> {
        self.gone.insert(index);
        self.dirty.remove(&index);
        let old = self.table.remove(&index)?;
        if let Some(name) = old.name()
            && let Some(indices) = self.of_pod.get_mut(&name)
        {
            indices.remove(&index);
            if indices.is_empty() {
                self.of_pod.remove(&name);
            }
        }
        Some(old)
    }

    /// Whether one of them has the address.
    pub(super) fn hold(&self, address: IpAddr) -> bool {
        self.table.values().any(|endpoint| endpoint.addresses.contains(&address))
    }

    pub(super) fn get(&self, index: u32) -> Option<&Endpoint> {
        self.table.get(&index)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Endpoint> {
        self.table.get_mut(&index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Endpoint)> {
        self.table.iter().map(|(index, endpoint)| (*index, endpoint))
    }

    /// The endpoints of the Pods of that name, former and later ones among them.
    pub(super) fn of_pod(&self, name: &ObjectName) -> impl Iterator<Item = u32> + '_ {
        self.of_pod.get(name).into_iter().flatten().copied()
    }

    /// Marks those in a namespace, or all.
    pub(super) fn mark(&mut self, namespace: Option<&str>) {
        let own = |endpoint: &Endpoint| namespace.is_none_or(|namespace| endpoint.pod.namespace == namespace);
        let marked = self.table.iter().filter(|(_, endpoint)| own(endpoint)).map(|(index, _)| *index);
        self.dirty.extend(marked);
    }
}
