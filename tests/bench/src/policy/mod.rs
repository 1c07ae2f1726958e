//! How Fairlead holds up under many policies: how long a started agent takes to compile them, how soon a change takes
//! effect, how long a pod waits for its own, what memory all that takes, and what traffic through them costs.
//!
//! ```text
//! objects   10,000 Pods in 50 namespaces, 100 of them real ones on the node; 1,000 NetworkPolicies of 20 rules
//! start     agent stopped and started, with its maps in place and with none, until it would let a pod start
//! pods      endpoint deleted ──▶ the request that CNI ADD makes ──▶ answer
//! change    policy or label rewritten ──▶ API ──▶ watch ──▶ maps ──▶ datagrams begin or cease to be answered
//! traffic   the cells, between pods under policies and between pods that no policy selects, in turns
//! ```
//!
//! The node's pods were wired by the CNI plugin and are under nineteen policies each, those of their team; the traffic
//! passes by one rule in the middle of one of them. What the results mean:
//!
//! | result | from | to |
//! |---|---|---|
//! | `policy_start_ms` | the start of the agent's process, no maps | the answer to an ADD of a pod of the node |
//! | `policy_restart_ms` | the same, the maps of its predecessor in place | the same |
//! | `policy_compile_full_ms` | the end of the last first list, no maps | everything is in the maps |
//! | `policy_pod_start_ms` | a new endpoint's request to the agent, its Pod known | its answer |
//! | `policy_none_pod_start_ms` | the same before there is any policy | the same |
//! | `policy_change_*` | the write to the API | the first datagram that meets the new rules, on the wire |
//! | `policy_rule_change_*` | such of one rule's port | |
//! | `policy_label_change_*` | such of a pod's label that a rule names | |
//! | `policy_agent_rss_mib`, `…_peak_mib` | the agent's memory in the end, and the most that it had | |
//! | `policy_maps_mib` | what the kernel counts for the maps of policies | |
//! | `policy_<cell>_ratio` | both pods isolated in both directions, over none | |
//! | `policy_ingress_only_<cell>_ratio` | only the server isolated, for ingress, over none | |
//!
//! `policy_compile_full_ms` is the agent's own `fairlead_policy_reconcile_seconds`, all turns since its start added up:
//! the lists before it take longer, and nobody outside can tell when they end without being in the way.

mod change;
mod objects;
mod pods;
mod start;
mod state;
mod traffic;

use anyhow::{Context, Result};
use fairlead_abi::maps;
use fairlead_harness::{Cluster, Node, Options};

use crate::policy::change::{Changes, Kind};
use crate::policy::traffic::Ends;
use crate::report::Report;
use crate::rounds;
use crate::scale::memory;
use crate::stats::{median, percentile};
use crate::topology::Topology;

/// What is found out here beside the traffic, by the names of results.
const FIGURES: [&str; 14] = [
    "policy_start_ms",
    "policy_restart_ms",
    "policy_compile_full_ms",
    "policy_pod_start_ms",
    "policy_none_pod_start_ms",
    "policy_change_p50_ms",
    "policy_change_p99_ms",
    "policy_rule_change_p50_ms",
    "policy_rule_change_p99_ms",
    "policy_label_change_p50_ms",
    "policy_label_change_p99_ms",
    "policy_agent_rss_mib",
    "policy_agent_rss_peak_mib",
    "policy_maps_mib",
];

/// The maps of policies.
const MAPS: [&str; 9] = [
    maps::ISOLATION,
    maps::ISOLATED,
    maps::POLICIES,
    maps::PEERS,
    maps::CELLS,
    maps::ROWS,
    maps::POLICY_STATE,
    maps::POLICY_DROPS,
    maps::EVENTS,
];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// How often the agent is started in each way.
    pub(crate) starts: usize,
    /// How many pods are started.
    pub(crate) pods: usize,
    /// How many changes are made of each kind, each of which is undone.
    pub(crate) changes: usize,
    /// How much traffic there is.
    pub(crate) traffic: rounds::Amount,
}

/// Whether anything here has `only` in its name.
pub(crate) fn is_asked_for(only: &str) -> bool {
    is_control_asked_for(only) || traffic::is_asked_for(only)
}

fn is_control_asked_for(only: &str) -> bool {
    FIGURES.iter().any(|figure| figure.contains(only))
}

/// Measures what has `only` in its name; clients and servers run on processor `cpu`.
///
/// # Errors
/// When the cluster does not start, the agent does not hold the policies, or a change has no effect.
pub(crate) fn run(cpu: usize, only: &str, amount: Amount, report: &mut Report) -> Result<()> {
    let mut cluster = start()?;
    let control = is_control_asked_for(only);
    if control {
        let without =
            pods::starts(first_node(&cluster)?, amount.pods).context("start pods without policies")?;
        report.add("policy_none_pod_start_ms", median(&without), "ms");
    }
    eprintln!("{} NetworkPolicies", objects::TEAMS * objects::POLICIES);
    cluster.api().create_all(&objects::policies()?).context("create the policies")?;
    state::wait_until_programmed(first_node(&cluster)?)?;
    if control {
        starts(&mut cluster, amount.starts, report).context("start the agent")?;
        let under = pods::starts(first_node(&cluster)?, amount.pods).context("start pods under policies")?;
        report.add("policy_pod_start_ms", median(&under), "ms");
    }
    // Ends before the cluster in which its workers are.
    let mut topology = Topology::new(cpu);
    let ends = Ends::start(&cluster, &mut topology).context("start clients and servers")?;
    if control {
        changes(&cluster, &mut topology, ends, amount.changes, report).context("change policies")?;
        remember(first_node(&cluster)?, report)?;
    }
    if traffic::is_asked_for(only) {
        traffic::measure(&mut topology, only, amount.traffic, report)?;
    }
    drop(topology);
    cluster.down()
}

/// A cluster of one node with all namespaces and pods, those of the node running.
fn start() -> Result<Cluster> {
    let (local, remote) = (objects::local_pods()?, objects::remote_pods()?);
    eprintln!("a cluster with {} pods, {} of them on the node", local.len() + remote.len(), local.len());
    let cluster = Cluster::start(Options { nodes: 1, ..Options::default() })?;
    let api = cluster.api();
    objects::namespaces().try_for_each(|namespace| api.apply(&namespace).map(drop))?;
    api.create_all(&local)?;
    api.create_all(&remote)?;
    api.report_all(&remote)?;
    for pod in &local {
        let metadata = &pod.metadata;
        let namespace = metadata.namespace.as_deref().context("a pod without namespace")?;
        cluster.pod_in(namespace, metadata.name.as_deref().context("a pod without name")?)?;
    }
    Ok(cluster)
}

/// Starts the agent again and again, with and without maps in turn.
fn starts(cluster: &mut Cluster, count: usize, report: &mut Report) -> Result<()> {
    let (mut kept, mut empty, mut compile) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        kept.push(start::with_maps(cluster)?.whole);
        let started = start::without_maps(cluster)?;
        empty.push(started.whole);
        compile.push(started.compile);
    }
    report.add("policy_start_ms", median(&empty), "ms");
    report.add("policy_restart_ms", median(&kept), "ms");
    report.add("policy_compile_full_ms", median(&compile), "ms");
    Ok(())
}

/// Changes policies and labels in turn.
fn changes(
    cluster: &Cluster,
    topology: &mut Topology,
    ends: Ends,
    count: usize,
    report: &mut Report,
) -> Result<()> {
    let client = topology.worker(ends.isolated_client);
    let mut changes = Changes::new(cluster, client, ends.isolated);
    let (mut of_rules, mut of_labels) = (Vec::new(), Vec::new());
    for _ in 0..count {
        of_rules.extend(changes.make(Kind::Rule)?);
        of_labels.extend(changes.make(Kind::Label)?);
    }
    let mut all = [of_rules.as_slice(), of_labels.as_slice()].concat();
    for (name, latencies) in [
        ("policy_change", &mut all),
        ("policy_rule_change", &mut of_rules),
        ("policy_label_change", &mut of_labels),
    ] {
        report.add(&format!("{name}_p50_ms"), percentile(latencies, 50.0) / 1e3, "ms");
        report.add(&format!("{name}_p99_ms"), percentile(latencies, 99.0) / 1e3, "ms");
    }
    Ok(())
}

/// Notes what memory is taken now.
fn remember(node: &Node, report: &mut Report) -> Result<()> {
    let agent = memory::of_agent(node).context("read the agent's memory")?;
    report.add("policy_agent_rss_mib", agent.resident, "MiB");
    report.add("policy_agent_rss_peak_mib", agent.peak, "MiB");
    let maps = memory::of_maps(node, |map| MAPS.contains(&map)).context("read the maps' memory")?;
    report.add("policy_maps_mib", maps, "MiB");
    Ok(())
}

fn first_node(cluster: &Cluster) -> Result<&Node> {
    cluster.nodes().first().context("a node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_name_asks_for_the_traffic_or_for_the_rest_or_for_both() {
        let asked = |only| (is_control_asked_for(only), traffic::is_asked_for(only));
        assert_eq!(asked(""), (true, true));
        assert_eq!(asked("policy_ingress_only_crr_ratio"), (false, true));
        assert_eq!(asked("policy_change"), (true, false));
        assert_eq!(asked("clusterip"), (false, false));
    }
}
