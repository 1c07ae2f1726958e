//! What the command line, the status page, events and metrics show of policies.

use std::fmt;

use serde::Serialize;

use super::model::{Action, Direction, Tier};
use crate::dataplane::MapError;

/// How much the maps of policies hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Elements of [`fairlead_abi::maps::POLICIES`], of which the first two are never used.
    pub policies: u32,
    /// Entries of [`fairlead_abi::maps::CELLS`].
    pub cells: u32,
    /// Entries of [`fairlead_abi::maps::ROWS`].
    pub rows: u32,
    /// Entries of [`fairlead_abi::maps::PEERS`].
    pub peers: u32,
}

/// The pod that an endpoint belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name; empty: no Pod of the API, which nothing selects.
    pub name: String,
    /// metadata.uid; empty: the name decides.
    pub uid: String,
}

/// What one call of [`super::Engine::reconcile`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Writes that succeeded.
    pub applied: Applied,
    /// Writes that failed, each with what waits for it.
    pub failed: Vec<Failure>,
    /// How many policies and endpoints are not as their objects ask.
    pub pending: usize,
}

/// Writes that succeeded, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Ranges of ports that rows got.
    pub rows: usize,
    /// Cells and default rows that were written.
    pub cells: usize,
    /// Prefixes that got an identity.
    pub peers: usize,
    /// Endpoints that were put under other policies.
    pub isolations: usize,
    /// Entries of any kind that were removed.
    pub removed: usize,
}

impl Applied {
    /// All of them.
    pub fn total(&self) -> usize {
        let Self { rows, cells, peers, isolations, removed } = self;
        rows + cells + peers + isolations + removed
    }
}

/// A write that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {error}")]
pub struct Failure {
    /// What it was for, as in `NetworkPolicy shop/web`.
    pub part: String,
    /// What failed.
    pub error: MapError,
}

/// Whether an endpoint is under its policies, as of the last reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state", content = "reason")]
pub enum EndpointState {
    /// It is.
    Programmed,
    /// Not every first list is done: nobody can tell yet.
    NotSynced,
    /// The API holds no such Pod: the endpoint is closed.
    PodUnknown,
    /// The API holds no such Namespace: the endpoint is closed.
    NamespaceUnknown,
    /// A write failed: the endpoint is closed. Names the policy and the map.
    Failed(String),
    /// There is no such endpoint.
    NoEndpoint,
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Programmed => f.write_str("programmed"),
            Self::NotSynced => f.write_str("the API has not been listed yet"),
            Self::PodUnknown => f.write_str("the API has no such Pod"),
            Self::NamespaceUnknown => f.write_str("the API has no such Namespace"),
            Self::Failed(why) => f.write_str(why),
            Self::NoEndpoint => f.write_str("there is no such endpoint"),
        }
    }
}

/// An object that policies are made of, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// `NetworkPolicy` or `ClusterNetworkPolicy`.
    pub kind: &'static str,
    /// Its namespace, if its kind has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its tier.
    pub tier: Tier,
    /// Its priority, if its kind has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// The directions that it is about.
    pub directions: Vec<Direction>,
    /// The local pods that it selects, as `namespace/name`, in order.
    pub pods: Vec<String>,
    /// How many parts of it make no sense.
    pub problems: usize,
    /// Its rules.
    pub rules: Vec<RuleView>,
    /// The first thing that failed, if the maps are not as it asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
}

/// A rule of a policy as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleView {
    /// Its direction.
    pub direction: Direction,
    /// Its place in the object's list, from 1.
    pub number: usize,
    /// What people call it, possibly empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Whom it is about; none: everyone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<String>>,
    /// Which ports; none: whatever the packet is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<String>>,
}

/// What is behind the id of a compiled policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CompiledView {
    /// Its direction.
    pub direction: Direction,
    /// The objects that it is made of, as in `NetworkPolicy shop/web`.
    pub policies: Vec<String>,
}

/// Whom an address belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// The pod that has it, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}
