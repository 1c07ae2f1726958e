//! Either half alone: the CNI beside kube-proxy, and the proxy beside another CNI.

use std::net::IpAddr;

use fairlead_cluster_tests::ask::{answered_seeing, of};
use fairlead_cluster_tests::kube_proxy::{self, PROTOCOLS};
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses};
use fairlead_cluster_tests::{pod, service, with_cluster_of};
use fairlead_harness::Options;

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
