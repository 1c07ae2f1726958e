//! What the agent says of policies: why a packet passes or not, which packets it has dropped, which policies there are.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::policy::{Estate, by_sockets, cluster_policy, web_ingress};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, service, with_cluster};
use fairlead_harness::{Cluster, wait_for};
use serde_json::{Value, json};

/// How long the agent may take to hear of what the programs did.
const SOON: Duration = Duration::from_secs(10);

/// The agent's answer, as JSON.
fn ask(cluster: &Cluster, node: &str, arguments: &[&str]) -> Result<Value> {
    let text = cluster.node(node)?.proxy(&[arguments, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| text)
}

fn why(cluster: &Cluster, from: &str, to: &str, port: &str) -> Result<(Value, String)> {
    let question = ["why", "--from", from, "--to", to, "--port", port];
    let text = cluster.node("node1")?.proxy(&question)?;
    Ok((ask(cluster, "node1", &question)?, text))
}

/// What the maps say is what the rules say, and somebody has looked.
fn maps_agree(answer: &Value) -> bool {
    let looks = answer["paths"].as_array().into_iter().flatten();
    let mut looks = looks.flat_map(|path| path["maps"].as_array().into_iter().flatten()).peekable();
    looks.peek().is_some() && looks.all(|look| look["agrees"] == true)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn why_names_the_rule_that_decides_and_what_the_others_lack_as_the_maps_have_it() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let peers = json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "peer" } } }],
                             "ports": [{ "port": POD_PORT }, { "port": POD_PORT, "protocol": "UDP" }] }]);
        cluster.api().apply(&web_ingress("allow-peers", peers))?;
        estate.matrix(by_sockets).shows("web\n near .\n far .\n guest X")?;
        let dialled = format!("tcp/{POD_PORT}");

        let (allowed, text) = why(cluster, "default/near", "default/web", &dialled)?;
        ensure!(allowed["verdict"] == "allowed" && maps_agree(&allowed), "{allowed:#}");
        ensure!(text.contains("NetworkPolicy default/allow-peers ingress rule 1"), "{text}");

        let (denied, text) = why(cluster, "default/near", "default/web", "tcp/81")?;
        ensure!(denied["verdict"] == "denied" && maps_agree(&denied), "{denied:#}");
        ensure!(text.contains("allow-peers") && text.contains("rather than tcp/81"), "{text}");

        let (stranger, text) = why(cluster, "bank/guest", "default/web", &dialled)?;
        ensure!(stranger["verdict"] == "denied" && maps_agree(&stranger), "{stranger:#}");
        ensure!(text.contains("no ingress rule names the peer"), "{text}");

        // Nobody isolates who is far; what its own node says is not for this one to check.
        let (other, _) = why(cluster, "default/web", "default/far", &dialled)?;
        ensure!(other["verdict"] == "allowed", "{other:#}");

        let error = why(cluster, "default/nobody", "default/web", &dialled).expect_err("there is none");
        ensure!(format!("{error:#}").contains("no such Pod"), "{error:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn why_follows_a_service_to_its_backends_and_a_tier_above_its_policies() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        cluster.apply(&service("front", "web", "ClusterIP"))?;
        let guests = json!({ "namespaces": { "matchLabels": { "team": "blue" } } });
        let deny = json!({ "ingress": [{ "name": "no guests", "action": "Deny", "from": [guests] }] });
        cluster.api().apply(&cluster_policy("keep-out", "Admin", 10, deny))?;
        estate.matrix(by_sockets).shows("web\n near .\n guest X")?;
        let dialled = format!("tcp/{SERVICE_PORT}");
        let backend = format!("{}:{POD_PORT}", estate.pod("web")?.ips[0]);
        let translated = || -> Result<Option<Value>> {
            let (answer, _) = why(cluster, "default/near", "default/front", &dialled)?;
            Ok((answer["service"]["backends"] == json!([backend])).then_some(answer))
        };
        let answer = wait_for("the Service's backend", SOON, translated)?;
        ensure!(answer["verdict"] == "allowed" && answer["service"]["maps"]["agrees"] == true, "{answer:#}");

        let (denied, text) = why(cluster, "bank/guest", "default/front", &dialled)?;
        ensure!(denied["verdict"] == "denied" && maps_agree(&denied), "{denied:#}");
        ensure!(text.contains("ClusterNetworkPolicy keep-out ingress rule 1 \"no guests\""), "{text}");
        let (by_address, _) =
            why(cluster, "bank/guest", &cluster.cluster_ips("front")?[0].to_string(), &dialled)?;
        ensure!(by_address["service"]["name"] == "default/front", "{by_address:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_drop_is_told_with_both_ends_and_the_policies_by_name_and_counted_for_them() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        cluster.api().apply(&web_ingress("nobody", json!([])))?;
        estate.matrix(by_sockets).shows("web\n near X\n far X")?;
        let told = || -> Result<Option<Value>> {
            let text = cluster.node("node1")?.proxy(&["flows", "--drops", "-o", "json"])?;
            let drops: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            let is_far =
                |drop: &&Value| drop["client"]["name"] == "Pod default/far" && drop["protocol"] == "tcp";
            Ok(drops.iter().find(is_far).cloned())
        };
        let drop = wait_for("a drop of what comes from far", SOON, told)?;
        ensure!(drop["tier"] == "NetworkPolicy" && drop["direction"] == "ingress", "{drop:#}");
        ensure!(
            drop["server"]["name"] == "Pod default/web" && drop["server"]["port"] == POD_PORT,
            "{drop:#}"
        );
        ensure!(drop["policies"] == json!(["NetworkPolicy default/nobody"]), "{drop:#}");
        let text = cluster.node("node1")?.proxy(&["flows", "--drops"])?;
        ensure!(text.contains("ingress dropped by NetworkPolicy: tcp"), "{text}");

        let metrics = cluster.node("node1")?.metrics()?;
        let series = "fairlead_policy_dropped_packets_total{policy=\"NetworkPolicy default/nobody\",direction=\"ingress\"}";
        let count = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
        ensure!(count.is_some_and(|count| count > 0.0), "{count:?} in\n{metrics}");

        let policies = cluster.node("node1")?.proxy(&["policies"])?;
        ensure!(policies.contains("default/nobody") && policies.contains("default/web"), "{policies}");
        let status = ask(cluster, "node1", &["status"])?;
        ensure!(status["policies"]["synced"] == true && status["policies"]["compiled"] == 1, "{status:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_part_of_a_policy_that_makes_no_sense_is_named_and_the_rest_holds() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let from = json!([{ "podSelector": { "matchLabels": { "app": "peer" } } }]);
        let strange = json!({ "ingress": [{ "action": "Deny", "from": [{ "planets": {} }] },
                                          { "action": "Accept", "from": [{ "namespaces": {} }] }] });
        cluster.api().apply(&web_ingress("peers", json!([{ "from": from }])))?;
        cluster.api().apply(&cluster_policy("strange", "Baseline", 1, strange))?;
        estate.matrix(by_sockets).shows("web\n near .\n guest X")?;
        let named = || -> Result<Option<()>> {
            let status = cluster.node("node1")?.proxy(&["status"])?;
            Ok(status.contains("ClusterNetworkPolicy strange: spec.ingress[0]").then_some(()))
        };
        wait_for("the problem in the status", SOON, named)
    });
}
