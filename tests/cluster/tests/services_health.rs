//! What load balancers and operators ask an agent: health by Service and by node, and metrics.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually, refused};
use fairlead_cluster_tests::objects::{at, patch, retire, spec};
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses};
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::{Place, Protocol};
use serde_json::{Value, json};

const HEALTHZ_PORT: u16 = 10256;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_load_balancer_is_told_which_nodes_have_an_endpoint() {
    with_cluster(|cluster| {
        let local = spec("externalTrafficPolicy: Local");
        let echo = service("echo", "echo", "LoadBalancer") + &local + &pod("third", "echo", "node2");
        let scene = Scene::set(cluster, &echo)?;
        cluster.pod("third")?;
        let port = cluster.health_check_port("echo")?;
        let [near, far] = [node_addresses(cluster, "node1")?, node_addresses(cluster, "node2")?];
        for (addresses, endpoints) in [(near, 1), (far, 2)] {
            for address in addresses {
                eventually(|| tells(&scene.outside, (address, port).into(), 200, endpoints))?;
            }
        }
        retire(cluster, "near")?;
        for address in near {
            eventually(|| tells(&scene.outside, (address, port).into(), 503, 0))?;
        }
        cluster.kubectl(&["label", "pod", "near", "app=echo", "--overwrite"])?;
        eventually(|| tells(&scene.outside, (near[0], port).into(), 200, 1))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_terminating_endpoint_serves_but_does_not_make_a_node_healthy() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &spec(LOCAL)))?;
        let node1 = node_addresses(cluster, "node1")?[0];
        let target = (node1, cluster.health_check_port("echo")?).into();
        eventually(|| tells(&scene.outside, target, 200, 1))?;
        let lingering = pod("slow", "echo", "node1").replace(
            "metadata: { name: slow, ",
            "metadata: { name: slow, annotations: { harness.fairlead.io/linger-ms: \"4000\" }, ",
        );
        cluster.apply(&lingering)?;
        cluster.pod("slow")?;
        eventually(|| tells(&scene.outside, target, 200, 2))?;
        retire(cluster, "near")?;
        eventually(|| tells(&scene.outside, target, 200, 1))?;
        cluster.kubectl(&["delete", "pod", "slow", "--wait=false"])?;
        eventually(|| tells(&scene.outside, target, 503, 0))?;
        answered_by(("outside", &scene.outside), &at_node_ports(cluster, "echo", &[node1])?, &["slow"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_health_check_port_goes_with_the_policy_that_needs_it() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &spec(LOCAL)))?;
        let target: SocketAddr =
            (node_addresses(cluster, "node1")?[0], cluster.health_check_port("echo")?).into();
        eventually(|| tells(&scene.outside, target, 200, 1))?;
        patch(cluster, "service/echo", &json!({ "spec": { "externalTrafficPolicy": "Cluster" } }))?;
        refused(("outside", &scene.outside), &[(Protocol::Tcp, target)])?;
        patch(cluster, "service/echo", &json!({ "spec": { "externalTrafficPolicy": "Local" } }))?;
        let target = (target.ip(), cluster.health_check_port("echo")?).into();
        eventually(|| tells(&scene.outside, target, 200, 1))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_that_is_to_be_removed_is_not_healthy_but_alive() {
    with_cluster(|cluster| {
        let outside = cluster.client()?;
        let node = cluster.node("node1")?.layout().ipv4;
        let taint = "ToBeDeletedByClusterAutoscaler";
        eventually(|| eligible(&outside, node, true))?;
        let taints = json!([{ "key": taint, "value": "1", "effect": "NoSchedule" }]);
        patch(cluster, "node/node1", &json!({ "spec": { "taints": taints } }))?;
        eventually(|| eligible(&outside, node, false))?;
        patch(cluster, "node/node1", &json!({ "spec": { "taints": null } }))?;
        eventually(|| eligible(&outside, node, true))?;
        // Another taint is nothing that a load balancer need know.
        let other = json!([{ "key": "example.org/busy", "effect": "NoSchedule" }]);
        patch(cluster, "node/node1", &json!({ "spec": { "taints": other } }))?;
        std::thread::sleep(Duration::from_millis(300));
        eligible(&outside, node, true)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_deleted_node_is_not_healthy_but_alive_and_goes_on_serving() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let (outside, node) = (&scene.outside, cluster.node("node2")?.layout().ipv4);
        let targets = at(&cluster.cluster_ips("echo")?);
        answered_by(("a node", &scene.node2), &targets, &["near", "far"])?;
        eventually(|| eligible(outside, node, true))?;
        patch(cluster, "node/node2", &json!({ "metadata": { "finalizers": ["example.org/hold"] } }))?;
        cluster.kubectl(&["delete", "node", "node2", "--wait=false"])?;
        eventually(|| eligible(outside, node, false))?;
        patch(cluster, "node/node2", &json!({ "metadata": { "finalizers": null } }))?;
        std::thread::sleep(Duration::from_millis(300));
        eligible(outside, node, false)?;
        for (protocol, target) in targets {
            scene.node2.request_until_answered(protocol, target)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn metrics_have_the_names_that_dashboards_for_kube_proxy_ask_for() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &(service("echo", "echo", "NodePort") + &spec(LOCAL)))?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("echo")?), &["near", "far"])?;
        eligible(&scene.outside, cluster.node("node1")?.layout().ipv4, true)?;
        let metrics = cluster.node("node1")?.metrics()?;
        for name in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
            "kubeproxy_sync_proxy_rules_duration_seconds_count",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "kubeproxy_network_programming_duration_seconds_bucket",
            "kubeproxy_network_programming_duration_seconds_count",
            "kubeproxy_proxy_healthz_total",
            "kubeproxy_proxy_livez_total",
            "fairlead_",
        ] {
            ensure!(metrics.lines().any(|line| line.starts_with(name)), "{name} is not in:\n{metrics}");
        }
        let endpoint_changes = value(&metrics, "kubeproxy_sync_proxy_rules_endpoint_changes_total")?;
        ensure!(endpoint_changes > 0.0, "{endpoint_changes} changes of endpoints");
        let programmed = value(&metrics, "kubeproxy_network_programming_duration_seconds_count")?;
        ensure!(programmed > 0.0, "{programmed} changes were timed");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_metric_counts_the_services_without_a_local_endpoint_where_policy_wants_one() {
    with_cluster(|cluster| {
        let internal = service("internal", "echo", "ClusterIP") + &spec("internalTrafficPolicy: Local");
        let external = service("external", "echo", "NodePort") + &spec(LOCAL);
        let scene = Scene::set(cluster, &(internal + &external))?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("internal")?), &["near"])?;
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let counted = |wanted: f64| {
            let metrics = cluster.node("node1")?.metrics()?;
            for policy in ["internal", "external"] {
                let labelled = format!("{name}{{traffic_policy=\"{policy}\"}}");
                let found = value(&metrics, &labelled)?;
                let right = if wanted == 0.0 { found == 0.0 } else { found > 0.0 };
                ensure!(right, "{labelled} is {found}");
            }
            Ok(())
        };
        eventually(|| counted(0.0))?;
        retire(cluster, "near")?;
        eventually(|| counted(1.0))
    });
}

const LOCAL: &str = "externalTrafficPolicy: Local";

/// The health check of the Service `echo` answers as kube-proxy's does.
fn tells(place: &Place, target: SocketAddr, status: u16, endpoints: u64) -> Result<()> {
    let (answered, head, body) = get(place, target, "/")?;
    ensure!(answered == status, "{target} answers {answered}, not {status}: {body}");
    let told: Value = serde_json::from_str(&body).with_context(|| format!("understand {body:?}"))?;
    let expected = json!({
        "service": { "namespace": "default", "name": "echo" },
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    ensure!(told == expected, "{target} tells {told}");
    let weight = header(&head, "x-load-balancing-endpoint-weight");
    ensure!(weight == Some(&endpoints.to_string()), "{target}: weight {weight:?} in {head}");
    ensure!(header(&head, "content-type") == Some("application/json"), "{target}: {head}");
    Ok(())
}

/// Whether the node may get traffic, by its /healthz; it is alive all the time.
fn eligible(place: &Place, node: IpAddr, wanted: bool) -> Result<()> {
    let target = (node, HEALTHZ_PORT).into();
    let (status, _, body) = get(place, target, "/healthz")?;
    let expected = if wanted { 200 } else { 503 };
    ensure!(status == expected, "/healthz answers {status}: {body}");
    let told: Value = serde_json::from_str(&body).with_context(|| format!("understand {body:?}"))?;
    ensure!(told["nodeEligible"] == json!(wanted), "/healthz: {body}");
    let (status, _, body) = get(place, target, "/livez")?;
    ensure!(status == 200, "/livez answers {status}: {body}");
    Ok(())
}

/// Status, head and body of a page.
fn get(place: &Place, target: SocketAddr, path: &str) -> Result<(u16, String, String)> {
    let timeout = Duration::from_secs(1);
    let text = place.netns().run(|| {
        let mut stream = TcpStream::connect_timeout(&target, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {target}\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    })?;
    let text = text.with_context(|| format!("get http://{target}{path}"))?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.with_context(|| format!("no status: {head:?}"))?, head.to_owned(), body.to_owned()))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

fn value(metrics: &str, name: &str) -> Result<f64> {
    let line =
        metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    let number =
        line.and_then(|line| line.rsplit(' ').next()).with_context(|| format!("no metric {name}"))?;
    number.parse().with_context(|| format!("{name} is {number:?}"))
}
