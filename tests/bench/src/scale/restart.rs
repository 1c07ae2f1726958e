//! How long a started agent takes until it has programmed everything.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_harness::{Cluster, Node, binary, output, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::objects::Size;

/// How often a starting agent is asked whether it is done: also the error of the result.
const INTERVAL: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// The time from the start of the agent's process until it is healthy, with the maps of its predecessor in place.
///
/// # Errors
/// When it does not stop, or not get healthy.
pub(crate) fn with_maps(cluster: &mut Cluster, size: Size) -> Result<Duration> {
    restart(cluster, size, |_| Ok(()))
}

/// The same with no maps in place.
///
/// # Errors
/// As [`with_maps`].
pub(crate) fn without_maps(cluster: &mut Cluster, size: Size) -> Result<Duration> {
    restart(cluster, size, remove_maps)
}

/// Removes maps and programs of a node whose agent does not run.
///
/// # Errors
/// When it can't be done.
pub(crate) fn remove_maps(node: &Node) -> Result<()> {
    let mut command = node.place().command(binary("fairlead-proxy")?)?;
    output(command.arg("cleanup").arg("--bpffs").arg(node.layout().bpffs())).map(drop)
}

/// Waits until the running agent has caught up with all that was created.
///
/// # Errors
/// When it takes minutes.
pub(crate) fn wait_until_programmed(cluster: &mut Cluster, size: Size) -> Result<()> {
    let node = first_node(cluster)?;
    wait_for("the programming of all Services", PATIENCE, || Ok(holds(node, size)?.then_some(())))
}

fn restart(cluster: &mut Cluster, size: Size, between: impl FnOnce(&Node) -> Result<()>) -> Result<Duration> {
    let node = first_node(cluster)?;
    node.stop_proxy(Signal::SIGTERM)?;
    between(node)?;
    let begin = Instant::now();
    node.start_proxy()?;
    while !node.healthz().is_ok_and(|(status, _)| status == 200) {
        ensure!(begin.elapsed() < PATIENCE, "the agent is not healthy after {PATIENCE:?}");
        thread::sleep(INTERVAL);
    }
    let took = begin.elapsed();
    node.wait_for_proxy()?;
    ensure!(holds(node, size)?, "the agent called itself healthy before it had programmed everything");
    Ok(took)
}

/// Whether there is at least a frontend for each Service.
fn holds(node: &Node, size: Size) -> Result<bool> {
    let status: Value = serde_json::from_str(&node.proxy(&["status", "-o", "json"])?)?;
    let maps = status["maps"].as_array().context("no maps in the agent's status")?;
    let frontends = maps.iter().find(|map| map["name"] == "FRONTENDS").context("no map FRONTENDS")?;
    Ok(frontends["entries"].as_u64() >= Some(size.services.into()))
}

fn first_node(cluster: &mut Cluster) -> Result<&mut Node> {
    let name = cluster.nodes().first().context("a node")?.name().to_owned();
    cluster.node_mut(&name)
}
