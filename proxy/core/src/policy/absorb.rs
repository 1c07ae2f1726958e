//! What changed objects mean: who is whom, and which policies pods should be under.
//!
//! Nothing is written here, and no address gets another number: that is [`super::apply`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_abi::Isolation;

use super::Engine;
use super::census::{Member, Network};
use super::compiled::{Compiled, Key, Loaded};
use super::endpoints::{Endpoint, Subject, Under, Unknown};
use super::model::{Direction, Handle, NamedPort, Namespace, PolicyName};
use super::objects::Dirty;
use super::program::Program;
use super::select::{ports_asked_for, sources};
use super::selector::Labels;
use crate::dataplane::{MapAction, MapCause, MapError};
use crate::model::ObjectName;

/// Which part of the map of peers ranges may take: one in so many entries.
const RANGES_SHARE: usize = 2;

/// What nodes and this node's interfaces were when they were last absorbed.
#[derive(Debug, Default)]
pub(super) struct Absorbed {
    nodes: BTreeMap<Arc<str>, Vec<IpAddr>>,
    /// The node's own addresses.
    own: BTreeSet<IpAddr>,
}

impl Engine {
    /// Takes in all that changed since this was last called.
    pub(super) fn absorb(&mut self) {
        let Dirty { pods, namespaces, nodes, policies, local_addresses } =
            std::mem::take(&mut self.objects.dirty);
        for name in &namespaces {
            self.census.recheck_namespace(name, &self.objects.namespaces);
            self.endpoints.mark(Some(name));
        }
        let own_changed = local_addresses || nodes.contains(&self.node_name);
        nodes.iter().for_each(|name| self.absorb_node(name));
        if own_changed {
            self.absorb_own();
        }
        pods.iter().for_each(|name| self.absorb_pod(name));
        for name in &policies {
            match name {
                PolicyName::Network(name) => self.endpoints.mark(Some(&name.namespace)),
                PolicyName::Cluster(_) => self.endpoints.mark(None),
            }
        }
        for index in std::mem::take(&mut self.endpoints.dirty) {
            self.absorb_endpoint(index);
        }
        if !policies.is_empty() {
            self.reload(&policies);
        }
        self.touch();
    }

    /// Marks the places of all who became something else.
    pub(super) fn touch(&mut self) {
        for address in self.census.take_touched() {
            self.places.touch(address);
        }
    }

    fn absorb_node(&mut self, name: &Arc<str>) {
        let node = self.objects.nodes.get(name);
        let new: Vec<IpAddr> = node.map(|node| node.addresses.clone()).unwrap_or_default();
        let old = match node {
            Some(_) => self.absorbed.nodes.insert(name.clone(), new.clone()),
            None => self.absorbed.nodes.remove(name),
        };
        let old = old.unwrap_or_default();
        self.census.set_node(name, node);
        for address in old.iter().filter(|address| !new.contains(address)) {
            self.places.set_node(*address, name, false);
        }
        for address in new.iter().filter(|address| !old.contains(address)) {
            self.places.set_node(*address, name, true);
        }
    }

    fn absorb_own(&mut self) {
        let node = self.objects.nodes.get(&self.node_name);
        let listed = node.into_iter().flat_map(|node| &node.addresses);
        let own: BTreeSet<IpAddr> = listed.chain(&self.objects.local_addresses).copied().collect();
        for address in self.absorbed.own.symmetric_difference(&own) {
            self.places.set_own(*address, own.contains(address));
        }
        self.absorbed.own = own;
    }

    /// The Pod of that name, or an endpoint of it, changed.
    pub(super) fn absorb_pod(&mut self, name: &ObjectName) {
        let indices: Vec<u32> = self.endpoints.of_pod(name).collect();
        let pod = self.objects.pods.get(name).filter(|pod| !pod.host_network && !pod.finished);
        let member = pod.map(|pod| {
            let own = indices.iter().filter_map(|index| self.endpoints.get(*index));
            let own: Vec<&Endpoint> = own.filter(|endpoint| endpoint.is_of(pod)).collect();
            let listed = own.iter().flat_map(|endpoint| &endpoint.addresses).chain(&pod.addresses);
            let addresses: BTreeSet<IpAddr> = listed.copied().collect();
            Member::new(addresses.into_iter().collect(), !own.is_empty(), pod)
        });
        let addresses = |member: Option<&Member>| -> BTreeSet<IpAddr> {
            member.into_iter().flat_map(|member| &member.addresses).copied().collect()
        };
        let (old, new) = (addresses(self.census.member(name)), addresses(member.as_ref()));
        self.census.set_member(name, member, &self.objects.namespaces);
        for address in old.symmetric_difference(&new) {
            self.places.set_pod(*address, name, new.contains(address));
        }
        self.endpoints.dirty.extend(indices);
    }

    fn absorb_endpoint(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.get(index) else { return };
        let Some(name) = endpoint.name() else {
            self.put_under(index, Under::Open, Under::Open);
            return;
        };
        let pod = self.objects.pods.get(&name).filter(|pod| endpoint.is_of(pod));
        let subject = pod.map(|pod| Subject { labels: pod.labels.clone(), ports: pod.ports.clone() });
        let subject = subject.or_else(|| endpoint.subject.clone());
        if let Some(endpoint) = self.endpoints.get_mut(index) {
            endpoint.subject.clone_from(&subject);
        }
        let unknown = |what| (Under::Closed(what), Under::Closed(what));
        let (ingress, egress) = match (subject, self.objects.namespaces.get(&name.namespace).cloned()) {
            (None, _) => unknown(Unknown::Pod),
            (_, None) => unknown(Unknown::Namespace),
            (Some(Subject { labels, ports }), Some(namespace)) => {
                let under =
                    Direction::BOTH.map(|direction| self.under(direction, &namespace, &labels, &ports));
                (under[0], under[1])
            }
        };
        self.put_under(index, ingress, egress);
    }

    /// What a pod like that should be under.
    fn under(
        &mut self,
        direction: Direction,
        namespace: &Namespace,
        labels: &Labels,
        ports: &[NamedPort],
    ) -> Under {
        let sources = sources(&self.objects, direction, namespace, labels);
        if sources.is_empty() {
            return Under::Open;
        }
        let key = Key {
            direction,
            policies: sources.iter().map(|source| source.policy.clone()).collect(),
            ports: ports_asked_for(&sources, direction, ports),
        };
        if let Some(handle) = self.handles.get(&key) {
            return Under::Policy(*handle);
        }
        let program = Program::new(direction, &sources, ports);
        Under::Policy(self.compile(key, program.into()))
    }

    /// A new compiled policy.
    fn compile(&mut self, key: Key, program: Arc<Program>) -> Handle {
        self.last_handle += 1;
        let handle = self.last_handle;
        self.handles.insert(key.clone(), handle);
        let direction = key.direction;
        let mut compiled = Compiled::new(key, Loaded::empty(direction));
        match self.load(handle, &program) {
            Ok(loaded) => compiled.loaded = loaded,
            Err(error) => (compiled.waiting, compiled.failed) = (Some(program), Some(error)),
        }
        self.compiled.insert(handle, compiled);
        handle
    }

    fn put_under(&mut self, index: u32, ingress: Under, egress: Under) {
        let Some(endpoint) = self.endpoints.get_mut(index) else { return };
        let old = [endpoint.ingress, endpoint.egress];
        (endpoint.ingress, endpoint.egress) = (ingress, egress);
        for (old, new) in old.into_iter().zip([ingress, egress]) {
            self.leave(index, old);
            if let Under::Policy(handle) = new
                && let Some(compiled) = self.compiled.get_mut(&handle)
            {
                compiled.endpoints.insert(index);
            }
        }
    }

    /// The endpoint at `index` should no longer be under that.
    pub(super) fn leave(&mut self, index: u32, under: Under) {
        if let Under::Policy(handle) = under
            && let Some(compiled) = self.compiled.get_mut(&handle)
        {
            compiled.endpoints.remove(&index);
        }
    }

    /// Makes the programs of these objects anew, where anybody is under them.
    fn reload(&mut self, policies: &BTreeSet<PolicyName>) {
        let concerned =
            |compiled: &Compiled| compiled.key.policies.iter().any(|name| policies.contains(name));
        let concerned = self.compiled.iter().filter(|(_, compiled)| concerned(compiled));
        let (wanted, idle): (Vec<_>, Vec<_>) =
            concerned.partition(|(_, compiled)| !compiled.endpoints.is_empty());
        let handles: Vec<Handle> = wanted.into_iter().map(|(handle, _)| *handle).collect();
        // Nobody comes back to what is not kept up.
        for (handle, compiled) in idle {
            if self.handles.get(&compiled.key) == Some(handle) {
                self.handles.remove(&compiled.key);
            }
        }
        for handle in handles {
            let Some(compiled) = self.compiled.get(&handle) else { continue };
            // Whoever is under it is selected by the same objects, in whatever order they come now.
            let Some(endpoint) = compiled.endpoints.first().and_then(|index| self.endpoints.get(*index))
            else {
                continue;
            };
            let Some(Subject { labels, ports }) = &endpoint.subject else { continue };
            let Some(namespace) = self.objects.namespaces.get(endpoint.pod.namespace.as_str()) else {
                continue;
            };
            let sources = sources(&self.objects, compiled.key.direction, namespace, labels);
            let program = Program::new(compiled.key.direction, &sources, ports);
            if *compiled.latest() == program {
                continue;
            }
            if self.is_left_by_any(compiled) {
                self.move_on(handle, program.into());
            } else {
                self.replace(handle, program.into());
            }
        }
    }

    /// Whether an endpoint is under a policy in the maps that should be under another one: what changes of its objects
    /// is not meant for it.
    fn is_left_by_any(&self, compiled: &Compiled) -> bool {
        let Some(id) = compiled.id else { return false };
        let is_under = |isolation: &Isolation| isolation.ingress == id || isolation.egress == id;
        let mut under = self.ledger.isolation.iter().filter(|(_, isolation)| is_under(isolation));
        under.any(|(index, _)| !compiled.endpoints.contains(index))
    }

    /// Has another compiled policy take the place of one, for those who should be under it.
    fn move_on(&mut self, old: Handle, program: Arc<Program>) {
        let Some(compiled) = self.compiled.get_mut(&old) else { return };
        let (key, endpoints) = (compiled.key.clone(), std::mem::take(&mut compiled.endpoints));
        let direction = key.direction;
        let handle = self.compile(key, program);
        for index in &endpoints {
            if let Some(endpoint) = self.endpoints.get_mut(*index) {
                endpoint.set_under(direction, Under::Policy(handle));
            }
        }
        if let Some(compiled) = self.compiled.get_mut(&handle) {
            compiled.endpoints = endpoints;
        }
    }

    /// Tries again to replace programs that there was no room for.
    pub(super) fn retry_loads(&mut self) {
        let waiting = |(handle, compiled): (&Handle, &Compiled)| Some((*handle, compiled.waiting.clone()?));
        let waiting: Vec<(Handle, Arc<Program>)> = self.compiled.iter().filter_map(waiting).collect();
        waiting.into_iter().for_each(|(handle, program)| self.replace(handle, program));
    }

    /// Has a program replace another, if there is room for its ranges.
    fn replace(&mut self, handle: Handle, program: Arc<Program>) {
        let loaded = self.load(handle, &program);
        let Some(compiled) = self.compiled.get_mut(&handle) else { return };
        match loaded {
            Ok(next) => {
                compiled.waiting = None;
                if let Some(skipped) = compiled.next.replace(next) {
                    self.unload(handle, &skipped);
                }
            }
            Err(error) => {
                compiled.waiting = Some(program);
                compiled.failed = Some(error);
            }
        }
    }

    /// Brings the peers of a program into use. Of the map of peers ranges may take but a half, so that addresses find
    /// room, whatever policies name.
    fn load(&mut self, handle: Handle, program: &Arc<Program>) -> Result<Loaded, MapError> {
        let ranges = self.places.ranges_with(program.peers.iter());
        if ranges > self.capacity.peers as usize / RANGES_SHARE && program.names_ranges() {
            let object = format!("{ranges} ranges of addresses, which may be at most half of the entries");
            return Err(MapError::policy(MapAction::Program, object, MapCause::Full(self.capacity.peers)));
        }
        let mut elements = Vec::with_capacity(program.peers.len());
        for (place, peer) in program.peers.iter().enumerate() {
            let (element, network) =
                self.census.acquire_peer(handle, peer, &self.objects.namespaces, &self.objects.nodes);
            if let Some(Network::Taken(element, peer)) = network {
                self.places.take_network(element, peer);
            }
            elements.push((element, place));
        }
        for name in program.names_of_peers() {
            self.census.acquire_name(handle, name);
        }
        elements.sort_unstable();
        Ok(Loaded { program: program.clone(), elements: elements.into() })
    }

    /// The peers of a program are no longer in use by it.
    pub(super) fn unload(&mut self, handle: Handle, loaded: &Loaded) {
        for peer in &loaded.program.peers {
            if let Some(Network::Left(element, peer)) = self.census.release_peer(handle, peer) {
                self.places.leave_network(element, peer);
            }
        }
        for name in loaded.program.names_of_peers() {
            self.census.release_name(handle, name);
        }
    }
}
