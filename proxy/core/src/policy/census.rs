//! Who is whom: which of the peers that policies in use name each pod and node is.
//!
//! Pods of one namespace with equal labels and named ports are one *profile*, and matched once. What a pod or an
//! address may be is an *element*: a peer that a rule names, or a port under a name that a rule asks for. Elements are
//! counted; only those of policies in use are there. Their ids are never given out twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{Handle, NamedPort, Namespace, Peer, PodPeer, PolicyNode, Scope};
use super::selector::{Labels, Selector};
use crate::model::ObjectName;

/// The id of an element.
pub(super) type ElementId = u32;
/// The number of a profile.
type ProfileId = u32;
/// What the pods of a profile have in common: namespace, labels and named ports.
type ProfileKey = (Arc<str>, Arc<Labels>, Arc<[NamedPort]>);
/// Namespaces by name.
type Namespaces = HashMap<Arc<str>, Namespace>;

/// The elements in use, and who is which.
#[derive(Debug, Default)]
pub(super) struct Census {
    next_element: ElementId,
    next_profile: ProfileId,
    peers: HashMap<ElementId, PeerUse>,
    peer_ids: HashMap<Peer, ElementId>,
    ports: HashMap<ElementId, NamedPort>,
    port_ids: HashMap<NamedPort, ElementId>,
    names: HashMap<Arc<str>, NameUse>,
    profiles: HashMap<ProfileId, Profile>,
    profile_ids: HashMap<ProfileKey, ProfileId>,
    by_label: HashMap<(Arc<str>, Arc<str>), BTreeSet<ProfileId>>,
    by_namespace: HashMap<Arc<str>, BTreeSet<ProfileId>>,
    /// Peers that are pods of one namespace.
    in_one: HashMap<Arc<str>, BTreeSet<ElementId>>,
    /// Peers that are pods of namespaces with such labels.
    in_matching: BTreeMap<Selector, BTreeSet<ElementId>>,
    /// Peers that are nodes.
    of_nodes: BTreeSet<ElementId>,
    nodes: HashMap<Arc<str>, NodeMember>,
    members: HashMap<ObjectName, Member>,
    /// Addresses of whom something changed.
    touched: BTreeSet<IpAddr>,
}

/// A peer and the policies that use it, each with how often.
#[derive(Debug)]
struct PeerUse {
    peer: Peer,
    users: BTreeMap<Handle, usize>,
}

/// A name of ports, the policies that use it, and the elements that it stands for.
#[derive(Debug, Default)]
struct NameUse {
    users: BTreeMap<Handle, usize>,
    elements: BTreeSet<ElementId>,
}

/// Pods that no policy can tell apart, but for their addresses.
#[derive(Debug)]
struct Profile {
    namespace: Arc<str>,
    labels: Arc<Labels>,
    ports: Arc<[NamedPort]>,
    /// In order.
    elements: Vec<ElementId>,
    pods: BTreeSet<ObjectName>,
}

/// A node that may be a peer.
#[derive(Debug)]
struct NodeMember {
    addresses: Vec<IpAddr>,
    /// In order.
    elements: Vec<ElementId>,
}

/// A pod that may be a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) addresses: Vec<IpAddr>,
    /// Whether it has an endpoint here.
    pub(super) local: bool,
    pub(super) terminating: bool,
    /// In seconds of the Unix epoch.
    pub(super) created: i64,
    pub(super) labels: Arc<Labels>,
    pub(super) ports: Arc<[NamedPort]>,
    profile: ProfileId,
}

impl Member {
    pub(super) fn new(addresses: Vec<IpAddr>, local: bool, pod: &super::model::Pod) -> Self {
        Self {
            addresses,
            local,
            terminating: pod.terminating,
            created: pod.created,
            labels: pod.labels.clone(),
            ports: pod.ports.clone(),
            profile: 0,
        }
    }
}

/// A range of addresses that came into use, or is no longer.
pub(super) enum Network<'a> {
    /// By this peer.
    Taken(ElementId, &'a Peer),
    /// By this peer.
    Left(ElementId, &'a Peer),
}

impl Census {
    /// Addresses whose owner, or what the owner is, changed since this was last called.
    pub(super) fn take_touched(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.touched)
    }

    /// The pod of that name.
    pub(super) fn member(&self, name: &ObjectName) -> Option<&Member> {
        self.members.get(name)
    }

    /// What the pod of that name is, in order.
    pub(super) fn elements_of_pod(&self, name: &ObjectName) -> &[ElementId] {
        let profile = self.members.get(name).and_then(|member| self.profiles.get(&member.profile));
        profile.map_or(&[], |profile| &profile.elements)
    }

    /// What the node of that name is, in order.
    pub(super) fn elements_of_node(&self, name: &str) -> &[ElementId] {
        self.nodes.get(name).map_or(&[], |node| &node.elements)
    }

    /// The named port that an element is, if it is one.
    pub(super) fn port(&self, element: ElementId) -> Option<&NamedPort> {
        self.ports.get(&element)
    }

    /// The elements that a name stands for.
    pub(super) fn elements_of_name(&self, name: &str) -> impl Iterator<Item = ElementId> + '_ {
        self.names.get(name).into_iter().flat_map(|use_| use_.elements.iter().copied())
    }

    /// The policies that ask for an element.
    pub(super) fn users(&self, element: ElementId) -> impl Iterator<Item = Handle> + '_ {
        let of_peer = self.peers.get(&element).map(|use_| &use_.users);
        let name = || self.ports.get(&element).map(|port| &port.name);
        let of_name = || Some(&self.names.get(name()?)?.users);
        of_peer.or_else(of_name).into_iter().flat_map(|users| users.keys().copied())
    }

    /// Makes `member` the pod of that name, or removes it.
    pub(super) fn set_member(&mut self, name: &ObjectName, member: Option<Member>, namespaces: &Namespaces) {
        let old = self.members.remove(name);
        let member = member.map(|member| Member { profile: self.join(name, &member, namespaces), ..member });
        if old != member {
            for one in [&old, &member].into_iter().flatten() {
                self.touched.extend(&one.addresses);
            }
        }
        if let Some(old) = old
            && member.as_ref().is_none_or(|member| member.profile != old.profile)
        {
            self.part(name, old.profile);
        }
        if let Some(member) = member {
            self.members.insert(name.clone(), member);
        }
    }

    /// The labels of a namespace changed.
    pub(super) fn recheck_namespace(&mut self, name: &str, namespaces: &Namespaces) {
        let ids: Vec<ProfileId> = self.by_namespace.get(name).into_iter().flatten().copied().collect();
        for id in ids {
            let Some(profile) = self.profiles.get(&id) else { continue };
            let (namespace, labels, ports) =
                (profile.namespace.clone(), profile.labels.clone(), profile.ports.clone());
            let elements = self.elements_of(&namespace, &labels, &ports, namespaces);
            self.set_elements(id, elements);
        }
    }

    /// A node was added or changed, or is gone.
    pub(super) fn set_node(&mut self, name: &Arc<str>, node: Option<&PolicyNode>) {
        let old = self.nodes.remove(name);
        self.touched.extend(old.into_iter().flat_map(|old| old.addresses));
        let Some(node) = node else { return };
        self.touched.extend(&node.addresses);
        let is_one = |id: &&ElementId| match self.peers.get(id).map(|use_| &use_.peer) {
            Some(Peer::Nodes(selector)) => selector.matches(&node.labels),
            _ => false,
        };
        let elements = self.of_nodes.iter().filter(is_one).copied().collect();
        self.nodes.insert(name.clone(), NodeMember { addresses: node.addresses.clone(), elements });
    }

    /// Notes that `user` asks for `peer`; the range that came into use by that, if it is one.
    pub(super) fn acquire_peer<'a>(
        &mut self,
        user: Handle,
        peer: &'a Peer,
        namespaces: &Namespaces,
        nodes: &BTreeMap<Arc<str>, PolicyNode>,
    ) -> (ElementId, Option<Network<'a>>) {
        if let Some(id) = self.peer_ids.get(peer).copied() {
            self.peers.entry(id).and_modify(|use_| *use_.users.entry(user).or_default() += 1);
            return (id, None);
        }
        let id = self.new_element();
        self.peer_ids.insert(peer.clone(), id);
        self.peers.insert(id, PeerUse { peer: peer.clone(), users: BTreeMap::from([(user, 1)]) });
        match peer {
            Peer::Network { .. } => return (id, Some(Network::Taken(id, peer))),
            Peer::Nodes(selector) => {
                self.of_nodes.insert(id);
                for node in nodes.values().filter(|node| selector.matches(&node.labels)) {
                    if let Some(member) = self.nodes.get_mut(&node.name) {
                        // The newest id is the highest.
                        member.elements.push(id);
                        self.touched.extend(&member.addresses);
                    }
                }
            }
            Peer::Pods(pods) => {
                match &pods.scope {
                    Scope::One(name) => self.in_one.entry(name.clone()).or_default().insert(id),
                    Scope::Matching(labels) => self.in_matching.entry(labels.clone()).or_default().insert(id),
                };
                for profile in self.candidates(pods) {
                    let Some(known) = self.profiles.get_mut(&profile) else { continue };
                    let namespace = namespaces.get(&known.namespace);
                    let is_one = pods.pods.matches(&known.labels)
                        && namespace.is_some_and(|namespace| pods.scope.holds(namespace));
                    if is_one {
                        // The newest id is the highest.
                        known.elements.push(id);
                        self.touch(profile);
                    }
                }
            }
        }
        (id, None)
    }

    /// Notes that `user` no longer asks for a peer; the range that is no longer in use by that, if it is one.
    pub(super) fn release_peer<'a>(&mut self, user: Handle, peer: &'a Peer) -> Option<Network<'a>> {
        let id = self.peer_ids.get(peer).copied()?;
        let use_ = self.peers.get_mut(&id)?;
        if !is_last(&mut use_.users, user) {
            return None;
        }
        self.peers.remove(&id);
        self.peer_ids.remove(peer);
        match peer {
            Peer::Network { .. } => return Some(Network::Left(id, peer)),
            Peer::Nodes(_) => {
                self.of_nodes.remove(&id);
                for node in self.nodes.values_mut() {
                    if let Ok(place) = node.elements.binary_search(&id) {
                        node.elements.remove(place);
                        self.touched.extend(&node.addresses);
                    }
                }
            }
            Peer::Pods(pods) => {
                match &pods.scope {
                    Scope::One(name) => forget(self.in_one.get_mut(name), id),
                    Scope::Matching(labels) => forget(self.in_matching.get_mut(labels), id),
                }
                self.in_one.retain(|_, peers| !peers.is_empty());
                self.in_matching.retain(|_, peers| !peers.is_empty());
                for profile in self.candidates(pods) {
                    self.drop_element(profile, id);
                }
            }
        }
        None
    }

    /// Notes that `user` asks for ports of this name.
    pub(super) fn acquire_name(&mut self, user: Handle, name: &Arc<str>) {
        let use_ = self.names.entry(name.clone()).or_default();
        *use_.users.entry(user).or_default() += 1;
        if use_.users.len() > 1 || use_.users.values().any(|count| *count > 1) {
            return;
        }
        let ids: Vec<ProfileId> = self.profiles.keys().copied().collect();
        for id in ids {
            let Some(profile) = self.profiles.get(&id) else { continue };
            let ports = profile.ports.clone();
            for port in ports.iter().filter(|port| port.name == *name) {
                let element = self.port_element(port);
                if let Some(profile) = self.profiles.get_mut(&id)
                    && let Err(place) = profile.elements.binary_search(&element)
                {
                    profile.elements.insert(place, element);
                }
                self.touch(id);
            }
        }
    }

    /// Notes that `user` no longer asks for ports of this name.
    pub(super) fn release_name(&mut self, user: Handle, name: &Arc<str>) {
        let Some(use_) = self.names.get_mut(name) else { return };
        if !is_last(&mut use_.users, user) {
            return;
        }
        let Some(use_) = self.names.remove(name) else { return };
        for element in &use_.elements {
            if let Some(port) = self.ports.remove(element) {
                self.port_ids.remove(&port);
            }
        }
        let ids: Vec<ProfileId> = self.profiles.keys().copied().collect();
        for id in ids {
            use_.elements.iter().for_each(|element| self.drop_element(id, *element));
        }
    }

    fn new_element(&mut self) -> ElementId {
        self.next_element += 1;
        self.next_element
    }

    /// The element that this port is.
    fn port_element(&mut self, port: &NamedPort) -> ElementId {
        if let Some(id) = self.port_ids.get(port) {
            return *id;
        }
        let id = self.new_element();
        self.port_ids.insert(port.clone(), id);
        self.ports.insert(id, port.clone());
        self.names.entry(port.name.clone()).or_default().elements.insert(id);
        id
    }

    fn join(&mut self, name: &ObjectName, member: &Member, namespaces: &Namespaces) -> ProfileId {
        let key = (name.namespace.clone(), member.labels.clone(), member.ports.clone());
        let id = match self.profile_ids.get(&key) {
            Some(id) => *id,
            None => {
                self.next_profile += 1;
                let id = self.next_profile;
                let (namespace, labels, ports) = key.clone();
                for label in labels.iter() {
                    self.by_label.entry(label.clone()).or_default().insert(id);
                }
                self.by_namespace.entry(namespace.clone()).or_default().insert(id);
                let elements = self.elements_of(&namespace, &labels, &ports, namespaces);
                self.profile_ids.insert(key, id);
                let profile = Profile { namespace, labels, ports, elements, pods: BTreeSet::new() };
                self.profiles.insert(id, profile);
                id
            }
        };
        if let Some(profile) = self.profiles.get_mut(&id) {
            profile.pods.insert(name.clone());
        }
        id
    }

    fn part(&mut self, name: &ObjectName, id: ProfileId) {
        let Some(profile) = self.profiles.get_mut(&id) else { return };
        profile.pods.remove(name);
        if !profile.pods.is_empty() {
            return;
        }
        let Some(Profile { namespace, labels, ports, .. }) = self.profiles.remove(&id) else { return };
        for label in labels.iter() {
            forget(self.by_label.get_mut(label), id);
            if self.by_label.get(label).is_some_and(BTreeSet::is_empty) {
                self.by_label.remove(label);
            }
        }
        forget(self.by_namespace.get_mut(&namespace), id);
        if self.by_namespace.get(&namespace).is_some_and(BTreeSet::is_empty) {
            self.by_namespace.remove(&namespace);
        }
        self.profile_ids.remove(&(namespace, labels, ports));
    }

    /// What pods with these labels and ports are.
    fn elements_of(
        &mut self,
        namespace: &Arc<str>,
        labels: &Labels,
        ports: &[NamedPort],
        namespaces: &Namespaces,
    ) -> Vec<ElementId> {
        let mut elements = Vec::new();
        let is_one = |id: &&ElementId| match self.peers.get(id).map(|use_| &use_.peer) {
            Some(Peer::Pods(pods)) => pods.pods.matches(labels),
            _ => false,
        };
        if let Some(known) = namespaces.get(namespace) {
            elements.extend(self.in_one.get(namespace).into_iter().flatten().filter(is_one));
            for (_, peers) in self.in_matching.iter().filter(|(scope, _)| scope.matches(&known.labels)) {
                elements.extend(peers.iter().filter(is_one));
            }
        }
        for port in ports {
            if self.names.contains_key(&port.name) {
                elements.push(self.port_element(port));
            }
        }
        elements.sort_unstable();
        elements
    }

    fn set_elements(&mut self, id: ProfileId, elements: Vec<ElementId>) {
        let Some(profile) = self.profiles.get_mut(&id) else { return };
        if profile.elements != elements {
            profile.elements = elements;
            self.touch(id);
        }
    }

    fn drop_element(&mut self, id: ProfileId, element: ElementId) {
        let Some(profile) = self.profiles.get_mut(&id) else { return };
        if let Ok(place) = profile.elements.binary_search(&element) {
            profile.elements.remove(place);
            self.touch(id);
        }
    }

    fn touch(&mut self, id: ProfileId) {
        let pods = self.profiles.get(&id).into_iter().flat_map(|profile| &profile.pods);
        let members = pods.filter_map(|name| self.members.get(name));
        self.touched.extend(members.flat_map(|member| &member.addresses));
    }

    /// Profiles among which all are whose pods `peer` may be: by label or by namespace, whichever are fewer.
    fn candidates(&self, peer: &PodPeer) -> Vec<ProfileId> {
        let labelled = peer.pods.anchor().map(|(key, values)| {
            let sets = values.iter().filter_map(|value| self.by_label.get(&(key.clone(), value.clone())));
            sets.collect::<Vec<_>>()
        });
        let within = match &peer.scope {
            Scope::One(name) => Some(self.by_namespace.get(name).into_iter().collect::<Vec<_>>()),
            Scope::Matching(_) => None,
        };
        let len = |sets: &Vec<&BTreeSet<ProfileId>>| sets.iter().map(|set| set.len()).sum::<usize>();
        let fewest = labelled.into_iter().chain(within).min_by_key(len);
        match fewest {
            Some(sets) => sets.into_iter().flatten().copied().collect(),
            None => self.profiles.keys().copied().collect(),
        }
    }
}

/// Counts one use less; whether it was the last of all.
fn is_last(users: &mut BTreeMap<Handle, usize>, user: Handle) -> bool {
    if let Some(count) = users.get_mut(&user) {
        *count -= 1;
        if *count == 0 {
            users.remove(&user);
        }
    }
    users.is_empty()
}

fn forget(set: Option<&mut BTreeSet<u32>>, id: u32) {
    if let Some(set) = set {
        set.remove(&id);
    }
}
