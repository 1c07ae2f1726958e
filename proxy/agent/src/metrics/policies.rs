//! Policies: what is compiled, and what they drop.

use fairlead_daemon::exposition::Page;

use crate::agent::Agent;

pub(super) fn write(agent: &Agent, page: &mut Page) {
    let policies = &agent.policies;
    let status = policies.status();
    page.gauge("fairlead_policies_synced", "Whether every list that policies depend on is done.")
        .sample(&[], u8::from(status.synced));
    page.gauge("fairlead_policy_objects", "NetworkPolicies and ClusterNetworkPolicies in the API.")
        .sample(&[], status.objects);
    page.gauge("fairlead_policies_compiled", "Compiled policies that pods of this node are under.")
        .sample(&[], status.compiled);
    page.gauge("fairlead_policies_pending", "Policies and endpoints that are not as their objects ask.")
        .sample(&[], policies.pending().len());
    let (writes, failed) = policies.writes();
    page.counter("fairlead_policy_map_writes_total", "Writes to the maps of policies, by their end.")
        .sample(&[("result", "done")], writes)
        .sample(&[("result", "failed")], failed);
    page.counter(
        "fairlead_policy_dropped_packets_total",
        "Packets dropped at pods that the object selects, each counted for all objects that its pod is under.",
    );
    for ((object, direction), count) in &policies.drop_totals() {
        page.sample(&[("policy", object), ("direction", &direction.to_string())], count);
    }
    page.histogram(
        "fairlead_policy_reconcile_seconds",
        "How long it took to compile and program what changed of policies.",
        &policies.durations(),
    );
}
