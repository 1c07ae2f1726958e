//! hostPort: a port of the node leads to a pod, as the CNI plugin is told by the runtime and the agent programs it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{
    Lasting, Target, answered_by, answered_seeing, eventually, kept_out, of, refused,
};
use fairlead_cluster_tests::maps::{dump, same};
use fairlead_cluster_tests::policy::network_policy;
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses, outside_address};
use fairlead_cluster_tests::{POD_PORT, service, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Load, Options, Place, Protocol, RunningPod, binary, output, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The node's port in these tests, for each protocol.
const HOST_PORT: u16 = 9090;
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const SOON: Duration = Duration::from_secs(10);

/// A pod on node1 that has [`HOST_PORT`] of each protocol, at `host_ip` if that is not empty.
fn guest_at(name: &str, host_port: u16, host_ip: &str) -> String {
    let ports: Vec<Value> = Protocol::ALL
        .iter()
        .map(|protocol| {
            let mut port = json!({ "name": protocol.to_string(), "containerPort": POD_PORT, "hostPort": host_port,
                "protocol": protocol.to_string().to_uppercase() });
            if !host_ip.is_empty() {
                port["hostIP"] = host_ip.into();
            }
            port
        })
        .collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": "guest" } },
        "spec": { "nodeName": "node1",
                  "containers": [{ "name": "echo", "image": "fairlead/echo:dev", "ports": ports }] },
    });
    format!("---\n{pod}\n")
}

fn guest(name: &str) -> String {
    guest_at(name, HOST_PORT, "")
}

/// The port at these addresses, by each protocol.
fn at(addresses: &[IpAddr], port: u16) -> Vec<Target> {
    let each = |protocol| addresses.iter().map(move |&address| (protocol, SocketAddr::new(address, port)));
    Protocol::ALL.into_iter().flat_map(each).collect()
}

/// The usual scene with the pod `guest`, and node1's port that leads to it.
fn scene(cluster: &Cluster) -> Result<(Scene, RunningPod, Vec<Target>)> {
    let scene = Scene::set(cluster, &guest("guest"))?;
    Ok((scene, cluster.pod("guest")?, at(&node_addresses(cluster, "node1")?, HOST_PORT)))
}

/// Those of the targets that a process of the node itself can ask: its packets to itself come to no program.
fn by_sockets(targets: &[Target]) -> Vec<Target> {
    of(&Protocol::SOCKETS, targets)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn every_kind_of_client_reaches_the_pod_which_sees_who_it_is() {
    with_cluster(|cluster| {
        let (scene, guest, targets) = scene(cluster)?;
        let own = |pod: &RunningPod| {
            let pod = pod.clone();
            move |like| pod.address(like)
        };
        let outside = ("outside", &scene.outside);
        answered_seeing(outside, &targets, &["guest"], |like| outside_address(cluster, like))?;
        answered_seeing(("a pod", &scene.client.place), &targets, &["guest"], own(&scene.client))?;
        answered_seeing(("another node's pod", &scene.far.place), &targets, &["guest"], own(&scene.far))?;
        let node2 = cluster.node("node2")?;
        answered_seeing(
            ("another node", &scene.node2),
            &targets,
            &["guest"],
            |like| Ok(node2.address(like)),
        )?;
        let node1 = cluster.node("node1")?;
        let here = by_sockets(&targets);
        answered_seeing(("its node", &scene.node1), &here, &["guest"], |like| Ok(node1.address(like)))?;
        // To itself it comes as its node, or the pod would take the packets for its own.
        answered_seeing(("itself", &guest.place), &targets, &["guest"], |like| Ok(node1.address(like)))?;
        let elsewhere = at(&node_addresses(cluster, "node2")?, HOST_PORT);
        refused(outside, &by_sockets(&elsewhere))?;
        refused(("its node", &scene.node1), &by_sockets(&at(&LOOPBACK, HOST_PORT)))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn it_is_served_where_sockets_are_translated_and_on_loopback_where_node_ports_are() {
    let options = Options::default().with_arguments(&["--socket-lb=all", "--nodeport-loopback"]);
    with_cluster_of(options, |cluster| {
        let (scene, guest, targets) = scene(cluster)?;
        for asker in [("a pod", &scene.client.place), ("itself", &guest.place), ("outside", &scene.outside)] {
            answered_by(asker, &targets, &["guest"])?;
        }
        let here = [by_sockets(&targets), by_sockets(&at(&LOOPBACK, HOST_PORT))].concat();
        answered_by(("its node", &scene.node1), &here, &["guest"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_host_ip_narrows_the_port_to_one_address_of_the_node() {
    with_cluster(|cluster| {
        let [v4, _] = node_addresses(cluster, "node1")?;
        let pods = guest_at("one", 9091, &v4.to_string()) + &guest_at("inner", 9092, "127.0.0.1");
        let scene = Scene::set(cluster, &pods)?;
        cluster.pod("one")?;
        cluster.pod("inner")?;
        let (outside, node) = (("outside", &scene.outside), ("its node", &scene.node1));
        let addresses = node_addresses(cluster, "node1")?;
        answered_by(outside, &at(&[v4], 9091), &["one"])?;
        refused(outside, &by_sockets(&at(&addresses[1..], 9091)))?;
        answered_by(node, &by_sockets(&at(&LOOPBACK[..1], 9092)), &["inner"])?;
        refused(outside, &by_sockets(&at(&addresses, 9092)))?;
        // Another node's address is no address of this one: the pod runs, and the status says what it lacks.
        let [there, _] = node_addresses(cluster, "node2")?;
        cluster.apply(&guest_at("strayed", 9093, &there.to_string()))?;
        cluster.pod("strayed")?;
        let status = cluster.node("node1")?.proxy(&["status", "-o", "json"])?;
        ensure!(status.contains("portMappings[0].hostIP") && status.contains("no such address"), "{status}");
        refused(outside, &by_sockets(&at(&[there], 9093)))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_second_pod_with_the_port_waits_until_the_first_is_gone_and_a_service_has_it_before_either() {
    with_cluster(|cluster| {
        let (scene, _, targets) = scene(cluster)?;
        let outside = ("outside", &scene.outside);
        cluster.apply(&guest("second"))?;
        waits_because(cluster, "second", "9090/tcp is already that of Pod default/guest")?;
        answered_by(outside, &targets, &["guest"])?;
        cluster.kubectl(&["delete", "pod", "guest", "--wait=false"])?;
        cluster.pod("second")?;
        answered_by(outside, &targets, &["second"])?;

        cluster.apply(&service("echo", "echo", "NodePort"))?;
        let port = cluster.node_port("echo", "tcp")?;
        cluster.apply(&guest_at("third", port, ""))?;
        waits_because(cluster, "third", "is already that of Service default/echo")?;
        answered_by(
            outside,
            &at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?,
            &["near", "far"],
        )?;
        cluster.kubectl(&["delete", "service", "echo"])?;
        cluster.pod("third")?;
        answered_by(outside, &at(&node_addresses(cluster, "node1")?, port), &["third"])
    });
}

/// The pod's status says that its sandbox can't be made, and this of why; nothing of it is left on the node.
fn waits_because(cluster: &Cluster, pod: &str, why: &str) -> Result<()> {
    wait_for(&format!("why {pod} waits"), SOON, || {
        let shown = cluster.kubectl(&["get", "pod", pod, "-o", "json"])?;
        Ok(shown.contains(why).then_some(()))
    })
    .with_context(|| cluster.kubectl(&["get", "pod", pod, "-o", "json"]).unwrap_or_default())?;
    let endpoints = cluster.node("node1")?.proxy(&["status", "-o", "json"])?;
    let status: Value = serde_json::from_str(&endpoints)?;
    let name = format!("default/{pod}");
    let registered =
        status["endpoints"].as_array().into_iter().flatten().any(|one| one["pod"] == name.as_str());
    ensure!(!registered, "{pod} is registered though its ADD failed: {}", status["endpoints"]);
    Ok(())
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn policies_judge_the_real_client() {
    with_cluster(|cluster| {
        let (scene, _, targets) = scene(cluster)?;
        let outside = |like| outside_address(cluster, like);
        let [v4, v6] = node_addresses(cluster, "node1")?;
        let blocks: Vec<Value> = [v4, v6]
            .iter()
            .map(|&like| {
                let bits = if like.is_ipv4() { 32 } else { 128 };
                Ok(json!({ "ipBlock": { "cidr": format!("{}/{bits}", outside(like)?) } }))
            })
            .collect::<Result<_>>()?;
        let ports =
            Protocol::ALL.map(|p| json!({ "port": POD_PORT, "protocol": p.to_string().to_uppercase() }));
        let spec = json!({ "podSelector": { "matchLabels": { "app": "guest" } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": blocks, "ports": ports }] });
        cluster.api().apply(&network_policy("default", "outside-alone", spec))?;
        kept_out(("another node's pod", &scene.far.place), &targets)?;
        kept_out(("a pod", &scene.client.place), &targets)?;
        answered_by(("outside", &scene.outside), &targets, &["guest"])?;
        answered_by(("its node", &scene.node1), &by_sockets(&targets), &["guest"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_port_is_kept_from_the_nodes_processes_until_the_pod_is_gone_and_so_are_its_flows() {
    with_cluster(|cluster| {
        let (scene, _, targets) = scene(cluster)?;
        answered_by(("outside", &scene.outside), &targets, &["guest"])?;
        for protocol in Protocol::SOCKETS {
            let told = serve(&scene.node1, protocol)?;
            ensure!(told.contains("Address already in use"), "{protocol}: {told:?}");
        }
        let mut datagrams = Lasting::default();
        for &(_, target) in targets.iter().filter(|(protocol, _)| *protocol == Protocol::Udp) {
            let load =
                Load::new(Protocol::Udp, target).over_one_flow().giving_up_after(Duration::from_millis(100));
            datagrams.begin(format!("datagrams to {target}"), &scene.outside, &load)?;
        }
        cluster.kubectl(&["delete", "pod", "guest"])?;
        cluster.wait_until_gone("guest")?;
        let left = dump(cluster.node("node1")?)?;
        let left: Vec<_> = left.keys().filter(|key| key.contains(&HOST_PORT.to_string())).collect();
        ensure!(left.is_empty(), "the pod is gone, and these are left: {left:?}");
        for protocol in Protocol::SOCKETS {
            ensure!(serve(&scene.node1, protocol)? == "ready", "{protocol}: the port is free again");
        }
        // The sockets outside go on, and find the next pod.
        cluster.apply(&guest("next"))?;
        cluster.pod("next")?;
        thread::sleep(Duration::from_secs(1));
        for (what, report) in datagrams.end()? {
            let last = report.outcomes.iter().rev().find_map(|outcome| outcome.as_ref().ok());
            let last = last.map(|reply| reply.answer.pod.as_str());
            ensure!(last == Some("next"), "{what}: the last answer came from {last:?}");
        }
        Ok(())
    });
}

/// What a server says that is started here on the port: `ready`, or what is wrong.
fn serve(place: &Place, protocol: Protocol) -> Result<String> {
    let mut command = place.command(binary("fairlead-harness")?)?;
    command.args(["serve", "--pod", "squatter", "--port", &format!("{HOST_PORT}/{protocol}")]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let said = |from: &mut dyn std::io::Read| {
        let mut bytes = [0; 512];
        from.read(&mut bytes).map(|count| String::from_utf8_lossy(&bytes[..count]).trim_end().to_owned())
    };
    let ready = child.stdout.as_mut().map(|stdout| said(stdout)).transpose()?.unwrap_or_default();
    let why = match ready.is_empty() {
        true => child.stderr.as_mut().map(|stderr| said(stderr)).transpose()?.unwrap_or_default(),
        false => String::new(),
    };
    // One that could not begin has ended by itself.
    child.kill().ok();
    child.wait()?;
    Ok(ready + &why)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn it_outlives_the_agent_and_an_api_that_is_away_and_goes_with_the_pod_all_the_same() {
    with_cluster(|cluster| {
        let Some(faults) = cluster.faults() else {
            println!("not run: faults are made by the stand-in API server alone");
            return Ok(());
        };
        let (scene, _, targets) = scene(cluster)?;
        let outside = ("outside", &scene.outside);
        answered_by(outside, &targets, &["guest"])?;
        let connections = {
            let mut connections = Lasting::default();
            for &(protocol, target) in &targets {
                let load = Load::new(protocol, target).over_one_flow().every(Duration::from_millis(20));
                connections.begin(format!("{protocol} to {target}"), &scene.outside, &load)?;
            }
            connections
        };
        let before = dump(cluster.node("node1")?)?;
        let outage = faults.outage()?;
        let node = cluster.node_mut("node1")?;
        node.stop_proxy(Signal::SIGKILL)?;
        node.start_proxy()?;
        // It answers before it has heard of anything.
        let services = eventually(|| cluster.node("node1")?.proxy(&["services", "-o", "json"]))?;
        ensure!(services.contains("host_port") && services.contains("\"guest\""), "{services}");
        same("without the API", &dump(cluster.node("node1")?)?, &before)?;
        answered_by(outside, &targets, &["guest"])?;
        connections.were_undisturbed(20)?;
        // The runtime takes the pod away, as when the kubelet ends it by itself.
        let removed = delete_by_hand(cluster, "guest")?;
        ensure!(removed.is_empty(), "DEL without the API: {removed}");
        let left = dump(cluster.node("node1")?)?;
        let left: Vec<_> = left.keys().filter(|key| key.contains(&HOST_PORT.to_string())).collect();
        ensure!(left.is_empty(), "the pod is gone, and these are left: {left:?}");
        outage.end()?;
        cluster.node_mut("node1")?.wait_for_proxy()?;
        Ok(())
    });
}

/// CNI DEL of the pod, by the node's real plugin; what it says.
fn delete_by_hand(cluster: &Cluster, pod: &str) -> Result<String> {
    let node = cluster.node("node1")?;
    let files = std::fs::read_dir(node.layout().state_dir().join("endpoints"))?;
    let mut id = None;
    for file in files {
        let registration: Value = serde_json::from_slice(&std::fs::read(file?.path())?)?;
        if registration["pod"]["name"] == pod {
            id = registration["containerId"].as_str().map(str::to_owned);
        }
    }
    let id = id.with_context(|| format!("no registration of {pod}"))?;
    let list = std::fs::read_dir(node.layout().cni_conf_dir())?.next().context("no conflist")??.path();
    let list: Value = serde_json::from_slice(&std::fs::read(list)?)?;
    let mut config = list["plugins"][0].clone();
    config["name"] = list["name"].clone();
    config["cniVersion"] = list["cniVersion"].clone();
    let directory = node.layout().cni_bin_dir();
    let mut command = node.place().command(directory.join("fairlead-cni"))?;
    command.env("CNI_COMMAND", "DEL").env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
    command.env("CNI_PATH", &directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    serde_json::to_writer(child.stdin.take().context("no stdin")?, &config)?;
    let said = child.wait_with_output()?;
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn services_and_why_name_the_pod_that_has_the_port() {
    with_cluster(|cluster| {
        let (_, guest, _) = scene(cluster)?;
        let node = cluster.node("node1")?;
        let [v4, _] = node_addresses(cluster, "node1")?;
        let table = node.proxy(&["services"])?;
        let line = table.lines().find(|line| line.contains(&format!("{v4}:{HOST_PORT}"))).unwrap_or_default();
        ensure!(line.contains("default/guest") || table.contains("default/guest"), "{table}");
        let port = format!("tcp/{HOST_PORT}");
        let question =
            ["why", "--from", "default/client", "--to", &v4.to_string(), "--port", &port, "-o", "json"];
        let answer: Value = serde_json::from_str(&node.proxy(&question)?)?;
        let backend = format!("{}:{POD_PORT}", guest.ips[0]);
        ensure!(
            answer["verdict"] == "allowed" && answer["service"]["backends"] == json!([backend]),
            "{answer:#}"
        );
        ensure!(answer["service"]["maps"]["agrees"] == true, "{answer:#}");
        let to = answer["to"].as_str().unwrap_or_default();
        ensure!(to == format!("Pod default/guest at {v4}:{HOST_PORT}/tcp (hostPort)"), "{to}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_pod_is_sent_passes_a_queue_that_is_put_on_its_interface_later() {
    with_cluster(|cluster| {
        let (scene, guest, targets) = scene(cluster)?;
        let plain: Vec<Target> = at(&guest.ips, POD_PORT);
        let status: Value = serde_json::from_str(&cluster.node("node1")?.proxy(&["status", "-o", "json"])?)?;
        let own = status["endpoints"].as_array().into_iter().flatten();
        let own =
            own.into_iter().find(|endpoint| endpoint["pod"] == "default/guest").context("no endpoint")?;
        let interface = own["interface"].as_str().context("no interface")?.to_owned();
        let tc = |arguments: &str| -> Result<String> {
            let mut command = scene.node1.command("tc")?;
            output(command.args(arguments.replace("DEV", &interface).split(' ')))
        };
        // As the reference plugin `bandwidth` does when it is chained.
        tc("qdisc add dev DEV root tbf rate 400mbit burst 200000 latency 25ms")?;
        let sent = || -> Result<u64> {
            let shown: Value = serde_json::from_str(&tc("-s -j qdisc show dev DEV root")?)?;
            shown[0]["packets"].as_u64().with_context(|| format!("no count in {shown}"))
        };
        let askers = [("outside", &scene.outside), ("a pod", &scene.client.place), ("far", &scene.far.place)];
        for (who, place) in askers {
            for targets in [&targets, &plain] {
                // Who is outside has no way to pods.
                if who == "outside" && targets == &plain {
                    continue;
                }
                let before = sent()?;
                answered_by((who, place), targets, &["guest"])?;
                let many = sent()? - before;
                ensure!(many >= 100, "from {who}: {many} packets passed the queue");
            }
        }
        tc("qdisc del dev DEV root")?;
        answered_by(("outside", &scene.outside), &targets, &["guest"])
    });
}
