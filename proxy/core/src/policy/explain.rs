//! Why a packet passes or not, from the programs that fill the maps.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_abi::verdicts;
use serde::Serialize;

use super::Engine;
use super::endpoints::Endpoint;
use super::model::{Direction, NamedPort, Peer, Pod, Tier};
use super::program::{Decision, Program};
use super::select::sources;
use super::selector::Labels;
use super::view::EndpointState;
use crate::model::{ObjectName, Protocol};

/// One side of a flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// A pod of the API.
    Pod(ObjectName),
    /// Whoever has this address.
    Address(IpAddr),
}

/// What becomes of a flow, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who begins the flow.
    pub client: PartyView,
    /// Who serves it.
    pub server: PartyView,
    /// The protocol; none for one without ports, such as ICMP.
    pub protocol: Option<Protocol>,
    /// The server's port.
    pub port: u16,
    /// Whether it passes.
    pub allowed: bool,
    /// What the client's policies say.
    pub egress: Side,
    /// What the server's policies say.
    pub ingress: Side,
}

/// A side of a flow, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartyView {
    /// The address, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The pod, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node that has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether the address is this node's own.
    pub own_node: bool,
    /// The index of its endpoint, if the pod is on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<u32>,
}

/// What the policies of one side say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// Which side.
    pub direction: Direction,
    /// Whether the flow passes here.
    pub allowed: bool,
    /// The objects that select the pod in this direction, in the order in which they are asked.
    pub policies: Vec<String>,
    /// The rule that decided, as in `NetworkPolicy shop/web ingress rule 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// The rule that left the decision to the next tiers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_by: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// Of the policies that might have allowed it: why each did not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub misses: Vec<String>,
}

/// A party, looked up.
struct Whois<'a> {
    name: Option<ObjectName>,
    pod: Option<&'a Pod>,
    /// All its addresses, of which one is asked about.
    addresses: Vec<IpAddr>,
    address: Option<IpAddr>,
    endpoint: Option<u32>,
}

impl Engine {
    /// What becomes of a flow from `client` to `port` of `server`, and why: by the objects as they are now, and for
    /// local pods also by what could not be written.
    pub fn why(&self, client: &Party, server: &Party, protocol: Option<Protocol>, port: u16) -> Explanation {
        let (mut client, mut server) = (self.whois(client), self.whois(server));
        let families = [true, false];
        let of =
            |whois: &Whois<'_>, v4: bool| whois.addresses.iter().copied().find(|one| one.is_ipv4() == v4);
        let common = families.into_iter().find(|v4| of(&client, *v4).is_some() && of(&server, *v4).is_some());
        for whois in [&mut client, &mut server] {
            whois.address = common.map_or(whois.addresses.first().copied(), |v4| of(whois, v4));
        }
        let packet = (protocol, port);
        let egress = self.side(Direction::Egress, &client, &server, packet);
        let ingress = self.side(Direction::Ingress, &server, &client, packet);
        Explanation {
            allowed: egress.allowed && ingress.allowed,
            client: self.view(&client),
            server: self.view(&server),
            protocol,
            port,
            egress,
            ingress,
        }
    }

    fn whois(&self, party: &Party) -> Whois<'_> {
        let (name, endpoint) = match party {
            Party::Pod(name) => {
                let pod = self.objects.pods.get(name);
                let is_own = |endpoint: &Endpoint| pod.is_none_or(|pod| endpoint.is_of(pod));
                let mut own = self.endpoints.of_pod(name);
                (Some(name.clone()), own.find(|index| self.endpoints.get(*index).is_some_and(is_own)))
            }
            Party::Address(address) => {
                // A pod that has ended has no address as far as others go, but is still enforced.
                let mut own =
                    self.endpoints.iter().filter(|(_, endpoint)| endpoint.addresses.contains(address));
                let pod = self.places.pod(*address, &self.census);
                let found = match pod {
                    Some(name) => own.find(|(_, endpoint)| endpoint.name().as_ref() == Some(name)),
                    None => own.next(),
                };
                let name = pod.cloned().or_else(|| found.and_then(|(_, endpoint)| endpoint.name()));
                (name, found.map(|(index, _)| index))
            }
        };
        let local = endpoint.and_then(|index| self.endpoints.get(index));
        let pod = name.as_ref().and_then(|name| self.objects.pods.get(name));
        let pod = pod.filter(|pod| local.is_none_or(|endpoint| endpoint.is_of(pod)));
        let addresses = match party {
            Party::Address(address) => vec![*address],
            Party::Pod(_) => {
                let host = pod.filter(|pod| pod.host_network).and_then(|pod| pod.node.as_ref());
                let host = host.and_then(|node| self.objects.nodes.get(node));
                let listed = pod.into_iter().flat_map(|pod| &pod.addresses);
                let listed = listed.chain(local.into_iter().flat_map(|local| &local.addresses));
                listed.chain(host.into_iter().flat_map(|node| &node.addresses)).copied().collect()
            }
        };
        Whois { name, pod, addresses, address: None, endpoint }
    }

    fn view(&self, whois: &Whois<'_>) -> PartyView {
        PartyView {
            address: whois.address,
            pod: whois.name.as_ref().map(ToString::to_string),
            node: whois.address.and_then(|address| self.places.node(address)).map(ToString::to_string),
            own_node: whois.address.is_some_and(|address| self.places.is_own(address)),
            endpoint: whois.endpoint,
        }
    }

    fn side(
        &self,
        direction: Direction,
        subject: &Whois<'_>,
        peer: &Whois<'_>,
        packet: (Option<Protocol>, u16),
    ) -> Side {
        let side = |allowed: bool, reason: &str| Side {
            direction,
            allowed,
            policies: Vec::new(),
            decided_by: None,
            passed_by: None,
            reason: reason.to_owned(),
            misses: Vec::new(),
        };
        let local = subject.endpoint.and_then(|index| Some((index, self.endpoints.get(index)?)));
        if local.is_some_and(|(_, endpoint)| endpoint.name().is_none()) {
            return side(true, "no Pod of the API: no policy is about it");
        }
        let known = local.and_then(|(_, endpoint)| endpoint.subject.clone());
        let known = known.map(|subject| (subject.labels, subject.ports));
        let (labels, ports): (Arc<Labels>, Arc<[NamedPort]>) = match (known, subject.pod) {
            (_, Some(pod)) if pod.host_network => {
                return side(true, "the pod is on its node's network: no policy is about it");
            }
            (_, Some(pod)) if pod.finished && local.is_none() => {
                return side(true, "the pod has ended: no policy is about it");
            }
            (_, Some(pod)) => (pod.labels.clone(), pod.ports.clone()),
            (Some(known), None) => known,
            (None, None) if local.is_some() => return side(false, "the API holds no such Pod: it is closed"),
            (None, None) if subject.name.is_some() => return side(true, "the API holds no such Pod"),
            (None, None) => return side(true, "not a pod of the cluster: no policy is about it"),
        };
        let namespace = subject.name.as_ref().and_then(|name| self.objects.namespaces.get(&name.namespace));
        let Some(namespace) = namespace else {
            return side(local.is_none(), "the API does not hold the pod's namespace");
        };
        let sources = sources(&self.objects, direction, namespace, &labels);
        if sources.is_empty() {
            return side(true, "no policy selects the pod: everything passes");
        }
        let program = Program::new(direction, &sources, &ports);
        let held: Vec<usize> = (0..)
            .zip(&program.peers)
            .filter(|(_, one)| self.is_peer(one, peer))
            .map(|(place, _)| place)
            .collect();
        let mut rules = Vec::new();
        program.matching(held.into_iter(), &mut rules);
        let named: &[NamedPort] = peer.member().map_or(&[], |pod| &pod.ports);
        let decisions = program.decisions(&rules, named, packet.0);
        let place = decisions.partition_point(|(first, _)| *first <= packet.1).saturating_sub(1);
        let decision = decisions[place].1;
        let mut said = self.say(&program, decision, subject, peer);
        if decision.verdict == verdicts::DENY_NETWORK && !said.allowed {
            said.misses = misses(&program, &rules, packet);
        }
        if let Some((index, _)) = local {
            let state = self.endpoint_state(index);
            if let EndpointState::Failed(reason) = state {
                said.allowed = false;
                said.reason =
                    format!("the pod is closed, because its policies are not in the maps: {reason}");
            }
        }
        said
    }

    /// Whether `peer` is whom a rule is about.
    fn is_peer(&self, one: &Peer, peer: &Whois<'_>) -> bool {
        match one {
            Peer::Pods(pods) => peer.member().is_some_and(|pod| {
                let namespace = self.objects.namespaces.get(&pod.name.namespace);
                namespace.is_some_and(|namespace| pods.scope.holds(namespace))
                    && pods.pods.matches(&pod.labels)
            }),
            Peer::Network { cidr, except } => peer.address.is_some_and(|address| {
                cidr.contains(&address) && !except.iter().any(|range| range.contains(&address))
            }),
            Peer::Nodes(selector) => peer.address.is_some_and(|address| {
                let mut nodes = self.objects.nodes.values().filter(|node| node.addresses.contains(&address));
                nodes.any(|node| selector.matches(&node.labels))
            }),
        }
    }

    /// Whether `peer` is the node that the pod is on.
    fn is_own_node(&self, subject: &Whois<'_>, peer: &Whois<'_>) -> bool {
        let Some(address) = peer.address else { return false };
        if subject.endpoint.is_some() {
            return self.places.is_own(address);
        }
        let node = subject.pod.and_then(|pod| self.objects.nodes.get(pod.node.as_ref()?));
        node.is_some_and(|node| node.addresses.contains(&address))
    }

    fn say(&self, program: &Program, decision: Decision, subject: &Whois<'_>, peer: &Whois<'_>) -> Side {
        let itself = subject.address.is_some() && subject.address == peer.address;
        let (allowed, reason) = match decision.verdict {
            verdicts::DENY_NETWORK if itself => (true, "a pod always reaches itself"),
            verdicts::DENY_NETWORK if self.is_own_node(subject, peer) => {
                (true, "no NetworkPolicy forbids what a pod exchanges with its own node")
            }
            verdicts::DENY_NETWORK => {
                (false, "NetworkPolicies isolate the pod, and none of their rules allows it")
            }
            verdicts::DENY_ADMIN | verdicts::DENY_BASELINE => (false, "a rule denies it"),
            _ if decision.rule.is_some() => (true, "a rule allows it"),
            _ => (true, "no rule decides, and no NetworkPolicy isolates the pod"),
        };
        let label = |rule: Option<u32>| rule.map(|rule| rule_label(program, rule));
        Side {
            direction: program.direction,
            allowed,
            policies: program.policies.iter().map(ToString::to_string).collect(),
            decided_by: label(decision.rule),
            passed_by: label(decision.passed),
            reason: reason.to_owned(),
            misses: Vec::new(),
        }
    }
}

impl<'a> Whois<'a> {
    /// The pod, if rules may be about it.
    fn member(&self) -> Option<&'a Pod> {
        self.pod.filter(|pod| !pod.host_network && !pod.finished)
    }
}

/// As in `NetworkPolicy shop/web ingress rule 1`, with the rule's name in quotes if it has one.
fn rule_label(program: &Program, rule: u32) -> String {
    let rule = &program.rules[rule as usize];
    let name = if rule.name.is_empty() { String::new() } else { format!(" {:?}", &*rule.name) };
    format!("{} {} rule {}{name}", program.policies[rule.policy], program.direction, rule.index + 1)
}

/// Why no NetworkPolicy allows it: of each what came nearest.
fn misses(program: &Program, matching: &[u32], packet: (Option<Protocol>, u16)) -> Vec<String> {
    let mut said = Vec::new();
    for (place, policy) in program.policies.iter().enumerate() {
        let own: Vec<u32> = (0..)
            .zip(&program.rules)
            .filter(|(_, rule)| rule.policy == place && rule.tier == Tier::Network)
            .map(|(number, _)| number)
            .collect();
        let near: Vec<u32> =
            own.iter().filter(|rule| matching.binary_search(rule).is_ok()).copied().collect();
        let is_network = matches!(policy, super::model::PolicyName::Network(_));
        let miss = match (is_network, own.is_empty(), near.first()) {
            (false, ..) => continue,
            (_, true, _) => "has no rule that allows anything".to_owned(),
            (_, _, None) => format!("no {} rule names the peer", program.direction),
            (_, _, Some(rule)) => {
                let rule = &program.rules[*rule as usize];
                let ports: Vec<String> = rule.ports.iter().flatten().map(ToString::to_string).collect();
                let number = rule.index + 1;
                let ports = if ports.is_empty() { "no port".to_owned() } else { ports.join(" ") };
                format!("rule {number} names the peer, but {ports} rather than {}", Packet(packet))
            }
        };
        said.push(format!("{policy}: {miss}"));
    }
    said
}

/// Reads as `tcp/80`, or `icmp` where there are no ports.
struct Packet((Option<Protocol>, u16));

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            (Some(protocol), port) => write!(f, "{protocol}/{port}"),
            (None, _) => f.write_str("icmp"),
        }
    }
}

impl fmt::Display for PartyView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}")?,
            None => f.write_str("(no address)")?,
        }
        if let Some(pod) = &self.pod {
            write!(f, " (pod {pod})")?;
        } else if let Some(node) = &self.node {
            write!(f, " (node {node})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allowed { "allowed" } else { "denied" };
        write!(f, "{}: {word}: {}", self.direction, self.reason)?;
        if let Some(rule) = &self.decided_by {
            write!(f, ": {rule}")?;
        }
        if let Some(rule) = &self.passed_by {
            write!(f, " (passed on by {rule})")?;
        }
        if self.decided_by.is_none() && !self.policies.is_empty() {
            write!(f, " ({})", self.policies.join(", "))?;
        }
        self.misses.iter().try_for_each(|miss| write!(f, "\n    {miss}"))
    }
}

/// Several lines:
///
/// ```text
/// 10.244.0.2 (pod shop/a) to 10.244.0.3 (pod shop/b) tcp/81: denied
///   egress: allowed: no policy selects the pod: everything passes
///   ingress: denied: NetworkPolicies isolate the pod, and none of their rules allows it (NetworkPolicy shop/web)
///     NetworkPolicy shop/web: rule 1 names the peer, but tcp/80 rather than tcp/81
/// ```
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, server, protocol, port, allowed, egress, ingress } = self;
        let packet = Packet((*protocol, *port));
        let word = if *allowed { "allowed" } else { "denied" };
        write!(f, "{client} to {server} {packet}: {word}\n  {egress}\n  {ingress}")
    }
}
