//! Which objects select a pod.

use super::model::{ClusterPolicy, Direction, NamedPort, Namespace, PolicyName, Ports, Tier};
use super::objects::Objects;
use super::program::Source;
use super::selector::Labels;

/// The objects that select a pod with these labels in one direction, in the order in which they are asked: by tier;
/// ClusterNetworkPolicies by priority and then, where the API leaves it open, by name.
pub(super) fn sources<'a>(
    objects: &'a Objects,
    direction: Direction,
    namespace: &'a Namespace,
    labels: &Labels,
) -> Vec<Source<'a>> {
    let mut cluster: Vec<(&ClusterPolicy, Source<'a>)> = Vec::new();
    for policy in objects.cluster_policies.values() {
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let selects = policy
            .subject
            .as_ref()
            .is_some_and(|subject| subject.scope.holds(namespace) && subject.pods.matches(labels));
        if selects && !rules.is_empty() {
            let name = PolicyName::Cluster(policy.name.clone());
            cluster.push((policy, Source { policy: name, tier: policy.tier, rules }));
        }
    }
    cluster.sort_by(|(one, _), (other, _)| {
        (one.tier, one.priority, &one.name).cmp(&(other.tier, other.priority, &other.name))
    });
    let baseline = cluster.partition_point(|(policy, _)| policy.tier == Tier::Admin);
    let baseline: Vec<_> = cluster.split_off(baseline);
    let network = objects.policies_of(&namespace.name).filter(|policy| policy.pods.matches(labels));
    let network = network.filter_map(|policy| {
        let rules = match direction {
            Direction::Ingress => policy.ingress.as_deref(),
            Direction::Egress => policy.egress.as_deref(),
        };
        Some(Source { policy: PolicyName::Network(policy.name.clone()), tier: Tier::Network, rules: rules? })
    });
    let admin = cluster.into_iter().map(|(_, source)| source);
    admin.chain(network).chain(baseline.into_iter().map(|(_, source)| source)).collect()
}

/// Those of a pod's named ports that these rules ask for where the pod itself is the destination.
pub(super) fn ports_asked_for(
    sources: &[Source<'_>],
    direction: Direction,
    own: &[NamedPort],
) -> Box<[NamedPort]> {
    if direction == Direction::Egress || own.is_empty() {
        return Box::default();
    }
    let asks = |name: &str| {
        let rules = sources.iter().flat_map(|source| source.rules);
        let mut ports = rules.flat_map(|rule| rule.ports.iter().flatten());
        ports.any(|ports| matches!(ports, Ports::Named { name: asked, .. } if **asked == *name))
    };
    own.iter().filter(|port| asks(&port.name)).cloned().collect()
}
