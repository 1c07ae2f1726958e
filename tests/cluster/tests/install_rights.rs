//! What the daemons may do where the manifests install them, no more and no less: by the API's roles, and by the kernel's
//! capabilities.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fairlead_cluster_tests::ask::{answered_by, within};
use fairlead_cluster_tests::manifests;
use fairlead_cluster_tests::objects::slice;
use fairlead_cluster_tests::scene::{Scene, at_node_ports, node_addresses};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, service, variants, with_cluster_of};
use fairlead_harness::{Cluster, Options, cni, contain};
use fairlead_net::netns::NamedNetns;
use nix::sys::signal::Signal;

const PROXY: &str = "fairlead-proxy";
const CNI: &str = "fairlead-cni";
const BOTH: &[&str] = &["near", "far"];
/// For what the daemons ask for at once and no test can see.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whatever the daemons do for pods and Services is done.
fn it_all_works(cluster: &Cluster) -> Result<()> {
    let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
    answered_by(
        ("a pod", &scene.client.place),
        &variants(&cluster.cluster_ips("echo")?, SERVICE_PORT),
        BOTH,
    )?;
    answered_by(("a node", &scene.node1), &variants(&cluster.cluster_ips("echo")?, SERVICE_PORT), BOTH)?;
    answered_by(("a pod", &scene.client.place), &variants(&scene.far.ips, POD_PORT), &["far"])?;
    let addresses = node_addresses(cluster, "node1")?;
    answered_by(("outside", &scene.outside), &at_node_ports(cluster, "echo", &addresses)?, BOTH)
}

/// An EndpointSlice that makes no sense, is mended, and makes no sense again: an Event, and one that goes on.
fn a_slice_that_makes_no_sense(cluster: &Cluster) -> Result<()> {
    for (address, reason) in [("10.244.1.300", "FieldsLeftOut"), ("10.244.1.30", "FieldsMended")] {
        cluster.apply(&slice_of(address))?;
        within(PATIENCE, || {
            let events = cluster.kubectl(&["get", "events.events.k8s.io", "-o", "name"])?;
            let told =
                cluster.kubectl(&["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"])?;
            ensure!(told.contains(reason), "{events}: {told}");
            Ok(())
        })?;
    }
    cluster.apply(&slice_of("10.244.1.300"))
}

fn slice_of(address: &str) -> String {
    slice("echo", "bad", "IPv4", &format!("  - {{ addresses: [\"{address}\"], nodeName: node1 }}\n"))
}

/// A pod whose Pod no watch tells of, so that the agent asks for it by name. There is none, so it is refused.
fn a_pod_that_nobody_knows(cluster: &Cluster) -> Result<()> {
    let node = cluster.node("node2")?;
    let netns = NamedNetns::create(&format!("{}-nobody", cluster.layout().prefix))?;
    let sandbox = cni::Sandbox {
        container_id: "0123456789abcdef".into(),
        netns: netns.path(),
        namespace: "default".into(),
        name: "nobody".into(),
        uid: "01234567-89ab-cdef-0123-456789abcdef".into(),
        capabilities: serde_json::Map::new(),
    };
    let refused = cni::Runtime::new(node.layout(), node.place().clone()).add(&sandbox);
    ensure!(refused.is_err(), "a pod was wired that there is not");
    Ok(())
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_daemons_ask_the_api_for_all_that_their_roles_allow_and_for_nothing_else() {
    // What only a node's first moments ask for, the second one asks for when it is all forbidden but what roles allow.
    with_cluster_of(Options::default().with_late("node2"), |cluster| {
        let Some(faults) = cluster.faults() else {
            println!("left out: a real API server does not tell what it was asked");
            return Ok(());
        };
        for (daemon, file) in [(PROXY, "rbac-proxy.yaml"), (CNI, "rbac-cni.yaml")] {
            faults.restrict(daemon, &manifests::roles(file)?)?;
        }
        // What was refused says why, if it does not come up.
        let joined = cluster.join("node2");
        for daemon in [PROXY, CNI] {
            let refused = faults.rights(daemon)?.refused;
            ensure!(refused.is_empty(), "{daemon} was refused: {refused:?}");
        }
        joined?;
        it_all_works(cluster)?;
        a_slice_that_makes_no_sense(cluster)?;
        a_pod_that_nobody_knows(cluster)?;
        let started = Instant::now();
        for daemon in [PROXY, CNI] {
            loop {
                let rights = faults.rights(daemon)?;
                ensure!(rights.refused.is_empty(), "{daemon} was refused: {:?}", rights.refused);
                if rights.unused.is_empty() {
                    break;
                }
                ensure!(started.elapsed() < PATIENCE, "{daemon} never asked for: {:?}", rights.unused);
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_daemons_work_in_containers_with_the_capabilities_of_the_manifests_and_the_agent_with_none_less() {
    if let Some(why) = contain::missing() {
        println!("left out: {why}");
        return;
    }
    let capabilities =
        |container| -> Result<Vec<String>> { manifests::capabilities(&manifests::container(container)?) };
    let (proxy, daemon) = match (capabilities("proxy"), capabilities("cni")) {
        (Ok(proxy), Ok(daemon)) => (proxy, daemon),
        (proxy, daemon) => panic!("{proxy:?} {daemon:?}"),
    };
    let options = Options::default().with_contained(PROXY, &proxy).with_contained(CNI, &daemon);
    with_cluster_of(options, |cluster| {
        it_all_works(cluster)?;
        let node = cluster.node_mut("node1")?;
        node.stop_proxy(Signal::SIGTERM)?;
        for missing in &proxy {
            let others: Vec<_> = proxy.iter().filter(|name| *name != missing).cloned().collect();
            node.contain(PROXY, &others);
            node.start_proxy()?;
            let Err(why) = node.wait_for_proxy() else { bail!("the agent works without {missing}") };
            println!("without {missing}: {why:#}");
            // It has ended by itself.
            node.stop_proxy(Signal::SIGKILL).ok();
        }
        node.contain(PROXY, &proxy);
        node.start_proxy()?;
        node.wait_for_proxy()?;
        it_all_works(cluster)
    });
}
