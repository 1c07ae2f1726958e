//! Either half alone: the CNI beside kube-proxy, and the proxy beside another CNI.

use std::net::IpAddr;

use anyhow::ensure;
use fairlead_cluster_tests::ask::{answered_by, answered_seeing, of};
use fairlead_cluster_tests::bridge::{self, BRIDGE};
use fairlead_cluster_tests::kube_proxy::{self, PROTOCOLS};
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses};
use fairlead_cluster_tests::{POD_PORT, pod, service, variants, with_cluster_of};
use fairlead_harness::{Options, Protocol, cni};

const BOTH: &[&str] = &["near", "far"];

#[test]
#[ignore = "needs root: run make test"]
fn services_of_kube_proxy_work_for_pods_that_the_cni_alone_has_wired() {
    if let Some(why) = kube_proxy::missing() {
        println!("left out: {why}");
        return;
    }
    with_cluster_of(Options { proxy: false, ..Options::default() }, |cluster| {
        let services = service("echo", "echo", "NodePort") + &service("solo", "solo", "NodePort");
        let scene = Scene::set(cluster, &(services + &pod("solo", "solo", "node1")))?;
        let solo = cluster.pod("solo")?;
        let endpoints: Vec<IpAddr> =
            [&scene.near, &scene.far].iter().flat_map(|pod| pod.ips.clone()).collect();
        let services = [("echo", endpoints.as_slice()), ("solo", &solo.ips)];
        kube_proxy::program(cluster, &[&scene.node1, &scene.node2], &services)?;
        let cluster_ips = of(&PROTOCOLS, &at(&cluster.cluster_ips("echo")?));
        let (node1, node2) = (cluster.node("node1")?, cluster.node("node2")?);
        let pod = ("a pod", &scene.client.place);
        answered_seeing(pod, &cluster_ips, BOTH, |like| scene.client.address(like))?;
        for (asker, node) in [(("a node", &scene.node1), node1), (("another node", &scene.node2), node2)] {
            answered_seeing(asker, &cluster_ips, BOTH, |like| Ok(node.address(like)))?;
        }
        for node in [node1, node2] {
            let addresses = node_addresses(cluster, node.name())?;
            let node_ports = of(&PROTOCOLS, &at_node_ports(cluster, "echo", &addresses)?);
            answered_seeing(("outside", &scene.outside), &node_ports, BOTH, |like| Ok(node.address(like)))?;
        }
        // What comes back to the pod that asked is masqueraded, or it would take the answer for someone else's.
        let own = of(&PROTOCOLS, &at(&cluster.cluster_ips("solo")?));
        answered_seeing(("the pod itself", &solo.place), &own, &["solo"], |like| Ok(node1.address(like)))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn services_of_the_proxy_alone_work_for_pods_that_another_cni_has_wired_to_a_bridge() {
    if cni::reference_plugins().is_none() {
        println!("left out: there are no reference CNI plugins: cargo xtask setup installs them");
        return;
    }
    with_cluster_of(Options::default().with_arguments(&["--pod-interface", BRIDGE]), |cluster| {
        bridge::install(cluster)?;
        let host = pod("host", "host", "node1").replace("spec:\n", "spec:\n  hostNetwork: true\n");
        let pods =
            [("beside", "node1"), ("remote", "node2")].map(|(name, node)| pod(name, name, node)).concat();
        let services =
            ["echo", "beside", "remote", "host"].map(|name| service(name, name, "NodePort")).concat();
        let scene = Scene::set(cluster, &(host + &pods + &services))?;
        let beside = cluster.pod("beside")?;
        ["remote", "host"].iter().try_for_each(|name| cluster.pod(name).map(drop))?;
        let wired = scene.node1.ip(&["link", "show", "master", BRIDGE])?;
        ensure!(wired.lines().count() >= 3, "the pods are not on the bridge: {wired}");
        let cluster_ips = |name: &str| Ok::<_, anyhow::Error>(at(&cluster.cluster_ips(name)?));
        let (client, node1) = (("a pod", &scene.client.place), cluster.node("node1")?);
        let (of_client, of_node) =
            (|like: IpAddr| scene.client.address(like), |like: IpAddr| Ok(node1.address(like)));
        answered_by(client, &cluster_ips("echo")?, BOTH)?;
        answered_seeing(client, &cluster_ips("remote")?, &["remote"], of_client)?;
        // A server of the node answers datagrams from the bridge's address, unless it is careful.
        let host = of(&[Protocol::Tcp], &cluster_ips("host")?);
        answered_seeing(client, &host, &["host"], of_client)?;
        // On one bridge the backend would answer the client straight, which knows it not.
        answered_seeing(client, &cluster_ips("beside")?, &["beside"], of_node)?;
        answered_seeing(("the pod itself", &beside.place), &cluster_ips("beside")?, &["beside"], of_node)?;
        answered_by(("a node", &scene.node1), &cluster_ips("echo")?, BOTH)?;
        for node in ["node1", "node2"] {
            let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, node)?)?;
            answered_by(("outside", &scene.outside), &node_ports, BOTH)?;
        }
        // What is for no Service is left alone.
        for pod in [&beside, &scene.far] {
            answered_seeing(client, &variants(&pod.ips, POD_PORT), &[&pod.name], of_client)?;
        }
        Ok(())
    });
}
