//! How long the agent's part of a CNI ADD takes: from the plugin's request to the agent's answer, when the pod's
//! verdicts and entries are in the maps and the programs at its interface.
//!
//! The pods run already. Each is taken from the agent, and given back by the request that the plugin made of it: the
//! plugin's own work, which is the same under policies, stays out.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_harness::Node;
use fairlead_net::agent::{AgentError, Registration, Request, ask};

use super::objects::OPEN;

const PATIENCE: Duration = Duration::from_secs(10);
/// How often an agent that does not listen yet is tried: also the error of when it first answers.
const INTERVAL: Duration = Duration::from_millis(2);

/// The kernel takes a moment until it has taken programs off an interface that stays.
const DETACHING: Duration = Duration::from_millis(100);

/// The milliseconds that it takes for each of so many pods of teams.
///
/// # Errors
/// When the agent refuses.
pub(crate) fn starts(node: &Node, count: usize) -> Result<Vec<f64>> {
    let registrations = registrations(node)?;
    ensure!(registrations.len() >= count, "only {} of {count} pods run", registrations.len());
    registrations.into_iter().take(count).map(|registration| start(node, registration)).collect()
}

/// Waits until the agent, which may not even listen yet, answers the request of a pod that it was given before.
///
/// # Errors
/// When it does not within `patience`.
pub(crate) fn wait_for_answer(node: &Node, patience: Duration) -> Result<()> {
    let registration = registrations(node)?.into_iter().next().context("no pod runs")?;
    let (request, begin) = (Request::AddEndpoint(registration), Instant::now());
    loop {
        match ask(&node.layout().socket(), &request, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(AgentError::Connect { .. }) if begin.elapsed() < patience => thread::sleep(INTERVAL),
            Err(AgentError::Refused(_)) if begin.elapsed() < patience => {}
            Err(error) => bail!("the agent does not add a pod after {:?}: {error}", begin.elapsed()),
        }
    }
}

fn start(node: &Node, registration: Registration) -> Result<f64> {
    let socket = node.layout().socket();
    let Registration { container_id, ifname, pod, .. } = registration.clone();
    let what = || format!("pod {}/{}", pod.namespace, pod.name);
    ask(&socket, &Request::DeleteEndpoint { container_id, ifname }, PATIENCE).with_context(what)?;
    thread::sleep(DETACHING);
    let request = Request::AddEndpoint(registration);
    let begin = Instant::now();
    ask(&socket, &request, PATIENCE).with_context(what)?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// What the plugin told the agent of the teams' pods, in order of their names: the agent keeps it in files.
fn registrations(node: &Node) -> Result<Vec<Registration>> {
    let directory = node.layout().state_dir().join("endpoints");
    let mut registrations = Vec::new();
    for file in fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
        let path = file?.path();
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let registration: Registration =
            serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))?;
        registrations.push(registration);
    }
    registrations.retain(|registration| registration.pod.namespace != OPEN);
    registrations
        .sort_by_key(|registration| (registration.pod.namespace.clone(), registration.pod.name.clone()));
    Ok(registrations)
}
