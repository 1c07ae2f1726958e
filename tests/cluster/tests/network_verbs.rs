//! CHECK, STATUS and GC on a node whose agent is the real one.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{POD_PORT, with_cluster};
use fairlead_harness::{Node, Protocol, RunningPod};
use fairlead_net::agent::{Request, ask};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// An attachment as its runtime knows it: the container's id and the result of ADD.
struct Attachment {
    container_id: String,
    result: Value,
}

/// Every attachment of the node.
fn attachments(node: &Node) -> Result<Vec<Attachment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(node.layout().dir.join("cni/results"))? {
        let entry = entry?;
        found.push(Attachment {
            container_id: entry.file_name().to_string_lossy().into_owned(),
            result: serde_json::from_slice(&fs::read(entry.path())?)?,
        });
    }
    Ok(found)
}

fn attachment_of(node: &Node, pod: &RunningPod) -> Result<Attachment> {
    let address = pod.ips.first().context("a pod without addresses")?.to_string();
    let has =
        |attachment: &Attachment| attachment.result["ips"].to_string().contains(&format!("\"{address}/"));
    attachments(node)?.into_iter().find(has).with_context(|| format!("no attachment of {}", pod.name))
}

/// Runs a verb with the installed plugin and configuration; the error object, if it is one.
fn run(node: &Node, verb: &str, fields: Value, variables: &[(&str, &str)]) -> Result<Option<Value>> {
    let list = fs::read(node.layout().cni_conf_dir().join("10-fairlead.conflist"))?;
    let list: Value = serde_json::from_slice(&list)?;
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = "1.1.0".into();
    for (name, value) in fields.as_object().into_iter().flatten() {
        conf[name] = value.clone();
    }
    let mut command = node.place().command(node.layout().cni_bin_dir().join("fairlead-cni"))?;
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_PATH", "/opt/cni/bin")
        .envs(variables.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(conf.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}

fn check(node: &Node, pod: &RunningPod, attachment: &Attachment) -> Result<Option<Value>> {
    let id = &attachment.container_id;
    let uid = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-");
    let arguments = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_UID={uid}", pod.name);
    let sandbox = attachment.result["interfaces"][1]["sandbox"].as_str().context("no sandbox")?;
    let variables = [
        ("CNI_CONTAINERID", id.as_str()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", sandbox),
        ("CNI_ARGS", &arguments),
    ];
    run(node, "CHECK", json!({ "prevResult": attachment.result }), &variables)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn check_goes_by_the_agents_word_about_its_maps_and_programs() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, "")?;
        let node = cluster.node("node1")?;
        let attachment = attachment_of(node, &scene.near)?;
        let found = check(node, &scene.near, &attachment)?;
        ensure!(found.is_none(), "an untouched pod differs: {found:?}");
        let request =
            Request::DeleteEndpoint { container_id: attachment.container_id.clone(), ifname: "eth0".into() };
        ask(&node.layout().socket(), &request, Duration::from_secs(5))?;
        let found = check(node, &scene.near, &attachment)?.context("CHECK sees nothing")?;
        let message = found["msg"].as_str().unwrap_or_default();
        ensure!(found["code"] == 102 && message.contains("it is not registered"), "{found:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn status_is_good_as_long_as_the_agent_answers() {
    with_cluster(|cluster| {
        let node = cluster.node_mut("node1")?;
        let found = run(node, "STATUS", json!({}), &[])?;
        ensure!(found.is_none(), "{found:?}");
        node.stop_proxy(Signal::SIGTERM)?;
        let found = run(node, "STATUS", json!({}), &[])?.context("STATUS is good without an agent")?;
        ensure!(found["code"] == 50, "{found:#}");
        node.start_proxy()?;
        node.wait_for_proxy()?;
        let found = run(node, "STATUS", json!({}), &[])?;
        ensure!(found.is_none(), "{found:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn gc_takes_the_pod_that_is_not_listed_and_leaves_the_others_working() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, "")?;
        let node = cluster.node("node1")?;
        let stale = attachment_of(node, &scene.near)?;
        let valid: Vec<Value> = attachments(node)?
            .iter()
            .filter(|attachment| attachment.container_id != stale.container_id)
            .map(|attachment| json!({ "containerID": attachment.container_id, "ifname": "eth0" }))
            .collect();
        let found = run(node, "GC", json!({ "cni.dev/valid-attachments": valid }), &[])?;
        ensure!(found.is_none(), "{found:?}");
        let found = check(node, &scene.near, &stale)?.context("the stale pod is still there")?;
        ensure!(
            found["msg"].as_str().unwrap_or_default().contains("has no addresses on record"),
            "{found:#}"
        );
        let kept = attachment_of(node, &scene.client)?;
        let found = check(node, &scene.client, &kept)?;
        ensure!(found.is_none(), "{found:?}");
        let far = (scene.far.ips[0], POD_PORT).into();
        let reply = scene.client.place.request(Protocol::Tcp, far)?;
        ensure!(reply.is_ok(), "{reply:?}");
        Ok(())
    });
}
