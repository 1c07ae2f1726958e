//! The loop that tells the programs where the cluster ends, and pods' packets leave with the node's address.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fairlead_core::convert;
use fairlead_core::egress::{Egress, diff};
use serde::{Deserialize, Serialize};

use crate::dataplane::egress::EgressMap;
use crate::errors::chain;
use crate::pace::Work;
use crate::watch::{Change, Node};

/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What the loop hears of.
#[derive(Clone, Debug)]
pub enum Update {
    /// Of Nodes.
    Node(Change<Node>),
    /// The node's interfaces have these addresses.
    Interfaces(Vec<IpAddr>),
}

/// With whose address pods' packets leave, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MasqueradeView {
    /// Whether what pods send to the outside leaves with the node's.
    pub outside: bool,
    /// To how many ranges it leaves with the pod's.
    pub inside: usize,
    /// What could not be written.
    pub errors: Vec<String>,
}

/// Keeps [`fairlead_abi::maps::EGRESS`]. What an earlier agent left holds until all Nodes have been listed.
pub struct Masquerade {
    egress: Egress,
    map: EgressMap,
    listed: bool,
    dirty: bool,
    retry: Option<Instant>,
    view: Arc<Mutex<MasqueradeView>>,
}

impl Masquerade {
    /// Over this map.
    pub fn new(egress: Egress, map: EgressMap) -> Self {
        Self { egress, map, listed: false, dirty: false, retry: None, view: Arc::default() }
    }

    /// Where the state is shown.
    pub fn view(&self) -> Arc<Mutex<MasqueradeView>> {
        Arc::clone(&self.view)
    }

    fn take_one(&mut self, update: Update) {
        match update {
            Update::Node(Change::Apply(node) | Change::Found(node)) => {
                if let Some(node) = convert::node(&(*node).into()).value {
                    self.egress.apply_node(node);
                }
            }
            Update::Node(Change::Delete(name)) => self.egress.delete_node(&name.name),
            Update::Node(Change::Listed) => self.listed = true,
            // None at all means that they could not be listed.
            Update::Interfaces(addresses) if addresses.is_empty() => return,
            Update::Interfaces(addresses) => self.egress.set_local_addresses(addresses),
        }
        self.dirty = true;
    }

    /// Brings the map to what is desired; what fails does not hold up the rest.
    fn write(&mut self) -> Vec<String> {
        let actual = match self.map.read() {
            Ok(actual) => actual,
            Err(e) => return vec![chain(&e)],
        };
        let writes = diff(&self.egress.desired(), &actual);
        writes.into_iter().filter_map(|write| self.map.write(write).err()).map(|e| chain(&e)).collect()
    }
}

impl Work<Update> for Masquerade {
    fn take(&mut self, updates: impl Iterator<Item = Update>) {
        updates.for_each(|update| self.take_one(update));
    }

    fn is_dirty(&self) -> bool {
        self.dirty && self.listed
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.retry
    }

    fn work(&mut self, now: Instant) {
        self.dirty = false;
        let errors = self.write();
        self.retry = (!errors.is_empty()).then(|| now + RETRY);
        let desired = self.egress.desired();
        let inside = desired.values().filter(|source| **source == fairlead_abi::egress::POD).count();
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        for error in errors.iter().filter(|error| !view.errors.contains(error)) {
            tracing::warn!("{error}; it is tried again");
        }
        *view = MasqueradeView { outside: !desired.is_empty(), inside, errors };
    }
}
