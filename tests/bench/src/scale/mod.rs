//! How Fairlead holds up with many Services: how long a started agent takes to program them, how soon a change takes
//! effect, and what memory all that takes.
//!
//! ```text
//! objects   Services and EndpointSlices by the thousand, written through the API
//! restart   agent stopped, started, asked until it is healthy: with its maps in place, and with none
//! change    slice rewritten ──▶ API ──▶ watch ──▶ maps ──▶ a client that connects all the while meets another pod
//! memory    the agent's, and its maps'
//! ```
//!
//! Everything is real: the API is served over HTTP by a process of its own, the agent runs on a node of a cluster
//! ([`fairlead_harness`]), and the pods that the changed endpoints are were wired by the CNI plugin. Only the other
//! endpoints are mere addresses.

mod change;
pub(crate) mod memory;
mod objects;
pub(crate) mod restart;

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, Options};

use crate::report::Report;
use crate::scale::change::Switch;
use crate::scale::objects::Size;
use crate::stats::{median, percentile};

/// As many Services as the data plane must hold.
const MANY: Size = Size { services: 10_000, endpoints: 10 };
/// Fewer, but larger ones.
const LARGE: Size = Size { services: 1_000, endpoints: 100 };
/// So few that they can't matter.
const FEW: Size = Size { services: 10, endpoints: 10 };

/// What is found out here, by the names of results.
const FIGURES: [&str; 11] = [
    "sync_full_10k_seconds",
    "sync_full_10k_pinned_seconds",
    "sync_full_1k100_seconds",
    "sync_full_1k100_pinned_seconds",
    "endpoint_change_p50_ms",
    "endpoint_change_p99_ms",
    "endpoint_change_p50_ms_small",
    "endpoint_change_p99_ms_small",
    "agent_rss_mib_10k",
    "agent_rss_peak_mib_10k",
    "maps_mib_10k",
];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// How often the agent is started in each way.
    pub(crate) restarts: usize,
    /// How often few and many Services take turns.
    pub(crate) rounds: usize,
    /// Changes per turn.
    pub(crate) changes: usize,
}

/// Whether anything here has `only` in its name.
pub(crate) fn is_asked_for(only: &str) -> bool {
    FIGURES.iter().any(|figure| figure.contains(only))
}

/// Measures everything; clients and the servers of changed endpoints run on processor `cpu`.
///
/// # Errors
/// When a cluster does not start, the agent does not hold the Services, or a connection fails during a change.
pub(crate) fn run(cpu: usize, amount: Amount, report: &mut Report) -> Result<()> {
    let (few, mut many) = (start(FEW)?, start(MANY)?);
    syncs(&mut many, MANY, amount, ["sync_full_10k_seconds", "sync_full_10k_pinned_seconds"], report)?;
    changes(cpu, &few, &many, amount, report).context("change endpoints")?;
    let node = many.nodes().first().context("a node")?;
    let agent = memory::of_agent(node).context("read the agent's memory")?;
    report.add("agent_rss_mib_10k", agent.resident, "MiB");
    report.add("agent_rss_peak_mib_10k", agent.peak, "MiB");
    report.add("maps_mib_10k", memory::of_maps(node, |_| true).context("read the maps' memory")?, "MiB");
    few.down()?;
    many.down()?;
    let mut large = start(LARGE)?;
    syncs(&mut large, LARGE, amount, ["sync_full_1k100_seconds", "sync_full_1k100_pinned_seconds"], report)?;
    large.down()
}

/// A cluster of one node with that many Services, and the pods of [`change`].
fn start(size: Size) -> Result<Cluster> {
    eprintln!("a cluster with {} Services of {} endpoints", size.services, size.endpoints);
    let mut cluster = Cluster::start(Options { nodes: 1, ..Options::default() })?;
    objects::create(cluster.api(), size).context("create Services")?;
    change::create(&cluster)?;
    restart::wait_until_programmed(&mut cluster, size)?;
    Ok(cluster)
}

/// Starts the agent again and again, with and without maps in turn.
fn syncs(
    cluster: &mut Cluster,
    size: Size,
    amount: Amount,
    [empty, pinned]: [&'static str; 2],
    report: &mut Report,
) -> Result<()> {
    let (mut from_empty, mut from_pinned) = (Vec::new(), Vec::new());
    for _ in 0..amount.restarts {
        from_pinned.push(restart::with_maps(cluster, size)?.as_secs_f64());
        from_empty.push(restart::without_maps(cluster, size)?.as_secs_f64());
    }
    report.add(empty, median(&from_empty), "s");
    report.add(pinned, median(&from_pinned), "s");
    Ok(())
}

fn changes(cpu: usize, few: &Cluster, many: &Cluster, amount: Amount, report: &mut Report) -> Result<()> {
    let mut switches = [Switch::new(cpu, few)?, Switch::new(cpu, many)?];
    let mut latencies = [Vec::new(), Vec::new()];
    for _ in 0..amount.rounds {
        for (switch, latencies) in switches.iter_mut().zip(&mut latencies) {
            latencies.extend(switch.measure(amount.changes)?);
        }
    }
    let [few, many] = &mut latencies;
    let mut add = |name, latencies: &mut [u32], percent| {
        report.add(name, percentile(latencies, percent) / 1e3, "ms");
    };
    add("endpoint_change_p50_ms", many, 50.0);
    add("endpoint_change_p99_ms", many, 99.0);
    add("endpoint_change_p50_ms_small", few, 50.0);
    add("endpoint_change_p99_ms_small", few, 99.0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_figures_name_asks_for_all_of_them() {
        assert!(is_asked_for(""));
        assert!(is_asked_for("agent_rss"));
        assert!(!is_asked_for("clusterip"));
    }
}
