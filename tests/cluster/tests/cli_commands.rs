//! The command line: each command's text and JSON for a scene that is known.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually};
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses, outside_address};
use fairlead_cluster_tests::{SERVICE_PORT, service, with_cluster};
use fairlead_harness::{Cluster, Load, Protocol};
use serde_json::Value;

const BOTH: &[&str] = &["near", "far"];

fn json(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let text = cluster.node("node1")?.proxy(&[arguments, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("{arguments:?}: {text}"))
}

/// The answer as text; what docs/operate.md shows is taken from here.
fn text(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let text = cluster.node("node1")?.proxy(arguments)?;
    println!("$ fairlead-proxy {}\n{text}", arguments.join(" "));
    Ok(text)
}

/// Everything is in the text.
fn shows(text: &str, expected: &[&str]) -> Result<()> {
    for part in expected {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn each_command_shows_the_scene_as_text_and_as_json() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let targets = at(&cluster.cluster_ips("echo")?);
        answered_by(scene.insiders()[0], &targets, BOTH)?;
        let load = Load::new(Protocol::Tcp, targets[0].1).over_one_flow().every(Duration::from_millis(50));
        let traffic = scene.client.place.traffic(&load)?;

        let status = json(cluster, &["status"])?;
        ensure!(status["ready"] == true && status["nodeName"] == "node1", "{status:#}");
        let from_wire = status["programs"].as_array().into_iter().flatten();
        let mut from_wire = from_wire.filter(|program| program["name"] == "fairlead_frwire");
        let attached = from_wire.next().context("no program of the uplink")?["attachedTo"].clone();
        ensure!(attached == status["node"]["uplinks"], "{attached} is not {:#}", status["node"]);
        let shown = text(cluster, &["status"])?;
        shows(
            &shown,
            &["on node node1: ready, everything programmed since 2", "nothing waits", "FRONTENDS", "WATCH"],
        )?;
        ensure!(!shown.contains('\u{1b}'), "there is no terminal: {shown:?}");

        let services = json(cluster, &["services", "-n", "default"])?;
        ensure!(services.as_array().is_some_and(|all| !all.is_empty()), "{services:#}");
        ensure!(services[0]["frontends"][0]["withoutBackend"].is_string(), "{services:#}");
        ensure!(json(cluster, &["services", "-n", "nowhere"])? == serde_json::json!([]));
        let broken = text(cluster, &["services", "--broken"])?;
        ensure!(!broken.contains("default/echo"), "{broken}");
        let echo = json(cluster, &["services", "default/echo"])?;
        ensure!(echo["ports"][0]["endpoints"].as_array().map(Vec::len) == Some(4), "{echo:#}");
        let shown = text(cluster, &["services", "default/echo"])?;
        shows(
            &shown,
            &["Service default/echo\n", "inside Cluster, outside Cluster", "NodePort", "ready", "node2"],
        )?;
        let error = text(cluster, &["services", "default/nobody"]).expect_err("there is none");
        ensure!(format!("{error:#}").contains("no Service default/nobody"), "{error:#}");

        let backends = eventually(|| {
            let backends = json(cluster, &["backends", "default/echo"])?;
            let flows =
                backends.as_array().into_iter().flatten().filter_map(|backend| backend["flows"].as_u64());
            ensure!(flows.sum::<u64>() > 0, "{backends:#}");
            Ok(backends)
        })?;
        let pods: Vec<&str> =
            backends.as_array().into_iter().flatten().filter_map(|backend| backend["pod"].as_str()).collect();
        ensure!(pods.contains(&"Pod default/near") && pods.contains(&"Pod default/far"), "{backends:#}");
        shows(&text(cluster, &["backends"])?, &["Service default/echo", "node2", "serves"])?;

        let endpoints = json(cluster, &["endpoints"])?;
        let near = endpoints.as_array().into_iter().flatten().find(|pod| pod["pod"] == "default/near");
        let near = near.context("no endpoint near")?;
        ensure!(near["ingress"]["state"] == "open" && near["fault"].is_null(), "{near:#}");
        ensure!(near["netnsCookie"].is_u64(), "{near:#}");
        shows(&text(cluster, &["endpoints"])?, &["default/client", "default/near", "ok"])?;
        shows(
            &text(cluster, &["endpoints", "default/near"])?,
            &["Pod default/near\n", "attached", "no policy"],
        )?;

        ensure!(text(cluster, &["policies"])? == "there are no policies\n");

        let table = json(cluster, &["flow-table"])?;
        ensure!(table["held"].as_u64() > Some(0), "{table:#}");
        ensure!(table["services"][0]["name"] == "Service default/echo", "{table:#}");
        shows(&text(cluster, &["flow-table"])?, &["established", "CLIENT SILENT FOR", "Pod default/client"])?;

        let report = traffic.stop()?;
        ensure!(report.failures().is_empty(), "{:?}", report.failures());
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn why_tells_of_a_service_who_counts_as_whom_how_one_is_chosen_and_why_nobody_is() {
    with_cluster(|cluster| {
        let sticky = service("sticky", "echo", "NodePort") + "  sessionAffinity: ClientIP\n";
        let local = service("local", "elsewhere", "NodePort") + "  externalTrafficPolicy: Local\n";
        let far = fairlead_cluster_tests::pod("elsewhere", "elsewhere", "node2");
        let scene = Scene::set(cluster, &(sticky + &local + &far))?;
        cluster.pod("elsewhere")?;
        let targets = at(&cluster.cluster_ips("sticky")?);
        answered_by(scene.insiders()[0], &targets[..1], &[]).ok();
        scene.client.place.request_until_answered(Protocol::Tcp, targets[0].1)?;
        let port = format!("tcp/{SERVICE_PORT}");
        let why = |from: &str, to: &str, port: &str| -> Result<(Value, String)> {
            let question = ["why", "--from", from, "--to", to, "--port", port];
            Ok((json(cluster, &question)?, text(cluster, &question)?))
        };

        let (inside, shown) = eventually(|| {
            let (answer, shown) = why("default/client", "default/sticky", &port)?;
            ensure!(shown.contains("this one has"), "{shown}");
            Ok((answer, shown))
        })?;
        ensure!(inside["verdict"] == "allowed" && inside["service"]["region"] == "inside", "{inside:#}");
        ensure!(inside["service"]["maps"]["agrees"] == true, "{inside:#}");
        shows(
            &shown,
            &["counts as inside the cluster here, traffic policy Cluster", "sees the client's address"],
        )?;

        let [v4, _] = node_addresses(cluster, "node1")?;
        let outside = outside_address(cluster, v4)?.to_string();
        let node_port = at_node_ports(cluster, "sticky", &[v4])?[0].1.port();
        let (answer, shown) = why(&outside, &v4.to_string(), &format!("tcp/{node_port}"))?;
        ensure!(answer["service"]["masqueraded"] == true && answer["verdict"] == "allowed", "{answer:#}");
        shows(&shown, &["counts as outside", "this one has none yet", "it is masqueraded"])?;

        let node_port = at_node_ports(cluster, "local", &[v4])?[0].1.port();
        let (answer, shown) = eventually(|| {
            let (answer, shown) = why(&outside, &v4.to_string(), &format!("tcp/{node_port}"))?;
            ensure!(answer["verdict"] == "dropped", "{answer:#}");
            Ok((answer, shown))
        })?;
        ensure!(answer["service"]["maps"]["agrees"] == true, "{answer:#}");
        shows(&shown, &["traffic policy Local", "none of its endpoints (1) is on this node"])?;

        let address = cluster.cluster_ips("sticky")?[0].to_string();
        let (answer, shown) = why("default/client", &address, "tcp/81")?;
        ensure!(answer["verdict"] == "refused", "{answer:#}");
        shows(&shown, &["Service default/sticky has the address, but no port 81/tcp"])?;
        let (answer, shown) = why("default/client", "10.96.200.7", "tcp/80")?;
        ensure!(answer["verdict"] == "dropped", "{answer:#}");
        shows(&shown, &["no Service has it"])
    });
}
