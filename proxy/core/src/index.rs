//! What the API holds now, as far as the proxy needs it, and which Services that change touched.
//!
//! Owned by the [`Reconciler`](crate::reconcile::Reconciler), fed by the agent's watches through
//! synchronous apply, delete and replace. Order and repetition of events do not matter: only the last
//! state counts. Every operation costs what it changes, never the number of Services.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};

use crate::behind::Behind;
use crate::convert::{self, Converted};
use crate::endpoints::Viewer;
use crate::host_ports::{self, HostPorts};
use crate::intern::Interned;
use crate::model::{EndpointSlice, Node, ObjectName, Problem, Service};
use crate::settings::{NodePortAddresses, Settings};
use crate::stamp::{Held, Stamp, Version};
use crate::tracked::Tracked;

/// Services, their slices, the nodes and the ranges of ClusterIPs.
#[derive(Debug, Default)]
pub struct Index {
    node_name: String,
    settings: Settings,
    /// The addresses of the node's interfaces.
    local_addresses: Vec<IpAddr>,
    /// The node's primary addresses by an earlier run: they stand for its Node while that is not known.
    former_addresses: Vec<IpAddr>,
    /// Where NodePorts stand.
    nodeport_addresses: Vec<IpAddr>,
    /// The ports of the node that lead to single pods, by owner.
    host_ports: BTreeMap<ObjectName, HostPorts>,
    /// Every Service of the API; without a value if it is not the proxy's business, or beyond use.
    services: BTreeMap<ObjectName, Held<Service>>,
    /// Every EndpointSlice that names a Service; without a value if it is beyond use.
    slices: BTreeMap<ObjectName, Held<EndpointSlice>>,
    /// What the maps hold of Services that changed since they were last written.
    behind: Behind,
    /// The slices of each Service, in order of name.
    slices_of: HashMap<ObjectName, Vec<ObjectName>>,
    /// Services that the node's addresses matter to.
    of_node: BTreeSet<ObjectName>,
    nodes: BTreeMap<String, Node>,
    service_cidrs: BTreeMap<String, Vec<IpNet>>,
    problems: Problems,
    dirty: BTreeSet<ObjectName>,
    dirty_host_ports: BTreeSet<ObjectName>,
    dirty_cidrs: bool,
    interned: Interned,
}

/// What makes no sense, by the object that it is in.
#[derive(Debug, Default)]
struct Problems {
    services: Tracked<ObjectName, Vec<Problem>>,
    slices: Tracked<ObjectName, Vec<Problem>>,
    nodes: Tracked<String, Vec<Problem>>,
    service_cidrs: Tracked<String, Vec<Problem>>,
}

impl Index {
    /// An empty index of the node of that name.
    pub fn new(node_name: impl Into<String>, settings: Settings) -> Self {
        let nodeport_addresses = settings.nodeport_addresses([], &[]);
        Self {
            node_name: node_name.into(),
            settings,
            nodeport_addresses,
            dirty_cidrs: true,
            ..Self::default()
        }
    }

    /// A Service was added or changed.
    pub fn apply_service(&mut self, object: &core::Service) {
        let Some(name) = name_of(&object.metadata) else { return };
        let Converted { value, problems } = convert::service(object);
        self.problems.services.set(&name, some(problems));
        self.set_service(name, Some(Held { stamp: Stamp::of(&object.metadata), value }));
    }

    /// A Service was deleted.
    pub fn delete_service(&mut self, name: &ObjectName) {
        self.problems.services.set(name, None);
        self.set_service(name.clone(), None);
    }

    /// These are all Services: what a list answered.
    pub fn replace_services(&mut self, objects: &[core::Service]) {
        let listed: BTreeSet<ObjectName> =
            objects.iter().filter_map(|object| name_of(&object.metadata)).collect();
        let known: Vec<ObjectName> =
            self.services.keys().chain(self.problems.services.keys()).cloned().collect();
        for name in known.iter().filter(|name| !listed.contains(name)) {
            self.delete_service(name);
        }
        objects.iter().for_each(|object| self.apply_service(object));
    }

    /// An EndpointSlice was added or changed.
    pub fn apply_slice(&mut self, object: &discovery::EndpointSlice) {
        let Some(name) = name_of(&object.metadata) else { return };
        let Converted { value, problems } = convert::slice(object, &mut self.interned);
        let is_ours = value.is_some() || !problems.is_empty();
        self.problems.slices.set(&name, some(problems));
        self.set_slice(name, is_ours.then(|| Held { stamp: Stamp::of(&object.metadata), value }));
    }

    /// An EndpointSlice was deleted.
    pub fn delete_slice(&mut self, name: &ObjectName) {
        self.problems.slices.set(name, None);
        self.set_slice(name.clone(), None);
    }

    /// These are all EndpointSlices: what a list answered.
    pub fn replace_slices(&mut self, objects: &[discovery::EndpointSlice]) {
        let listed: BTreeSet<ObjectName> =
            objects.iter().filter_map(|object| name_of(&object.metadata)).collect();
        let known: Vec<ObjectName> = self.slices.keys().chain(self.problems.slices.keys()).cloned().collect();
        for name in known.iter().filter(|name| !listed.contains(name)) {
            self.delete_slice(name);
        }
        objects.iter().for_each(|object| self.apply_slice(object));
    }

    /// A Node was added or changed.
    pub fn apply_node(&mut self, object: &core::Node) {
        let Some(name) = object.metadata.name.clone() else { return };
        let Converted { value, problems } = convert::node(object);
        self.problems.nodes.set(&name, some(problems));
        self.set_node(name, value);
    }

    /// A Node was deleted.
    pub fn delete_node(&mut self, name: &str) {
        self.problems.nodes.set(&name.to_owned(), None);
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

    /// A ServiceCIDR was added or changed.
    pub fn apply_service_cidr(&mut self, object: &networking::ServiceCIDR) {
        let Some(name) = object.metadata.name.clone() else { return };
        let Converted { value, problems } = convert::service_cidr(object);
        self.problems.service_cidrs.set(&name, some(problems));
        let ranges = value.unwrap_or_default();
        if self.service_cidrs.get(&name) != Some(&ranges) {
            self.service_cidrs.insert(name, ranges);
            self.dirty_cidrs = true;
        }
    }

    /// A ServiceCIDR was deleted.
    pub fn delete_service_cidr(&mut self, name: &str) {
        self.problems.service_cidrs.set(&name.to_owned(), None);
        self.dirty_cidrs |= self.service_cidrs.remove(name).is_some();
    }

    /// These are all ServiceCIDRs: what a list answered.
    pub fn replace_service_cidrs(&mut self, objects: &[networking::ServiceCIDR]) {
        let listed: BTreeSet<&str> =
            objects.iter().filter_map(|object| object.metadata.name.as_deref()).collect();
        let gone: Vec<String> =
            self.service_cidrs.keys().filter(|name| !listed.contains(name.as_str())).cloned().collect();
        gone.iter().for_each(|name| self.delete_service_cidr(name));
        objects.iter().for_each(|object| self.apply_service_cidr(object));
    }

    /// These are all addresses of the node's interfaces.
    pub fn set_local_addresses(&mut self, addresses: Vec<IpAddr>) {
        if self.local_addresses != addresses {
            self.local_addresses = addresses;
            self.touch_host_ports();
        }
        self.choose_nodeport_addresses();
    }

    /// The node's primary addresses as an earlier run knew them: good until its Node is known.
    pub fn set_former_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.former_addresses = addresses;
        self.choose_nodeport_addresses();
    }

    /// These ports of the node lead to the pod of `owner`; none lead there any more.
    pub fn set_host_ports(&mut self, owner: ObjectName, wanted: Option<HostPorts>) {
        if self.host_ports.get(&owner) == wanted.as_ref() {
            return;
        }
        match wanted {
            Some(ports) => self.host_ports.insert(owner.clone(), ports),
            None => self.host_ports.remove(&owner),
        };
        self.dirty_host_ports.insert(owner);
    }

    /// The name of the proxy's own node.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The proxy's own node, once it is known.
    pub fn node(&self) -> Option<&Node> {
        self.nodes.get(&self.node_name)
    }

    /// The proxy's own node, as one that chooses among endpoints.
    pub fn viewer(&self) -> Viewer<'_> {
        Viewer { node: &self.node_name, zone: self.node().and_then(|node| node.zone.as_deref()) }
    }

    /// Whether load balancers may send to the proxy's own node: it is known, and nobody is about to delete it.
    pub fn node_eligible(&self) -> bool {
        self.node().is_some_and(|node| !node.leaving)
    }

    /// The addresses of the node that NodePorts stand on, in order.
    pub fn nodeport_addresses(&self) -> &[IpAddr] {
        &self.nodeport_addresses
    }

    /// Whether NodePorts stand on the Node's addresses, and these are not known yet.
    pub fn awaits_addresses(&self) -> bool {
        let is_primary = self.settings.nodeport_addresses == NodePortAddresses::Primary;
        is_primary && self.node().is_none() && self.former_addresses.is_empty()
    }

    /// Whether the address is one of the node's, loopback included.
    pub(crate) fn is_own_address(&self, address: IpAddr) -> bool {
        let known = [&self.local_addresses, &self.nodeport_addresses];
        address.is_loopback() || known.iter().any(|addresses| addresses.contains(&address))
    }

    /// The ports of the node that lead to the pod of `owner`.
    pub fn host_ports(&self, owner: &ObjectName) -> Option<&HostPorts> {
        self.host_ports.get(owner)
    }

    /// The owners of host ports, in order.
    pub fn host_port_owners(&self) -> impl Iterator<Item = &ObjectName> {
        self.host_ports.keys()
    }

    /// Whose frontends are kept under this name, for people: `Service shop/web`, `Pod shop/web-1`.
    pub fn label(&self, name: &ObjectName) -> String {
        match self.host_ports.get(name) {
            Some(HostPorts { pod, .. }) => format!("Pod {pod}"),
            None if host_ports::is_owner(name) => format!("container {}", name.name),
            None => format!("Service {name}"),
        }
    }

    /// The ranges that ClusterIPs are from.
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        match &self.settings.service_cidrs {
            Some(ranges) => ranges.iter().map(IpNet::trunc).collect(),
            None => self.service_cidrs.values().flatten().copied().collect(),
        }
    }

    /// What the operator chose.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The Service of that name, if it is the proxy's business.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)?.value.as_ref()
    }

    /// Every Service that is the proxy's business, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().filter_map(|held| held.value.as_ref())
    }

    /// Which object the Service of that name is, and at which version, whether or not it is the proxy's business.
    pub fn service_stamp(&self, name: &ObjectName) -> Option<Stamp> {
        self.services.get(name).map(|held| held.stamp)
    }

    /// The same of an EndpointSlice that names a Service.
    pub fn slice_stamp(&self, name: &ObjectName) -> Option<Stamp> {
        self.slices.get(name).map(|held| held.stamp)
    }

    /// The slices of a Service, in the order of their names, with their versions.
    pub(crate) fn slice_versions(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = (&ObjectName, Option<Version>)> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| Some((name, self.slices.get(name)?.stamp.version)))
    }

    /// What was left out of a Service and of the slices that are its.
    pub(crate) fn problems_of(&self, service: &ObjectName) -> impl Iterator<Item = &Problem> {
        let slices = self.slices_of.get(service).into_iter().flatten();
        let of_slices = slices.filter_map(|name| self.problems.slices.get(name)).flatten();
        self.problems.services.get(service).into_iter().flatten().chain(of_slices)
    }

    /// What the maps hold of Services that changed since they were last written.
    pub(crate) fn behind(&self) -> &Behind {
        &self.behind
    }

    /// Whether the Service changed since it was last taken.
    pub(crate) fn is_dirty(&self, service: &ObjectName) -> bool {
        self.dirty.contains(service)
    }

    /// The maps hold what the index does of all Services but those that `failed` names, and those that changed meanwhile.
    pub(crate) fn settle(&mut self, failed: impl Fn(&ObjectName) -> bool) {
        let Self { behind, dirty, .. } = self;
        behind.retain(|name| dirty.contains(name) || failed(name));
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name)?.value.as_ref())
    }

    /// What was left out of the objects that the API holds now.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let Problems { services, slices, nodes, service_cidrs } = &self.problems;
        let of_names = services.values().chain(slices.values());
        of_names.chain(nodes.values()).chain(service_cidrs.values()).flatten()
    }

    /// Grows with each change of [`Self::problems`].
    pub fn problems_version(&self) -> u64 {
        let Problems { services, slices, nodes, service_cidrs } = &self.problems;
        services.version() + slices.version() + nodes.version() + service_cidrs.version()
    }

    /// How many Services changed since they were last taken.
    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// The Services that changed since this was last called, and the owners of host ports that did.
    pub fn take_dirty(&mut self) -> BTreeSet<ObjectName> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.append(&mut self.dirty_host_ports);
        dirty
    }

    /// The owners of host ports alone that changed since this, or [`Self::take_dirty`], was last called.
    pub(crate) fn take_dirty_host_ports(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.dirty_host_ports)
    }

    /// Has all host ports looked at again.
    pub(crate) fn touch_host_ports(&mut self) {
        self.dirty_host_ports.extend(self.host_ports.keys().cloned());
    }

    /// Whether the ranges of ClusterIPs may have changed since this was last called.
    pub(crate) fn take_dirty_cidrs(&mut self) -> bool {
        std::mem::take(&mut self.dirty_cidrs)
    }

    fn set_service(&mut self, name: ObjectName, new: Option<Held<Service>>) {
        let old = self.services.get(&name);
        let value = new.as_ref().and_then(|held| held.value.as_ref());
        let is_same = old.and_then(|held| held.value.as_ref()) == value;
        if !is_same {
            let asks_node = |service: &Service| {
                !service.source_ranges.is_empty() || service.ports.iter().any(|port| port.node_port.is_some())
            };
            if value.is_some_and(asks_node) {
                self.of_node.insert(name.clone());
            } else {
                self.of_node.remove(&name);
            }
            self.behind.note_service(&name, old.and_then(|held| held.stamp.version));
            self.dirty.insert(name.clone());
        }
        match new {
            Some(held) => self.services.insert(name, held),
            None => self.services.remove(&name),
        };
    }

    fn set_slice(&mut self, name: ObjectName, new: Option<Held<EndpointSlice>>) {
        let old = self.slices.get(&name);
        let value = new.as_ref().and_then(|held| held.value.as_ref());
        let old_value = old.and_then(|held| held.value.as_ref());
        if old_value != value {
            let version = old.and_then(|held| held.stamp.version);
            let service = old_value.map(|old| old.service.clone());
            let new_service = value.map(|slice| slice.service.clone());
            if let Some(service) = service {
                if let Some(names) = self.slices_of.get_mut(&service) {
                    names.retain(|other| *other != name);
                    if names.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
                self.behind.note_slice(&service, &name, version);
                self.dirty.insert(service);
            }
            if let Some(service) = new_service {
                let names = self.slices_of.entry(service.clone()).or_default();
                if let Err(place) = names.binary_search(&name) {
                    names.insert(place, name.clone());
                }
                // That of another Service was never this one's.
                self.behind.note_slice(&service, &name, None);
                self.dirty.insert(service);
            }
        }
        match new {
            Some(held) => self.slices.insert(name, held),
            None => self.slices.remove(&name),
        };
    }

    fn set_node(&mut self, name: String, value: Option<Node>) {
        if name != self.node_name {
            match value {
                Some(node) => self.nodes.insert(name, node),
                None => self.nodes.remove(&name),
            };
            return;
        }
        let facts = |node: Option<&Node>| {
            let addresses: Vec<IpAddr> = node.into_iter().flat_map(Node::primary_addresses).collect();
            (addresses, node.and_then(|node| node.zone.clone()))
        };
        let (addresses, zone) = facts(self.node());
        match value {
            Some(node) => self.nodes.insert(name, node),
            None => self.nodes.remove(&name),
        };
        let (new_addresses, new_zone) = facts(self.node());
        if addresses != new_addresses {
            self.dirty.extend(self.of_node.iter().cloned());
        }
        if zone != new_zone {
            self.dirty.extend(self.slices_of.keys().cloned());
        }
        self.choose_nodeport_addresses();
    }

    fn choose_nodeport_addresses(&mut self) {
        let primary = match self.node() {
            Some(node) => node.primary_addresses().collect(),
            None => self.former_addresses.clone(),
        };
        let chosen = self.settings.nodeport_addresses(primary, &self.local_addresses);
        if self.nodeport_addresses != chosen {
            self.nodeport_addresses = chosen;
            self.dirty.extend(self.of_node.iter().cloned());
            self.touch_host_ports();
        }
    }
}

/// An object without a name can be neither deleted nor replaced, and the API holds none.
fn name_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

fn some(problems: Vec<Problem>) -> Option<Vec<Problem>> {
    (!problems.is_empty()).then_some(problems)
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
        let mut index = Index::new("a", Settings::default());
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
        let mut index = Index::new("a", Settings::default());
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
        let mut index = Index::new("a", Settings::default());
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
