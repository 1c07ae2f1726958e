//! Packets judged by maps in memory, which the agent's engine has written.

use std::collections::BTreeMap;

use fairlead_abi::Reason;
use fairlead_core::dataplane::{FaultyMaps, FlowSide, MemoryPolicyMaps};
use fairlead_core::policy::Capacity;
use fairlead_oracle::compare::Mismatch;

use crate::agent::Agent;
use crate::case::{Case, Probe, Step};
use crate::cluster::Cluster;
use crate::oracle::{Cause, Direction, Oracle, Verdict};
use crate::tables::Tables;
use crate::watched::WatchedMaps;

/// How many packets fared how.
pub type Tally = BTreeMap<String, usize>;

/// Room for every case.
const CAPACITY: Capacity = Capacity { policies: 1024, cells: 65_536, rows: 65_536, peers: 65_536 };
/// How many writes in a thousand fail, where some do.
const FAILURES: u32 = 20;
/// Of so many packets the engine is asked about one.
const ASKED: usize = 10;
/// Every packet is looked at after each write: of all probes, these many are.
const WATCHED: usize = 24;

/// Runs a case on maps that take every write.
///
/// # Errors
/// At the first packet that fares otherwise than the interpreter says, or if the maps can't be brought up to date.
pub fn run(case: &Case, tally: &mut Tally) -> Result<(), Mismatch> {
    Subject::start(0).live(case, tally)
}

/// Runs a case on maps that refuse writes now and then.
///
/// # Errors
/// As [`run`].
pub fn run_with_failures(case: &Case, tally: &mut Tally) -> Result<(), Mismatch> {
    Subject::start(FAILURES).live(case, tally)
}

/// Runs a case, whose later steps come one by one: in every state that the maps pass through, a packet is judged as
/// before the step or as after it, or the pod is closed because a write failed. Where one object's labels say both whom
/// policies are about and who is a peer, peers come first.
///
/// # Errors
/// As [`run`].
pub fn run_watched(case: &Case, tally: &mut Tally) -> Result<(), Mismatch> {
    for failures in [0, FAILURES] {
        let mut subject = Subject::start(failures);
        subject.compare(&case.history, &case.probes, &mut Tally::new())?;
        let mut before = subject.agent.cluster().clone();
        for step in &case.later {
            before = subject.watch(&before, step, case, failures > 0, tally)?;
        }
    }
    Ok(())
}

/// Maps in memory, and the agent.
pub struct Subject {
    maps: FaultyMaps<MemoryPolicyMaps>,
    agent: Agent,
}

impl Subject {
    /// Empty maps, of which so many writes in a thousand fail.
    #[must_use]
    pub fn start(failures_per_mille: u32) -> Self {
        let maps = FaultyMaps::new(MemoryPolicyMaps::default(), 1, failures_per_mille);
        Self { maps, agent: Agent::start(CAPACITY) }
    }

    /// Feeds the agent with the history, and brings the maps up to date. Returns what there is then.
    ///
    /// # Errors
    /// When something stays undone.
    pub fn live_through(&mut self, history: &[Step]) -> Result<Cluster, Mismatch> {
        self.agent.live_through(history, &mut self.maps).map_err(outside)?;
        Ok(self.agent.cluster().clone())
    }

    /// What becomes of the flow that this packet begins.
    ///
    /// # Errors
    /// When the maps' own evaluator says something else than the tests'.
    pub fn judge(&self, probe: &Probe) -> Result<Verdict, Mismatch> {
        let verdict = self.tables().judge(self.agent.cluster(), probe);
        self.check(probe, verdict)?;
        Ok(verdict)
    }

    fn tables(&self) -> Tables {
        let endpoints = self.agent.cluster().endpoints.values();
        Tables::read(&self.maps, endpoints).expect("maps in memory can be read")
    }

    /// Holds the verdict against what the maps' own evaluator says.
    fn check(&self, probe: &Probe, verdict: Verdict) -> Result<(), Mismatch> {
        let side = |address| {
            let endpoint = self.agent.cluster().endpoint_at(address).map(|endpoint| endpoint.index);
            FlowSide { address, endpoint }
        };
        let (client, server) = (side(probe.from.ip()), side(probe.to.ip()));
        let other = self.maps.inner.judge(client, server, probe.protocol(), probe.port());
        let reason = match verdict {
            Verdict::Allowed => Ok(()),
            Verdict::Denied(_, Cause::Unknown) => Err(Reason::PolicyUnknown),
            Verdict::Denied(Direction::Egress, _) => Err(Reason::PolicyEgress),
            Verdict::Denied(Direction::Ingress, _) => Err(Reason::PolicyIngress),
        };
        if other == reason { Ok(()) } else { Err(of(probe, format!("{verdict} is {other:?} to core"))) }
    }

    fn live(&mut self, case: &Case, tally: &mut Tally) -> Result<(), Mismatch> {
        self.compare(&case.history, &case.probes, tally)?;
        if case.later.is_empty() { Ok(()) } else { self.compare(&case.later, &case.probes, tally) }
    }

    fn compare(&mut self, steps: &[Step], probes: &[Probe], tally: &mut Tally) -> Result<(), Mismatch> {
        let cluster = self.live_through(steps)?;
        let (oracle, tables) = (Oracle::new(&cluster), self.tables());
        for probe in probes {
            let (verdict, wanted) = (tables.judge(&cluster, probe), oracle.judge(probe));
            if verdict != wanted {
                return Err(of(probe, format!("should be {wanted}, is {verdict}")));
            }
            self.check(probe, verdict)?;
            *tally.entry(verdict.to_string()).or_default() += 1;
        }
        probes.iter().step_by(ASKED).try_for_each(|probe| self.ask(&oracle, probe))
    }

    /// Holds what the engine says when it is asked why against the interpreter.
    fn ask(&self, oracle: &Oracle<'_>, probe: &Probe) -> Result<(), Mismatch> {
        let sides = [(Direction::Egress, probe.from), (Direction::Ingress, probe.to)];
        for ((direction, end), said) in sides.into_iter().zip(self.agent.why(probe)) {
            // Of others it says what their own node would.
            let is_local = self.agent.cluster().endpoint_at(end.ip()).is_some();
            let cause = oracle.side(direction, probe);
            if is_local && said != cause.is_none() {
                return Err(of(probe, format!("{direction:?} is explained as {said}, is {cause:?}")));
            }
        }
        Ok(())
    }

    /// Lives through a step under the eyes of the interpreter. Returns what there is then.
    fn watch(
        &mut self,
        before: &Cluster,
        step: &Step,
        case: &Case,
        may_fail: bool,
        tally: &mut Tally,
    ) -> Result<Cluster, Mismatch> {
        let mut after = before.clone();
        after.take(step);
        after.look();
        let (old, new) = (Oracle::new(before), Oracle::new(&after));
        let mut wanted = Vec::new();
        for probe in case.probes.iter().take(WATCHED) {
            for direction in [Direction::Egress, Direction::Ingress] {
                let sides = [
                    old.side(direction, probe),
                    old.side_among(&new, direction, probe),
                    new.side(direction, probe),
                ];
                wanted.push((probe, direction, sides));
            }
        }
        let mut wrong = None;
        let look = |maps: &FaultyMaps<MemoryPolicyMaps>| {
            let tables = Tables::read(maps, after.endpoints.values()).expect("maps in memory can be read");
            for (probe, direction, sides) in &wanted {
                let cause = tables.side(*direction, &after, probe);
                let is_closed = may_fail && cause == Some(Cause::Unknown);
                if !sides.contains(&cause) && !is_closed && wrong.is_none() {
                    let [old, _, new] = sides;
                    let what = format!("{direction:?} goes from {old:?} to {new:?} by {cause:?}");
                    wrong = Some(of(probe, what));
                }
                *tally.entry("watched".to_owned()).or_default() += 1;
            }
        };
        let mut maps = WatchedMaps { inner: &mut self.maps, look };
        self.agent.live_through(std::slice::from_ref(step), &mut maps).map_err(outside)?;
        wrong.map_or(Ok(after), Err)
    }
}

fn outside(error: anyhow::Error) -> Mismatch {
    Mismatch { packet: None, what: format!("{error:#}") }
}

fn of(probe: &Probe, what: String) -> Mismatch {
    let Probe { kind, from, to } = probe;
    Mismatch { packet: Some(format!("{kind:?} from {from} to {to}")), what }
}
