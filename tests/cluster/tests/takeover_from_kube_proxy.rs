//! From kube-proxy to Fairlead and back, with connections that go on.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, of, within};
use fairlead_cluster_tests::crowd::{Crowd, everywhere};
use fairlead_cluster_tests::kube_proxy::Mode;
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::real_kube_proxy;
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::takeover::{
    NODES, PROTOCOLS, begin_hand_over, drain, end_hand_over, rules, start_agents, takeover, traces, tracked,
    went_on, with_rules_to_come, write_rules,
};
use fairlead_harness::{Cluster, Process};
use nix::sys::signal::Signal;

const BOTH: &[&str] = &["near", "far"];
/// How long the crowd is watched after a step.
const WHILE: Duration = Duration::from_millis(700);
/// How long it may take until no connection of before is left: those of short requests wait for their end.
const DRAINED: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn connections_of_iptables_rules_go_on_to_fairlead_and_back() {
    of_written_rules(Mode::Iptables);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn connections_of_nftables_rules_go_on_to_fairlead_and_back() {
    of_written_rules(Mode::Nftables);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn connections_of_the_real_kube_proxy_in_iptables_mode_go_on_to_fairlead_and_back() {
    of_the_real_one(Mode::Iptables);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn connections_of_the_real_kube_proxy_in_nftables_mode_go_on_to_fairlead_and_back() {
    of_the_real_one(Mode::Nftables);
}

/// Whoever writes kube-proxy's rules, and the processes that go on with it.
type Writer<'a> = &'a dyn Fn(&Cluster, &Scene) -> Result<Vec<Process>>;

fn of_written_rules(mode: Mode) {
    with_rules_to_come(mode, |cluster, scene| {
        there_and_back(
            &|cluster, scene| write_rules(mode, cluster, scene).map(|()| Vec::new()),
            cluster,
            scene,
        )
    });
}

fn of_the_real_one(mode: Mode) {
    if real_kube_proxy::executable().is_none() {
        println!("left out: there is no kube-proxy on the PATH");
        return;
    }
    with_rules_to_come(mode, |cluster, scene| {
        there_and_back(&|cluster, scene| real_kube_proxy::start(mode, cluster, scene), cluster, scene)
    });
}

fn there_and_back(write: Writer<'_>, cluster: &mut Cluster, scene: &Scene) -> Result<()> {
    real_kube_proxy::end(write(cluster, scene)?)?;
    let crowd = Crowd::gather(everywhere(cluster, scene, "echo")?)?;
    thread::sleep(WHILE);
    start_agents(cluster)?;
    thread::sleep(WHILE);
    for node in NODES {
        let planned = takeover(cluster, node, &["--dry-run"])?;
        ensure!(
            planned["removed"] == false && planned["obstacles"].as_array().is_some_and(Vec::is_empty),
            "{planned}"
        );
        let done = takeover(cluster, node, &[])?;
        ensure!(done["removed"] == true && done["left"].as_u64() > Some(0), "{done}");
        ensure!(done["inventory"] == planned["inventory"], "{done} is not as {planned}");
    }
    thread::sleep(WHILE);
    for place in [&scene.node1, &scene.node2] {
        let rules = rules(place)?;
        let traces = traces(&rules);
        ensure!(traces == ["fairlead-drain"], "{traces:?} are left in {rules}");
    }
    went_on(&crowd.disperse()?)?;
    for (node, place) in NODES.into_iter().zip([&scene.node1, &scene.node2]) {
        within(DRAINED, || {
            let drain = drain(cluster, node)?;
            ensure!(drain["draining"] == false && drain["left"] == 0, "{node}: {drain}");
            let rules = rules(place)?;
            ensure!(traces(&rules).is_empty(), "{node}: {rules}");
            Ok(())
        })?;
    }
    // What begins now is Fairlead's alone.
    let ips = cluster.cluster_ips("echo")?;
    let before = tracked(&scene.node1, &ips)?;
    answered_by(("a pod", &scene.client.place), &of(&PROTOCOLS, &at(&ips)), BOTH)?;
    let after = tracked(&scene.node1, &ips)?;
    ensure!(
        after.iter().all(|line| before.iter().any(|old| is_same(old, line))),
        "{after:?} since {before:?}"
    );
    back(write, cluster, scene)
}

/// Whether two lines are about one connection, whatever time it has left.
fn is_same(one: &str, other: &str) -> bool {
    let tuple = |line: &str| {
        line.split_whitespace().filter(|word| word.contains('=')).map(str::to_owned).collect::<Vec<_>>()
    };
    tuple(one) == tuple(other)
}

fn back(write: Writer<'_>, cluster: &mut Cluster, scene: &Scene) -> Result<()> {
    let crowd = Crowd::gather(everywhere(cluster, scene, "echo")?)?;
    thread::sleep(WHILE);
    NODES.iter().try_for_each(|node| cluster.node_mut(node)?.stop_proxy(Signal::SIGTERM))?;
    let processes = NODES.map(|node| begin_hand_over(cluster, node));
    thread::sleep(WHILE);
    let kube_proxies = write(cluster, scene)?;
    for process in processes {
        end_hand_over(process?)?;
    }
    thread::sleep(WHILE);
    for node in NODES {
        let pins = cluster.node(node)?.layout().bpffs().join("v5");
        ensure!(!pins.exists(), "{} is left", pins.display());
    }
    let rules = rules(&scene.node1)?;
    ensure!(!rules.contains("fairlead"), "{rules}");
    went_on(&crowd.disperse()?)?;
    answered_by(("a pod", &scene.client.place), &of(&PROTOCOLS, &at(&cluster.cluster_ips("echo")?)), BOTH)?;
    real_kube_proxy::end(kube_proxies)
}
