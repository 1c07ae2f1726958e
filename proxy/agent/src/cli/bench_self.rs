//! `fairlead-proxy bench-self`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use fairlead_net::agent::{AgentError, Request};
use fairlead_net::sysctl::PROC_SYS;
use serde::Serialize;

use super::DEFAULT_BPFFS;
use super::ask::Ask;
use super::text::{Cell, Table};
use crate::dataplane::load::Offers;
use crate::errors::chain;
use crate::inquiry::times::{Percentiles, Times};
use crate::kernel::{Kernel, Site};
use crate::measure::Cost;
use crate::measure::connect::{self, Connects, Run};
use crate::measure::programs::{self, MOST_ROUNDS};
use crate::node::PortRange;
use crate::status::Status;

/// Options of `bench-self`.
#[derive(Clone, Debug, Args)]
pub struct BenchSelf {
    /// How often each thing is done.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = rounds)]
    pub rounds: usize,
    /// A bpf filesystem, in which a directory is made for as long as loading takes.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

fn rounds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rounds @ 1..=MOST_ROUNDS) => Ok(rounds),
        _ => Err(format!("not a number from 1 to {MOST_ROUNDS}")),
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    /// Packets through programs with maps of their own.
    packets: Vec<Cost>,
    /// Why packets could not be measured, if so.
    no_packets: Option<String>,
    /// connect(), and the programs that are attached.
    connects: Connects,
    /// The running agent's own times; none where none answers.
    agent: Option<Times>,
    /// Why there are none, if so.
    no_agent: Option<String>,
}

impl BenchSelf {
    pub(super) fn perform(self) -> Result<()> {
        let (packets, no_packets) = match programs::measure(&self.bpffs, self.rounds, self.offers()) {
            Ok(costs) => (costs, None),
            Err(e) => (Vec::new(), Some(chain(&e))),
        };
        let counted = || Some(self.ask.learn::<Status>(&Request::Status).ok()?.programs);
        let connects = connect::measure(self.rounds, counted).context("connect over loopback")?;
        let times: Result<Times, AgentError> = self.ask.learn(&Request::Times);
        let (agent, no_agent) = match times {
            Ok(times) => (Some(times), None),
            Err(e) => (None, Some(chain(&e))),
        };
        self.ask.show(&Measured { packets, no_packets, connects, agent, no_agent }, show)
    }

    /// What the kernel offers programs that are attached nowhere: sockets are none of them.
    fn offers(&self) -> Offers {
        let site = Site {
            bpffs: &self.bpffs,
            proc_sys: Path::new(PROC_SYS),
            cgroup: None,
            ports: PortRange::DEFAULT,
            without: &[],
        };
        Kernel::examine(fairlead_object::OBJECT, &site).offers()
    }
}

fn show(measured: &Measured) -> String {
    let Measured { packets, no_packets, connects, agent, no_agent } = measured;
    let mut page = "No traffic was touched: packets went through programs that are attached nowhere, with maps of their \
                    own, and connections from this process to itself.\n"
        .to_owned();
    let own = packets.first().map_or(0, |cost| cost.p50);
    let row = |cost: &Cost, own: u64| {
        let beside = if own == 0 { String::new() } else { cost.p50.saturating_sub(own).to_string() };
        [cost.what.clone().into(), Cell::number(cost.p50), Cell::number(cost.p99), Cell::number(beside)]
    };
    let floor = packets.iter().enumerate();
    let rows = floor.map(|(place, cost)| {
        row(cost, if place == 0 || cost.what.contains("system call") { 0 } else { own })
    });
    let table = Table::of(["PACKET, IN NANOSECONDS", "P50", "P99", "P50 LESS THE MEASUREMENT"], rows);
    page.push_str(&format!("\n{table}"));
    if let Some(why) = no_packets {
        page.push_str(&format!("packets could not be measured: {why}\n"));
    }
    let rows = [row(&connects.loopback, 0)].map(|[what, p50, p99, _]| [what, p50, p99]);
    page.push_str(&format!("\n{}", Table::of(["CALL, IN NANOSECONDS", "P50", "P99"], rows)));
    let rows = connects.programs.iter().map(|Run { program, runs, nanoseconds }| {
        [program.clone().into(), Cell::number(runs), Cell::number(nanoseconds)]
    });
    let table = Table::of(["PROGRAM, AS ATTACHED", "RUNS MEANWHILE", "NS EACH"], rows);
    if !table.is_empty() {
        page.push_str(&format!(
            "\n{table}without the hooks a connect() takes as much less as its programs take\n"
        ));
    }
    if let Some(why) = &connects.not_counted {
        page.push_str(&format!("the kernel does not count what programs cost: {why}\n"));
    }
    match (agent, no_agent) {
        (Some(times), _) => page.push_str(&format!("\n{}", show_times(times))),
        (None, Some(why)) => page.push_str(&format!("\nno agent: {why}\n")),
        (None, None) => {}
    }
    page
}

fn show_times(times: &Times) -> String {
    let rows = [
        ("reconcile of Services", &times.reconcile),
        ("cause of an endpoint's change → programmed", &times.programming),
        ("reconcile of policies", &times.policies),
        ("sweep of the flow table", &times.sweep),
    ];
    let rows = rows.map(|(what, Percentiles { count, p50, p90, p99 })| {
        let bound = |bound: &Option<f64>| {
            Cell::number(match bound {
                Some(seconds) => format!("< {:.1}", seconds * 1000.0),
                None => "-".to_owned(),
            })
        };
        [what.into(), Cell::number(count), bound(p50), bound(p90), bound(p99)]
    });
    let table = Table::of(["AGENT, IN MILLISECONDS", "TIMES", "P50", "P90", "P99"], rows);
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::text::plain;
    use super::*;

    #[test]
    fn a_measurement_shows_what_is_left_without_its_own_cost_and_why_something_is_missing() {
        let cost = |what: &str, p50| Cost { what: what.into(), times: 2, p50, p99: p50 * 2 };
        let measured = Measured {
            packets: vec![cost("the measurement", 40), cost("pod → pod", 140)],
            no_packets: None,
            connects: Connects {
                loopback: cost("connect()", 9000),
                programs: vec![Run { program: "fairlead_conn4".into(), runs: 2, nanoseconds: 110 }],
                not_counted: Some("not permitted".into()),
            },
            agent: None,
            no_agent: Some("nobody listens".into()),
        };
        let text = plain(&show(&measured));
        for expected in
            ["No traffic was touched", "fairlead_conn4", "not permitted", "no agent: nobody listens"]
        {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        let row = text.lines().find(|line| line.starts_with("pod → pod")).unwrap_or_default();
        assert!(row.contains("140") && row.ends_with("100"), "{text}");
    }
}
