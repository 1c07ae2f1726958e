//! Who reaches whom, over both families, by TCP and UDP.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, pod, service, variants, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, FailureKind, Load, Options, Place, Protocol, RunningPod, cni, fabric};

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_a_pod_on_either_node_keeping_its_source_address() {
    with_cluster(pods_reach_each_other);
}

#[test]
#[ignore = "needs root: run make test"]
fn without_the_proxy_pods_reach_each_other_by_routes() {
    with_cluster_of(Options { proxy: false, ..Options::default() }, pods_reach_each_other);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_cluster_ip_spreads_over_its_backends() {
    with_cluster(|cluster| {
        let backends = [("a", "node1"), ("b", "node2"), ("c", "node1")];
        let manifests: String = backends.iter().map(|(name, node)| pod(name, "echo", node)).collect();
        cluster.apply(
            &(manifests + &pod("client", "client", "node1") + &service("echo", "echo", "ClusterIP")),
        )?;
        for (name, _) in backends {
            cluster.pod(name)?;
        }
        let client = cluster.pod("client")?;
        let ips = cluster.cluster_ips("echo")?;
        let host = cluster.node("node2")?.place();
        for (from, place) in [("a pod", &client.place), ("a host", host)] {
            for (protocol, target) in variants(&ips, SERVICE_PORT) {
                place.request_until_answered(protocol, target)?;
                let load = Load::new(protocol, target).times(90).every(Duration::from_millis(1));
                let report = place.requests(&load)?;
                ensure!(report.failures().is_empty(), "{protocol} from {from}: {:?}", report.failures());
                let pods = report.pods();
                // Of 90 requests each backend gets 30; below 10 is some five standard deviations away.
                let fair = pods.len() == 3 && pods.values().all(|&count| count >= 10);
                ensure!(fair, "{protocol} to {target} from {from}: {pods:?}");
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_reaches_itself_through_its_service() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("solo", "solo", "node1") + &service("solo", "solo", "ClusterIP")))?;
        let solo = cluster.pod("solo")?;
        for (protocol, target) in variants(&cluster.cluster_ips("solo")?, SERVICE_PORT) {
            let reply = solo.place.request_until_answered(protocol, target)?;
            ensure!(reply.answer.pod == "solo", "{protocol} to {target}: {reply:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_node_port_works_on_a_node_without_a_backend_which_masquerades() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("solo", "solo", "node1") + &service("solo", "solo", "NodePort")))?;
        cluster.pod("solo")?;
        let client = cluster.client()?;
        for name in ["node1", "node2"] {
            let node = cluster.node(name)?;
            let addresses = [node.layout().ipv4, node.layout().ipv6];
            for protocol in Protocol::ALL {
                let port = cluster.node_port("solo", &protocol.to_string())?;
                for target in addresses.map(|address| (address, port).into()) {
                    client.request_until_answered(protocol, target)?;
                    let report = client.requests(&Load::new(protocol, target).times(20))?;
                    ensure!(report.failures().is_empty(), "{protocol} to {target}: {:?}", report.failures());
                    let node_address = BTreeSet::from([node.address(target.ip())]);
                    let masqueraded = report.sources() == node_address;
                    ensure!(name == "node1" || masqueraded, "{target}: the pod saw {:?}", report.sources());
                }
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_service_without_endpoints_refuses_at_once() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("client", "client", "node1") + &service("nobody", "nobody", "NodePort")))?;
        let pod = cluster.pod("client")?.place;
        let host = cluster.node("node2")?.place().clone();
        let outside = cluster.client()?;
        let ips = cluster.cluster_ips("nobody")?;
        for (protocol, target) in variants(&ips, SERVICE_PORT) {
            is_refused_at_once("a pod", &pod, protocol, target)?;
            is_refused_at_once("a host", &host, protocol, target)?;
        }
        for protocol in Protocol::ALL {
            let port = cluster.node_port("nobody", &protocol.to_string())?;
            let node = cluster.node("node1")?.layout();
            for address in [node.ipv4, node.ipv6] {
                is_refused_at_once("outside", &outside, protocol, (address, port).into())?;
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_cannot_spoof_another_source() {
    with_cluster(|cluster| {
        let manifests = [("victim", "node1"), ("server", "node1"), ("remote", "node2"), ("liar", "node1")];
        cluster.apply(&manifests.map(|(name, node)| pod(name, name, node)).concat())?;
        let [victim, server, remote, liar] =
            ["victim", "server", "remote", "liar"].map(|name| cluster.pod(name));
        let (victim, liar) = (victim?, liar?);
        for server in [server?, remote?] {
            for &address in &server.ips {
                let (claimed, own) = (victim.address(address)?, liar.address(address)?);
                let bits = if claimed.is_ipv4() { 32 } else { 128 };
                // The second server finds the address in place already.
                fabric::add_address(liar.place.netns(), cni::IFNAME, claimed, bits).ok();
                let load = Load::new(Protocol::Udp, (address, POD_PORT).into());
                let honest = load.clone().from_source(own).times(1);
                let lies = load.from_source(claimed).times(5).giving_up_after(Duration::from_millis(50));
                let served = || {
                    let report = liar.place.requests(&honest)?;
                    let reply = report.replies().next().with_context(|| format!("{:?}", report.outcomes))?;
                    Ok::<_, anyhow::Error>(reply.answer.served)
                };
                let before = served()?;
                let report = liar.place.requests(&lies)?;
                ensure!(report.replies().next().is_none(), "a lie as {claimed} was answered: {report:?}");
                let after = served()?;
                ensure!(after == before + 1, "{} got {} lies", server.name, after - before - 1);
            }
        }
        Ok(())
    });
}

fn pods_reach_each_other(cluster: &mut Cluster) -> Result<()> {
    let pods = [("client", "node1"), ("near", "node1"), ("far", "node2")];
    cluster.apply(&pods.map(|(name, node)| pod(name, name, node)).concat())?;
    let client = cluster.pod("client")?;
    for server in ["near", "far"] {
        let server = cluster.pod(server)?;
        ensure!(server.ips.len() == 2, "{server:?} is not dual-stack");
        for (protocol, target) in variants(&server.ips, POD_PORT) {
            client.place.request_until_answered(protocol, target)?;
            let report = client.place.requests(&Load::new(protocol, target).times(20))?;
            ensure!(report.failures().is_empty(), "{protocol} to {target}: {:?}", report.failures());
            ensure!(report.pods().into_keys().eq([server.name.as_str()]), "answers of {:?}", report.pods());
            sees_only(&client, &report.sources())?;
        }
    }
    Ok(())
}

fn sees_only(client: &RunningPod, sources: &BTreeSet<IpAddr>) -> Result<()> {
    let own = sources.iter().all(|source| client.ips.contains(source));
    ensure!(own && sources.len() == 1, "the server saw {sources:?} instead of {:?}", client.ips);
    Ok(())
}

fn is_refused_at_once(from: &str, place: &Place, protocol: Protocol, target: SocketAddr) -> Result<()> {
    // The Service may have yet to reach the node; from the first refusal on, every request is refused.
    for attempt in 0.. {
        match place.request(protocol, target)? {
            Err(failure) if failure.kind == FailureKind::Refused => {
                ensure!(failure.after < Duration::from_millis(500), "{protocol} to {target}: {failure}");
                break;
            }
            outcome => ensure!(attempt < 5, "{protocol} from {from} to {target}: {outcome:?}"),
        }
    }
    let report = place.requests(&Load::new(protocol, target).times(5))?;
    let refused = report.failures().iter().filter(|failure| failure.kind == FailureKind::Refused).count();
    ensure!(refused == 5, "{protocol} from {from} to {target}: {:?}", report.outcomes);
    Ok(())
}
