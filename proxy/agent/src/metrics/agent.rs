//! The agent itself, its node, and what is asked of it.

use std::time::SystemTime;

use fairlead_daemon::exposition::Page;

use crate::agent::{Agent, Facts, lock};
use crate::kernel;

pub(super) fn write(agent: &Agent, page: &mut Page) {
    let Facts { attachment, kernel, adopted, .. } = &agent.facts;
    let progress = agent.progress();
    let layout = fairlead_abi::LAYOUT_VERSION.to_string();
    let version = ("version", env!("CARGO_PKG_VERSION"));
    page.gauge("fairlead_build_info", "Which build this is; always 1.")
        .sample(&[version, ("layout", &layout)], 1);
    page.gauge("fairlead_node_info", "What it runs on, and how programs are attached there; always 1.")
        .sample(&[("kernel", &kernel.release), ("attachment", attachment)], 1);
    page.gauge("fairlead_ready", "Whether the maps have held everything once.")
        .sample(&[], u8::from(progress.first_programmed.is_some()));
    page.gauge("fairlead_adopted_objects", "What an earlier agent left and this one went on with.")
        .sample(&[("kind", "link")], adopted.links)
        .sample(&[("kind", "endpoint")], adopted.endpoints);
    page.gauge(
        "fairlead_program_verified_instructions",
        "Instructions that the verifier walked for each program.",
    );
    for (program, facts) in lock(&agent.links).programs().facts() {
        if let Some(count) = facts.verified {
            page.sample(&[("program", &program)], count);
        }
    }
    kernel::metrics(kernel, page);
    page.gauge("fairlead_endpoints", "Local pods.").sample(&[], lock(&agent.endpoints).len());
    page.gauge("fairlead_socket_clients", "Network namespaces whose sockets are translated.")
        .sample(&[], lock(&agent.clients).len());
    page.histograms(
        "fairlead_request_duration_seconds",
        "How long it took to answer on the agent's socket: add, delete and check are the CNI plugin's.",
    );
    for ((request, is_done), durations) in &agent.requests.durations() {
        let result = if *is_done { "done" } else { "failed" };
        page.distribution(&[("request", request), ("result", result)], durations);
    }
    page.gauge("fairlead_waiting_clients", "Who waits for an object to be in effect.")
        .sample(&[], agent.turns.waiting());
    page.gauge(
        "fairlead_drain_connections",
        "Connections through Services that connection tracking still has, from before.",
    )
    .sample(&[], agent.drain.view().left);
    page.gauge("fairlead_services_pending", "Services that are not as their objects ask.")
        .sample(&[], progress.pending);
    let waited = progress.queued_since.and_then(|since| SystemTime::now().duration_since(since).ok());
    page.gauge(
        "fairlead_oldest_update_age_seconds",
        "How long the oldest update of a Service, EndpointSlice or Node has waited to be taken up.",
    )
    .sample(&[], waited.unwrap_or_default().as_secs_f64());
    let problems = lock(&agent.reconciler).problems().len() + agent.policies.problems().len();
    page.gauge("fairlead_object_problems", "Parts of objects that were left out.").sample(&[], problems);
    page.counter("fairlead_events_total", "Events told to the API, by how it went.");
    for (result, count) in agent.telling.counts() {
        page.sample(&[("result", result)], count);
    }
    let checks = agent.checks.get();
    let failed = checks.iter().filter(|check| check.error.is_some()).count();
    page.gauge("fairlead_health_check_servers", "Servers of healthCheckNodePorts, by whether they listen.")
        .sample(&[("state", "listening")], checks.len() - failed)
        .sample(&[("state", "failed")], failed);
}
