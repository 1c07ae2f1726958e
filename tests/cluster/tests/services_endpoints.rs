//! Where a Service's endpoints come from: slices, selectors, target ports.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{all, answered_by, answered_seeing, of};
use fairlead_cluster_tests::objects::{at, service_without_selector, slices};
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, pod, service, variants, with_cluster};
use fairlead_harness::{Load, Protocol};

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_without_selector_leads_where_slices_made_by_hand_say() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service_without_selector("manual", "ClusterIP"))?;
        cluster.apply(&slices("manual", "one", &[(&scene.near, "")])?)?;
        let targets = at(&cluster.cluster_ips("manual")?);
        let client = &scene.client.place;
        answered_by(("a pod", client), &targets, &["near"])?;
        cluster.apply(&slices("manual", "one", &[(&scene.far, "")])?)?;
        answered_by(("a pod", client), &targets, &["far"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_endpoints_of_several_slices_are_used_together() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service_without_selector("manual", "NodePort"))?;
        let one = slices("manual", "one", &[(&scene.near, "")])?;
        cluster.apply(&(one + &slices("manual", "two", &[(&scene.far, "")])?))?;
        let mut targets = at(&cluster.cluster_ips("manual")?);
        targets.extend(at_node_ports(cluster, "manual", &node_addresses(cluster, "node2")?)?);
        let client = &scene.client.place;
        answered_by(("a pod", client), &targets, &["near", "far"])?;
        cluster.kubectl(&["delete", "endpointslice/manual-one-ipv4", "endpointslice/manual-one-ipv6"])?;
        answered_by(("a pod", client), &targets, &["far"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_endpoint_that_is_in_two_slices_gets_no_more_than_its_share() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service_without_selector("manual", "ClusterIP"))?;
        let twice = ["one", "two", "three"].map(|part| slices("manual", part, &[(&scene.near, "")]));
        let twice: String = twice.into_iter().collect::<Result<_>>()?;
        cluster.apply(&(twice + &slices("manual", "four", &[(&scene.far, "")])?))?;
        let (targets, client) = (at(&cluster.cluster_ips("manual")?), &scene.client.place);
        answered_by(("a pod", client), &targets, &["near", "far"])?;
        let load = |protocol, target| Load::new(protocol, target).times(100).every(Duration::from_millis(1));
        let reports = all(client, &targets, load)?;
        // Half of all is expected, and a quarter if every mention counted: three eighths are five deviations from
        // either with 400 requests.
        let far: usize = reports.iter().filter_map(|report| report.pods().get("far").copied()).sum();
        ensure!(far * 8 > targets.len() * 100 * 3, "far got {far} of {} requests", targets.len() * 100);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_named_target_port_is_the_port_that_each_pod_gives_that_name() {
    with_cluster(|cluster| {
        let elsewhere = pod("other", "named", "node2").replace(&POD_PORT.to_string(), "9090");
        let named = ["TCP", "UDP", "SCTP"].into_iter().fold(
            service("named", "named", "ClusterIP"),
            |text, protocol| {
                let name = format!("targetPort: {}, protocol: {protocol}", protocol.to_lowercase());
                text.replace(&format!("targetPort: {POD_PORT}, protocol: {protocol}"), &name)
            },
        );
        cluster.apply(&(elsewhere + &named + &pod("one", "named", "node1")))?;
        cluster.pod("one")?;
        cluster.pod("other")?;
        let node = cluster.node("node1")?.place();
        answered_by(("a node", node), &at(&cluster.cluster_ips("named")?), &["one", "other"])
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn each_port_of_a_service_leads_to_its_own_target_port() {
    with_cluster(|cluster| {
        // Two pods of one app, each serving one of the two ports, tell the ports apart.
        let web = pod("web", "both", "node1");
        let admin = pod("admin", "both", "node2").replace(&POD_PORT.to_string(), "9090");
        let more = "    - { name: admin, port: 81, targetPort: 9090, protocol: TCP }\n    \
                    - { name: admin-udp, port: 81, targetPort: 9090, protocol: UDP }\n    \
                    - { name: admin-sctp, port: 81, targetPort: 9090, protocol: SCTP }\n";
        cluster.apply(&(web + &admin + &service("both", "both", "ClusterIP") + more))?;
        for (name, own) in [("web", POD_PORT), ("admin", 9090)] {
            let pod = cluster.pod(name)?;
            let direct = SocketAddr::new(*pod.ips.first().context("an address")?, own);
            cluster.node("node1")?.place().request_until_answered(Protocol::Tcp, direct)?;
        }
        // Each port has both pods as endpoints, and only one of them listens there.
        let host = cluster.node("node1")?.place();
        let ips = cluster.cluster_ips("both")?;
        let targets = [variants(&ips, SERVICE_PORT), variants(&ips, 81)].concat();
        let load = |protocol, target| Load::new(protocol, target).times(10).giving_up_after(QUICK);
        for (report, (protocol, target)) in all(host, &targets, load)?.iter().zip(&targets) {
            let (pods, name) = (report.pods(), if target.port() == SERVICE_PORT { "web" } else { "admin" });
            ensure!(pods.keys().eq([&name]), "{protocol} to {target} is answered by {pods:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_of_the_hosts_network_is_an_endpoint_and_sees_who_asks() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &on_both_hosts())?;
        let (targets, both) = (at(&cluster.cluster_ips("hosts")?), ["host1", "host2"]);
        answered_seeing(("a pod", &scene.client.place), &targets, &both, |like| scene.client.address(like))?;
        answered_by(("a node", &scene.node2), &of(&[Protocol::Tcp], &targets), &both)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn datagrams_of_a_node_reach_its_own_pod_of_the_hosts_network_as_well_as_the_others() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &on_both_hosts())?;
        let targets = of(&[Protocol::Udp], &at(&cluster.cluster_ips("hosts")?));
        answered_by(("a node", &scene.node2), &targets, &["host1", "host2"])
    });
}

/// A Service `hosts` of two pods `host1` and `host2`, each of which is its node's own address.
fn on_both_hosts() -> String {
    let host = |name, node| pod(name, "hosts", node).replace("spec:\n", "spec:\n  hostNetwork: true\n");
    host("host1", "node1") + &host("host2", "node2") + &service("hosts", "hosts", "ClusterIP")
}

const QUICK: Duration = Duration::from_millis(200);
