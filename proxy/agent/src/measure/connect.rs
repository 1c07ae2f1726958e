//! connect() over loopback, from this process to itself, and what of it are the socket hooks.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use aya::sys::{Stats, enable_stats};
use serde::{Deserialize, Serialize};

use super::Cost;
use crate::status::ProgramView;

/// What connect() costs, and the programs meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connects {
    /// connect() to a listener of this process at 127.0.0.1, the hooks' part included.
    pub loopback: Cost,
    /// What the programs that are attached here cost for each run meanwhile, by the kernel's own count; live traffic is
    /// in it.
    pub programs: Vec<Run>,
    /// Why the kernel does not count, if so.
    pub not_counted: Option<String>,
}

/// What a program costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its name.
    pub program: String,
    /// How often it ran.
    pub runs: u64,
    /// What a run took, in nanoseconds: the mean.
    pub nanoseconds: u64,
}

/// Connects so often. `programs` tells what the kernel has counted of the programs that are attached, if an agent runs.
///
/// # Errors
/// When there is no loopback.
pub fn measure(rounds: usize, programs: impl Fn() -> Option<Vec<ProgramView>>) -> io::Result<Connects> {
    // The kernel counts for as long as the descriptor is open.
    let counting = enable_stats(Stats::RunTime);
    let before = programs();
    let loopback = connects(rounds)?;
    let after = programs();
    let not_counted = counting.as_ref().err().map(|e| crate::errors::chain(e));
    let programs = match (before, after) {
        (Some(before), Some(after)) => difference(&before, &after),
        _ => Vec::new(),
    };
    Ok(Connects { loopback, programs, not_counted })
}

fn connects(rounds: usize) -> io::Result<Cost> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        let stream = TcpStream::connect(address)?;
        took.push(started.elapsed());
        let (accepted, _) = listener.accept()?;
        // Whoever closes first keeps the port for a minute: the listener's side has one for all.
        drop(accepted);
        drop(stream);
    }
    Ok(Cost::of("connect() over loopback", took))
}

/// What each program did between two counts.
fn difference(before: &[ProgramView], after: &[ProgramView]) -> Vec<Run> {
    let known: BTreeMap<&str, &ProgramView> =
        before.iter().map(|program| (program.name.as_str(), program)).collect();
    let run = |program: &ProgramView| {
        let before = known.get(program.name.as_str())?;
        let runs = program.runs.checked_sub(before.runs).filter(|runs| *runs > 0)?;
        let nanoseconds = program.nanoseconds.saturating_sub(before.nanoseconds) / runs;
        Some(Run { program: program.name.clone(), runs, nanoseconds })
    };
    after.iter().filter_map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_costs_what_was_counted_between_two_looks() {
        let program = |name: &str, runs, nanoseconds| ProgramView {
            name: name.into(),
            attached_to: Vec::new(),
            verified_instructions: None,
            runs,
            nanoseconds,
        };
        let before = [program("a", 10, 1000), program("b", 5, 50)];
        let after = [program("a", 14, 1400), program("b", 5, 50), program("c", 1, 1)];
        assert_eq!(difference(&before, &after), [Run { program: "a".into(), runs: 4, nanoseconds: 100 }]);
    }

    #[test]
    fn connections_to_oneself_need_no_agent() {
        let measured = measure(3, || None).expect("loopback");
        assert_eq!((measured.loopback.times, measured.programs.len()), (3, 0));
    }
}
