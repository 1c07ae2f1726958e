//! Packets through the loaded programs, whose maps the agent's engine has written.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::MutexGuard;

use anyhow::Result;
use fairlead_abi::{
    Address, Config, DropEvent, Endpoint, Port, Reason, event_flags, maps as names, policies, verdicts,
};
use fairlead_core::policy::Capacity;
use fairlead_oracle::case::Kind;
use fairlead_oracle::compare::Mismatch;
use fairlead_oracle::wire;
use fairlead_prog_tests::case::{SHOT, code_name};
use fairlead_prog_tests::node::PLACES;
use fairlead_prog_tests::{FAMILIES, Hook, Node, Packet};

use crate::agent::Agent;
use crate::case::{Case, Probe, Step};
use crate::cluster::Cluster;
use crate::maps::{self, NodeMaps};
use crate::oracle::Oracle;
use crate::world;

/// How many packets fared how.
pub type Tally = BTreeMap<String, usize>;

/// Runs a case.
///
/// # Errors
/// At the first packet that fares otherwise than the interpreter says, or if the maps can't be brought up to date.
pub fn run(case: &Case, tally: &mut Tally) -> Result<(), Mismatch> {
    let mut subject = Subject::start();
    let cluster = subject.live_through(&case.history).map_err(outside)?;
    let oracle = Oracle::new(&cluster);
    let wanted: Vec<(Probe, String)> =
        case.probes.iter().map(|probe| (*probe, oracle.judge(probe).to_string())).collect();
    let open = subject.begin(&wanted, tally)?;
    if case.later.is_empty() {
        return Ok(());
    }
    let cluster = subject.live_through(&case.later).map_err(outside)?;
    let oracle = Oracle::new(&cluster);
    let wanted: Vec<(Probe, String)> =
        open.into_iter().map(|probe| (probe, oracle.judge(&probe).to_string())).collect();
    subject.go_on(&wanted, tally)
}

fn outside(error: anyhow::Error) -> Mismatch {
    Mismatch { packet: None, what: format!("{error:#}") }
}

/// The programs, their maps, and the agent.
pub struct Subject {
    node: MutexGuard<'static, Node>,
    interfaces: [Endpoint; 2],
    agent: Agent,
}

impl Subject {
    /// The programs with empty maps, and an agent that has just been started.
    #[must_use]
    pub fn start() -> Self {
        let mut node = Node::start();
        maps::clear(&mut node);
        let room = |name| maps::room(&node, name);
        let capacity = Capacity {
            policies: maps::POLICIES,
            cells: room(names::CELLS),
            rows: room(names::ROWS),
            peers: room(names::PEERS),
        };
        node.set_config(Config { places: PLACES, ..Node::config() });
        let interfaces = maps::interfaces(&node);
        Self { node, interfaces, agent: Agent::start(capacity) }
    }

    /// The programs.
    pub fn node(&mut self) -> &mut Node {
        &mut self.node
    }

    /// Feeds the agent with the history, and brings the maps up to date. Returns what there is then.
    ///
    /// # Errors
    /// When a map refuses, or something stays undone.
    pub fn live_through(&mut self, history: &[Step]) -> Result<Cluster> {
        self.agent.live_through(history, &mut NodeMaps(&mut self.node))?;
        maps::place_pods(&mut self.node, self.interfaces, &self.agent.cluster().endpoints);
        Ok(self.agent.cluster().clone())
    }

    /// Sends the first packet of each flow and, if it passes, what follows. Returns those that passed.
    ///
    /// # Errors
    /// At the first packet that fares otherwise than it should.
    pub fn begin(&mut self, wanted: &[(Probe, String)], tally: &mut Tally) -> Result<Vec<Probe>, Mismatch> {
        let mut open: Vec<Probe> = Vec::new();
        let mut denied = Vec::new();
        self.node.inside(|| {
            for (probe, verdict) in wanted {
                let Some(way) = self.way(probe) else { continue };
                // The answer to an echo request can't be told from a request the other way.
                let is_answer = |other: &Probe| other.kind == Kind::Echo && other.from.ip() == probe.to.ip();
                if probe.kind == Kind::Echo
                    && open.iter().any(|other| is_answer(other) && other.to == probe.from)
                {
                    continue;
                }
                let verdict = way.verdict(verdict);
                *tally.entry(verdict.to_owned()).or_default() += 1;
                let first = wire::first(probe.kind, probe.from, probe.to);
                self.send(way.client, first, verdict).map_err(|what| of(probe, &what))?;
                if verdict == "+" {
                    self.follow(probe, &way)?;
                    open.push(*probe);
                } else {
                    denied.push((*probe, verdict.to_owned()));
                }
            }
            Ok(())
        })?;
        self.check_events(&denied)?;
        Ok(open)
    }

    /// Sends the next packet of each flow, which policies have become otherwise for.
    ///
    /// # Errors
    /// At the first packet that fares otherwise than it should.
    pub fn go_on(&mut self, wanted: &[(Probe, String)], tally: &mut Tally) -> Result<(), Mismatch> {
        let entries = self.node.flows().into_iter().map(|(key, _)| key);
        let entered: HashSet<Ends> =
            entries.map(|key| (key.source, key.source_port, key.destination)).collect();
        self.node.inside(|| {
            for (probe, verdict) in wanted {
                let Some(way) = self.way(probe) else { continue };
                let verdict = way.verdict(verdict);
                *tally.entry(format!("then {verdict}")).or_default() += 1;
                let next = wire::later(probe.kind, probe.from, probe.to);
                let sent = self.send(way.client, next, verdict);
                sent.map_err(|what| of(probe, &format!("goes on: {what}")))?;
                // The answers of a connection that is older than the policies are known by their sockets: here are none.
                if verdict == "+" && entered.contains(&ends(probe)) {
                    self.follow(probe, &way)?;
                }
            }
            Ok(())
        })
    }

    /// The server answers, and the client goes on: all of that passes. What the node sends by UDP may be an answer
    /// itself, so that what the pod sends then is judged as if it began a flow.
    fn follow(&self, probe: &Probe, way: &Way) -> Result<(), Mismatch> {
        if matches!(way.client, Hook::ToPod(_)) && probe.kind == Kind::Udp {
            return Ok(());
        }
        let answer = wire::answer(probe.kind, probe.to, probe.from);
        let sent = self.send(way.server, answer, "+");
        sent.map_err(|what| of(probe, &format!("the answer: {what}")))?;
        let next = wire::later(probe.kind, probe.from, probe.to);
        let sent = self.send(way.client, next, "+");
        sent.map_err(|what| of(probe, &format!("the next packet: {what}")))
    }

    fn send(&self, hook: Hook, packet: Packet, verdict: &str) -> Result<(), String> {
        let before = self.node.drops();
        let outcome = self.node.send_inside(hook, &hook.frame(packet.clone()).bytes());
        let after = self.node.drops();
        let counts = Reason::ALL.iter().zip(after.iter().zip(&before));
        let dropped: Vec<Reason> =
            counts.filter(|(_, (after, before))| after > before).map(|(reason, _)| *reason).collect();
        let wanted = reason(verdict);
        if dropped != wanted.into_iter().collect::<Vec<_>>() || (outcome.code == SHOT) != wanted.is_some() {
            let code = code_name(outcome.code);
            return Err(format!("should be {verdict}, is {code} for {dropped:?} at {hook:?}"));
        }
        let ends = (packet.source, packet.destination);
        if wanted.is_none() && !is_of_echo(&packet) && wire::tuple(&outcome.packet) != Some(ends) {
            return Err(format!("came out as {:?}", wire::tuple(&outcome.packet)));
        }
        Ok(())
    }

    /// Where the two ends of a flow are met; none if not here.
    fn way(&self, probe: &Probe) -> Option<Way> {
        let (from, to) = (probe.from.ip(), probe.to.ip());
        let is_node = |address: IpAddr| FAMILIES.iter().any(|family| family.node() == address);
        let is_other = |address: IpAddr| !self.agent.cluster().addresses.contains(&address);
        match (self.interface(from), self.interface(to)) {
            (Some(client), Some(server)) => {
                Some(Way { client: Hook::FromPod(client), server: Hook::FromPod(server) })
            }
            (Some(client), None) if is_node(to) => {
                Some(Way { client: Hook::FromPod(client), server: Hook::ToPod(client) })
            }
            (Some(client), None) if is_other(to) => {
                Some(Way { client: Hook::FromPod(client), server: Hook::FromWire })
            }
            (None, Some(server)) if is_node(from) => {
                Some(Way { client: Hook::ToPod(server), server: Hook::FromPod(server) })
            }
            (None, Some(server)) if is_other(from) => {
                Some(Way { client: Hook::FromWire, server: Hook::FromPod(server) })
            }
            _ => None,
        }
    }

    fn interface(&self, address: IpAddr) -> Option<fairlead_prog_tests::Pod> {
        let endpoint = self.agent.cluster().endpoint_at(address)?;
        Some(world::interface(endpoint.index))
    }

    /// Of the packets that were dropped, those that the programs told of: so many a second.
    fn check_events(&mut self, denied: &[(Probe, String)]) -> Result<(), Mismatch> {
        // What is dropped for another reason has an interface.
        for event in self.node.events().into_iter().filter(|event| event.interface == 0) {
            let client = SocketAddr::new(event.tuple.source.into(), event.tuple.source_port.number());
            let is_it = |(probe, _): &&(Probe, String)| {
                probe.from == client && IpAddr::from(event.tuple.destination) == probe.to.ip()
            };
            let Some((probe, verdict)) = denied.iter().find(is_it) else {
                return Err(Mismatch { packet: None, what: format!("an event of nothing: {event:?}") });
            };
            if told(&event) != *verdict {
                return Err(of(probe, &format!("should be {verdict}, the event is {event:?}")));
            }
        }
        Ok(())
    }
}

/// Where the packets of a flow are met.
struct Way {
    client: Hook,
    server: Hook,
}

impl Way {
    /// What becomes of the flow here: whatever policies say, the node reaches its pods.
    fn verdict<'a>(&self, verdict: &'a str) -> &'a str {
        if matches!(self.client, Hook::ToPod(_)) { "+" } else { verdict }
    }
}

/// What tells a flow from the others here: the client, its port, and the server.
type Ends = (Address, Port, Address);

fn ends(probe: &Probe) -> Ends {
    (probe.from.ip().into(), Port::new(probe.from.port()), probe.to.ip().into())
}

fn of(probe: &Probe, what: &str) -> Mismatch {
    let Probe { kind, from, to } = probe;
    Mismatch { packet: Some(format!("{kind:?} from {from} to {to}")), what: what.to_owned() }
}

fn is_of_echo(packet: &Packet) -> bool {
    packet.source.port() == 0
}

/// The reason to drop what has this verdict.
fn reason(verdict: &str) -> Option<Reason> {
    match (verdict.chars().next(), verdict.chars().nth(1)) {
        (_, Some('?')) => Some(Reason::PolicyUnknown),
        (Some('e'), _) => Some(Reason::PolicyEgress),
        (Some('i'), _) => Some(Reason::PolicyIngress),
        _ => None,
    }
}

/// The verdict that an event tells of.
fn told(event: &DropEvent) -> String {
    let side = if event.flags & event_flags::EGRESS != 0 { "e" } else { "i" };
    let cause = match event.verdict {
        _ if event.policy == policies::CLOSED => "?",
        verdicts::DENY_ADMIN => "A",
        verdicts::DENY_BASELINE => "B",
        verdicts::DENY_NETWORK => "",
        _ => "!",
    };
    format!("{side}{cause}")
}
