//! Which pods can be put under their policies, and how much the maps hold.

use fairlead_abi::maps;

use super::{EndpointState, Engine, PodId};
use crate::model::ObjectName;

impl Engine {
    /// How many entries the maps hold by what was written to them, by name of map.
    pub fn entries(&self) -> [(&'static str, usize); 3] {
        [
            (maps::CELLS, self.ledger.cells),
            (maps::ROWS, self.ledger.rows.entries()),
            (maps::PEERS, self.places.held()),
        ]
    }

    /// Whether the API holds a Pod of that name.
    pub fn has_pod(&self, name: &ObjectName) -> bool {
        self.objects.pods.contains_key(name)
    }

    /// Whether enough is known to put an endpoint of this pod under its policies: [`EndpointState::Programmed`] if so.
    pub fn pod_state(&self, pod: &PodId) -> EndpointState {
        if !self.synced {
            return EndpointState::NotSynced;
        }
        if pod.name.is_empty() {
            return EndpointState::Programmed;
        }
        let name = ObjectName::new(pod.namespace.as_str(), pod.name.as_str());
        if !self.objects.pods.get(&name).is_some_and(|known| pod.is(known)) {
            return EndpointState::PodUnknown;
        }
        match self.objects.namespaces.contains_key(pod.namespace.as_str()) {
            true => EndpointState::Programmed,
            false => EndpointState::NamespaceUnknown,
        }
    }
}
