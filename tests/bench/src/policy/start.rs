//! How long a started agent takes until it has compiled and programmed all policies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_harness::{Cluster, Node};
use nix::sys::signal::Signal;

use super::pods;
use super::state::State;
use crate::scale::restart::remove_maps;

const PATIENCE: Duration = Duration::from_secs(120);

/// What a start took, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// From the start of the process until it would let a pod start.
    pub(crate) whole: f64,
    /// What of that was spent on compiling and programming policies, by the agent's own clock.
    pub(crate) compile: f64,
}

/// A start with the maps of the predecessor in place.
///
/// # Errors
/// When the agent does not stop, does not let pods start, or has not programmed everything when it does.
pub(crate) fn with_maps(cluster: &mut Cluster) -> Result<Start> {
    restart(cluster, |_| Ok(()))
}

/// The same with no maps in place.
///
/// # Errors
/// As [`with_maps`].
pub(crate) fn without_maps(cluster: &mut Cluster) -> Result<Start> {
    restart(cluster, remove_maps)
}

fn restart(cluster: &mut Cluster, between: impl FnOnce(&Node) -> Result<()>) -> Result<Start> {
    let name = cluster.nodes().first().context("a node")?.name().to_owned();
    let node = cluster.node_mut(&name)?;
    node.stop_proxy(Signal::SIGTERM)?;
    between(node)?;
    let begin = Instant::now();
    node.start_proxy()?;
    pods::wait_for_answer(node, PATIENCE)?;
    let whole = begin.elapsed();
    node.wait_for_proxy()?;
    let state = State::of(node)?;
    ensure!(state.is_programmed, "the agent let a pod start before it had programmed everything: {state:?}");
    Ok(Start { whole: whole.as_secs_f64() * 1e3, compile: state.worked * 1e3 })
}
