//! Pods that policies isolate: who reaches them still, and whom they reach.

use fairlead_cluster_tests::policy::{Estate, by_all_means, by_sockets, closed, web_egress, web_ingress};
use fairlead_cluster_tests::with_cluster;
use serde_json::json;

/// Everyone reaches everyone.
const OPEN: &str = "
              web  near  far  guest  away  node1  node2  outside
    web        .    .     .     .     .      .      .       .
    near       .    .     .     .     .      .      .       .
    far        .    .     .     .     .      .      .       .
    guest      .    .     .     .     .      .      .       .
    away       .    .     .     .     .      .      .       .
    node1      .    .     .     .     .      .      .       .
    node2      .    .     .     .     .      .      .       .
    outside    .    .     .     .     .      .      .       .
";

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_that_nobody_may_reach_is_reached_by_its_own_node_and_by_itself() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let matrix = estate.matrix(by_all_means);
        matrix.shows(OPEN)?;
        let policy = closed("closed", "web", &["Ingress"]);
        cluster.api().apply(&policy)?;
        // What it sends itself is answered.
        matrix.shows(
            "
                  web  near  far  guest  away  node1  node2  outside
        web        .    .     .     .     .      .      .       .
        near       X    .     .     .     .      .      .       .
        far        X    .     .     .     .      .      .       .
        guest      X    .     .     .     .      .      .       .
        away       X    .     .     .     .      .      .       .
        node1      .    .     .     .     .      .      .       .
        node2      X    .     .     .     .      .      .       .
        outside    X    .     .     .     .      .      .       .
        ",
        )?;
        cluster.api().remove(&policy)?;
        matrix.shows(OPEN)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_that_may_reach_nobody_reaches_its_own_node_and_itself() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let matrix = estate.matrix(by_all_means);
        let policy = closed("closed", "web", &["Egress"]);
        cluster.api().apply(&policy)?;
        // It answers whoever asks it.
        matrix.shows(
            "
                  web  near  far  guest  away  node1  node2  outside
        web        .    X     X     X     X      .      X       X
        near       .    .     .     .     .      .      .       .
        far        .    .     .     .     .      .      .       .
        guest      .    .     .     .     .      .      .       .
        away       .    .     .     .     .      .      .       .
        node1      .    .     .     .     .      .      .       .
        node2      .    .     .     .     .      .      .       .
        outside    .    .     .     .     .      .      .       .
        ",
        )?;
        cluster.api().remove(&policy)?;
        matrix.shows(OPEN)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_connection_between_isolated_pods_has_to_be_allowed_at_both_ends() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let matrix = estate.matrix(by_sockets);
        let api = cluster.api();
        let peers = json!([{ "podSelector": { "matchLabels": { "app": "peer" } } }]);
        for app in ["web", "peer"] {
            api.apply(&closed(&format!("{app}-closed"), app, &["Ingress", "Egress"]))?;
        }
        api.apply(&web_egress("web-may-ask", json!([{ "to": peers }])))?;
        matrix.shows(
            "
                  web  near  far  guest
        web        .    X     X     X
        near       X    .     X     X
        far        X    X     .     X
        guest      X    X     X     .
        ",
        )?;
        let mut answers = closed("peers-answer", "peer", &["Ingress"]);
        answers["spec"]["ingress"] =
            json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }]);
        api.apply(&answers)?;
        // Neither direction of what is allowed opens the other.
        let one_way = "
                  web  near  far  guest
        web        .    .     .     X
        near       X    .     X     X
        far        X    X     .     X
        guest      X    X     X     .
        ";
        matrix.shows(one_way)?;
        api.apply(&web_ingress("web-answers", json!([{ "from": peers }])))?;
        matrix.shows(one_way)?;
        let mut asks = closed("peers-may-ask", "peer", &["Egress"]);
        asks["spec"]["egress"] = json!([{ "to": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }]);
        api.apply(&asks)?;
        matrix.shows(
            "
                  web  near  far  guest
        web        .    .     .     X
        near       .    .     X     X
        far        .    X     .     X
        guest      X    X     X     .
        ",
        )
    });
}
