//! What happens to traffic when pods and Services come and go.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, pod, service, variants, with_cluster};
use fairlead_harness::{Cluster, Load, Options, Place, Protocol, netns, wait_for};

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backend_is_replaced_without_a_request_of_a_pod_failing() {
    with_cluster(|cluster| replace_a_backend_under(cluster, Client::Pod));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_backend_is_replaced_without_a_request_of_a_host_failing() {
    with_cluster(|cluster| replace_a_backend_under(cluster, Client::Host));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_replaced_backend_gets_no_more_datagrams_of_a_pod_though_it_lives_on() {
    with_cluster(|cluster| retire_a_backend_under(cluster, Client::Pod));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_replaced_backend_gets_no_more_datagrams_of_a_host_though_it_lives_on() {
    with_cluster(|cluster| retire_a_backend_under(cluster, Client::Host));
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn an_open_connection_outlives_a_change_of_the_other_backends() {
    with_cluster(|cluster| {
        cluster.apply(&(pod("stays", "echo", "node2") + &service("echo", "echo", "ClusterIP")))?;
        cluster.apply(&pod("client", "client", "node1"))?;
        cluster.pod("stays")?;
        let client = cluster.pod("client")?.place;
        let mut traffic = Vec::new();
        for ip in cluster.cluster_ips("echo")? {
            let target = SocketAddr::new(ip, SERVICE_PORT);
            client.request_until_answered(Protocol::Tcp, target)?;
            traffic.push(client.traffic(&Load::new(Protocol::Tcp, target).over_one_flow())?);
        }
        cluster.apply(&(pod("comes", "echo", "node1") + &pod("comes-too", "echo", "node2")))?;
        cluster.pod("comes")?;
        cluster.pod("comes-too")?;
        cluster.kubectl(&["delete", "pod", "comes"])?;
        for traffic in traffic {
            let report = traffic.stop()?;
            ensure!(report.failures().is_empty(), "{:?}", report.failures());
            ensure!(report.pods().into_keys().eq(["stays"]), "answers of {:?}", report.pods());
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn kubectl_applies_shows_and_deletes() {
    with_cluster(|cluster| {
        let manifests = pod("solo", "solo", "node1") + &service("solo", "solo", "ClusterIP");
        cluster.apply(&manifests)?;
        cluster.apply(&manifests)?;
        cluster.pod("solo")?;
        let pods = cluster.kubectl(&["get", "pods", "-o", "wide"])?;
        ensure!(pods.contains("solo") && pods.contains("Running") && pods.contains("node1"), "{pods}");
        let nodes = cluster.kubectl(&["get", "nodes"])?;
        ensure!(nodes.contains("node1") && nodes.contains("node2"), "{nodes}");
        wait_for("both slices of the Service", Duration::from_secs(10), || {
            let slices = cluster.kubectl(&[
                "get",
                "endpointslices",
                "-l",
                "kubernetes.io/service-name=solo",
                "-o",
                "name",
            ])?;
            Ok((slices.lines().count() == 2).then_some(()))
        })?;
        let description = cluster.kubectl(&["describe", "service", "solo"])?;
        ensure!(description.contains("ClusterIP") && description.contains("app=solo"), "{description}");
        cluster.kubectl(&["delete", "service/solo", "pod/solo"])?;
        cluster.wait_until_gone("solo")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_without_a_node_is_given_one_and_takes_the_name_of_a_deleted_one() {
    with_cluster(|cluster| {
        let unassigned = |name: &str| pod(name, name, "node1").replace("  nodeName: node1\n", "");
        cluster.apply(&(unassigned("one") + &unassigned("two")))?;
        let (one, two) = (cluster.pod("one")?, cluster.pod("two")?);
        ensure!(one.node != two.node, "both went to {}", one.node);
        cluster.kubectl(&["delete", "pod", "one"])?;
        cluster.apply(&pod("one", "one", &two.node))?;
        let again = cluster.pod("one")?;
        ensure!(again.node == two.node, "the second pod of the name is on {}", again.node);
        let target = SocketAddr::new(*again.ips.first().context("an address")?, POD_PORT);
        two.place.request_until_answered(Protocol::Tcp, target).map(drop)
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn nothing_is_left_behind_after_down() {
    let cluster = Cluster::start(Options::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let names = cluster.layout().clone();
    cluster.apply(&pod("solo", "solo", "node1")).unwrap();
    cluster.pod("solo").unwrap();
    assert!(names.cgroup.exists() && names.dir.exists());
    assert!(netns::list(&format!("{}-", names.prefix)).len() >= 5, "two nodes, a fabric, a client and a pod");
    cluster.down().unwrap();
    assert_eq!(netns::list(&format!("{}-", names.prefix)), Vec::<String>::new());
    assert!(!names.cgroup.exists(), "the control group is still there");
    assert!(!names.dir.exists(), "the directory is still there");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&names.prefix), "a mount is still there");
}

/// Whose traffic it is: a pod's on node1, or node1's own.
#[derive(Clone, Copy)]
enum Client {
    Pod,
    Host,
}

impl Client {
    fn place(self, cluster: &Cluster) -> Result<Place> {
        match self {
            Self::Pod => Ok(cluster.pod("client")?.place),
            Self::Host => Ok(cluster.node("node1")?.place().clone()),
        }
    }
}

/// New connections by TCP and one flow by UDP, while the only backend is replaced as in a rolling update.
fn replace_a_backend_under(cluster: &mut Cluster, client: Client) -> Result<()> {
    cluster.apply(&(pod("old", "solo", "node2") + &service("solo", "solo", "ClusterIP")))?;
    cluster.apply(&pod("client", "client", "node1"))?;
    cluster.pod("old")?;
    let client = client.place(cluster)?;
    let mut traffic = Vec::new();
    for (protocol, target) in variants(&cluster.cluster_ips("solo")?, SERVICE_PORT) {
        client.request_until_answered(protocol, target)?;
        let load = Load::new(protocol, target);
        let load = if protocol == Protocol::Udp { load.over_one_flow() } else { load };
        traffic.push((protocol, target, client.traffic(&load)?));
    }
    thread::sleep(Duration::from_millis(300));
    cluster.apply(&pod("new", "solo", "node1"))?;
    cluster.pod("new")?;
    cluster.kubectl(&["delete", "pod", "old"])?;
    thread::sleep(Duration::from_millis(500));
    for (protocol, target, traffic) in traffic {
        let report = traffic.stop()?;
        ensure!(report.failures().is_empty(), "{protocol} to {target}: {:?}", report.failures());
        let last = report.replies().last().map(|reply| reply.answer.pod.clone());
        ensure!(last.as_deref() == Some("new"), "{protocol} to {target}: at the end answered by {last:?}");
    }
    Ok(())
}

/// One flow by UDP, while the only backend is taken out of the Service and goes on running.
fn retire_a_backend_under(cluster: &mut Cluster, client: Client) -> Result<()> {
    cluster.apply(&(pod("old", "solo", "node2") + &service("solo", "solo", "ClusterIP")))?;
    cluster.apply(&(pod("client", "client", "node1") + &pod("new", "spare", "node1")))?;
    let old = cluster.pod("old")?;
    cluster.pod("new")?;
    let witness = cluster.pod("client")?.place;
    let client = client.place(cluster)?;
    let mut traffic = Vec::new();
    for ip in cluster.cluster_ips("solo")? {
        let target = SocketAddr::new(ip, SERVICE_PORT);
        client.request_until_answered(Protocol::Udp, target)?;
        traffic.push((target, client.traffic(&Load::new(Protocol::Udp, target).over_one_flow())?));
    }
    cluster.kubectl(&["label", "pod", "new", "app=solo", "--overwrite"])?;
    cluster.kubectl(&["label", "pod", "old", "app=retired", "--overwrite"])?;
    thread::sleep(Duration::from_secs(2));
    let direct = SocketAddr::new(*old.ips.first().context("an address")?, POD_PORT);
    let served =
        || Ok::<_, anyhow::Error>(witness.request_until_answered(Protocol::Udp, direct)?.answer.served);
    let before = served()?;
    thread::sleep(Duration::from_secs(1));
    let after = served()?;
    ensure!(after == before + 1, "the retired pod still got {} datagrams", after - before - 1);
    for (target, traffic) in traffic {
        let report = traffic.stop()?;
        ensure!(report.failures().is_empty(), "{target}: {:?}", report.failures());
        let last = report.replies().last().map(|reply| reply.answer.pod.clone());
        ensure!(last.as_deref() == Some("new"), "{target}: at the end answered by {last:?}");
    }
    Ok(())
}
