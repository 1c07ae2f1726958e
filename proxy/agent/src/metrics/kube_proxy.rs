//! What dashboards made for kube-proxy read: its names and types, where they mean the same.
//!
//! kube-proxy 1.36 has most of them by address family (label `ip_family`); here one reconcile does both families, so there
//! is no such label. What it counts of iptables, nftables and conntrack has no like here.

use fairlead_core::frontends::WithoutLocal;
use fairlead_daemon::exposition::Page;

use super::seconds;
use crate::agent::{Agent, lock};

pub(super) fn write(agent: &Agent, page: &mut Page) {
    let progress = agent.progress();
    page.histogram(
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "How long a reconcile took.",
        &progress.durations,
    );
    page.gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When the last reconcile ended.")
        .sample(&[], seconds(progress.last_finished));
    page.gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When the last update came.")
        .sample(&[], seconds(progress.last_queued));
    page.gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "EndpointSlices not reconciled yet.")
        .sample(&[], progress.endpoint_changes.pending);
    page.counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "EndpointSlices that changed.")
        .sample(&[], progress.endpoint_changes.total);
    page.gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Services not reconciled yet.")
        .sample(&[], progress.service_changes.pending);
    page.counter("kubeproxy_sync_proxy_rules_service_changes_total", "Services that changed.")
        .sample(&[], progress.service_changes.total);
    let WithoutLocal { internal, external } = lock(&agent.reconciler).without_local();
    page.gauge(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Service ports with a Local policy and endpoints, but none of them on this node.",
    )
    .sample(&[("traffic_policy", "internal")], internal)
    .sample(&[("traffic_policy", "external")], external);
    page.histogram(
        "kubeproxy_network_programming_duration_seconds",
        "From the cause of an endpoint's change until it is programmed.",
        &progress.programming,
    );
    let answers = agent.answers.counts();
    for (asked, name) in
        [("healthz", "kubeproxy_proxy_healthz_total"), ("livez", "kubeproxy_proxy_livez_total")]
    {
        page.counter(name, "Answers, by HTTP status.");
        for ((_, code), count) in answers.iter().filter(|((of, _), _)| *of == asked) {
            page.sample(&[("code", &code.to_string())], count);
        }
    }
}
