//! Packets judged by maps in memory, which the agent's engine has written.

use std::collections::BTreeMap;

use fairlead_core::policy::Capacity;
use fairlead_oracle::compare::Mismatch;

use crate::agent::Agent;
use crate::case::{Case, Probe, Step};
use crate::cluster::Cluster;
use crate::oracle::Oracle;
use crate::ownmaps::OwnMaps;

/// How many packets fared how.
pub type Tally = BTreeMap<String, usize>;

/// Room for every case.
const CAPACITY: Capacity = Capacity { policies: 1024, cells: 65_536, rows: 65_536, peers: 65_536 };

/// Runs a case: on maps that take every write, and on maps that refuse some.
///
/// # Errors
/// At the first packet that fares otherwise than the interpreter says, or if the maps can't be brought up to date.
pub fn run(case: &Case, tally: &mut Tally) -> Result<(), Mismatch> {
    let mut subject = Subject::start(None);
    subject.try_all(&case.history, &case.probes, tally)?;
    subject.try_all(&case.later, &case.probes, tally)?;
    if case.later.is_empty() { return Ok(()); }
    let mut subject = Subject::start(Some(case.probes.len() as u64));
    subject.try_all(&case.history, &case.probes, &mut Tally::new())?;
    subject.try_all(&case.later, &case.probes, tally)
}

/// Maps in memory, and the agent.
pub struct Subject {
    maps: OwnMaps,
    agent: Agent,
}

impl Subject {
    /// Empty maps.
    pub fn start(seed: Option<u64>) -> Self {
        let mut maps = OwnMaps::default();
        maps.random = seed;
        Self { maps, agent: Agent::start(CAPACITY) }
    }

    /// lives
    pub fn live_through(&mut self, steps: &[Step]) -> Result<Cluster, Mismatch> {
        let lived = self.agent.live_through(steps, &mut self.maps);
        lived.map_err(|error| Mismatch { packet: None, what: format!("{error:#}") })?;
        let mut cluster = self.agent.cluster().clone();
        cluster.look();
        Ok(cluster)
    }

    /// judge
    pub fn judge(&self, probe: &Probe) -> String {
        let cluster = self.agent.cluster();
        let index = |address| cluster.endpoint_at(address).map(|endpoint| endpoint.index);
        let (from, to) = (probe.from.ip(), probe.to.ip());
        self.maps.judge(index(from), index(to), from, to, probe.protocol(), probe.port())
    }

    fn try_all(&mut self, steps: &[Step], probes: &[Probe], tally: &mut Tally) -> Result<(), Mismatch> {
        let cluster = self.live_through(steps)?;
        let oracle = Oracle::new(&cluster);
        for probe in probes {
            let (verdict, wanted) = (self.judge(probe), oracle.judge(probe).to_string());
            if verdict != wanted {
                let Probe { kind, from, to } = probe;
                let packet = Some(format!("{kind:?} from {from} to {to}"));
                return Err(Mismatch { packet, what: format!("should be {wanted}, is {verdict}") });
            }
            *tally.entry(verdict).or_default() += 1;
        }
        Ok(())
    }
}
