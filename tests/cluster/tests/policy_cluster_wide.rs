//! ClusterNetworkPolicies: before and after the NetworkPolicies of the pods' namespaces.

use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_cluster_tests::matrix::{Matrix, echoes};
use fairlead_cluster_tests::policy::{
    Estate, OTHER_PORT, by_sockets, by_tcp, closed, cluster_policy, web_egress, web_ingress,
};
use fairlead_cluster_tests::{POD_PORT, with_cluster};
use fairlead_harness::Cluster;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// How long it may take until an agent has noticed that the kind is defined: it asks every ten seconds.
const UNTIL_ASKED_AGAIN: Duration = Duration::from_secs(15);

/// Peers by the labels of their namespace, and by those of the pods in it.
fn of_team(team: &str) -> Value {
    json!({ "namespaces": { "matchLabels": { "team": team } } })
}

fn of_app(app: &str) -> Value {
    json!({ "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": app } } } })
}

/// A rule about who reaches the pod.
fn ingress(action: &str, from: Value) -> Value {
    json!({ "ingress": [{ "action": action, "from": [from] }] })
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_admin_tier_denies_no_network_policy_allows() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let (matrix, api) = (estate.matrix(by_sockets), cluster.api());
        api.apply(&web_ingress("everyone", json!([{}])))?;
        let policy = cluster_policy("no-guests", "Admin", 10, ingress("Deny", of_team("blue")));
        api.apply(&policy)?;
        // It isolates nobody whom it does not name.
        matrix.shows("web\n web .\n near .\n far .\n guest X\n away X\n node1 .\n node2 .\n outside .")?;
        api.remove(&policy)?;
        matrix.shows("web\n near .\n far .\n guest .\n away .\n outside .")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_the_admin_tier_accepts_no_network_policy_denies() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let (matrix, api) = (estate.matrix(by_sockets), cluster.api());
        api.apply(&closed("closed", "web", &["Ingress"]))?;
        api.apply(&cluster_policy("guests", "Admin", 10, ingress("Accept", of_team("blue"))))?;
        matrix.shows("web\n near X\n far X\n guest .\n away .\n outside X")?;
        // A lower number comes first, and what is passed on is left to the NetworkPolicy.
        let guest_at_node1 = ingress("Pass", of_app("guest"));
        api.apply(&cluster_policy("but-not-here", "Admin", 5, guest_at_node1))?;
        matrix.shows("web\n near X\n far X\n guest X\n away X\n outside X")?;
        api.apply(&cluster_policy("but-not-here", "Admin", 11, ingress("Deny", of_app("guest"))))?;
        matrix.shows("web\n near X\n far X\n guest .\n away .\n outside X")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_baseline_holds_where_no_network_policy_selects_the_pod() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let (matrix, api) = (estate.matrix(by_sockets), cluster.api());
        let rules = json!({ "ingress": [
            { "action": "Accept", "from": [of_app("peer")] },
            { "action": "Deny", "from": [{ "namespaces": {} }] },
        ] });
        api.apply(&cluster_policy("apart", "Baseline", 10, rules))?;
        // Pods of every namespace, and thus nobody outside.
        matrix.shows("web\n near .\n far .\n guest X\n away X\n outside .")?;
        let guests = json!([{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "blue" } } }] }]);
        let policy = web_ingress("guests", guests);
        api.apply(&policy)?;
        matrix.shows("web\n near X\n far X\n guest .\n away .\n outside X")?;
        api.remove(&policy)?;
        // One for what the pod sends says nothing about what reaches it.
        api.apply(&closed("asks-nobody", "web", &["Egress"]))?;
        matrix.shows("web\n near .\n far .\n guest X\n away X\n outside .")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn rules_are_tried_in_their_order_by_protocol_and_port() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let web = &estate.pod("web")?.ips;
        let near = estate.pod("near")?;
        let matrix = Matrix::default()
            .asker("near", &near.place)
            .target("web", by_tcp(POD_PORT)(web))
            .target("other", by_tcp(OTHER_PORT)(web))
            .target("echo", echoes(web));
        let everyone = json!([{ "namespaces": {} }]);
        let rule = |action: &str, protocols: Value| {
            let mut rule = json!({ "action": action, "from": everyone });
            if !protocols.is_null() {
                rule["protocols"] = protocols;
            }
            rule
        };
        let number = |port: u16| json!([{ "tcp": { "destinationPort": { "number": port } } }]);
        let range =
            json!([{ "tcp": { "destinationPort": { "range": { "start": POD_PORT, "end": OTHER_PORT } } } }]);
        for (rules, cells) in [
            (json!([rule("Deny", number(POD_PORT))]), "X . ."),
            (json!([rule("Accept", number(OTHER_PORT)), rule("Deny", Value::Null)]), "X . X"),
            (json!([rule("Deny", Value::Null), rule("Accept", number(OTHER_PORT))]), "X X X"),
            (json!([rule("Accept", number(POD_PORT)), rule("Deny", range)]), ". X ."),
            (json!([rule("Deny", json!([{ "destinationNamedPort": "other" }]))]), ". X ."),
            (json!([rule("Deny", json!([{ "destinationNamedPort": "nobody" }]))]), ". . ."),
        ] {
            let policy = cluster_policy("ports", "Admin", 10, json!({ "ingress": rules }));
            cluster.api().apply(&policy)?;
            let shown = matrix.shows(&format!("web other echo\n near {cells}"));
            shown.with_context(|| format!("rules: {rules}"))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_pods_send_is_denied_by_networks_and_nodes() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let (matrix, api) = (estate.matrix(by_sockets), cluster.api());
        let egress = |to: Value| json!({ "egress": [{ "action": "Deny", "to": [to] }] });
        // The client outside, and the pods of node2.
        let networks = json!(["10.90.0.100/30", "fd00:90::100/126", "10.244.2.0/24", "fd00:10:244:2::/64"]);
        let networks = json!({ "networks": networks });
        api.apply(&cluster_policy("networks", "Admin", 10, egress(networks)))?;
        // Node1 is the pod's own, and denied to it by nobody but a ClusterNetworkPolicy.
        matrix.shows("near far away node1 node2 outside\n web . X X . . X")?;
        let node2 = json!({ "nodes": { "matchLabels": { "kubernetes.io/hostname": "node2" } } });
        api.apply(&cluster_policy("networks", "Admin", 10, egress(node2)))?;
        matrix.shows("near far away node1 node2 outside\n web . . . . X .")?;
        let all = json!({ "nodes": {} });
        api.apply(&cluster_policy("networks", "Admin", 10, egress(all)))?;
        matrix.shows("near far away node1 node2 outside\n web . . . X X .")?;
        // A NetworkPolicy never denies the own node.
        api.remove(&cluster_policy("networks", "Admin", 10, Value::Null))?;
        api.apply(&web_egress("nobody", json!([])))?;
        matrix.shows("near far away node1 node2 outside\n web X X X . X X")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn where_the_kind_is_not_defined_network_policies_work_and_its_policies_do_once_it_is() {
    with_cluster(|cluster| {
        // A real API server drops what was stored with a definition; there is nothing to see.
        let Some(faults) = cluster.faults() else { return Ok(()) };
        let estate = Estate::set(cluster)?;
        cluster.api().apply(&cluster_policy("no-guests", "Admin", 10, ingress("Deny", of_team("blue"))))?;
        estate.matrix(by_sockets).shows("web\n near .\n far .\n guest X")?;
        faults.define(false)?;
        restart(cluster)?;
        cluster.api().apply(&web_ingress(
            "no-peers",
            json!([{ "from": [
            { "namespaceSelector": { "matchLabels": { "team": "blue" } } }] }]),
        ))?;
        let matrix = estate.matrix(by_sockets);
        matrix.shows("web\n near X\n far X\n guest .\n away .")?;
        faults.define(true)?;
        matrix.shows_within(UNTIL_ASKED_AGAIN, "web\n near X\n far X\n guest X\n away X")
    });
}

fn restart(cluster: &mut Cluster) -> Result<()> {
    for name in ["node1", "node2"] {
        let node = cluster.node_mut(name)?;
        node.stop_proxy(Signal::SIGTERM)?;
        node.start_proxy()?;
        node.wait_for_proxy()?;
    }
    Ok(())
}
