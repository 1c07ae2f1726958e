//! Datagrams from sockets that stay open while endpoints, and at last the Service, go and come back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::crowd::{Account, Client, Crowd};
use fairlead_cluster_tests::objects::spec_of;
use fairlead_cluster_tests::scene::{Scene, node_addresses};
use fairlead_cluster_tests::{SERVICE_PORT, service, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, FailureKind, Load, Options, Protocol};
use serde_json::json;

/// How long a change may take to reach every node.
const EVERYWHERE: Duration = Duration::from_millis(400);
/// How long each state is watched from then on.
const WATCHED: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_millis(100);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_socket_never_sticks_to_an_endpoint_that_is_gone() {
    with_cluster(endpoints_go_and_come_back);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pods_socket_that_is_translated_never_sticks_to_an_endpoint_that_is_gone() {
    with_cluster_of(Options::default().with_arguments(&["--socket-lb", "all"]), endpoints_go_and_come_back);
}

fn endpoints_go_and_come_back(cluster: &mut Cluster) -> Result<()> {
    let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
    let ips = cluster.cluster_ips("echo")?;
    let port = cluster.node_port("echo", "udp")?;
    let mut sockets = Vec::new();
    for (who, place) in scene.insiders() {
        sockets.extend(ips.iter().map(|&ip| (who, place, ip, SERVICE_PORT)));
    }
    // A node with an endpoint, and in the end one without.
    for node in ["node1", "node2"] {
        let addresses = node_addresses(cluster, node)?;
        sockets.extend(addresses.map(|address| ("outside", &scene.outside, address, port)));
    }
    let client = |(who, place, address, port): (_, _, IpAddr, u16)| {
        let load = Load::new(Protocol::Udp, (address, port).into());
        Client::new((who, place), load.over_one_flow().giving_up_after(PATIENCE))
    };
    let crowd = Crowd::gather(sockets.into_iter().map(client).collect())?;
    let mut story = Story(Vec::new());
    story.watch(Expected::From(&["near", "far"]));
    relabel(cluster, "near", "retired")?;
    story.watch(Expected::From(&["far"]));
    relabel(cluster, "far", "retired")?;
    story.watch(Expected::Refused);
    relabel(cluster, "near", "echo")?;
    story.watch(Expected::From(&["near"]));
    let spec = spec_of(cluster, "service/echo")?;
    cluster.kubectl(&["delete", "service", "echo"])?;
    story.watch(Expected::Nothing);
    relabel(cluster, "near", "retired")?;
    relabel(cluster, "far", "echo")?;
    let again =
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "echo" }, "spec": spec });
    cluster.apply(&again.to_string())?;
    story.watch(Expected::From(&["far"]));
    crowd.disperse()?.iter().try_for_each(|account| story.was_seen_by(account))
}

/// What clients should see, from when till when.
struct Story(Vec<(SystemTime, SystemTime, Expected)>);

#[derive(Clone, Copy, Debug)]
enum Expected {
    /// Answers of these pods.
    From(&'static [&'static str]),
    /// A refusal for every datagram.
    Refused,
    /// No answer, whatever else.
    Nothing,
}

impl Story {
    /// Lets some time pass, in which a change gets everywhere and is then seen.
    fn watch(&mut self, expected: Expected) {
        thread::sleep(EVERYWHERE);
        let from = SystemTime::now();
        thread::sleep(WATCHED);
        self.0.push((from, SystemTime::now() - PATIENCE, expected));
    }

    fn was_seen_by(&self, account: &Account) -> Result<()> {
        for (number, (from, till, expected)) in self.0.iter().enumerate() {
            let during = |at: &SystemTime| from < at && at < till;
            let answers = account.report.replies().filter(|reply| during(&reply.at));
            let pods: Vec<&str> = answers.map(|reply| reply.answer.pod.as_str()).collect();
            let failures = account.report.failures().into_iter().filter(|failure| during(&failure.at));
            let kinds: Vec<FailureKind> = failures.map(|failure| failure.kind).collect();
            let right = match expected {
                Expected::From(wanted) => {
                    kinds.is_empty() && !pods.is_empty() && pods.iter().all(|pod| wanted.contains(pod))
                }
                Expected::Refused => {
                    pods.is_empty()
                        && !kinds.is_empty()
                        && kinds.iter().all(|kind| *kind == FailureKind::Refused)
                }
                Expected::Nothing => pods.is_empty() && !kinds.is_empty(),
            };
            let step = number + 1;
            ensure!(
                right,
                "{}, step {step}: {pods:?} answered, {kinds:?} failed, not {expected:?}",
                account.who
            );
        }
        let sockets = account.report.replies().map(|reply| reply.local.port());
        let sockets: BTreeSet<u16> = sockets.collect();
        ensure!(sockets.len() == 1, "{}: more than one socket: {sockets:?}", account.who);
        Ok(())
    }
}

fn relabel(cluster: &Cluster, pod: &str, app: &str) -> Result<()> {
    let label = format!("app={app}");
    cluster.kubectl(&["label", "pod", pod, &label, "--overwrite"]).map(drop).context("relabel")
}
