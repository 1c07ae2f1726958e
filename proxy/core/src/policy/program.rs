//! The rules that a pod is under in one direction, in the order in which they are asked: what fills the maps, and what
//! explains them.
//!
//! ```text
//! objects that select the pod ──► Program ──(whom an address is)──► rules that match ──► segments of ports ──► row
//!                                                                                        with the deciding rule
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use fairlead_abi::verdicts;

use super::model::{Action, Direction, NamedPort, Peer, PolicyName, Ports, Rule, Tier};
use super::row::{PROTOCOLS, Row, Segments};
use crate::model::Protocol;

/// The rules of all objects that select a pod in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) direction: Direction,
    /// The objects, in the order in which they are asked.
    pub(super) policies: Box<[PolicyName]>,
    /// Whether a NetworkPolicy is among them: then what none of those allows is denied.
    pub(super) isolates: bool,
    /// In the order in which they are asked.
    pub(super) rules: Box<[ProgramRule]>,
    /// Whom the rules name, each once, in order.
    pub(super) peers: Box<[Peer]>,
    /// The names of ports in the rules, in order.
    pub(super) names: Box<[Arc<str>]>,
    /// What those names stand for where the pod itself is the destination.
    pub(super) ports: Box<[NamedPort]>,
    /// Rules for everyone, in order.
    everyone: Box<[u32]>,
    /// The rules that name each of `peers`, in order.
    rules_of: Box<[Box<[u32]>]>,
}

/// A rule, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramRule {
    pub(super) tier: Tier,
    pub(super) action: Action,
    /// The index of its object in [`Program::policies`].
    pub(super) policy: usize,
    /// Its place in the object's list, from 0.
    pub(super) index: usize,
    /// What people call it, possibly empty.
    pub(super) name: Arc<str>,
    /// Which ports; none: whatever the packet is.
    pub(super) ports: Option<Box<[Ports]>>,
}

/// The rules that an object contributes.
pub(super) struct Source<'a> {
    pub(super) policy: PolicyName,
    pub(super) tier: Tier,
    pub(super) rules: &'a [Rule],
}

/// What becomes of a packet, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// One of [`verdicts`].
    pub(super) verdict: u32,
    /// The rule that decided; none: no rule did, and this is what is left.
    pub(super) rule: Option<u32>,
    /// The rule of the tier Admin that left the decision to the next tiers.
    pub(super) passed: Option<u32>,
}

impl Program {
    /// The rules of `sources`, which come in the order in which they are asked. `own` are the named ports of the pod
    /// that is under them.
    pub(super) fn new(direction: Direction, sources: &[Source<'_>], own: &[NamedPort]) -> Self {
        let mut places: HashMap<&Peer, usize> = HashMap::new();
        let mut peers: Vec<&Peer> = sources
            .iter()
            .flat_map(|source| source.rules)
            .flat_map(|rule| rule.peers.iter().flatten())
            .collect();
        peers.sort();
        peers.dedup();
        places.extend(peers.iter().enumerate().map(|(place, peer)| (*peer, place)));
        let mut rules_of: Vec<Vec<u32>> = vec![Vec::new(); peers.len()];
        let (mut rules, mut everyone, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (policy, source) in sources.iter().enumerate() {
            for rule in source.rules {
                let number = rules.len() as u32;
                match &rule.peers {
                    None => everyone.push(number),
                    Some(named) => {
                        for peer in named {
                            let of_peer = &mut rules_of[places[peer]];
                            if of_peer.last() != Some(&number) {
                                of_peer.push(number);
                            }
                        }
                    }
                }
                for ports in rule.ports.iter().flatten() {
                    if let Ports::Named { name, .. } = ports {
                        names.insert(name.clone());
                    }
                }
                rules.push(ProgramRule {
                    tier: source.tier,
                    action: rule.action,
                    policy,
                    index: rule.index,
                    name: rule.name.clone(),
                    ports: rule.ports.clone(),
                });
            }
        }
        let ports = match direction {
            Direction::Ingress => own.iter().filter(|port| names.contains(&port.name)).cloned().collect(),
            Direction::Egress => Box::default(),
        };
        Self {
            direction,
            policies: sources.iter().map(|source| source.policy.clone()).collect(),
            isolates: sources.iter().any(|source| source.tier == Tier::Network),
            rules: rules.into(),
            peers: peers.into_iter().cloned().collect(),
            names: names.into_iter().collect(),
            ports,
            everyone: everyone.into(),
            rules_of: rules_of.into_iter().map(Vec::into_boxed_slice).collect(),
        }
    }

    /// The names of ports that stand for something on whoever is sent to, rather than on the pod itself.
    pub(super) fn names_of_peers(&self) -> &[Arc<str>] {
        match self.direction {
            Direction::Ingress => &[],
            Direction::Egress => &self.names,
        }
    }

    /// Whether any rule names ranges of addresses.
    pub(super) fn names_ranges(&self) -> bool {
        self.peers.iter().any(|peer| matches!(peer, Peer::Network { .. }))
    }

    /// Makes `rules` those that are about an address which is these of [`Self::peers`], in order.
    pub(super) fn matching(&self, held: impl Iterator<Item = usize>, rules: &mut Vec<u32>) {
        rules.clear();
        rules.extend(&self.everyone);
        for place in held {
            rules.extend(&self.rules_of[place]);
        }
        rules.sort_unstable();
        rules.dedup();
    }

    /// What `rules` say of each port, where the destination's containers name these ports: each decision from its
    /// first port on to the next one's. `None` is any protocol without ports, which has but port 0.
    pub(super) fn decisions(
        &self,
        rules: &[u32],
        named: &[NamedPort],
        protocol: Option<Protocol>,
    ) -> Vec<(u16, Decision)> {
        let named = if self.direction == Direction::Ingress { &self.ports } else { named };
        let ranges: Vec<(u32, Vec<(u16, u16)>)> = rules
            .iter()
            .map(|rule| (*rule, ranges(&self.rules[*rule as usize], named, protocol)))
            .filter(|(_, ranges)| !ranges.is_empty())
            .collect();
        let mut starts = vec![0];
        if protocol.is_some() {
            for (first, last) in ranges.iter().flat_map(|(_, ranges)| ranges) {
                starts.extend([Some(*first), last.checked_add(1)].into_iter().flatten());
            }
            starts.sort_unstable();
            starts.dedup();
        }
        let firsts = |tier: Tier| {
            let own = ranges.iter().filter(|(rule, _)| self.rules[*rule as usize].tier == tier);
            first_rules(own, &starts)
        };
        let (admin, network, baseline) = (firsts(Tier::Admin), firsts(Tier::Network), firsts(Tier::Baseline));
        let decide = |(place, start): (usize, &u16)| {
            (*start, self.decide(admin[place], network[place], baseline[place]))
        };
        starts.iter().enumerate().map(decide).collect()
    }

    /// What these say together: the first matching rules of each tier.
    fn decide(&self, admin: Option<u32>, network: Option<u32>, baseline: Option<u32>) -> Decision {
        let action = |rule: u32| self.rules[rule as usize].action;
        let mut passed = None;
        if let Some(rule) = admin {
            match action(rule) {
                Action::Accept => {
                    return Decision { verdict: verdicts::ALLOW, rule: admin, passed };
                }
                Action::Deny => return Decision { verdict: verdicts::DENY_ADMIN, rule: admin, passed },
                Action::Pass => passed = admin,
            }
        }
        if self.isolates {
            let verdict = if network.is_some() { verdicts::ALLOW } else { verdicts::DENY_NETWORK };
            return Decision { verdict, rule: network, passed };
        }
        let verdict = match baseline.map(action) {
            Some(Action::Deny) => verdicts::DENY_BASELINE,
            Some(Action::Accept | Action::Pass) | None => verdicts::ALLOW,
        };
        Decision { verdict, rule: baseline, passed }
    }

    /// What `rules` say, as a table.
    pub(super) fn row(&self, rules: &[u32], named: &[NamedPort]) -> Row {
        let segments = |protocol: Option<Protocol>| -> Segments {
            let decisions = self.decisions(rules, named, protocol);
            decisions.into_iter().map(|(first, decision)| (first, decision.verdict)).collect()
        };
        Row::new(segments(None)[0].1, &PROTOCOLS.map(|protocol| segments(Some(protocol))))
    }
}

/// The ports of a protocol that a rule is about; of none but port 0, if it is about whatever the packet is.
fn ranges(rule: &ProgramRule, named: &[NamedPort], protocol: Option<Protocol>) -> Vec<(u16, u16)> {
    let Some(listed) = &rule.ports else { return vec![(0, u16::MAX)] };
    let mut ranges = Vec::new();
    for ports in listed {
        match ports {
            Ports::Range { protocol: own, first, last } if Some(*own) == protocol => {
                ranges.push((*first, *last));
            }
            Ports::Range { .. } => {}
            Ports::Named { name, protocol: own } => {
                let is_meant = |port: &&NamedPort| {
                    port.name == *name
                        && Some(port.protocol) == protocol
                        && own.is_none_or(|own| own == port.protocol)
                };
                ranges.extend(named.iter().filter(is_meant).map(|port| (port.port, port.port)));
            }
        }
    }
    ranges
}

/// For each segment from one of `starts` to the next, the first rule that is about it.
///
/// A segment that has its rule is never looked at again, so that a thousand rules cost little more than one.
fn first_rules<'a>(
    rules: impl Iterator<Item = &'a (u32, Vec<(u16, u16)>)>,
    starts: &[u16],
) -> Vec<Option<u32>> {
    let mut found: Vec<Option<u32>> = vec![None; starts.len()];
    // For each segment, one at or behind it that may still be without a rule.
    let mut open: Vec<usize> = (0..=starts.len()).collect();
    for (rule, ranges) in rules {
        for (first, last) in ranges {
            let begin = starts.partition_point(|start| start < first);
            let end = starts.partition_point(|start| start <= last);
            let mut place = next_open(&mut open, begin);
            while place < end {
                found[place] = Some(*rule);
                open[place] = place + 1;
                place = next_open(&mut open, place);
            }
        }
    }
    found
}

fn next_open(open: &mut [usize], from: usize) -> usize {
    let mut place = from;
    while open[place] != place {
        // Halves the way for whoever comes next.
        open[place] = open[open[place]];
        place = open[place];
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::{PodPeer, Scope};
    use crate::policy::selector::Selector;

    const TCP: Option<Protocol> = Some(Protocol::Tcp);

    fn peer(name: &str) -> Peer {
        Peer::Pods(PodPeer { scope: Scope::One(name.into()), pods: Selector::default() })
    }

    fn rule(index: usize, action: Action, peers: Option<&[&str]>, ports: Option<Vec<Ports>>) -> Rule {
        let peers = peers.map(|names| names.iter().map(|name| peer(name)).collect());
        Rule { index, name: "".into(), action, peers, ports: ports.map(Into::into) }
    }

    fn port(port: u16) -> Ports {
        Ports::Range { protocol: Protocol::Tcp, first: port, last: port }
    }

    fn source<'a>(name: &str, tier: Tier, rules: &'a [Rule]) -> Source<'a> {
        let policy = match tier {
            Tier::Network => PolicyName::Network(crate::model::ObjectName::new("shop", name)),
            Tier::Admin | Tier::Baseline => PolicyName::Cluster(name.into()),
        };
        Source { policy, tier, rules }
    }

    /// The verdict for whoever is these peers.
    fn verdict(program: &Program, held: &[&str], protocol: Option<Protocol>, port: u16) -> u32 {
        let places =
            program.peers.iter().enumerate().filter(|(_, one)| held.iter().any(|name| peer(name) == **one));
        let mut rules = Vec::new();
        program.matching(places.map(|(place, _)| place), &mut rules);
        let decisions = program.decisions(&rules, &[], protocol);
        let place = decisions.partition_point(|(first, _)| *first <= port) - 1;
        let verdict = decisions[place].1.verdict;
        assert_eq!(program.row(&rules, &[]).verdict(protocol, port), verdict, "the map says the same");
        verdict
    }

    #[test]
    fn network_policies_allow_by_union_and_deny_what_is_left() {
        let web = [rule(0, Action::Accept, Some(&["a"]), Some(vec![port(80)]))];
        let all = [rule(0, Action::Accept, Some(&["b"]), None)];
        let sources = [source("web", Tier::Network, &web), source("all", Tier::Network, &all)];
        let program = Program::new(Direction::Ingress, &sources, &[]);
        let of = |held: &[&str], port| verdict(&program, held, TCP, port);
        assert_eq!([of(&["a"], 80), of(&["a"], 81), of(&["b"], 81), of(&[], 80)], [1, 0, 1, 0]);
        assert_eq!(of(&["a", "b"], 9), 1);
        assert_eq!([verdict(&program, &["a"], None, 0), verdict(&program, &["b"], None, 0)], [0, 1]);
    }

    #[test]
    fn tiers_are_asked_in_order_and_pass_leaves_one() {
        let admin = [
            rule(0, Action::Pass, Some(&["a"]), None),
            rule(1, Action::Deny, None, Some(vec![port(22)])),
            rule(2, Action::Accept, Some(&["b"]), None),
        ];
        let network = [rule(0, Action::Accept, Some(&["c"]), None)];
        let baseline = [rule(0, Action::Deny, None, None)];
        let sources = [
            source("admin", Tier::Admin, &admin),
            source("web", Tier::Network, &network),
            source("base", Tier::Baseline, &baseline),
        ];
        let program = Program::new(Direction::Egress, &sources, &[]);
        let of = |held: &[&str], port| verdict(&program, held, TCP, port);
        assert_eq!(of(&["a", "c"], 22), verdicts::ALLOW, "passed to the NetworkPolicy, which allows");
        assert_eq!(of(&["c"], 22), verdicts::DENY_ADMIN);
        assert_eq!(of(&["b"], 22), verdicts::DENY_ADMIN, "the earlier rule");
        assert_eq!(of(&["b"], 80), verdicts::ALLOW);
        assert_eq!(of(&["a"], 80), verdicts::DENY_NETWORK, "a NetworkPolicy's decision is final");
        let without = Program::new(Direction::Egress, &[source("base", Tier::Baseline, &baseline)], &[]);
        assert_eq!(verdict(&without, &[], TCP, 80), verdicts::DENY_BASELINE);
    }

    #[test]
    fn without_a_network_policy_what_no_rule_decides_passes() {
        let admin = [rule(0, Action::Deny, Some(&["a"]), None)];
        let program = Program::new(Direction::Ingress, &[source("admin", Tier::Admin, &admin)], &[]);
        assert_eq!(verdict(&program, &[], TCP, 80), verdicts::ALLOW);
        assert_eq!(verdict(&program, &["a"], None, 0), verdicts::DENY_ADMIN);
        let baseline = [rule(0, Action::Pass, None, None), rule(1, Action::Deny, None, None)];
        let program = Program::new(Direction::Ingress, &[source("base", Tier::Baseline, &baseline)], &[]);
        assert_eq!(verdict(&program, &[], TCP, 80), verdicts::ALLOW);
    }

    #[test]
    fn a_name_stands_for_the_destinations_port_of_that_protocol() {
        let named = |protocol| Some(vec![Ports::Named { name: "http".into(), protocol }]);
        let ports = |protocol, port| NamedPort { name: "http".into(), protocol, port };
        let own = [ports(Protocol::Tcp, 8080), ports(Protocol::Udp, 8081)];
        let strict = [rule(0, Action::Accept, None, named(Some(Protocol::Tcp)))];
        let program = Program::new(Direction::Ingress, &[source("web", Tier::Network, &strict)], &own);
        let of = |protocol, port| verdict(&program, &[], Some(protocol), port);
        assert_eq!([of(Protocol::Tcp, 8080), of(Protocol::Udp, 8081), of(Protocol::Tcp, 80)], [1, 0, 0]);
        let any = [rule(0, Action::Accept, None, named(None))];
        let program = Program::new(Direction::Ingress, &[source("web", Tier::Network, &any)], &own);
        assert_eq!(verdict(&program, &[], Some(Protocol::Udp), 8081), 1);
        let egress = Program::new(Direction::Egress, &[source("web", Tier::Network, &any)], &own);
        assert_eq!(verdict(&egress, &[], Some(Protocol::Tcp), 8080), 0, "it is the peer's ports that count");
        let decisions = egress.decisions(&[0], &own, TCP);
        assert_eq!(decisions.iter().map(|(first, _)| *first).collect::<Vec<_>>(), [0, 8080, 8081]);
    }

    #[test]
    fn the_deciding_rule_is_the_first_one_that_matches() {
        let rules: Vec<Rule> = (0..1000)
            .map(|index| rule(index, Action::Accept, None, Some(vec![port(index as u16 / 2 + 1)])))
            .collect();
        let program = Program::new(Direction::Ingress, &[source("many", Tier::Network, &rules)], &[]);
        let mut matching = Vec::new();
        program.matching(std::iter::empty(), &mut matching);
        let decisions = program.decisions(&matching, &[], TCP);
        let rule = |port: u16| decisions[decisions.partition_point(|(first, _)| *first <= port) - 1].1.rule;
        assert_eq!([rule(1), rule(2), rule(500), rule(501)], [Some(0), Some(2), Some(998), None]);
    }
}
