//! Which version of a policy, or of a Pod, the maps hold.

use std::collections::BTreeSet;

use super::model::PolicyName;
use super::{EndpointState, Engine};
use crate::dataplane::MapError;
use crate::effect::{Effect, State};
use crate::model::ObjectName;
use crate::stamp::{Stamp, Uid};

impl Engine {
    /// Whether the maps hold what the policy of that name says, for every pod of this node.
    pub fn policy_effect(&self, name: &PolicyName) -> Effect {
        let stamp = self.objects.stamps.get(name);
        let before = self.objects.behind.policies.get(name);
        let left_out = self.objects.problems_of(name).to_vec();
        let is_known = match name {
            PolicyName::Network(name) => self.objects.network_policies.contains_key(name),
            PolicyName::Cluster(name) => self.objects.cluster_policies.contains_key(name),
        };
        let state = match self.policy_state(name) {
            State::InEffect if stamp.is_some() && !is_known => State::Refused,
            other => other,
        };
        let heard = stamp.and_then(|stamp| stamp.version);
        let version = match before {
            _ if !self.synced => None,
            Some(earlier) => *earlier,
            // It failed without having changed since the first write: nobody can tell what of it is there.
            None if matches!(state, State::Failed(_)) => None,
            None => heard,
        };
        Effect { version, heard, state, left_out, ..Effect::unknown(self.synced) }
    }

    /// Whether the maps hold what the Pod of that name says: its endpoint is under its policies, if it is on this node,
    /// and its addresses are known to everybody's.
    pub fn pod_effect(&self, name: &ObjectName) -> Effect {
        let pod = self.objects.pods.get(name);
        let heard = pod.and_then(|pod| pod.version);
        let state = self.pod_state_of(name);
        let version = match self.objects.behind.pods.get(name) {
            _ if !self.synced => None,
            Some(earlier) => *earlier,
            None if matches!(state, State::Failed(_)) => None,
            None => heard,
        };
        let note = pod.and_then(|pod| match &pod.node {
            _ if pod.host_network => Some("it has its node's address, and no endpoint".to_owned()),
            Some(node) if *node != self.node_name => {
                Some(format!("it is on {node}: here policies know its addresses"))
            }
            _ => None,
        });
        let left_out = self.objects.problems_of_pod(name).to_vec();
        Effect { version, heard, state, left_out, note, ..Effect::unknown(self.synced) }
    }

    /// Which object a policy is.
    pub fn policy_stamp(&self, name: &PolicyName) -> Option<Stamp> {
        self.objects.stamps.get(name).copied()
    }

    /// Which object a Pod is.
    pub fn pod_uid(&self, name: &ObjectName) -> Option<Uid> {
        self.objects.pods.get(name).map(|pod| Uid::new(&pod.uid).unwrap_or_default())
    }

    /// The policies that the maps do not hold, each with why.
    pub fn failed_policies(&self) -> impl Iterator<Item = (&PolicyName, &MapError)> {
        let failed = self.compiled.values().filter_map(|one| Some((one, one.failed.as_ref()?)));
        failed.flat_map(|(compiled, error)| compiled.key.policies.iter().map(move |name| (name, error)))
    }

    /// Has the maps hold what the objects say, but for what was not written.
    pub(super) fn settle_versions(&mut self) {
        let mut behind = std::mem::take(&mut self.objects.behind);
        self.objects.behind.is_begun = true;
        if self.is_written() {
            return;
        }
        behind.is_begun = true;
        behind.policies.retain(|name, _| self.policy_state(name) != State::InEffect);
        behind.pods.retain(|name, _| self.pod_state_of(name) != State::InEffect);
        self.objects.behind = behind;
    }

    /// Whether there is nothing that the maps should hold and do not.
    fn is_written(&self) -> bool {
        let is_ready = self.compiled.values().all(|one| one.endpoints.is_empty() || one.is_ready());
        let is_settled = self.unclosed.is_empty() && self.peer_error.is_none() && self.places.is_written();
        is_ready && is_settled && !self.unrevised && self.out_of_place().next().is_none()
    }

    /// Endpoints that are not under the policies that they should be under.
    fn out_of_place(&self) -> impl Iterator<Item = u32> + '_ {
        let indices = self.endpoints.iter().map(|(index, _)| index);
        indices.filter(|index| self.ledger.isolation.get(index) != Some(&self.wanted_isolation(*index)))
    }

    fn policy_state(&self, name: &PolicyName) -> State {
        if !self.synced {
            return State::NotSynced;
        }
        if self.objects.dirty.policies.contains(name) {
            return State::Waiting("it changed, and is about to be compiled".to_owned());
        }
        let own = || self.compiled.values().filter(|compiled| compiled.key.policies.contains(name));
        for compiled in own().filter(|compiled| !compiled.endpoints.is_empty()) {
            if let Some(error) = &compiled.failed {
                return State::Failed(format!("pods under it are closed: {error}"));
            }
            if !compiled.is_ready() {
                return State::Waiting("it is compiled, and not written yet".to_owned());
            }
        }
        let ids: BTreeSet<u32> = own().filter_map(|compiled| compiled.id).collect();
        for index in self.out_of_place() {
            let wanted = self.wanted_isolation(index);
            let held = self.ledger.isolation.get(&index).copied().unwrap_or_default();
            if [wanted.ingress, wanted.egress, held.ingress, held.egress].iter().any(|id| ids.contains(id)) {
                let why = self.unclosed.get(&index).map_or("not written yet".to_owned(), MapError::to_string);
                return State::Failed(format!("endpoint {index}: {why}"));
            }
        }
        if self.unrevised {
            return State::Waiting("flows that are open are not judged by it yet".to_owned());
        }
        State::InEffect
    }

    fn pod_state_of(&self, name: &ObjectName) -> State {
        if !self.synced {
            return State::NotSynced;
        }
        if self.objects.dirty.pods.contains(name) {
            return State::Waiting("it changed, and is about to be written".to_owned());
        }
        let Some(pod) = self.objects.pods.get(name) else {
            let mut left = self.endpoints.of_pod(name);
            return match left.next() {
                Some(index) => State::Waiting(format!("its endpoint {index} has not been removed")),
                None => State::InEffect,
            };
        };
        let mut is_here = false;
        for index in self.endpoints.of_pod(name) {
            if !self.endpoints.get(index).is_some_and(|endpoint| endpoint.is_of(pod)) {
                continue;
            }
            is_here = true;
            match self.endpoint_state(index) {
                EndpointState::Programmed => {}
                other => return State::Failed(other.to_string()),
            }
        }
        if let Some(error) = &self.peer_error {
            return State::Failed(error.to_string());
        }
        let awaits = pod.node.as_ref() == Some(&self.node_name) && !pod.host_network && !pod.finished;
        if awaits && !is_here {
            return State::Waiting("the container runtime has not had it wired yet (CNI ADD)".to_owned());
        }
        State::InEffect
    }
}
