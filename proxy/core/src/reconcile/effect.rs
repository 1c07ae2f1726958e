//! Which version of a Service the maps hold.

use super::Reconciler;
use crate::effect::{Effect, State};
use crate::model::ObjectName;

impl Reconciler {
    /// Whether the maps hold what the Service of that name and its EndpointSlices say.
    pub fn service_effect(&self, name: &ObjectName) -> Effect {
        let Some(stamp) = self.index.service_stamp(name) else {
            return self.of_deleted(name);
        };
        let before = self.index.behind().of(name);
        let mut slices: Vec<(String, _)> = Vec::new();
        for (slice, version) in self.index.slice_versions(name) {
            match before.and_then(|before| before.slices.get(slice)) {
                Some(None) => {}
                Some(earlier) => slices.push((slice.name.to_string(), *earlier)),
                None => slices.push((slice.name.to_string(), version)),
            }
        }
        // Those that left the Service, or the API, and are still in the maps.
        let held = |slice: &&ObjectName| self.index.slice_versions(name).all(|(other, _)| other != *slice);
        let left = before.into_iter().flat_map(|before| &before.slices).filter(|(slice, _)| held(slice));
        slices.extend(left.filter(|(_, version)| version.is_some()).map(|(s, v)| (s.name.to_string(), *v)));
        slices.sort_by(|(one, _), (other, _)| one.cmp(other));
        let contested = self.contested.get(name).into_iter().flatten();
        let left_out: Vec<_> = contested.chain(self.index.problems_of(name)).cloned().collect();
        let version = match before.and_then(|before| before.service) {
            Some(earlier) => earlier,
            // It failed without having changed since the first write: nobody can tell what of it is there.
            None if self.pending.contains_key(name) => None,
            None => stamp.version,
        };
        let is_ours = self.index.service(name).is_some();
        let note = (!is_ours && left_out.is_empty())
            .then(|| "no Service for a proxy: headless, ExternalName, or left to another one".to_owned());
        let version = if self.synced { version } else { None };
        Effect { version, heard: stamp.version, slices, state: self.state(name), left_out, note }
    }

    /// Of one that the API has no more, but the maps may.
    fn of_deleted(&self, name: &ObjectName) -> Effect {
        let before = self.index.behind().of(name).and_then(|before| before.service);
        let state = match self.state(name) {
            State::Refused => State::InEffect,
            other => other,
        };
        Effect { version: before.flatten(), state, ..Effect::unknown(self.synced) }
    }

    fn state(&self, name: &ObjectName) -> State {
        if !self.synced {
            return State::NotSynced;
        }
        if let Some(error) = self.pending.get(name) {
            return State::Failed(error.to_string());
        }
        if self.index.is_dirty(name) {
            return State::Waiting("it changed, and is about to be written".to_owned());
        }
        let Some(service) = self.index.service(name) else {
            let is_useless = self.index.problems_of(name).next().is_some();
            return if is_useless { State::Refused } else { State::InEffect };
        };
        if self.index.awaits_addresses() && service.ports.iter().any(|port| port.node_port.is_some()) {
            return State::Waiting(
                "the API has not named this node's addresses, for its NodePorts".to_owned(),
            );
        }
        if self.contested.get(name).is_some() { State::Refused } else { State::InEffect }
    }
}
