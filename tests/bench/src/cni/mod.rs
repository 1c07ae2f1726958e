//! How long pods' interfaces take to be made and removed by CNI ADD and DEL, beside the reference plugins `ptp` and
//! `host-local`: real executables, each verb a process with its configuration on standard input.
//!
//! ```text
//! ""          a node of a cluster, its agent at work   fairlead-cni ──▶ agent: maps, programs at the interface
//! alone       a namespace that plays a node            fairlead-cni, the kernel routes
//! reference   another                                  ptp ──▶ host-local, the kernel routes
//! ```
//!
//! A verb's time is from the start of its process until that has ended and its answer is read. The three take turns pod
//! by pod, in batches of [`BATCH`]: namespaces are made first, pods added, removed, and the namespaces removed last, since
//! the kernel's own work on namespaces that end would be in the way.
//!
//! | result | |
//! |---|---|
//! | `cni_add_p50_ms`, `cni_add_p99_ms`, `cni_del_p50_ms` | Fairlead, the agent's part included; IPv4 and IPv6 |
//! | `cni_alone_…` | the same without an agent, as the reference has none |
//! | `cni_reference_…` | the reference, IPv4 alone |
//! | `cni_add_ratio`, `cni_del_ratio` | Fairlead's median, the agent's part included, over the reference's: less is better |
//! | `cni_alone_add_ratio`, `cni_alone_del_ratio` | the same without an agent |
//! | `pods_per_second` | [`AT_ONCE`] pods added at once, the agent's part included, until the last one is there |
//! | `alone_pods_per_second`, `reference_pods_per_second` | the same of the other two |
//!
//! With an IPv6 address too the reference would take a second and a half longer: it waits until the kernel has found out
//! that nobody else has the address. Fairlead gives it out and knows.

mod host;
mod plugin;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use fairlead_harness::cni::reference_plugins;
use fairlead_harness::{Cluster, Options};

use crate::cni::host::{Alone, with_agent};
use crate::cni::plugin::{Plugin, Pod};
use crate::report::Report;
use crate::stats::{median, percentile};

/// What is found out here, by the names of results.
const FIGURES: [&str; 16] = [
    "cni_add_p50_ms",
    "cni_add_p99_ms",
    "cni_del_p50_ms",
    "cni_alone_add_p50_ms",
    "cni_alone_add_p99_ms",
    "cni_alone_del_p50_ms",
    "cni_reference_add_p50_ms",
    "cni_reference_add_p99_ms",
    "cni_reference_del_p50_ms",
    "cni_add_ratio",
    "cni_del_ratio",
    "cni_alone_add_ratio",
    "cni_alone_del_ratio",
    "pods_per_second",
    "alone_pods_per_second",
    "reference_pods_per_second",
];

/// Pods of each kind that are there at once.
const BATCH: usize = 20;
/// Pods that are added at the same moment.
const AT_ONCE: usize = 100;
/// How long the kernel is given for what namespaces that ended leave it to do.
const SETTLE: Duration = Duration::from_millis(300);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// Batches of pods that come and go one after the other.
    pub(crate) batches: usize,
    /// How often many are added at once.
    pub(crate) rushes: usize,
}

/// Whether anything here has `only` in its name.
pub(crate) fn is_asked_for(only: &str) -> bool {
    FIGURES.iter().any(|figure| figure.contains(only))
}

/// Measures everything; without the reference plugins, what needs them is left out.
///
/// # Errors
/// When the cluster does not start, or a verb fails.
pub(crate) fn run(amount: Amount, report: &mut Report) -> Result<()> {
    eprintln!("a cluster whose pods come and go");
    let cluster = Cluster::start(Options { nodes: 1, ..Options::default() })?;
    let prefix = cluster.layout().prefix.as_str();
    let alone = Alone::new(&format!("{prefix}-alone"))?;
    let beside = Alone::new(&format!("{prefix}-reference"))?;
    let mut measured = vec![
        Measured::new("", with_agent(&cluster, AT_ONCE)?),
        Measured::new("alone_", alone.fairlead(AT_ONCE)?),
    ];
    match reference_plugins() {
        Some(directory) => measured.push(Measured::new("reference_", beside.reference(&directory, AT_ONCE)?)),
        None => eprintln!("left out: the reference plugins are not installed (make setup)"),
    }
    for batch in 0..amount.batches {
        eprintln!("pods one after the other, batch {} of {}", batch + 1, amount.batches);
        in_turns(prefix, &mut measured)?;
    }
    for rush in 0..amount.rushes {
        eprintln!("{AT_ONCE} pods at once, time {} of {}", rush + 1, amount.rushes);
        for one in &mut measured {
            one.rates.push(at_once(prefix, &one.plugin)?);
        }
    }
    tell(&mut measured, report);
    // The plugins may run in places of the cluster's.
    drop(measured);
    cluster.down()
}

/// A plugin, and what it took.
struct Measured {
    /// What distinguishes the names of its results.
    label: &'static str,
    plugin: Plugin,
    /// Microseconds of each ADD.
    adds: Vec<u32>,
    /// Microseconds of each DEL.
    deletes: Vec<u32>,
    /// Pods per second.
    rates: Vec<f64>,
}

impl Measured {
    fn new(label: &'static str, plugin: Plugin) -> Self {
        Self { label, plugin, adds: Vec::new(), deletes: Vec::new(), rates: Vec::new() }
    }
}

/// Adds a batch of pods by each plugin, in turns, and removes them likewise.
fn in_turns(prefix: &str, measured: &mut [Measured]) -> Result<()> {
    let mut pods = measured.iter().map(|_| pods(prefix, BATCH)).collect::<Result<Vec<_>>>()?;
    for number in 0..BATCH {
        for (one, pods) in measured.iter_mut().zip(&mut pods) {
            one.adds.push(microseconds(one.plugin.add(&mut pods[number])?));
        }
    }
    for number in 0..BATCH {
        for (one, pods) in measured.iter_mut().zip(&pods) {
            one.deletes.push(microseconds(one.plugin.delete(&pods[number])?));
        }
    }
    drop(pods);
    thread::sleep(SETTLE);
    Ok(())
}

/// Adds many pods at once and returns how many a second that is; removes them again.
fn at_once(prefix: &str, plugin: &Plugin) -> Result<f64> {
    let mut pods = pods(prefix, AT_ONCE)?;
    let begin = Instant::now();
    thread::scope(|scope| {
        let adding: Vec<_> = pods.iter_mut().map(|pod| scope.spawn(|| plugin.add(pod))).collect();
        adding
            .into_iter()
            .try_for_each(|added| added.join().map_err(|_| anyhow!("an ADD panicked"))?.map(drop))
    })?;
    let rate = AT_ONCE as f64 / begin.elapsed().as_secs_f64();
    for pod in &pods {
        plugin.delete(pod)?;
    }
    drop(pods);
    thread::sleep(SETTLE);
    Ok(rate)
}

fn pods(prefix: &str, count: usize) -> Result<Vec<Pod>> {
    (0..count).map(|number| Pod::new(prefix, number)).collect()
}

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Reports what the plugins took, and how they compare with the last one if that is the reference.
fn tell(measured: &mut [Measured], report: &mut Report) {
    let mut medians = Vec::new();
    for Measured { label, adds, deletes, rates, .. } in measured {
        let (add, del) = (percentile(adds, 50.0) / 1e3, percentile(deletes, 50.0) / 1e3);
        report.add(&format!("cni_{label}add_p50_ms"), add, "ms");
        report.add(&format!("cni_{label}add_p99_ms"), percentile(adds, 99.0) / 1e3, "ms");
        report.add(&format!("cni_{label}del_p50_ms"), del, "ms");
        report.add(&format!("{label}pods_per_second"), median(rates), "pods/s");
        medians.push((*label, add, del));
    }
    if let [ours @ .., ("reference_", add, del)] = medians.as_slice() {
        for (label, our_add, our_del) in ours {
            report.add(&format!("cni_{label}add_ratio"), our_add / add, "of reference");
            report.add(&format!("cni_{label}del_ratio"), our_del / del, "of reference");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_figures_name_asks_for_all_of_them() {
        assert!(is_asked_for("cni_"));
        assert!(is_asked_for("pods_per_second"));
        assert!(!is_asked_for("pod_to_pod"));
    }
}
