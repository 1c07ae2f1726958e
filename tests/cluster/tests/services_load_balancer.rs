//! Addresses of load balancers: from inside, and for whom they are (loadBalancerSourceRanges).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{all, answered_by, eventually, kept_out, of};
use fairlead_cluster_tests::objects::{at, external_ips, patch, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{service, with_cluster};
use fairlead_harness::{Cluster, Load, Protocol, Report};
use serde_json::json;

const BOTH: &[&str] = &["near", "far"];

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_load_balancer_that_is_a_proxy_is_not_short_circuited() {
    with_cluster(|cluster| {
        let scene = balanced(cluster, "")?;
        for asker in scene.insiders() {
            answered_by(asker, &at(&LOAD_BALANCER), BOTH)?;
        }
        cluster.set_load_balancer("echo", &LOAD_BALANCER, Some("Proxy"))?;
        // What it sends to the NodePort is served. There is no such load balancer here, so who asks it gets no answer.
        let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        answered_by(("outside", &scene.outside), &node_ports, BOTH)?;
        for asker in scene.insiders() {
            kept_out(asker, &at(&LOAD_BALANCER))?;
        }
        cluster.set_load_balancer("echo", &LOAD_BALANCER, Some("VIP"))?;
        for asker in scene.insiders() {
            answered_by(asker, &at(&LOAD_BALANCER), BOTH)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn source_ranges_admit_their_clients_and_keep_the_others_out() {
    with_cluster(|cluster| {
        let [first, second] = clients(cluster)?;
        let scene = balanced(cluster, &ranges(&first))?;
        answered_from(&scene, &first)?;
        unanswered_from(&scene, &second)?;
        // The ranges guard the load balancer's addresses alone.
        let mut others = at(&EXTERNAL);
        others.extend(at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?);
        for (protocol, target) in others {
            let load =
                Load::new(protocol, target).from_source(second[usize::from(target.is_ipv6())]).times(10);
            let report = scene.outside.requests(&load)?;
            ensure!(report.failures().is_empty(), "{protocol} to {target}: {:?}", report.failures());
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn source_ranges_hold_for_pods_and_nodes_as_well() {
    with_cluster(|cluster| {
        let [outside, _] = clients(cluster)?;
        let scene = balanced(cluster, &ranges(&outside))?;
        answered_from(&scene, &outside)?;
        for asker in scene.insiders() {
            kept_out(asker, &at(&LOAD_BALANCER))?;
            answered_by(asker, &at(&cluster.cluster_ips("echo")?), BOTH)?;
            let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
            answered_by(asker, &of(&Protocol::SOCKETS, &node_ports), BOTH)?;
        }
        let pods = json!(["10.244.0.0/16", "fd00:10:244::/48"]);
        patch(cluster, "service/echo", &json!({ "spec": { "loadBalancerSourceRanges": pods } }))?;
        answered_by(("a pod", &scene.client.place), &at(&LOAD_BALANCER), BOTH)?;
        kept_out(("a node", &scene.node1), &at(&LOAD_BALANCER))?;
        unanswered_from(&scene, &outside)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_source_range_of_everyone_lets_everyone_in() {
    with_cluster(|cluster| {
        let [first, second] = clients(cluster)?;
        let scene = balanced(cluster, &ranges(&first))?;
        answered_from(&scene, &first)?;
        unanswered_from(&scene, &second)?;
        let everyone = json!([format!("{}/32", first[0]), "0.0.0.0/0", format!("{}/128", first[1]), "::/0"]);
        patch(cluster, "service/echo", &json!({ "spec": { "loadBalancerSourceRanges": everyone } }))?;
        answered_by(("a node", &scene.node1), &at(&LOAD_BALANCER), BOTH)?;
        answered_by(("a pod", &scene.client.place), &at(&LOAD_BALANCER), BOTH)?;
        answered_from(&scene, &first)?;
        answered_from(&scene, &second)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn source_ranges_of_one_family_leave_the_other_family_open() {
    with_cluster(|cluster| {
        let [first, second] = clients(cluster)?;
        let scene = balanced(cluster, &spec(&format!("loadBalancerSourceRanges: [\"{}/32\"]", first[0])))?;
        answered_from(&scene, &first)?;
        eventually(|| {
            for (report, (protocol, target)) in from_client(&scene, &second)?.iter().zip(at(&LOAD_BALANCER)) {
                let answered = report.replies().count();
                let wanted = if target.is_ipv4() { 0 } else { report.outcomes.len() };
                ensure!(answered == wanted, "{protocol} to {target}: {answered} answers instead of {wanted}");
            }
            Ok(())
        })
    });
}

/// A Service with addresses of a load balancer that the outside client reaches by node1, and more in its spec.
fn balanced(cluster: &Cluster, more: &str) -> Result<Scene> {
    let scene = Scene::set(cluster, &(service("echo", "echo", "LoadBalancer") + &external_ips() + more))?;
    cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
    route_via(cluster, &[LOAD_BALANCER, EXTERNAL].concat(), "node1")?;
    Ok(scene)
}

/// Two clients by their addresses, each of them by one of each family: not the ones used without choosing.
fn clients(cluster: &Cluster) -> Result<[[IpAddr; 2]; 2]> {
    let [v4, v6] = LOAD_BALANCER.map(|like| cluster.client_addresses(like));
    let of = |number: usize| Ok::<_, anyhow::Error>([address(&v4, number)?, address(&v6, number)?]);
    Ok([of(1)?, of(2)?])
}

fn address(addresses: &[IpAddr], number: usize) -> Result<IpAddr> {
    addresses.get(number).copied().context("the client outside has four addresses of each family")
}

fn ranges([v4, v6]: &[IpAddr; 2]) -> String {
    spec(&format!("loadBalancerSourceRanges: [\"{v4}/32\", \"{v6}/128\"]"))
}

/// Every request of that client to the load balancer is answered.
fn answered_from(scene: &Scene, client: &[IpAddr; 2]) -> Result<()> {
    eventually(|| {
        for (report, target) in from_client(scene, client)?.iter().zip(at(&LOAD_BALANCER)) {
            ensure!(report.failures().is_empty(), "from {client:?} to {target:?}: {:?}", report.failures());
        }
        Ok(())
    })
}

/// None is.
fn unanswered_from(scene: &Scene, client: &[IpAddr; 2]) -> Result<()> {
    eventually(|| {
        for (report, target) in from_client(scene, client)?.iter().zip(at(&LOAD_BALANCER)) {
            ensure!(report.replies().next().is_none(), "{client:?} was answered at {target:?}");
        }
        Ok(())
    })
}

fn from_client(scene: &Scene, client: &[IpAddr; 2]) -> Result<Vec<Report>> {
    let load = |protocol, target: SocketAddr| {
        let source = client[usize::from(target.is_ipv6())];
        Load::new(protocol, target).from_source(source).times(2).giving_up_after(Duration::from_millis(150))
    };
    all(&scene.outside, &at(&LOAD_BALANCER), load)
}
