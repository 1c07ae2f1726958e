//! Services whose type and ports change under load.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use fairlead_cluster_tests::ask::{Target, answered_by, eventually, refused};
use fairlead_cluster_tests::crowd::{Client, Crowd, clients, inside, lost_nothing, outside, spoken};
use fairlead_cluster_tests::objects::{at, patch, spec_of};
use fairlead_cluster_tests::scene::{LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via};
use fairlead_cluster_tests::{SERVICE_PORT, pod, service, with_cluster};
use fairlead_harness::{Load, Place, Protocol};
use serde_json::json;

/// How long the crowd is watched after a change.
const AFTERMATH: Duration = Duration::from_millis(500);
const BOTH: &[&str] = &["near", "far"];

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_may_change_its_type_while_it_is_used() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        let ips = cluster.cluster_ips("echo")?;
        // From outside, too, the ClusterIP is what stays the same.
        route_via(cluster, &[ips.as_slice(), &LOAD_BALANCER].concat(), "node1")?;
        let mut all = inside(cluster, &scene, "echo")?;
        all.extend(clients(("outside", &scene.outside), [ips[0], ips[1]], |_| SERVICE_PORT));
        let crowd = Crowd::gather(all)?;

        patch(cluster, "service/echo", &json!({ "spec": { "type": "NodePort" } }))?;
        let addresses = node_addresses(cluster, "node2")?;
        let node_ports = spoken(at_node_ports(cluster, "echo", &addresses)?);
        answered_by(("outside", &scene.outside), &node_ports, BOTH)?;
        let by_node_port = Crowd::gather(connections(&scene.outside, &tcp(&node_ports)))?;

        patch(cluster, "service/echo", &json!({ "spec": { "type": "LoadBalancer" } }))?;
        cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
        answered_by(("outside", &scene.outside), &spoken(at(&LOAD_BALANCER)), BOTH)?;
        let by_load_balancer = Crowd::gather(connections(&scene.outside, &tcp(&at(&LOAD_BALANCER))))?;

        patch(cluster, "service/echo", &json!({ "spec": { "type": "ClusterIP" } }))?;
        // As the load balancer's controller does.
        cluster.set_load_balancer("echo", &[], None)?;
        refused(("outside", &scene.outside), &node_ports)?;
        for target in tcp(&at(&LOAD_BALANCER)) {
            eventually(|| {
                let outcome = scene.outside.request(Protocol::Tcp, target)?;
                ensure!(outcome.is_err(), "{target} goes on answering: {outcome:?}");
                Ok(())
            })?;
        }
        thread::sleep(AFTERMATH);
        lost_nothing(&crowd.disperse()?)?;
        lost_nothing(&by_node_port.disperse()?).context("open connections, the NodePort being gone")?;
        lost_nothing(&by_load_balancer.disperse()?).context("open connections, the load balancer being gone")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_that_is_an_external_name_for_a_while_keeps_its_open_connections() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let ips = cluster.cluster_ips("echo")?;
        let mut all = inside(cluster, &scene, "echo")?;
        all.extend(outside(cluster, &scene, "echo")?);
        // What fails shall fail soon.
        let all = all.into_iter().map(|client| client.giving_up_after(AFTERMATH / 2)).collect();
        let crowd = Crowd::gather(all)?;
        thread::sleep(AFTERMATH);
        let spec = spec_of(cluster, "service/echo")?;
        let external = json!({ "spec": { "type": "ExternalName", "externalName": "echo.example" } });
        let begin = SystemTime::now();
        patch(cluster, "service/echo", &external)?;
        thread::sleep(2 * AFTERMATH);
        patch(cluster, "service/echo", &json!({ "spec": spec }))?;
        answered_by(("a pod", &scene.client.place), &spoken(at(&ips)), BOTH)?;
        let back = SystemTime::now() + AFTERMATH;
        thread::sleep(2 * AFTERMATH);
        for account in crowd.disperse()? {
            if account.is_one_connection() {
                account.lost_nothing(50)?;
            } else {
                let early = account.report.failures().iter().any(|failure| failure.at < begin);
                let late = account.failed_after(back);
                ensure!(!early && late.is_empty(), "{}: {late:?}", account.who);
                ensure!(account.answered_after(back).count() > 10, "{}: no answers at the end", account.who);
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn ports_may_change_and_connections_over_the_old_ones_go_on() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let ips = cluster.cluster_ips("echo")?;
        let addresses = node_addresses(cluster, "node1")?;
        let node_ports = || Ok::<_, anyhow::Error>(spoken(at_node_ports(cluster, "echo", &addresses)?));
        let (old, old_node_ports) = (spoken(at(&ips)), node_ports()?);
        let insiders = scene.insiders();
        let mut open = connections(&scene.outside, &tcp(&old_node_ports));
        open.extend(insiders.iter().flat_map(|(_, place)| connections(place, &tcp(&old))));
        let crowd = Crowd::gather(open)?;

        let mut free =
            (31_000..).filter(|port| old_node_ports.iter().all(|(_, target)| target.port() != *port));
        let replace = |path: &str, value: u16| json!({ "op": "replace", "path": path, "value": value });
        let mut change = Vec::new();
        for port in ["/spec/ports/0", "/spec/ports/1"] {
            change.push(replace(&format!("{port}/port"), 8000));
            change.push(replace(&format!("{port}/nodePort"), free.next().context("no port is free")?));
        }
        cluster.kubectl(&["patch", "service/echo", "--type=json", "-p", &json!(change).to_string()])?;
        let new: Vec<_> =
            old.iter().map(|(protocol, target)| (*protocol, (target.ip(), 8000).into())).collect();
        for (who, place) in insiders {
            answered_by((who, place), &new, BOTH)?;
            refused((who, place), &old)?;
        }
        answered_by(("outside", &scene.outside), &node_ports()?, BOTH)?;
        refused(("outside", &scene.outside), &old_node_ports)?;
        thread::sleep(AFTERMATH);
        lost_nothing(&crowd.disperse()?)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn another_target_port_loses_no_request() {
    with_cluster(|cluster| {
        // The pods serve two ports, of which the Service leads to one.
        let second = |pod: &str| {
            let line = "        - { name: tcp, containerPort: 8080, protocol: TCP }\n";
            let more = "        - { name: tcp2, containerPort: 9090, protocol: TCP }\n        - { name: udp2, containerPort: 9090, protocol: UDP }\n";
            pod.replace(line, &format!("{line}{more}"))
        };
        let pods = second(&(pod("a", "two", "node1") + &pod("b", "two", "node2")));
        let scene = Scene::set(cluster, &(pods + &service("two", "two", "NodePort")))?;
        cluster.pod("a")?;
        cluster.pod("b")?;
        let mut all = inside(cluster, &scene, "two")?;
        all.extend(outside(cluster, &scene, "two")?);
        let crowd = Crowd::gather(all)?;
        thread::sleep(AFTERMATH);
        let change = json!([
            { "op": "replace", "path": "/spec/ports/0/targetPort", "value": 9090 },
            { "op": "replace", "path": "/spec/ports/1/targetPort", "value": 9090 },
        ]);
        cluster.kubectl(&["patch", "service/two", "--type=json", "-p", &change.to_string()])?;
        thread::sleep(2 * AFTERMATH);
        lost_nothing(&crowd.disperse()?)
    });
}

/// Clients that keep one connection to each of the targets.
fn connections<'a>(place: &'a Place, targets: &[SocketAddr]) -> Vec<Client<'a>> {
    let client = |&target| Client::new(("someone", place), Load::new(Protocol::Tcp, target).over_one_flow());
    targets.iter().map(client).collect()
}

fn tcp(targets: &[Target]) -> Vec<SocketAddr> {
    targets.iter().filter(|(protocol, _)| *protocol == Protocol::Tcp).map(|(_, target)| *target).collect()
}
