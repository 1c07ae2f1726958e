//! Rounds: every cell on every path, interleaved, so that whatever the machine goes through while the
//! benchmark runs meets all paths alike.
//!
//! In a round, one cell is measured on all paths in turn before the next cell is. The order of the paths
//! moves on by one from round to round, and is turned around in every other round, so that no path
//! always follows the same one. Comparisons are made within a round ([`crate::report`]).

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cell::{Cell, Order, Sample};
use crate::cpu::{Core, Times};
use crate::topology::{Path, Topology};

/// How long the machine is watched, while the benchmark rests, before each round.
const WATCH: Duration = Duration::from_millis(250);

/// Time for the server to close what a client has left behind.
const SETTLE: Duration = Duration::from_millis(10);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// Rounds.
    pub(crate) rounds: usize,
    /// Time per cell, path and round; a tenth of it more is spent on warming up.
    pub(crate) measured: Duration,
}

/// All samples: one per round for each measured cell of each measured path.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// By cell and path's name; the n-th sample is of the n-th round.
    pub(crate) by_cell: HashMap<(Cell, &'static str), Vec<Sample>>,
    /// Share of the whole machine that others used before each round.
    pub(crate) others: Vec<f64>,
    /// Share of the whole machine that the hypervisor took away during each round.
    pub(crate) stolen: Vec<f64>,
}

/// Measures the cells in `plan`, each with the paths on which to measure it.
///
/// # Errors
/// When a path does not work; the error names path and cell.
pub(crate) fn run(
    topology: &mut Topology,
    core: Core,
    plan: &[(Cell, Vec<Path>)],
    amount: Amount,
) -> Result<Samples> {
    let mut samples = Samples::default();
    for round in 0..amount.rounds {
        let others = busy_without_us()?;
        eprintln!(
            "round {} of {}; others use {:.0}% of the machine",
            round + 1,
            amount.rounds,
            others * 100.0
        );
        samples.others.push(others);
        let before = Times::read(None)?;
        for (cell, paths) in plan {
            for index in order(round, paths.len()) {
                let path = paths[index];
                let sample = measure(topology, core, path, *cell, amount.measured)
                    .with_context(|| format!("measure {cell:?} on path {}", path.name))?;
                samples.by_cell.entry((*cell, path.name)).or_default().push(sample);
            }
        }
        let spent = Times::read(None)?.since(before);
        samples.stolen.push(spent.stolen.as_secs_f64() / spent.total.as_secs_f64());
    }
    Ok(samples)
}

/// Share of all processors in use while no worker has anything to do: someone else's.
fn busy_without_us() -> Result<f64> {
    let before = Times::read(None)?;
    thread::sleep(WATCH);
    let spent = Times::read(None)?.since(before);
    Ok(spent.busy.as_secs_f64() / spent.total.as_secs_f64().max(f64::MIN_POSITIVE))
}

/// The order of `count` paths in a round.
fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |step| {
        let step = if round % 2 == 1 { count - 1 - step } else { step };
        (step + round) % count
    })
}

fn measure(
    topology: &mut Topology,
    core: Core,
    path: Path,
    cell: Cell,
    measured: Duration,
) -> Result<Sample> {
    let order = Order { cell, target: path.target.of(cell), warm_up: measured / 10, measured };
    let workers = |topology: &mut Topology| -> Result<Duration> {
        Ok(topology.worker(path.client).cpu_time()? + topology.worker(path.server).cpu_time()?)
    };
    let (workers_before, core_before) = (workers(topology)?, core.read()?);
    let mut sample = topology.worker(path.client).measure(order)?;
    let (core_after, workers_after) = (core.read()?, workers(topology)?);
    sample.cpu_seconds = core_after.cost_since(core_before, workers_after - workers_before).as_secs_f64();
    thread::sleep(SETTLE);
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_round_visits_every_path_once() {
        for round in 0..12 {
            let visited: HashSet<_> = order(round, 6).collect();
            assert_eq!(visited, (0..6).collect());
        }
    }

    #[test]
    fn a_path_does_not_always_follow_the_same_one() {
        let predecessors: HashSet<_> = (0..6)
            .filter_map(|round| {
                let visited: Vec<_> = order(round, 6).collect();
                let place = visited.iter().position(|&path| path == 0)?;
                visited.get(place.checked_sub(1)?).copied()
            })
            .collect();
        assert!(predecessors.len() > 1, "always after {predecessors:?}");
    }

    #[test]
    fn a_round_does_not_always_begin_with_the_same_path() {
        let first: HashSet<_> = (0..6).filter_map(|round| order(round, 6).next()).collect();
        assert!(first.len() > 2, "{first:?}");
    }
}
