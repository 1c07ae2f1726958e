//! The command line's connections and drops: listed, filtered, and followed as they come.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually};
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::policy::web_ingress;
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses, outside_address};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, pod, service, with_cluster};
use fairlead_harness::{Cluster, Load, Protocol};
use serde_json::{Value, json};

const BOTH: &[&str] = &["near", "far"];

fn flows(cluster: &Cluster, filter: &[&str]) -> Result<Vec<Value>> {
    let text = cluster.node("node1")?.proxy(&[&["flows", "-o", "json"], filter].concat())?;
    let listed: Value = serde_json::from_str(&text).with_context(|| text)?;
    Ok(listed["flows"].as_array().cloned().unwrap_or_default())
}

fn drops(cluster: &Cluster, filter: &[&str]) -> Result<Vec<Value>> {
    let text = cluster.node("node1")?.proxy(&[&["flows", "--drops", "-o", "json"], filter].concat())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// A command that goes on, ended with the test.
struct Following(Child);

impl Following {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Result<Self> {
        let mut command = cluster.node("node1")?.proxy_command(arguments)?;
        Ok(Self(command.stdout(Stdio::piped()).spawn().context("start fairlead-proxy")?))
    }

    /// Reads lines until one is meant.
    fn wait_for(&mut self, what: &str, is_meant: impl Fn(&Value) -> bool) -> Result<Value> {
        let lines = BufReader::new(self.0.stdout.as_mut().context("no output")?).lines();
        let started = Instant::now();
        let mut seen = Vec::new();
        for line in lines {
            let line: Value = serde_json::from_str(&line?)?;
            if is_meant(&line) {
                return Ok(line);
            }
            seen.push(line);
            ensure!(started.elapsed() < Duration::from_secs(30), "{what} is not among {seen:#?}");
        }
        anyhow::bail!("the command ended before {what}: {seen:#?}")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn connections_are_listed_under_the_names_of_their_ends_and_filtered() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let targets = at(&cluster.cluster_ips("echo")?);
        answered_by(scene.insiders()[0], &targets, BOTH)?;
        let [v4, _] = node_addresses(cluster, "node1")?;
        let node_port = at_node_ports(cluster, "echo", &[v4])?[0].1;
        answered_by(("outside", &scene.outside), &[(Protocol::Tcp, node_port)], BOTH)?;
        let load = |target| Load::new(Protocol::Tcp, target).over_one_flow().every(Duration::from_millis(50));
        let inside = scene.client.place.traffic(&load(targets[0].1))?;
        let outside = scene.outside.traffic(&load(node_port))?;

        let own = eventually(|| {
            let own =
                flows(cluster, &["--pod", "default/client", "--protocol", "tcp", "--state", "established"])?;
            ensure!(!own.is_empty(), "no connection of the client");
            Ok(own)
        })?;
        for flow in &own {
            ensure!(flow["client"]["name"] == "Pod default/client" && flow["kind"] == "service", "{flow:#}");
            ensure!(flow["frontend"]["name"] == "Service default/echo", "{flow:#}");
            let pod = flow["backend"]["name"].as_str();
            ensure!(pod == Some("Pod default/near") || pod == Some("Pod default/far"), "{flow:#}");
            ensure!(flow["masqueradedAs"].is_null(), "{flow:#}");
        }
        let from = outside_address(cluster, v4)?.to_string();
        let port = node_port.port().to_string();
        let others = eventually(|| {
            let others = flows(cluster, &["--from", &from, "--port", &port, "--state", "established"])?;
            ensure!(!others.is_empty(), "no connection from outside");
            Ok(others)
        })?;
        for flow in &others {
            ensure!(flow["client"]["address"] == from && flow["client"]["name"].is_null(), "{flow:#}");
            let masked = flow["masqueradedAs"].as_str().unwrap_or_default();
            ensure!(masked.starts_with(&v4.to_string()), "{flow:#}");
        }
        let served = flows(cluster, &["--service", "default/echo", "--to", "default/near"])?;
        ensure!(served.iter().all(|flow| flow["backend"]["name"] == "Pod default/near"), "{served:#?}");
        ensure!(flows(cluster, &["--service", "default/other"])?.is_empty());
        ensure!(flows(cluster, &["--service", "default/echo", "--limit", "1"])?.len() == 1);

        let text =
            cluster.node("node1")?.proxy(&["flows", "--pod", "default/client", "--state", "established"])?;
        ensure!(text.starts_with("PROTOCOL  CLIENT") && text.contains("(Service default/echo)"), "{text}");
        for traffic in [inside, outside] {
            let report = traffic.stop()?;
            ensure!(report.failures().is_empty(), "{:?}", report.failures());
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn connections_are_told_as_they_begin_and_as_they_end() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        let target = at(&cluster.cluster_ips("echo")?)[0].1;
        scene.client.place.request_until_answered(Protocol::Tcp, target)?;
        let arguments = ["flows", "--follow", "--pod", "default/client", "--protocol", "tcp", "-o", "json"];
        let mut following = Following::start(cluster, &arguments)?;
        // It may look for the first time a moment from now.
        std::thread::sleep(Duration::from_millis(1500));
        let load = Load::new(Protocol::Tcp, target).over_one_flow().every(Duration::from_millis(50));
        let traffic = scene.client.place.traffic(&load)?;
        let began = following.wait_for("a connection that begins", |line| line["happened"] == "began")?;
        ensure!(began["flow"]["frontend"]["name"] == "Service default/echo", "{began:#}");
        traffic.stop()?;
        let port = began["flow"]["client"]["port"].clone();
        let is_its_end = |line: &Value| line["happened"] == "ended" && line["flow"]["client"]["port"] == port;
        following.wait_for("its end", is_its_end)?;
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn drops_of_every_kind_are_told_with_their_reason_and_the_names_of_their_ends() {
    with_cluster(|cluster| {
        let local = service("local", "elsewhere", "NodePort") + "  externalTrafficPolicy: Local\n";
        let more =
            service("lonely", "nobody", "ClusterIP") + &local + &pod("elsewhere", "elsewhere", "node2");
        let scene = Scene::set(cluster, &(more + &service("echo", "echo", "ClusterIP")))?;
        cluster.pod("elsewhere")?;
        let target = |name: &str| -> Result<_> { Ok(at(&cluster.cluster_ips(name)?)[0].1) };
        let echo = target("echo")?;
        scene.client.place.request_until_answered(Protocol::Tcp, echo)?;
        let lonely = target("lonely")?;
        let [v4, _] = node_addresses(cluster, "node1")?;
        let node_port = at_node_ports(cluster, "local", &[v4])?[0].1;
        let quickly =
            |protocol, target| Load::new(protocol, target).giving_up_after(Duration::from_millis(300));
        let free = "10.96.200.7:80".parse()?;
        let unknown = (echo.ip(), SERVICE_PORT + 1).into();
        let outside = outside_address(cluster, v4)?;

        let told = |reason: &str, ask: &dyn Fn() -> Result<()>, is_meant: &dyn Fn(&Value) -> bool| {
            eventually(|| {
                ask()?;
                let drops = drops(cluster, &["--reason", reason])?;
                let found = drops.iter().find(|drop| is_meant(drop)).cloned();
                found.with_context(|| format!("no such drop for {reason} among {drops:#?}"))
            })
        };
        let client = &scene.client.place;
        let is_clients = |drop: &Value| drop["client"]["name"] == "Pod default/client";

        let drop =
            told("no_endpoint", &|| client.ask(quickly(Protocol::Tcp, lonely)).map(|_| ()), &|drop| {
                is_clients(drop) && drop["protocol"] == "tcp"
            })?;
        ensure!(drop["server"]["name"] == "Service default/lonely" && drop["refused"] == true, "{drop:#}");
        ensure!(drop["pod"] == "Pod default/client" && drop["interface"].is_string(), "{drop:#}");

        let drop =
            told("unknown_port", &|| client.ask(quickly(Protocol::Udp, unknown)).map(|_| ()), &is_clients)?;
        ensure!(drop["server"]["name"] == "Service default/echo" && drop["refused"] == true, "{drop:#}");

        let drop = told("no_service", &|| client.ask(quickly(Protocol::Tcp, free)).map(|_| ()), &is_clients)?;
        ensure!(drop["server"]["name"].is_null() && drop["refused"] == false, "{drop:#}");

        let ask = || scene.outside.ask(quickly(Protocol::Tcp, node_port)).map(|_| ());
        let drop = told("no_local_endpoint", &ask, &|drop| drop["client"]["address"] == outside.to_string())?;
        ensure!(drop["server"]["name"] == "Service default/local" && drop["refused"] == false, "{drop:#}");

        let ask = || scene.node1.ask(quickly(Protocol::Tcp, lonely)).map(|_| ());
        let drop = told("no_endpoint", &ask, &|drop| drop["socket"] == true)?;
        ensure!(drop["client"]["name"] == "Node node1", "{drop:#}");
        ensure!(drop["server"]["name"] == "Service default/lonely", "{drop:#}");

        cluster.kubectl(&["label", "pod", "near", "app=web", "--overwrite"])?;
        cluster.api().apply(&web_ingress("nobody", json!([])))?;
        let near = (scene.near.address(v4)?, POD_PORT).into();
        let ask = || client.ask(quickly(Protocol::Tcp, near)).map(|_| ());
        let drop = told("policy_ingress", &ask, &is_clients)?;
        ensure!(drop["policies"] == json!(["NetworkPolicy default/nobody"]), "{drop:#}");

        // Filters: of one pod, of one Service, of one port.
        let own = drops(cluster, &["--pod", "default/client"])?;
        ensure!(own.iter().any(|drop| drop["reason"] == "no_service"), "{own:#?}");
        ensure!(own.iter().all(|drop| drop["reason"] != "no_local_endpoint"), "{own:#?}");
        let lonely = drops(cluster, &["--service", "default/lonely", "--port", &SERVICE_PORT.to_string()])?;
        ensure!(
            !lonely.is_empty() && lonely.iter().all(|drop| drop["reason"] == "no_endpoint"),
            "{lonely:#?}"
        );

        let text = cluster.node("node1")?.proxy(&["flows", "--drops"])?;
        for expected in
            ["refused, no_endpoint: tcp", "(Service default/lonely)", "ingress dropped by NetworkPolicy"]
        {
            ensure!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        let mut following = Following::start(
            cluster,
            &["flows", "--drops", "--follow", "--reason", "no_service", "-o", "json"],
        )?;
        client.ask(quickly(Protocol::Tcp, free))?.ok();
        following.wait_for("a drop", |drop| drop["reason"] == "no_service")?;
        Ok(())
    });
}
