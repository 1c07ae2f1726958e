//! Session affinity: who keeps which backend, at which addresses, and for how long.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_cluster_tests::ask::{Asker, Target, all, answered, answered_by, of, reports};
use fairlead_cluster_tests::objects::{at, external_ips, spec};
use fairlead_cluster_tests::scene::{
    EXTERNAL, LOAD_BALANCER, Scene, at_node_ports, node_addresses, route_via,
};
use fairlead_cluster_tests::{pod, service, with_cluster};
use fairlead_harness::{Cluster, Load, Protocol, Report};

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_of_a_service_with_affinity_keeps_its_backend_across_all_addresses_of_the_port() {
    with_cluster(|cluster| {
        let scene = sticky(cluster, "")?;
        let external = from_outside(cluster)?;
        let all_targets = [at(&cluster.cluster_ips("echo")?), external.clone()].concat();
        keeps_to_one_across(("a pod", &scene.client.place), &all_targets)?;
        keeps_to_one_across(("a node", &scene.node1), &of(&Protocol::SOCKETS, &all_targets))?;
        keeps_to_one_across(("outside", &scene.outside), &external)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn clients_of_a_service_with_affinity_are_spread_over_its_backends() {
    with_cluster(|cluster| {
        let scene = sticky(cluster, "")?;
        let targets = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        answered(("outside", &scene.outside), &targets)?;
        let mut chosen = BTreeSet::new();
        // Four addresses at each of six ports: all of them would have one of three backends once in 10¹¹ times.
        let clients = targets.iter().flat_map(|&(protocol, target)| {
            let addresses = cluster.client_addresses(target.ip()).into_iter();
            addresses.map(move |address| Load::new(protocol, target).from_source(address).times(5))
        });
        for report in reports(&scene.outside, clients)? {
            report.all_answered()?;
            ensure!(report.pods().len() == 1, "one client was led to {:?}", report.pods());
            chosen.extend(report.pods().into_keys().map(str::to_owned));
        }
        ensure!(chosen.len() > 1, "all clients were led to {chosen:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn affinity_lasts_as_long_as_the_service_says_or_for_hours_and_each_connection_prolongs_it() {
    with_cluster(|cluster| {
        let scene = sticky(cluster, &timeout(1))?;
        let internal = at(&cluster.cluster_ips("echo")?);
        let askers = [scene.insiders()[0], scene.insiders()[1], ("outside", &scene.outside)];
        let external = from_outside(cluster)?;
        let targets = [&internal, &internal, &external];
        for (asker, targets) in askers.into_iter().zip(targets) {
            answered(asker, targets)?;
        }
        // Everyone asks at the same time, in one go each: first in time, then too late.
        let everyone = |pause: Duration, times| {
            thread::scope(|scope| {
                let asked = askers.into_iter().zip(targets).map(|((who, place), targets)| {
                    // One family of addresses is enough where the others are the same client.
                    let first = one_per_client(targets);
                    scope.spawn(move || {
                        let load = |protocol, target| Load::new(protocol, target).times(times).every(pause);
                        Ok((who, all(place, &first, load)?))
                    })
                });
                let asked: Vec<_> = asked.collect();
                asked.into_iter().map(|thread| thread.join().expect("a client")).collect::<Result<Vec<_>>>()
            })
        };
        for (who, reports) in everyone(Duration::from_millis(500), 4)? {
            for report in reports {
                ensure!(report.failures().is_empty(), "{who}: {:?}", report.failures());
                ensure!(
                    report.pods().len() == 1,
                    "{who} came back in time, and was led to {:?}",
                    report.pods()
                );
            }
        }
        // Meanwhile three hours do not pass.
        let unlimited = service("unlimited", "echo", "ClusterIP") + &spec("sessionAffinity: ClientIP");
        cluster.apply(&unlimited)?;
        let unlimited = at(&cluster.cluster_ips("unlimited")?);
        answered(askers[0], &unlimited)?;
        let chosen = || {
            let load = |protocol, target| Load::new(protocol, target).times(1);
            let reports = all(&scene.client.place, &unlimited, load)?;
            let pods = reports.iter().map(|report| report.pods().into_keys().map(str::to_owned).collect());
            Ok::<_, anyhow::Error>(pods.collect::<Vec<Vec<String>>>())
        };
        let before = chosen()?;
        for (who, reports) in everyone(Duration::from_millis(1200), 3)? {
            // Twice each of at least six clients chose among three backends.
            let moved = reports.iter().any(|report| report.pods().len() > 1);
            ensure!(
                moved,
                "{who} came back too late, and kept {:?}",
                reports.iter().map(Report::pods).next_back()
            );
        }
        let after = chosen()?;
        ensure!(before == after, "without a timeout the pods were {before:?} and then {after:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_whose_backend_is_gone_is_given_another_one_and_keeps_that() {
    with_cluster(|cluster| {
        let scene = sticky(cluster, "")?;
        let targets = at(&cluster.cluster_ips("echo")?);
        let asker = scene.insiders()[0];
        keeps_to_one(asker, &targets)?;
        // Both pods of node1 go: whoever has one of them must move, the others stay.
        cluster.kubectl(&["label", "pod", "near", "third", "app=retired", "--overwrite"])?;
        answered_by(asker, &targets, &["far"])?;
        cluster.kubectl(&["label", "pod", "near", "third", "app=echo", "--overwrite"])?;
        thread::sleep(Duration::from_millis(500));
        answered_by(asker, &targets, &["far"])
    });
}

/// Three backends behind a Service with affinity and every kind of address.
fn sticky(cluster: &Cluster, more: &str) -> Result<Scene> {
    let affinity = spec("sessionAffinity: ClientIP") + more;
    let echo = service("echo", "echo", "LoadBalancer") + &external_ips() + &affinity;
    let scene = Scene::set(cluster, &(echo + &pod("third", "echo", "node1")))?;
    cluster.pod("third")?;
    cluster.set_load_balancer("echo", &LOAD_BALANCER, None)?;
    Ok(scene)
}

fn timeout(seconds: u32) -> String {
    spec(&format!("sessionAffinityConfig: {{ clientIP: {{ timeoutSeconds: {seconds} }} }}"))
}

/// What the outside client reaches the Service by, all of it at node1.
fn from_outside(cluster: &Cluster) -> Result<Vec<Target>> {
    let addresses = [LOAD_BALANCER, EXTERNAL].concat();
    route_via(cluster, &addresses, "node1")?;
    let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
    Ok([at(&addresses), node_ports].concat())
}

/// At each target one pod answers all requests.
fn keeps_to_one(asker: Asker<'_>, targets: &[Target]) -> Result<()> {
    answered(asker, targets)?;
    for (report, (protocol, target)) in series(asker, targets)?.iter().zip(targets) {
        let pods = report.pods();
        ensure!(pods.len() == 1, "{protocol} from {} to {target} was answered by {pods:?}", asker.0);
    }
    Ok(())
}

/// All targets of one protocol and family lead to one pod.
fn keeps_to_one_across(asker: Asker<'_>, targets: &[Target]) -> Result<()> {
    answered(asker, targets)?;
    let reports = series(asker, targets)?;
    for protocol in Protocol::ALL {
        for is_ipv4 in [true, false] {
            let of = reports.iter().zip(targets);
            let of = of.filter(|(_, target)| target.0 == protocol && target.1.is_ipv4() == is_ipv4);
            let pods: BTreeSet<&str> = of.flat_map(|(report, _)| report.pods().into_keys()).collect();
            ensure!(pods.len() <= 1, "{protocol} from {}, IPv4 {is_ipv4}: answered by {pods:?}", asker.0);
        }
    }
    Ok(())
}

fn series((who, place): Asker<'_>, targets: &[Target]) -> Result<Vec<Report>> {
    let reports = all(place, targets, |protocol, target| Load::new(protocol, target).times(15))?;
    for (report, (protocol, target)) in reports.iter().zip(targets) {
        ensure!(report.failures().is_empty(), "{protocol} from {who} to {target}: {:?}", report.failures());
    }
    Ok(reports)
}

/// The first target of each protocol and family: what follows has the same affinity.
fn one_per_client(targets: &[Target]) -> Vec<Target> {
    let mut seen = BTreeSet::new();
    let new = |target: &&Target| seen.insert((target.0, target.1.is_ipv4()));
    targets.iter().filter(new).copied().collect()
}
