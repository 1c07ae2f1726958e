//! A case through the programs, and every packet that comes out held against what the oracle says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{Counter, Reason};
use fairlead_prog_tests::case::{REDIRECT, SHOT, UNSPEC, code_name};
use fairlead_prog_tests::packet::dump;
use fairlead_prog_tests::place::{GATEWAY_MAC, NODE2_MAC, UPLINK_MAC};
use fairlead_prog_tests::{Hook, Outcome, Packet, Pod};

use crate::case::{At, Case, Kind, Probe};
use crate::cluster::Cluster;
use crate::oracle::{Balanced, Expected, Leaves, Oracle, ServicePort};
use crate::subject::{SNAT_COUNT, SNAT_FIRST, Subject};
use crate::wire;
use crate::world::{self, Way};

/// How often a frontend is dialled for each backend that it has, so that none is missed by chance: the odds are one
/// in a billion.
const DRAWS: usize = 24;
/// A Service with more backends than this is not dialled often.
const BACKENDS: usize = 9;
/// How many connections the flow table holds before it is emptied, between probes: under half of what it can.
const CONNECTIONS: usize = 220;

/// What a run has seen.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Packets that went through a program.
    pub packets: usize,
    /// Clients' packets, by what became of them.
    pub outcomes: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn count(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }
}

/// A packet that did not fare as the oracle says, or maps that could not be brought up to date.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The client's packet that began it, if one did.
    pub packet: Option<String>,
    /// What happened, and what should have.
    pub what: String,
}

impl Mismatch {
    fn outside(error: anyhow::Error) -> Self {
        Self { packet: None, what: format!("{error:#}") }
    }

    fn of(probe: &Probe, what: String) -> Self {
        let Probe { at, kind, from, to, .. } = probe;
        Self { packet: Some(format!("{at:?} {kind:?} from {from} to {to}")), what }
    }

    /// Whether the other is a mismatch of the same sort: its text begins alike.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let beginning = |of: &Self| -> Vec<String> {
            of.what
                .split([' ', ':', ','])
                .take(5)
                .filter(|word| !word.contains('.'))
                .map(str::to_owned)
                .collect()
        };
        self.packet.is_some() == other.packet.is_some() && beginning(self) == beginning(other)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.packet.as_deref().unwrap_or("the maps"), self.what)
    }
}

/// Runs a case.
///
/// # Errors
/// At the first packet that fares otherwise than the oracle says, or if the maps can't be brought up to date.
pub fn run(case: &Case, tally: &mut Tally) -> Result<(), Mismatch> {
    let cluster = Cluster::after(&case.history);
    let oracle = Oracle::new(&cluster, &case.settings, &Subject::local_addresses());
    let mut subject = Subject::start(&case.settings);
    subject.live_through(&case.history).map_err(Mismatch::outside)?;
    subject.configure(oracle.node_address(true), oracle.node_address(false));
    let counted = subject.counted();
    let mut run = Run { oracle, memory: HashMap::new(), tally, counted, open: Vec::new() };
    let mut probes = case.probes.iter().peekable();
    while let Some(probe) = probes.peek() {
        if run.open.len() + run.times(probe) > CONNECTIONS {
            subject.forget_flows();
            run.open.clear();
        }
        // As many as there is room for at once: to enter the namespace takes longer than a packet does.
        subject.inside(|| {
            while let Some(probe) = probes.next_if(|probe| run.open.len() + run.times(probe) <= CONNECTIONS) {
                run.probe(&subject, probe).map_err(|what| Mismatch::of(probe, what))?;
            }
            Ok(())
        })?;
    }
    if case.later.is_empty() {
        return Ok(());
    }
    let cluster = Cluster::after(&[&case.history[..], &case.later].concat());
    subject.live_through(&case.later).map_err(Mismatch::outside)?;
    let oracle = Oracle::new(&cluster, &case.settings, &Subject::local_addresses());
    // Numbers of Services may change, and with them who remembers whom.
    let memory = run.memory.into_keys().map(|key| (key, Memory::Unknown)).collect();
    let Run { tally, counted, open, .. } = run;
    let mut run = Run { oracle, memory, tally, counted, open: Vec::new() };
    subject.inside(|| {
        for connection in &open {
            run.go_on(&subject, connection).map_err(|what| {
                let what = format!("{what}; its connection had gone to {}", connection.backend);
                Mismatch::of(&connection.probe, what)
            })?;
        }
        Ok(())
    })
}

/// A connection that has a backend.
struct Connection {
    probe: Probe,
    service_port: ServicePort,
    /// The client, as the backend sees it.
    source: SocketAddr,
    backend: SocketAddr,
}

/// The backend that a client has at a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Backend(SocketAddr),
    /// One that did not show.
    Unknown,
}

struct Run<'a> {
    oracle: Oracle<'a>,
    memory: HashMap<(IpAddr, ServicePort), Memory>,
    tally: &'a mut Tally,
    counted: Counted,
    open: Vec<Connection>,
}

/// Counters and drops, in order of number.
pub type Counted = (Vec<u64>, Vec<u64>);

/// All that must come of a packet.
struct Then {
    code: i32,
    packet: Option<Packet>,
    counted: Vec<Counter>,
    dropped: Vec<Reason>,
}

impl Then {
    fn dropped(reason: Reason) -> Self {
        Self { code: SHOT, packet: None, counted: Vec::new(), dropped: vec![reason] }
    }

    fn left(packet: Packet) -> Self {
        Self { code: UNSPEC, packet: Some(packet), counted: Vec::new(), dropped: Vec::new() }
    }

    fn refused(sent: &Packet, probe: &Probe, reason: Reason) -> Self {
        let answer = if probe.kind == Kind::Syn { sent.reset() } else { sent.refusal() };
        let counted = vec![Counter::Rejected];
        Self { code: REDIRECT, packet: Some(answer), counted, dropped: vec![reason] }
    }

    fn counting(mut self, counter: Counter, yes: bool) -> Self {
        if yes {
            self.counted.push(counter);
        }
        self
    }
}

/// The packet, met at `hook`, on its way to where it is addressed. Forwarding takes a hop; what the node's own stack
/// sends has gone none.
fn onward(hook: Hook, packet: Packet) -> Then {
    let own = matches!(hook, Hook::ToPod(_) | Hook::ToWire);
    let way = world::way(packet.destination.ip());
    let counter = match way {
        Way::Pod(_) => Counter::ToPod,
        Way::Stack => Counter::ToStack,
        Way::Node2 | Way::Gateway | Way::Stranger => Counter::Forwarded,
    };
    let routed = if own || way == Way::Stack { packet } else { packet.a_hop_on() };
    let (code, packet) = match way {
        Way::Pod(pod) => (REDIRECT, routed.frame(pod.host_mac(), pod.pod_mac())),
        Way::Stack => (UNSPEC, hook.frame(routed)),
        Way::Node2 => (if own { UNSPEC } else { REDIRECT }, routed.frame(UPLINK_MAC, NODE2_MAC)),
        Way::Gateway => (if own { UNSPEC } else { REDIRECT }, routed.frame(UPLINK_MAC, GATEWAY_MAC)),
        Way::Stranger => (REDIRECT, hook.frame(routed)),
    };
    let counted =
        if own && way != Way::Stack && !matches!(way, Way::Pod(_)) { vec![] } else { vec![counter] };
    Then { code, packet: Some(packet), counted, dropped: Vec::new() }
}

impl Run<'_> {
    /// How often the probe is sent: once, or so often that every backend gets one.
    fn times(&self, probe: &Probe) -> usize {
        match self.oracle.expect(probe) {
            Expected::Balanced(Balanced { choices, .. }) if probe.often && choices.len() <= BACKENDS => {
                DRAWS * choices.len()
            }
            _ => 1,
        }
    }

    fn probe(&mut self, subject: &Subject, probe: &Probe) -> Result<(), String> {
        let (expected, times) = (self.oracle.expect(probe), self.times(probe));
        let mut chosen = BTreeSet::new();
        for time in 0..times {
            let from = SocketAddr::new(probe.from.ip(), probe.from.port() + time as u16);
            chosen.extend(self.first(subject, &Probe { from, ..*probe }, &expected, Counter::FlowCreated)?);
        }
        let Expected::Balanced(balanced) = expected else { return Ok(()) };
        let silent = |leaves: &Leaves| matches!(leaves, Leaves::Dropped(_));
        let never: Vec<&SocketAddr> = balanced
            .choices
            .iter()
            .filter(|(backend, leaves)| !silent(leaves) && !chosen.contains(*backend))
            .map(|(backend, _)| backend)
            .collect();
        if times > 1 && !balanced.sticks && !never.is_empty() {
            return Err(format!("{times} connections, and none went to {never:?}"));
        }
        Ok(())
    }

    /// The client's next packet after the world has changed. A connection stays with its backend to its end. A datagram
    /// goes to no endpoint that does not serve any more; it goes on to one that its frontend still has; and if its
    /// endpoint serves but has no new clients here, either will do.
    fn go_on(&mut self, subject: &Subject, connection: &Connection) -> Result<(), String> {
        let Connection { probe, service_port, source, backend } = connection;
        let hook = probe.at.hook();
        let (outcome, counted) =
            self.send(subject, hook, &hook.frame(wire::later(probe.kind, probe.from, probe.to)));
        let stayed = check(&onward(hook, wire::later(probe.kind, *source, *backend)), &outcome, &counted);
        let expected = self.oracle.expect(probe);
        let offered =
            matches!(&expected, Expected::Balanced(balanced) if balanced.choices.contains_key(backend));
        let serves = self.oracle.serves(service_port, *backend);
        if probe.kind != Kind::Udp || serves && offered || serves && stayed.is_ok() {
            self.tally.count("went on");
            return stayed;
        }
        self.judge(subject, probe, &expected, Counter::FlowRebalanced, (&outcome, &counted)).map(|_| ())
    }

    /// A client's first packet and, if it gets a backend, what follows. Returns the backend.
    fn first(
        &mut self,
        subject: &Subject,
        probe: &Probe,
        expected: &Expected,
        begun: Counter,
    ) -> Result<Option<SocketAddr>, String> {
        let hook = probe.at.hook();
        let sent = hook.frame(wire::first(probe.kind, probe.from, probe.to));
        let (outcome, counted) = self.send(subject, hook, &sent);
        self.judge(subject, probe, expected, begun, (&outcome, &counted))
    }

    /// Holds what became of a packet that begins a connection against what should.
    fn judge(
        &mut self,
        subject: &Subject,
        probe: &Probe,
        expected: &Expected,
        begun: Counter,
        (outcome, counted): (&Outcome, &Counted),
    ) -> Result<Option<SocketAddr>, String> {
        let hook = probe.at.hook();
        let packet = wire::first(probe.kind, probe.from, probe.to);
        let sent = hook.frame(packet.clone());
        let (name, then) = match expected {
            Expected::Balanced(balanced) => {
                return self.balanced(subject, probe, balanced, begun, (outcome, counted));
            }
            Expected::Refused(reason) => (reason.label(), Then::refused(&sent, probe, *reason)),
            Expected::Dropped(reason) => (reason.label(), Then::dropped(*reason)),
            Expected::Untouched => ("untouched", untouched(hook, packet)),
        };
        self.tally.count(name);
        check(&then, outcome, counted).map_err(|what| format!("should be {expected:?}: {what}"))?;
        Ok(None)
    }

    fn balanced(
        &mut self,
        subject: &Subject,
        probe: &Probe,
        balanced: &Balanced,
        begun: Counter,
        (outcome, counted): (&Outcome, &Counted),
    ) -> Result<Option<SocketAddr>, String> {
        let memory = (probe.from.ip(), balanced.service_port.clone());
        if outcome.code == SHOT {
            self.memory.insert(memory, Memory::Unknown);
            let reason = dropped(counted);
            let allowed = balanced.choices.values().any(|leaves| match leaves {
                Leaves::Dropped(allowed) => reason == [*allowed],
                _ => false,
            });
            self.tally.count("balanced in vain");
            return if allowed { Ok(None) } else { Err(format!("dropped for {reason:?}: {balanced:?}")) };
        }
        let (source, backend) = wire::tuple(&outcome.packet).ok_or("no packet came out")?;
        let Some(leaves) = balanced.choices.get(&backend) else {
            let code = code_name(outcome.code);
            return Err(format!(
                "{code}, {source} to {backend}, dropped {:?}: {balanced:?}",
                dropped(counted)
            ));
        };
        let known = balanced.sticks.then(|| self.memory.get(&memory).copied()).flatten();
        let kept = match known {
            Some(Memory::Backend(before)) if balanced.choices.contains_key(&before) && before != backend => {
                return Err(format!("the client had {before} and got {backend}: {balanced:?}"));
            }
            Some(Memory::Backend(before)) => before == backend,
            Some(Memory::Unknown) => counted.0[Counter::AffinityKept as usize] > 0,
            None => false,
        };
        let as_expected = match leaves {
            Leaves::KeepingSource => source == probe.from,
            Leaves::Masqueraded(node) => {
                let ports = SNAT_FIRST..=SNAT_FIRST + (SNAT_COUNT - 1);
                source.ip() == *node && ports.contains(&source.port())
            }
            Leaves::Dropped(_) => false,
        };
        if !as_expected {
            return Err(format!("it left from {source} for {backend}: {balanced:?}"));
        }
        self.memory.insert(memory, Memory::Backend(backend));
        self.tally.count(match leaves {
            Leaves::KeepingSource => "balanced",
            _ if backend.ip() == probe.from.ip() => "balanced to itself",
            _ => "balanced and masqueraded",
        });
        if kept {
            self.tally.count("to the backend that it had");
        }
        let service_port = balanced.service_port.clone();
        self.open.push(Connection { probe: *probe, service_port, source, backend });
        let hook = probe.at.hook();
        let then = onward(hook, wire::first(probe.kind, source, backend))
            .counting(begun, true)
            .counting(Counter::AffinityKept, kept);
        check(&then, outcome, counted).map_err(|what| format!("{source} to {backend}: {what}"))?;
        self.answer(subject, probe, source, backend)?;
        let next = hook.frame(wire::later(probe.kind, probe.from, probe.to));
        let (outcome, counted) = self.send(subject, hook, &next);
        check(&onward(hook, wire::later(probe.kind, source, backend)), &outcome, &counted)
            .map_err(|what| format!("the client's next packet, to {backend}: {what}"))?;
        Ok(Some(backend))
    }

    /// The backend answers: the client hears the frontend.
    fn answer(
        &mut self,
        subject: &Subject,
        probe: &Probe,
        source: SocketAddr,
        backend: SocketAddr,
    ) -> Result<(), String> {
        let hook = match (world::way(backend.ip()), probe.at) {
            (Way::Pod(pod), _) => Hook::FromPod(pod),
            (Way::Stack, At::PodA) => Hook::ToPod(Pod::A),
            (Way::Stack, At::PodB) => Hook::ToPod(Pod::B),
            (Way::Stack, _) => Hook::ToWire,
            _ => Hook::FromWire,
        };
        // What the stack sends from an address that is not the node's is not known for its own.
        if world::way(backend.ip()) == Way::Stack
            && self.oracle.node_address(backend.is_ipv4()) != Some(backend.ip())
        {
            return Ok(());
        }
        let sent = hook.frame(wire::answer(probe.kind, backend, source));
        let (outcome, counted) = self.send(subject, hook, &sent);
        let heard = wire::answer(probe.kind, probe.to, probe.from);
        let then = match hook {
            Hook::ToPod(_) | Hook::ToWire => Then::left(hook.frame(heard)),
            _ => onward(hook, heard),
        };
        check(&then, &outcome, &counted)
            .map_err(|what| format!("the answer of {backend} to {source}: {what}"))
    }

    /// Sends a packet; what it added to the counters comes with the outcome.
    fn send(&mut self, subject: &Subject, hook: Hook, packet: &Packet) -> (Outcome, Counted) {
        self.tally.packets += 1;
        let outcome = subject.send(hook, &packet.bytes());
        let now = subject.counted();
        let grown = |now: &[u64], then: &[u64]| now.iter().zip(then).map(|(now, then)| now - then).collect();
        let added = (grown(&now.0, &self.counted.0), grown(&now.1, &self.counted.1));
        self.counted = now;
        (outcome, added)
    }
}

/// A packet that no Service has a say in. What arrives for others is the stack's to route.
fn untouched(hook: Hook, packet: Packet) -> Then {
    let for_pod = world::pod_at(packet.destination.ip()).is_some();
    match hook {
        Hook::FromPod(_) => onward(hook, packet),
        Hook::FromWire if for_pod => onward(hook, packet),
        _ => Then::left(hook.frame(packet)),
    }
}

fn check(then: &Then, outcome: &Outcome, counted: &Counted) -> Result<(), String> {
    let reasons = dropped(counted);
    let mut wrong = Vec::new();
    if outcome.code != then.code {
        wrong.push(format!("{} and not {}", code_name(outcome.code), code_name(then.code)));
    }
    if reasons != then.dropped {
        wrong.push(format!("dropped for {reasons:?} and not {:?}", then.dropped));
    }
    let counters = Counter::ALL.iter().filter(|counter| **counter != Counter::FlowReclaimed);
    for counter in counters {
        let expected = then.counted.iter().filter(|expected| *expected == counter).count() as u64;
        let actual = counted.0[*counter as usize];
        if actual != expected {
            wrong.push(format!("{} counted {actual} and not {expected}", counter.label()));
        }
    }
    if let Some(packet) = &then.packet
        && packet.bytes() != outcome.packet
    {
        let expected = packet.bytes();
        let (out, wanted) = (dump(&outcome.packet, &expected), dump(&expected, &outcome.packet));
        wrong.push(format!("packet\n{out}\nand not\n{wanted}\n"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join(", ")) }
}

/// The reasons for which packets were dropped, each as often as it was.
fn dropped(counted: &Counted) -> Vec<Reason> {
    let counts = Reason::ALL.iter().zip(&counted.1);
    counts.flat_map(|(reason, count)| std::iter::repeat_n(*reason, *count as usize)).collect()
}
