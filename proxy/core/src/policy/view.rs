//! What the command line, the status page, events and metrics show of policies.

use std::fmt;
use std::net::IpAddr;

use fairlead_abi::Isolation;
use serde::Serialize;

use super::Engine;
use super::endpoints::{Under, Unknown};
use super::model::{Action, Direction, PolicyName, Rule, Tier};
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

impl Engine {
    /// Whether the endpoint at `index` is under its policies, as of the last reconcile.
    pub fn endpoint_state(&self, index: u32) -> EndpointState {
        let Some(endpoint) = self.endpoints.get(index) else { return EndpointState::NoEndpoint };
        if !self.synced {
            return EndpointState::NotSynced;
        }
        for direction in Direction::BOTH {
            let handle = match endpoint.under(direction) {
                Under::Open => continue,
                Under::Closed(Unknown::Pod) => return EndpointState::PodUnknown,
                Under::Closed(Unknown::Namespace) => return EndpointState::NamespaceUnknown,
                Under::Policy(handle) => handle,
            };
            let Some(compiled) = self.compiled.get(&handle) else { continue };
            if let Some(error) = &compiled.failed {
                let names: Vec<String> = compiled.key.policies.iter().map(PolicyName::to_string).collect();
                return EndpointState::Failed(format!("{}: {error}", names.join(", ")));
            }
        }
        if let Some(error) = self.unclosed.get(&index) {
            return EndpointState::Failed(error.to_string());
        }
        match self.ledger.isolation.get(&index) == Some(&self.wanted_isolation(index)) {
            true => EndpointState::Programmed,
            false => EndpointState::Failed("its policies are not written yet".to_owned()),
        }
    }

    /// The policies that the endpoint at `index` should be under now.
    pub fn endpoint_policies(&self, index: u32) -> Isolation {
        self.wanted_isolation(index)
    }

    /// Every policy, in order of kind and name.
    pub fn policies(&self) -> Vec<PolicyView> {
        let network = self.objects.network_policies.values().map(|policy| {
            let name = PolicyName::Network(policy.name.clone());
            let both = [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)];
            let both = both.map(|(direction, rules)| (direction, rules.as_deref()));
            let view = self.policy(&name, Tier::Network, &both);
            PolicyView { namespace: Some(policy.name.namespace.to_string()), ..view }
        });
        let cluster = self.objects.cluster_policies.values().map(|policy| {
            let name = PolicyName::Cluster(policy.name.clone());
            let some = |rules: &'_ std::sync::Arc<[Rule]>| (!rules.is_empty()).then(|| rules.clone());
            let (ingress, egress) = (some(&policy.ingress), some(&policy.egress));
            let both = [(Direction::Ingress, ingress.as_deref()), (Direction::Egress, egress.as_deref())];
            PolicyView { priority: Some(policy.priority), ..self.policy(&name, policy.tier, &both) }
        });
        cluster.chain(network).collect()
    }

    /// The objects behind the id of a compiled policy.
    pub fn compiled(&self, id: u32) -> Option<CompiledView> {
        let compiled = self.compiled.values().find(|compiled| compiled.id == Some(id))?;
        let policies = compiled.key.policies.iter().map(PolicyName::to_string).collect();
        Some(CompiledView { direction: compiled.key.direction, policies })
    }

    /// Whom an address belongs to.
    pub fn who(&self, address: IpAddr) -> PeerView {
        PeerView {
            pod: self.places.pod(address, &self.census).map(ToString::to_string),
            node: self.places.node(address).map(ToString::to_string),
        }
    }

    fn policy(&self, name: &PolicyName, tier: Tier, both: &[(Direction, Option<&[Rule]>); 2]) -> PolicyView {
        let mut pods: Vec<String> = Vec::new();
        let mut pending = None;
        for compiled in self.compiled.values().filter(|compiled| compiled.key.policies.contains(name)) {
            let own = compiled.endpoints.iter().filter_map(|index| self.endpoints.get(*index)?.name());
            pods.extend(own.map(|pod| pod.to_string()));
            pending = pending.or(compiled.failed.as_ref().map(MapError::to_string));
        }
        pods.sort();
        pods.dedup();
        let rules = both.iter().flat_map(|(direction, rules)| {
            rules.iter().flat_map(|rules| rules.iter()).map(|rule| RuleView::new(*direction, rule))
        });
        PolicyView {
            kind: name.kind(),
            namespace: None,
            name: match name {
                PolicyName::Network(name) => name.name.to_string(),
                PolicyName::Cluster(name) => name.to_string(),
            },
            tier,
            priority: None,
            directions: both
                .iter()
                .filter(|(_, rules)| rules.is_some())
                .map(|(direction, _)| *direction)
                .collect(),
            pods,
            problems: self.objects.problems_of(name).len(),
            rules: rules.collect(),
            pending,
        }
    }
}

impl RuleView {
    fn new(direction: Direction, rule: &Rule) -> Self {
        let texts = |list: &mut dyn Iterator<Item = String>| list.collect::<Vec<String>>();
        Self {
            direction,
            number: rule.index + 1,
            name: rule.name.to_string(),
            action: rule.action,
            peers: rule.peers.as_ref().map(|peers| texts(&mut peers.iter().map(ToString::to_string))),
            ports: rule.ports.as_ref().map(|ports| texts(&mut ports.iter().map(ToString::to_string))),
        }
    }
}
