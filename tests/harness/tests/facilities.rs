//! What a cluster of the harness can do beside running Fairlead: without the proxy, so that nothing else is tested.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_harness::packet::{RST, Segment, tcp};
use fairlead_harness::{
    Cluster, FailureKind, Load, Options, Outcome, Protocol, RunningPod, Try, Way, wait_for,
};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

const PORT: u16 = 8080;

#[test]
#[ignore = "needs root: run make test"]
fn pods_answer_by_all_three_protocols_and_on_the_hosts_network_too() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("client", "node1", "") + &pod("server", "node2", "")))?;
        cluster.apply(&pod("on-host", "node2", "hostNetwork: true"))?;
        let client = cluster.pod("client")?;
        let (server, on_host) = (cluster.pod("server")?, cluster.pod("on-host")?);
        let node = cluster.node("node2")?;
        ensure!(on_host.ips == [node.layout().ipv4, node.layout().ipv6], "{on_host:?}");
        for pod in [&server, &on_host] {
            for (protocol, target) in targets(pod) {
                let load = Load::new(protocol, target).over_one_flow().from_port(4321).times(5);
                let report = client.place.requests(&load)?;
                report.all_answered().with_context(|| format!("{protocol} to {target}"))?;
                ensure!(report.pods().into_keys().eq([pod.name.as_str()]), "{:?}", report.pods());
                for reply in report.replies() {
                    let own = SocketAddr::new(client.address(target.ip())?, 4321);
                    ensure!(reply.answer.client == own && reply.local == own, "{reply:?} instead of {own}");
                    ensure!(reply.answer.damaged == 0, "{reply:?}");
                }
            }
        }
        for (protocol, target) in targets(&server) {
            let large = Load::new(protocol, target).times(3).sized(5000).answers_of(7000);
            let report = client.place.requests(&large)?;
            report.all_answered().with_context(|| format!("in fragments, {protocol} to {target}"))?;
        }
        let closed = client.place.request(Protocol::Sctp, (on_host.ips[0], 9).into())?;
        ensure!(closed.as_ref().is_err_and(|f| f.kind == FailureKind::TimedOut), "{closed:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn objects_of_any_kind_are_applied_as_json_and_pods_of_a_namespace_are_tried() {
    let options = options().with_pod_cidrs("node2", ["10.244.7.0/29", "fd00:10:244:7::/125"]);
    with_cluster_of(options, |cluster| {
        let api = cluster.api();
        let namespace = |labels: Value| {
            json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": "team", "labels": labels } })
        };
        api.apply(&namespace(json!({ "colour": "red", "size": "small" })))?;
        let labels = api.apply(&namespace(json!({ "colour": "blue" })))?["metadata"]["labels"].clone();
        ensure!(labels == json!({ "colour": "blue", "kubernetes.io/metadata.name": "team" }), "{labels}");

        let ports = json!([{ "name": "web", "containerPort": PORT }]);
        let server = json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "server", "namespace": "team" },
            "spec": { "nodeName": "node2", "containers": [{ "name": "echo", "image": "any", "ports": ports }] } });
        api.apply(&server)?;
        cluster.apply(&pod("client", "node1", ""))?;
        let (client, found) = (cluster.pod("client")?, cluster.pod_in("team", "server")?);
        ensure!(
            found.ips.iter().all(|ip| ip.to_string().contains("244.7.") || ip.to_string().contains("244:7:")),
            "{:?}",
            found.ips
        );
        let way = |ip: IpAddr| [Way::Request(Protocol::Tcp, (ip, PORT).into()), Way::Echo(ip)];
        let mut tries: Vec<Try> =
            found.ips.iter().flat_map(|&ip| way(ip)).map(|way| Try { way, source: None }).collect();
        // Nobody listens on this port.
        tries.push(Try { way: Way::Request(Protocol::Udp, (found.ips[0], 9).into()), source: None });
        let outcomes = client.place.tries(&tries, Duration::from_millis(500))?.outcomes()?;
        let (closed, open) = outcomes.split_last().context("outcomes")?;
        ensure!(open.len() == 4 && open.iter().all(|o| *o == Outcome::Reached), "{outcomes:?}");
        ensure!(*closed == Outcome::Refused, "{outcomes:?}");
        ensure!(found.place.counters("snmp")?["Udp: NoPorts"] == 1, "it counts the datagram to nobody");

        api.remove(&server)?;
        cluster.wait_until_gone_in("team", "server")
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn an_address_is_routed_through_the_node_that_was_named_last() {
    with_cluster(|cluster| {
        cluster.apply(&pod("server", "node2", ""))?;
        let server = cluster.pod("server")?;
        let far = cluster.far_client()?;
        for &ip in &server.ips {
            let target = SocketAddr::new(ip, PORT);
            for node in ["node1", "node2"] {
                cluster.route_via(ip, node)?;
                let gateway = cluster.node(node)?.address(ip).to_string();
                let route = cluster.client()?.ip(&["route", "get", &ip.to_string()])?;
                ensure!(route.contains(&gateway), "{route}");
                let own = cluster.client_addresses(ip);
                ensure!(own.len() == 4, "{own:?}");
                for &source in &own {
                    let reply = cluster.client()?.request_from(source, Protocol::Tcp, target)?;
                    let reply = reply.map_err(|failure| anyhow::anyhow!("from {source}: {failure}"))?;
                    ensure!(reply.answer.client.ip() == source, "{reply:?}");
                }
                let unasked = cluster.client()?.request_until_answered(Protocol::Udp, target)?;
                ensure!(unasked.answer.client.ip() == own[0], "{unasked:?}");
                let reply = far.request_until_answered(Protocol::Tcp, target)?;
                ensure!(reply.answer.client.ip() == cluster.far_address(ip), "{reply:?}");
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn the_path_mtu_is_learned_at_both_ends() {
    with_cluster(|cluster| {
        cluster.apply(&pod("server", "node2", ""))?;
        let server = cluster.pod("server")?;
        let far = cluster.far_client()?;
        cluster.set_far_mtu(1300)?;
        for &ip in &server.ips {
            cluster.route_via(ip, "node2")?;
            let target = SocketAddr::new(ip, PORT);
            far.request_until_answered(Protocol::Tcp, target)?;
            ensure!(far.path_mtu(ip)?.is_none(), "learned from small packets");
            let large = Load::new(Protocol::Tcp, target).times(1).sized(100_000).answers_of(100_000);
            far.requests(&large)?.all_answered()?;
            ensure!(far.path_mtu(ip)? == Some(1300), "the client has learned {:?}", far.path_mtu(ip)?);
            let own = cluster.far_address(ip);
            let learned = server.place.path_mtu(own)?;
            ensure!(learned == Some(1300), "the server has learned {learned:?}");
            // Datagrams are fragmented to what has been learned.
            let large = Load::new(Protocol::Udp, target).times(3).sized(4000).answers_of(4000);
            far.requests(&large)?.all_answered()?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_takes_its_time_to_go_and_takes_leave_of_its_connections() {
    with_cluster(|cluster| {
        let slow = "harness.fairlead.io/linger-ms: \"2000\"";
        cluster.apply(&(pod("client", "node1", "") + &annotated("old", "node2", slow)))?;
        let (client, old) = (cluster.pod("client")?, cluster.pod("old")?);
        let mut traffic = Vec::new();
        for protocol in Protocol::ALL {
            let load = Load::new(protocol, (old.ips[0], PORT).into());
            traffic.push(client.place.traffic(&load.clone().over_one_flow())?);
            traffic.push(client.place.traffic(&load)?);
        }
        thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        cluster.kubectl(&["delete", "pod", "old", "--wait=false"])?;
        let is_ready = || -> Result<bool> {
            let status =
                ["get", "pod", "old", "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"];
            Ok(cluster.kubectl(&status)? == "True")
        };
        thread::sleep(Duration::from_millis(500));
        ensure!(is_ready()?, "no longer ready after half a second");
        wait_for("the pod to be unready", Duration::from_secs(2), || Ok((!is_ready()?).then_some(())))?;
        thread::sleep(Duration::from_millis(1700).saturating_sub(begin.elapsed()));
        for traffic in traffic {
            traffic.stop()?.all_answered()?;
        }
        cluster.wait_until_gone("old")?;
        ensure!(begin.elapsed() < Duration::from_secs(8), "it took {:?} to go", begin.elapsed());
        Ok(())
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_is_made_unready_and_ready_and_replaced() {
    with_cluster(|cluster| {
        cluster.apply(&pod("one", "node1", ""))?;
        cluster.pod("one")?;
        cluster.set_ready("one", false)?;
        let ready = |wanted: &str| {
            wait_for("readiness in the table", Duration::from_secs(2), || {
                let table = cluster.kubectl(&["get", "pod", "one", "--no-headers"])?;
                Ok(table.contains(wanted).then_some(()))
            })
        };
        let conditions =
            cluster.kubectl(&["get", "pod", "one", "-o", "jsonpath={.status.conditions[*].type}"])?;
        ensure!(conditions.split(' ').count() == 4, "conditions got lost: {conditions}");
        cluster.set_ready("one", true)?;
        ready("Running")?;
        let two = cluster.replace_pod("one", "two", &pod("two", "node2", ""))?;
        ensure!(two.node == "node2", "{two:?}");
        ensure!(cluster.kubectl(&["get", "pods", "-o", "name"])?.trim() == "pod/two");
        Ok(())
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn a_reset_out_of_nowhere_is_sent_as_it_is() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("client", "node1", "") + &pod("server", "node2", "")))?;
        let (client, server) = (cluster.pod("client")?, cluster.pod("server")?);
        for &ip in &server.ips {
            let own = SocketAddr::new(client.address(ip)?, 4000);
            let target = SocketAddr::new(ip, PORT);
            let load = Load::new(Protocol::Tcp, target).over_one_flow().from_port(own.port());
            let traffic = client.place.traffic(&load)?;
            thread::sleep(Duration::from_millis(300));
            let reset = Segment { flags: RST, sequence: 12_345, ..Segment::default() };
            server.place.inject(&tcp(target, own, &reset))?;
            thread::sleep(Duration::from_millis(200));
            // Out of the window, it does nothing to a client that the kernel alone protects.
            let report = traffic.stop()?;
            report.all_answered()?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn nodes_have_the_labels_that_they_were_given_and_later_ones() {
    let options = options().with_zone("node1", "a").with_label("node2", "disk", "fast");
    let cluster = Cluster::start(options).unwrap_or_else(|error| panic!("{error:#}"));
    let label = |node: &str, key: &str| {
        let path = format!("jsonpath={{.metadata.labels.{}}}", key.replace('.', "\\."));
        cluster.kubectl(&["get", "node", node, "-o", &path]).unwrap()
    };
    assert_eq!(label("node1", "topology.kubernetes.io/zone"), "a");
    assert_eq!(label("node2", "topology.kubernetes.io/zone"), "zone-2");
    assert_eq!(label("node2", "disk"), "fast");
    cluster.label_node("node2", &["topology.kubernetes.io/zone=b", "disk-"]).unwrap();
    assert_eq!(label("node2", "topology.kubernetes.io/zone"), "b");
    assert_eq!(label("node2", "disk"), "");
    let taint = "ToBeDeletedByClusterAutoscaler=1:NoSchedule";
    cluster.kubectl(&["taint", "node", "node1", taint]).unwrap();
    let taints = cluster.kubectl(&["get", "node", "node1", "-o", "jsonpath={.spec.taints[*].key}"]).unwrap();
    assert_eq!(taints, "ToBeDeletedByClusterAutoscaler");
    cluster.kubectl(&["taint", "node", "node1", "ToBeDeletedByClusterAutoscaler-"]).unwrap();
    cluster.down().unwrap();
}

#[test]
#[ignore = "needs root: run make test"]
fn a_load_balancer_has_the_address_that_its_status_was_given() {
    with_cluster(|cluster| {
        cluster.apply(
            "apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec:\n  type: LoadBalancer\n  \
             externalTrafficPolicy: Local\n  selector: { app: web }\n  ports: [{ port: 80 }]\n",
        )?;
        let address: IpAddr = "192.0.2.1".parse()?;
        for mode in ["Proxy", "VIP"] {
            cluster.set_load_balancer("web", &[address], Some(mode))?;
            let ingress = "jsonpath={.status.loadBalancer.ingress[*]['ip','ipMode']}";
            let shown = cluster.kubectl(&["get", "service", "web", "-o", ingress])?;
            ensure!(shown == format!("192.0.2.1 {mode}"), "{shown}");
        }
        ensure!(cluster.health_check_port("web")? >= 30_000);
        Ok(())
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn pods_live_through_an_outage_of_the_api_and_are_seen_to_afterwards() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("client", "node1", "") + &pod("server", "node2", "")))?;
        let (client, server) = (cluster.pod("client")?, cluster.pod("server")?);
        let Some(faults) = cluster.faults() else { return Ok(()) };
        let outage = faults.outage()?;
        let refused = cluster.kubectl(&["get", "pods"]).err().context("the API answers")?.to_string();
        ensure!(refused.contains("out of service"), "{refused}");
        let target = SocketAddr::new(server.ips[0], PORT);
        client.place.requests(&Load::new(Protocol::Tcp, target).times(5))?.all_answered()?;
        outage.end()?;
        faults.compact()?;
        faults.break_watches()?;
        cluster.kubectl(&["delete", "pod", "server", "--wait=false"])?;
        cluster.wait_until_gone("server")
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn thousands_of_objects_are_written_and_gone_in_seconds() {
    with_cluster(|cluster| {
        let map = |number: usize, value: &str| ConfigMap {
            metadata: ObjectMeta { name: Some(format!("m{number}")), ..ObjectMeta::default() },
            data: Some([("value".to_owned(), value.to_owned())].into()),
            ..ConfigMap::default()
        };
        let maps = |value: &str| (0..3000).map(|number| map(number, value)).collect::<Vec<_>>();
        let begin = Instant::now();
        cluster.api().create_all(&maps("one"))?;
        cluster.api().update_all(&maps("two"))?;
        let listed = cluster.api().list::<ConfigMap>("")?;
        ensure!(
            listed.len() == 3000 && listed.iter().all(|map| map.data == maps("two")[0].data),
            "not all is written"
        );
        cluster.api().delete_all(&maps("two"))?;
        cluster.api().delete_all(&maps("two"))?;
        ensure!(cluster.api().list::<ConfigMap>("")?.is_empty());
        println!("12,000 requests took {:?}", begin.elapsed());
        ensure!(begin.elapsed() < Duration::from_secs(30), "it took {:?}", begin.elapsed());
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_agent_is_given_other_arguments_and_another_build() {
    let mut cluster =
        Cluster::start(Options::default().with_nodes(1)).unwrap_or_else(|error| panic!("{error:#}"));
    let other = cluster.another_build().unwrap();
    let node = cluster.node_mut("node1").unwrap();
    node.restart_proxy_with(&["--healthz-bind-address", "0.0.0.0:10256"]).unwrap();
    let command = std::fs::read(format!("/proc/{}/cmdline", node.proxy_id().unwrap())).unwrap();
    let command = String::from_utf8(command).unwrap();
    assert!(command.contains("--healthz-bind-address"), "{command}");
    node.stop_proxy(nix::sys::signal::Signal::SIGTERM).unwrap();
    node.start_proxy_from(&other).unwrap();
    node.wait_for_proxy().unwrap();
    let running = std::fs::read_link(format!("/proc/{}/exe", node.proxy_id().unwrap())).unwrap();
    assert_eq!(running, other);
    cluster.down().unwrap();
}

fn options() -> Options {
    Options { proxy: false, ..Options::default() }
}

fn with_cluster(test: impl FnOnce(&Cluster) -> Result<()>) {
    with_cluster_of(options(), test);
}

fn with_cluster_of(options: Options, test: impl FnOnce(&Cluster) -> Result<()>) {
    let cluster = Cluster::start(options).unwrap_or_else(|error| panic!("start a cluster: {error:#}"));
    test(&cluster).unwrap_or_else(|error| panic!("{error:#}"));
    cluster.down().unwrap_or_else(|error| panic!("take the cluster down: {error:#}"));
}

fn targets(pod: &RunningPod) -> Vec<(Protocol, SocketAddr)> {
    let each = |protocol| pod.ips.iter().map(move |&ip| (protocol, SocketAddr::new(ip, PORT)));
    Protocol::ALL.into_iter().flat_map(each).collect()
}

fn pod(name: &str, node: &str, more: &str) -> String {
    manifest(name, node, "", more)
}

fn annotated(name: &str, node: &str, annotation: &str) -> String {
    manifest(name, node, annotation, "")
}

fn manifest(name: &str, node: &str, annotation: &str, more: &str) -> String {
    let ports = ["TCP", "UDP", "SCTP"].map(|protocol| {
        format!("{{ name: {}, containerPort: {PORT}, protocol: {protocol} }}", protocol.to_lowercase())
    });
    let [tcp, udp, sctp] = ports;
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{ {annotation} }}\nspec:\n  \
         nodeName: {node}\n  containers:\n    - {{ name: echo, image: none, ports: [{tcp}, {udp}, {sctp}] }}\n  {more}\n"
    )
}
