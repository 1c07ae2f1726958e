//! Policies hold from a pod's first moment to its last, whatever becomes of the agent, and are nobody else's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::eventually;
use fairlead_cluster_tests::flood::{Flood, datagrams};
use fairlead_cluster_tests::matrix::Matrix;
use fairlead_cluster_tests::policy::{Estate, by_sockets, closed, network_policy, pod, web_ingress};
use fairlead_cluster_tests::{with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Options, RunningPod};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// How long a flood goes on when nothing else happens.
const A_WHILE: Duration = Duration::from_millis(500);
/// How long the agent is away.
const AWAY: Duration = Duration::from_secs(1);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn not_one_packet_reaches_a_pod_before_its_policy_does() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let api = cluster.api();
        api.apply(&network_policy("default", "closed", json!({ "podSelector": {} })))?;
        estate.matrix(by_sockets).shows("web near\n guest X X\n away X X")?;
        // Whatever address the pods to come will get, and of whichever node: their first is the next that is free.
        let coming: Vec<IpAddr> = (4..=9).flat_map(of_node1).collect();
        for &ip in &coming {
            cluster.route_via(ip, "node1")?;
        }
        let node2 = cluster.node("node2")?.place();
        let floods = [&estate.pod("guest")?.place, &estate.pod("away")?.place, estate.outside(), node2]
            .map(|place| Flood::from(place, &coming));
        for round in 0..3 {
            let name = format!("late-{round}");
            api.apply(&pod("default", &name, json!({ "app": "late" }), "node1"))?;
        }
        api.apply(&pod("bank", "open", json!({}), "node1"))?;
        let (closed, open) =
            (pods(cluster, &["late-0", "late-1", "late-2"])?, cluster.pod_in("bank", "open")?);
        thread::sleep(A_WHILE);
        for flood in floods {
            ensure!(flood.end()? > 100, "that was no flood");
        }
        for pod in closed {
            ensure!(pod.ips.iter().all(|ip| coming.contains(ip)), "{} has {:?}", pod.name, pod.ips);
            let received = datagrams(&pod.place)?;
            ensure!(received == 0, "{} received {received} datagrams", pod.name);
        }
        let received = datagrams(&open.place)?;
        ensure!(received > 100, "the pod without a policy received {received} datagrams");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn not_one_packet_leaves_a_pod_before_its_policy_has_come() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let api = cluster.api();
        let late = json!({ "matchLabels": { "app": "late" } });
        let spec = json!({ "podSelector": late, "policyTypes": ["Egress"] });
        api.apply(&network_policy("default", "asks-nobody", spec))?;
        api.apply(&pod("default", "late", json!({ "app": "late" }), "node1"))?;
        cluster.pod("late")?;
        estate.matrix(by_sockets).shows("guest\n web .")?;
        for sink in ["guest", "away"] {
            let sink = estate.pod(sink)?;
            let before = datagrams(&sink.place)?;
            let name = format!("late-for-{}", sink.name);
            let flood = born_flooding(cluster, &name, json!({ "app": "late" }), &sink.ips)?;
            cluster.pod(&name)?;
            thread::sleep(A_WHILE);
            flood.end()?;
            let received = datagrams(&sink.place)? - before;
            ensure!(received == 0, "{} received {received} datagrams", sink.name);
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_is_guarded_until_it_is_gone() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        cluster.api().apply(&closed("closed", "web", &["Ingress", "Egress"]))?;
        estate.matrix(by_sockets).shows("web guest\n web . X\n guest X .\n away X .\n outside X .")?;
        let (web, guest) = (estate.pod("web")?, estate.pod("guest")?);
        let before = (datagrams(&web.place)?, datagrams(&guest.place)?);
        let in_floods = [&guest.place, &estate.pod("away")?.place, estate.outside()]
            .map(|place| Flood::from(place, &web.ips));
        let out_flood = Flood::from(&web.place, &guest.ips);
        thread::sleep(A_WHILE);
        cluster.kubectl(&["delete", "pod", "web", "--wait=false"])?;
        cluster.wait_until_gone("web")?;
        thread::sleep(A_WHILE);
        for flood in in_floods.into_iter().chain([out_flood]) {
            ensure!(flood.end()? > 100, "that was no flood");
        }
        // The namespaces are held open, and with them what they counted.
        let received = (datagrams(&web.place)? - before.0, datagrams(&guest.place)? - before.1);
        ensure!(
            received == (0, 0),
            "the pod received {}, and what it sent was received {}",
            received.0,
            received.1
        );
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn policies_hold_while_the_agent_is_away_and_follow_what_it_missed() {
    with_cluster(|cluster| {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            let estate = Estate::set(cluster)?;
            cluster.api().apply(&closed("closed", "web", &["Ingress"]))?;
            estate.matrix(by_sockets).shows("web\n near X\n far X\n guest X\n node1 .")?;
            let web = &estate.pod("web")?;
            let before = datagrams(&web.place)?;
            let floods = [&estate.pod("near")?.place, &estate.pod("far")?.place, estate.outside()]
                .map(|place| Flood::from(place, &web.ips));
            for name in ["node1", "node2"] {
                cluster.node_mut(name)?.stop_proxy(signal)?;
            }
            let guests =
                json!([{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "blue" } } }] }]);
            let policy = web_ingress("guests", guests);
            cluster.api().apply(&policy)?;
            thread::sleep(AWAY);
            estate.matrix(by_sockets).shows_now("web\n guest X\n away X")?;
            for name in ["node1", "node2"] {
                let node = cluster.node_mut(name)?;
                node.start_proxy()?;
                node.wait_for_proxy()?;
            }
            thread::sleep(A_WHILE);
            for flood in floods {
                ensure!(flood.end()? > 100, "that was no flood");
            }
            let received = datagrams(&web.place)? - before;
            ensure!(received == 0, "{received} datagrams came through after {signal}");
            estate.matrix(by_sockets).shows("web\n near X\n far X\n guest .\n away .")?;
            cluster.api().remove(&policy)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_with_the_address_of_an_earlier_one_inherits_nothing() {
    // Two IPv4 addresses for two pods: the third gets that of the one that is gone.
    let small = Options::default().with_pod_cidrs("node1", ["10.244.1.0/30", "fd00:10:244:1::/126"]);
    with_cluster_of(small, |cluster| {
        let api = cluster.api();
        api.apply(&pod("default", "web", json!({ "app": "web" }), "node1"))?;
        let trusted = pod("default", "trusted", json!({ "trusted": "yes" }), "node1");
        api.apply(&trusted)?;
        let rules = json!([{ "from": [{ "podSelector": { "matchLabels": { "trusted": "yes" } } }] }]);
        api.apply(&web_ingress("trusted", rules))?;
        let (web, first) = (cluster.pod("web")?, cluster.pod("trusted")?);
        let flood = Flood::from(&first.place, &web.ips);
        eventually(|| {
            let received = datagrams(&web.place)?;
            ensure!(received > 0, "the pod that is trusted does not come through");
            Ok(())
        })?;
        flood.end()?;
        api.remove(&trusted)?;
        cluster.wait_until_gone("trusted")?;

        let before = datagrams(&web.place)?;
        let flood = born_flooding(cluster, "other", json!({ "trusted": "no" }), &web.ips)?;
        let other = cluster.pod("other")?;
        ensure!(other.ips[0] == first.ips[0], "{:?} is not {:?}", other.ips, first.ips);
        thread::sleep(A_WHILE);
        ensure!(flood.end()? > 100, "that was no flood");
        let received = datagrams(&web.place)? - before;
        ensure!(received == 0, "{received} datagrams came through by an inherited address");

        // And the other way about: what an earlier pod was denied is not denied to a later one.
        api.remove(&pod("default", "other", json!({}), "node1"))?;
        cluster.wait_until_gone("other")?;
        api.apply(&pod("default", "friend", json!({ "trusted": "yes" }), "node1"))?;
        let friend = cluster.pod("friend")?;
        ensure!(friend.ips[0] == first.ips[0], "{:?} is not {:?}", friend.ips, first.ips);
        Matrix::default()
            .asker("friend", &friend.place)
            .target("web", by_sockets(&web.ips))
            .shows("web\n friend .")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn probes_of_the_own_node_pass_from_the_first_moment_on() {
    with_cluster(|cluster| {
        let api = cluster.api();
        api.apply(&network_policy(
            "default",
            "closed",
            json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }),
        ))?;
        for round in 0..5 {
            let name = format!("probed-{round}");
            api.apply(&pod("default", &name, json!({}), "node1"))?;
            // As soon as it says that it is ready a kubelet would ask it.
            let probed = cluster.pod(&name)?;
            Matrix::default()
                .asker("node1", cluster.node("node1")?.place())
                .target(&name, by_sockets(&probed.ips))
                .shows_now(&format!("{name}\n node1 ."))?;
        }
        Ok(())
    });
}

/// The addresses of that host of node1's networks, IPv4 and IPv6.
fn of_node1(host: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, host.into());
    [Ipv4Addr::new(10, 244, 1, host).into(), v6.into()]
}

fn pods(cluster: &Cluster, names: &[&str]) -> Result<Vec<RunningPod>> {
    names.iter().map(|name| cluster.pod(name)).collect()
}

/// Applies a pod of node1 that floods these addresses from the moment at which its network namespace is made.
fn born_flooding(cluster: &Cluster, name: &str, labels: Value, targets: &[IpAddr]) -> Result<Flood> {
    let object = cluster.api().apply(&pod("default", name, labels, "node1"))?;
    let uid = object["metadata"]["uid"].as_str().context("a UID")?;
    Ok(Flood::from_birth(&cluster.layout().pod_netns(name, uid), targets))
}
