//! "Is it programmed?": the command that waits, the endpoint that answers, and that both say what packets meet.

use std::net::SocketAddr;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually, of};
use fairlead_cluster_tests::objects::{at, external_ips, patch};
use fairlead_cluster_tests::policy::{Estate, web_ingress};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{pod, service, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Load, Node, Options, Protocol, binary, http_get};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);

/// `fairlead-proxy wait` on a node, whatever it ends with.
fn wait(node: &Node, arguments: &[&str]) -> Result<Output> {
    let mut command = node.place().command(&binary("fairlead-proxy")?)?;
    command.arg("wait").args(arguments).arg("--socket").arg(node.layout().socket());
    command.output().context("run fairlead-proxy wait")
}

/// The same, which must end so; with all that it says.
fn waits(node: &Node, arguments: &[&str], code: i32) -> Result<String> {
    let output = wait(node, arguments)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.code() == Some(code), "wait {arguments:?} ended with {}: {said}", output.status);
    Ok(said)
}

/// What the node says of an object: HTTP status and body.
fn programmed(node: &Node, path: &str) -> Result<(u16, Value)> {
    let path = format!("/programmed/{path}");
    let (status, body) = node.place().netns().run(|| http_get(METRICS, &path))??;
    Ok((status, serde_json::from_str(&body).with_context(|| format!("{status}: {body}"))?))
}

fn version_of(cluster: &Cluster, object: &str) -> Result<String> {
    let version = cluster.kubectl(&["get", object, "-o", "jsonpath={.metadata.resourceVersion}"])?;
    Ok(version.trim().to_owned())
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn who_has_waited_for_a_service_reaches_it_at_once_and_who_waits_for_its_end_does_not() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, "")?;
        for round in 0..5 {
            let name = format!("echo{round}");
            cluster.apply(&service(&name, "echo", "ClusterIP"))?;
            let object = format!("service/{name}");
            let version = version_of(cluster, &object)?;
            let arguments = ["--service", &format!("default/{name}"), "--resource-version", &version];
            let said = waits(cluster.node("node1")?, &arguments, 0)?;
            ensure!(said.contains(&format!("Service default/{name} is in effect at version ")), "{said}");
        }
        // The endpoints come by slices of their own: once the node has heard of them, they are in effect too.
        let node = cluster.node("node1")?;
        let slices = eventually(|| {
            let (status, answer) = programmed(node, "services/default/echo4")?;
            ensure!(status == 200 && answer["inEffect"] == true, "{status}: {answer:#}");
            let slices = answer["endpointSlices"].as_object().cloned().unwrap_or_default();
            ensure!(slices.len() == 2, "{answer:#}");
            Ok(slices)
        })?;
        for (slice, version) in slices {
            let current = version_of(cluster, &format!("endpointslice/{slice}"))?;
            ensure!(version.as_str() == Some(current.as_str()), "{slice}: {version}, not {current}");
        }
        let client = ("a pod", &scene.client.place);
        answered_by(client, &at(&cluster.cluster_ips("echo4")?), &["near", "far"])?;

        cluster.kubectl(&["delete", "service", "echo4"])?;
        let said = waits(node, &["--service", "default/echo4", "--deleted"], 0)?;
        ensure!(said.contains("Service default/echo4 is gone"), "{said}");
        let (status, answer) = programmed(node, "services/default/echo4")?;
        ensure!(status == 404 && answer["missing"].is_string(), "{status}: {answer:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn who_waits_is_told_as_it_happens_and_whoever_waits_in_vain_what_is_missing() {
    with_cluster(|cluster| {
        let node = cluster.node("node1")?;
        let said = waits(node, &["--service", "default/none", "--timeout", "200ms"], 1)?;
        ensure!(said.contains("the API has no such object"), "{said}");

        let started = Instant::now();
        let told = thread::scope(|scope| -> Result<(String, Duration)> {
            let waiting = scope.spawn(|| {
                let said = waits(node, &["--service", "default/late", "--timeout", "60s"], 0);
                said.map(|said| (said, Instant::now()))
            });
            thread::sleep(Duration::from_secs(1));
            cluster.apply(&service("late", "late", "ClusterIP"))?;
            let applied = Instant::now();
            let (said, ended) = waiting.join().map_err(|_| anyhow::anyhow!("the wait has panicked"))??;
            Ok((said, ended.saturating_duration_since(applied)))
        })?;
        ensure!(started.elapsed() > Duration::from_secs(1), "it did not wait");
        println!("in effect, as told, {:?} after kubectl apply had returned", told.1);
        ensure!(told.1 < Duration::from_secs(5), "{told:?}");

        let version = version_of(cluster, "service/late")?;
        let next = format!("{version}0");
        let arguments = ["--service", "default/late", "--resource-version", &next, "--timeout", "200ms"];
        let said = waits(node, &arguments, 1)?;
        ensure!(said.contains(&format!("{next} was not heard of")), "{said}");
        let json = waits(node, &["--service", "default/late", "-o", "json"], 0)?;
        let view: Value = serde_json::from_str(&json)?;
        ensure!(view["inEffect"] == true && view["resourceVersion"] == json!(version), "{view:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn nobody_is_told_that_an_agent_that_does_not_run_has_done_something() {
    with_cluster_of(Options::default().with_nodes(1), |cluster| {
        cluster.node_mut("node1")?.stop_proxy(Signal::SIGTERM)?;
        let started = Instant::now();
        let said = waits(cluster.node("node1")?, &["--service", "default/kubernetes"], 2)?;
        ensure!(said.contains("connect to the agent at"), "{said}");
        ensure!(started.elapsed() < Duration::from_secs(10), "it took {:?}", started.elapsed());
        let node = cluster.node_mut("node1")?;
        node.start_proxy()?;
        node.wait_for_proxy()
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_for_which_there_is_no_room_or_whose_address_is_taken_is_not_in_effect_and_says_why() {
    let small = Options::default().with_nodes(1).with_arguments(&["--max-frontends", "32"]);
    with_cluster_of(small, |cluster| {
        let node = cluster.node("node1")?;
        cluster.apply(&(service("elder", "echo", "ClusterIP") + &external_ips()))?;
        waits(node, &["--service", "default/elder"], 0)?;
        cluster.apply(&(service("younger", "echo", "ClusterIP") + &external_ips()))?;
        eventually(|| {
            let (status, answer) = programmed(node, "services/default/younger")?;
            ensure!(status == 409, "{status}: {answer:#}");
            let missing = answer["missing"].as_str().unwrap_or_default();
            ensure!(missing.contains("is already that of Service default/elder"), "{answer:#}");
            Ok(())
        })?;
        patch(cluster, "service/younger", &json!({ "spec": { "externalIPs": null } }))?;
        // Six frontends and two whole addresses each, where there is room for one or two.
        for more in ["one", "two", "three"] {
            cluster.apply(&service(more, "echo", "ClusterIP"))?;
        }
        let said = waits(node, &["--service", "default/three", "--timeout", "2s"], 1)?;
        ensure!(said.contains("map full (32)"), "{said}");
        let (status, answer) = programmed(node, "services/default/three")?;
        ensure!(status == 503, "{status}: {answer:#}");
        let missing = answer["missing"].as_str().unwrap_or_default();
        ensure!(missing.contains("map full (32)"), "{answer:#}");

        cluster.kubectl(&["delete", "service", "elder", "younger", "one", "two"])?;
        waits(node, &["--service", "default/three"], 0).map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_policy_in_effect_is_what_the_next_packet_meets() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let node = cluster.node("node1")?;
        let web = cluster.pod("web")?;
        waits(node, &["--pod", "default/web"], 0)?;
        let near = cluster.pod("near")?;
        let targets = of(
            &[Protocol::Tcp],
            &fairlead_cluster_tests::variants(&web.ips, fairlead_cluster_tests::POD_PORT),
        );
        answered_by(("a pod", &near.place), &targets, &["web"])?;
        for round in 0..5 {
            let name = format!("deny{round}");
            cluster.api().apply(&web_ingress(&name, json!([])))?;
            let version = version_of(cluster, &format!("networkpolicy/{name}"))?;
            let policy = format!("default/{name}");
            waits(node, &["--network-policy", &policy, "--resource-version", &version], 0)?;
            for &(protocol, target) in &targets {
                let tried = Load::new(protocol, target).times(1);
                let report = near.place.requests(&tried.giving_up_after(Duration::from_millis(300)))?;
                ensure!(!report.failures().is_empty(), "round {round}: {target} answers though it is denied");
            }
            cluster.kubectl(&["delete", "networkpolicy", &name])?;
            waits(node, &["--network-policy", &policy, "--deleted"], 0)?;
            for &(protocol, target) in &targets {
                let report = near.place.requests(&Load::new(protocol, target).times(1))?;
                ensure!(report.failures().is_empty(), "round {round}: {:?}", report.failures());
            }
        }
        drop(estate);
        let (status, answer) = programmed(node, "networkpolicies/default/deny4")?;
        ensure!(status == 404, "{status}: {answer:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_is_in_effect_when_it_is_wired_and_gone_when_it_is_not() {
    with_cluster(|cluster| {
        let node = cluster.node("node1")?;
        cluster.apply(&(pod("here", "here", "node1") + &pod("there", "there", "node2")))?;
        waits(node, &["--pod", "default/here"], 0)?;
        let status: Value = serde_json::from_str(&node.proxy(&["status", "-o", "json"])?)?;
        ensure!(status["endpoints"].to_string().contains("default/here"), "{status:#}");
        cluster.pod("there")?;
        let said = waits(node, &["--pod", "default/there"], 0)?;
        ensure!(said.contains("it is on node2"), "{said}");
        cluster.kubectl(&["delete", "pod", "here"])?;
        waits(node, &["--pod", "default/here", "--deleted"], 0)?;
        let status: Value = serde_json::from_str(&node.proxy(&["status", "-o", "json"])?)?;
        ensure!(!status["endpoints"].to_string().contains("default/here"), "{status:#}");
        Ok(())
    });
}
