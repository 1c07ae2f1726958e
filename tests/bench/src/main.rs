//! Fairlead's benchmarks, beside plain kernel routing: what `make bench` runs.
//!
//! ```text
//! main ── topology ── kernel (limit, direct)          who is connected to whom
//!   │          └───── remote (direct between nodes, by routes and by VXLAN)
//!   │          └───── fairlead (pod to pod, ClusterIP, NodePort, hostPort)
//!   │          └───── nodes (pod to pod on another node, likewise)
//!   │          └───── worker ═══ orders ── server     one process per end
//!   │                              └────── crr, rr, throughput, udp ── pace
//!   │                              └────── named      who is it that answers?
//!   │                              └────── probe      does anybody?
//!   └──── rounds ── cpu                               what is measured when
//!   └──── scale                                       thousands of Services: programming, changes, memory
//!   └──── cni                                         pods added and removed, beside the reference plugins
//!   └──── policy                                      a thousand policies: compiling, changes, memory, and the cells
//!   └──── report ── stats                             what it means
//! ```
//!
//! Clients and servers share one processor, which they keep busy: an operation's cost is then all that
//! both ends and everything between them do for it, and no wake-up of a sleeping processor is part of it. The
//! benchmark itself, and whatever a cluster needs to run, are left to the other processors.

mod cell;
mod cni;
mod cpu;
mod crr;
mod fairlead;
mod kernel;
mod named;
mod nodes;
mod orders;
mod pace;
mod policy;
mod probe;
mod remote;
mod report;
mod rounds;
mod rr;
mod scale;
mod server;
mod stats;
mod throughput;
mod topology;
mod udp;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use crate::cell::Cell;
use crate::cpu::Core;
use crate::fairlead::Clusters;
use crate::report::Report;
use crate::rounds::Amount;
use crate::topology::{Path, Topology};

/// Measures Fairlead's paths beside plain kernel routing, how it holds up with many Services and under many policies,
/// and its CNI plugin beside the reference plugins, and prints `name value unit` lines.
///
/// Names ending in `_ratio` compare with the kernel's direct path, or of policies with pods that are under none, those in `_limit_ratio` with two
/// namespaces joined by a single veth pair; above 1 is better, whatever is compared. Only the ratios of `cni_` are those of
/// times to the reference plugins', with the unit `of reference`: below 1 is better.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How often everything is measured; results are medians.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// A short look: three rounds of a fifth of a second.
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Measure only what has this in its name (`clusterip`, `_crr`, `nodeport_udp`, `sync_full`, `policy`, `cni`), and its baselines.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Measure the kernel's paths alone; no cluster is started.
    #[arg(long)]
    baselines: bool,
    /// The processor that clients and servers share; by default the last one.
    #[arg(long)]
    cpu: Option<usize>,
    /// Where the results are written.
    #[arg(long, value_name = "PATH", default_value = "target/bench/results.json")]
    json: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// One end of a path, told what to do through its standard input.
    #[command(hide = true)]
    Worker,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Worker) => orders::run(),
        None => bench(&arguments),
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    let cpus = cpu::usable().context("find the processors")?;
    let cpu = arguments.cpu.or(cpus.last().copied()).context("there is no processor")?;
    ensure!(cpus.contains(&cpu), "processor {cpu} is none of {cpus:?}");
    let paths = measure_paths(arguments, cpu)?;
    let scale = !arguments.baselines && scale::is_asked_for(&arguments.only);
    let policies = !arguments.baselines && policy::is_asked_for(&arguments.only);
    let pods = !arguments.baselines && cni::is_asked_for(&arguments.only);
    ensure!(
        paths.is_some() || scale || policies || pods,
        "nothing that is measured has {:?} in its name",
        arguments.only
    );
    let mut report = paths.unwrap_or_default();
    // What goes wrong afterwards takes no result away that is there.
    let scaled = if scale { scale::run(cpu, scale_amount(arguments), &mut report) } else { Ok(()) };
    let policed = if policies {
        policy::run(cpu, &arguments.only, policy_amount(arguments), &mut report)
    } else {
        Ok(())
    };
    let wired = if pods { cni::run(cni_amount(arguments), &mut report) } else { Ok(()) };
    report.print();
    report.write(&arguments.json)?;
    let scaled = scaled.context("measure many Services");
    scaled.and(policed.context("measure many policies")).and(wired.context("measure ADD and DEL"))
}

/// Measures the paths that are asked for, if any is.
fn measure_paths(arguments: &Arguments, cpu: usize) -> Result<Option<Report>> {
    let asked = |paths: &[&str]| {
        let of_path = |path| Cell::ALL.into_iter().any(|cell| is_asked_for(cell, path, &arguments.only));
        paths.iter().copied().any(of_path)
    };
    let (on_node, between) = match arguments.baselines {
        true => (false, false),
        false => (asked(&fairlead::NAMES), asked(&nodes::NAMES)),
    };
    let apart = between || asked(&remote::NAMES);
    if !on_node && !apart && !asked(&kernel::NAMES) {
        return Ok(None);
    }
    let swept = fairlead_harness::sweep().context("take down what an earlier run left")?;
    if swept > 0 {
        eprintln!("took down {swept} clusters of earlier runs");
    }
    // Declared before the workers in them, and so taken down after them.
    let clusters = on_node.then(Clusters::start).transpose().context("start the clusters")?;
    let pairs =
        between.then(nodes::Clusters::start).transpose().context("start the clusters of two nodes")?;
    let mut topology = Topology::new(cpu);
    kernel::add_limit(&mut topology).context("build the limit path")?;
    kernel::add_direct(&mut topology).context("build the direct paths")?;
    if apart {
        remote::add(&mut topology).context("build the direct paths between nodes")?;
    }
    if let Some(clusters) = &clusters {
        clusters.add_paths(&mut topology).context("find Fairlead's paths")?;
    }
    if let Some(pairs) = &pairs {
        pairs.add_paths(&mut topology).context("find Fairlead's paths between nodes")?;
    }
    let plan = plan(topology.paths(), &arguments.only);
    let amount = amount(arguments);
    let measurements = plan.iter().map(|(_, paths)| paths.len()).sum::<usize>() * amount.rounds;
    eprintln!(
        "{measurements} measurements of {:?} each on processor {cpu}, in {} rounds",
        amount.measured, amount.rounds
    );
    let samples = rounds::run(&mut topology, Core::new(cpu), &plan, amount)?;
    let report = Report::new(&plan, &samples);
    drop(topology);
    let down = clusters.map_or(Ok(()), Clusters::down);
    down.and(pairs.map_or(Ok(()), nodes::Clusters::down)).context("take the clusters down")?;
    Ok(Some(report))
}

fn amount(arguments: &Arguments) -> Amount {
    if arguments.quick {
        return Amount { rounds: 3, measured: Duration::from_millis(200) };
    }
    Amount { rounds: arguments.rounds, measured: Duration::from_secs_f64(arguments.seconds) }
}

fn scale_amount(arguments: &Arguments) -> scale::Amount {
    if arguments.quick {
        return scale::Amount { restarts: 1, rounds: 1, changes: 50 };
    }
    scale::Amount { restarts: 5, rounds: 5, changes: 100 }
}

fn policy_amount(arguments: &Arguments) -> policy::Amount {
    let traffic = amount(arguments);
    if arguments.quick {
        return policy::Amount { starts: 1, pods: 20, changes: 10, traffic };
    }
    policy::Amount { starts: 5, pods: 100, changes: 50, traffic }
}

fn cni_amount(arguments: &Arguments) -> cni::Amount {
    if arguments.quick {
        return cni::Amount { batches: 2, rushes: 1 };
    }
    cni::Amount { batches: 15, rushes: 5 }
}

/// The cells to measure, each with the paths that have `only` in a result's name, and their baselines.
fn plan(paths: &[Path], only: &str) -> Vec<(Cell, Vec<Path>)> {
    let of_cell = |cell: Cell| -> Vec<Path> {
        let chosen: Vec<_> = paths.iter().filter(|path| is_asked_for(cell, path.name, only)).collect();
        let needed = |path: &&Path| {
            chosen.iter().any(|chosen| {
                chosen.name == path.name || chosen.direct == Some(path.name) || path.name == kernel::LIMIT
            })
        };
        paths.iter().filter(needed).copied().collect()
    };
    Cell::ALL.into_iter().map(|cell| (cell, of_cell(cell))).filter(|(_, paths)| !paths.is_empty()).collect()
}

/// Whether a result of the cell on the path of that name has `only` in its name.
fn is_asked_for(cell: Cell, path: &str, only: &str) -> bool {
    let ratios = ["_ratio", "_limit_ratio"];
    cell.metrics().iter().any(|metric| {
        let name = format!("{path}_{}", metric.name);
        ratios.iter().any(|ratio| format!("{name}{ratio}").contains(only))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::cell::Target;
    use crate::topology::End;

    fn paths() -> Vec<Path> {
        let path = |name, direct| Path {
            name,
            direct,
            client: End::default(),
            server: End::default(),
            target: Target::itself(Ipv4Addr::LOCALHOST.into()),
        };
        vec![
            path(kernel::LIMIT, None),
            path(kernel::DIRECT, None),
            path(kernel::DIRECT_OUTSIDE, None),
            path("clusterip", Some(kernel::DIRECT)),
            path("nodeport", Some(kernel::DIRECT_OUTSIDE)),
        ]
    }

    fn names(only: &str) -> Vec<(Cell, Vec<&'static str>)> {
        let names = |paths: Vec<Path>| paths.iter().map(|path| path.name).collect();
        plan(&paths(), only).into_iter().map(|(cell, paths)| (cell, names(paths))).collect()
    }

    #[test]
    fn everything_is_measured_unless_something_is_asked_for() {
        let all = names("");
        assert_eq!(all.len(), Cell::ALL.len());
        assert!(all.iter().all(|(_, names)| names.len() == 5), "{all:?}");
    }

    #[test]
    fn what_is_asked_for_brings_its_own_baselines_along() {
        assert_eq!(names("clusterip_crr_close"), [(Cell::CrrClose, vec!["limit", "direct", "clusterip"])]);
        assert_eq!(names("nodeport_udp_ratio"), [(Cell::Udp, vec!["limit", "direct_outside", "nodeport"])]);
    }

    #[test]
    fn nothing_is_measured_for_a_name_that_does_not_exist() {
        assert!(names("clusterip_sctp").is_empty());
    }
}
