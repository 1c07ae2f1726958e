//! What traffic through policies costs: the cells between pods that no policy selects, between pods that are isolated
//! in both directions, and towards a pod that is isolated for ingress alone, in interleaved rounds.
//!
//! Replies of isolated pods need an entry in the flow table, and packets of theirs a look at it; those of a pod that is
//! isolated for ingress alone need none.

use std::net::IpAddr;

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, RunningPod};

use super::objects::{self, INGRESS_ONLY, ISOLATED, OPEN};
use crate::cell::{Cell, Target};
use crate::cpu::Core;
use crate::report::Report;
use crate::rounds;
use crate::topology::{End, Path, Topology};

/// The number of the local pod that is the client in its namespace.
pub(crate) const CLIENT: u32 = 0;
/// The number of the one that is the server.
const SERVER: u32 = 1;

/// What is measured of each path.
const CELLS: [Cell; 3] = [Cell::Crr, Cell::Rr, Cell::Udp];

const NONE: &str = "policy_none";
const ISOLATED_PATH: &str = "policy";
const INGRESS_ONLY_PATH: &str = "policy_ingress_only";

/// Clients and servers, and where these are found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// A client that is isolated in both directions.
    pub(crate) isolated_client: End,
    /// The server for it, which is too.
    pub(crate) isolated: Target,
}

impl Ends {
    /// Starts them, and adds the paths between them, as soon as each can be reached.
    ///
    /// # Errors
    /// When a pod does not run, or its policies don't let the traffic pass.
    pub(crate) fn start(cluster: &Cluster, topology: &mut Topology) -> Result<Self> {
        let pod = |namespace: &str, number| cluster.pod_in(namespace, &objects::local(number));
        let client = |topology: &mut Topology, namespace: &str| {
            topology.add_client(&format!("{namespace} client"), Some(&pod(namespace, CLIENT)?.place))
        };
        let server = |topology: &mut Topology, namespace: &str| {
            let pod = pod(namespace, SERVER)?;
            let end = topology.add_server(&format!("{namespace} server"), Some(&pod.place))?;
            anyhow::Ok((end, target(&pod)?))
        };
        let (isolated, ingress_only) = (objects::name_of(ISOLATED), objects::name_of(INGRESS_ONLY));
        let open_client = client(topology, OPEN)?;
        let isolated_client = client(topology, &isolated)?;
        let open_server = server(topology, OPEN)?;
        let isolated_server = server(topology, &isolated)?;
        let ingress_only_server = server(topology, &ingress_only)?;
        for (name, direct, client, (server, target)) in [
            (NONE, None, open_client, open_server),
            (ISOLATED_PATH, Some(NONE), isolated_client, isolated_server),
            (INGRESS_ONLY_PATH, Some(NONE), open_client, ingress_only_server),
        ] {
            topology.add_path(Path { name, direct, client, server, target })?;
        }
        Ok(Self { isolated_client, isolated: isolated_server.1 })
    }
}

/// Whether a result of a path here has `only` in its name.
pub(crate) fn is_asked_for(only: &str) -> bool {
    CELLS.into_iter().any(|cell| is_cell_asked_for(cell, only))
}

fn is_cell_asked_for(cell: Cell, only: &str) -> bool {
    [NONE, ISOLATED_PATH, INGRESS_ONLY_PATH].into_iter().any(|path| crate::is_asked_for(cell, path, only))
}

/// Measures the cells that have `only` in a result's name, on all paths.
///
/// # Errors
/// When a path does not work.
pub(crate) fn measure(
    topology: &mut Topology,
    only: &str,
    amount: rounds::Amount,
    report: &mut Report,
) -> Result<()> {
    let cells = CELLS.into_iter().filter(|cell| is_cell_asked_for(*cell, only));
    let plan: Vec<_> = cells.map(|cell| (cell, topology.paths().to_vec())).collect();
    let core = Core::new(topology.cpu());
    let samples = rounds::run(topology, core, &plan, amount)?;
    report.add_samples(&plan, &samples);
    Ok(())
}

fn target(pod: &RunningPod) -> Result<Target> {
    let address = pod.ips.iter().copied().find(IpAddr::is_ipv4);
    Ok(Target::itself(address.with_context(|| format!("{} has no IPv4 address", pod.name))?))
}
