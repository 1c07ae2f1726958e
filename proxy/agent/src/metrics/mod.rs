//! The page that `/metrics` serves: what the agent's parts know of themselves, written when somebody asks.
//!
//! [`agent`] has the agent and its node, [`maps`] the kernel's tables and what the programs counted, [`watches`] the API,
//! [`policies`] what its name says, [`kube_proxy`] what dashboards made for kube-proxy read. `docs/metrics.md` says of each
//! metric what it means and what to do; a test compares the page with it.

mod agent;
mod kube_proxy;
mod maps;
mod policies;
mod watches;

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use fairlead_daemon::exposition::Page;
use fairlead_daemon::{page, process};

use crate::agent::Agent;

/// Serves `/metrics` of the agent.
pub fn router(agent: Arc<Agent>) -> Router {
    page::router(move || page(&agent))
}

/// The page. Reads counters, so not for an asynchronous thread.
pub fn page(agent: &Agent) -> String {
    let mut page = Page::default();
    agent::write(agent, &mut page);
    watches::write(agent, &mut page);
    maps::write(agent, &mut page);
    policies::write(agent, &mut page);
    kube_proxy::write(agent, &mut page);
    process::write(&mut page);
    page.finish()
}

/// Seconds since 1970, 0 for never.
fn seconds(time: Option<SystemTime>) -> f64 {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.unwrap_or_default().as_secs_f64()
}
