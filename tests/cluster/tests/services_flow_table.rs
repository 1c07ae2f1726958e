//! A flow table that is full: who is in it stays, who comes is kept waiting, and the flood's end is the end of that.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{Lasting, Target, eventually, of, unanswered};
use fairlead_cluster_tests::metrics::sample;
use fairlead_cluster_tests::objects::{at, endpoint, service_without_selector, slice};
use fairlead_cluster_tests::scene::{at_node_ports, node_addresses};
use fairlead_cluster_tests::{pod, service, with_cluster_of};
use fairlead_harness::{Load, Node, Options, Place, Protocol, wait_for};

/// Entries of the flow table, two for each connection.
const MAX_FLOWS: &str = "128";
/// More flows than there is room for.
const FLOOD: u32 = 150;
/// Nobody's address: the endpoint of a Service that answers nothing.
const NOBODY: &str = "192.0.2.99";
/// How often a busy connection asks.
const OFTEN: Duration = Duration::from_millis(25);
/// Connections that ask so rarely that they would make way if an unanswered flow's patience were theirs.
const RARELY: Duration = Duration::from_secs(3);
/// How often these ask in all: until the table has been full for long.
const TIMES: u32 = 4;
/// Two sweeps of the table, of which the second sees the flood at its height.
const SWEEPS: Duration = Duration::from_secs(25);

#[test]
#[ignore = "needs root: run make test"]
fn a_flood_that_fills_the_flow_table_costs_no_open_connection_anything_and_passes() {
    let small = Options::default().with_nodes(1).with_arguments(&["--max-flows", MAX_FLOWS]);
    with_cluster_of(small, |cluster| {
        cluster.apply(&(pod("client", "client", "node1") + &pod("solo", "echo", "node1")))?;
        cluster.apply(&(service("echo", "echo", "NodePort") + &silent()?))?;
        let (client, node) = (cluster.pod("client")?.place, cluster.node("node1")?);
        cluster.pod("solo")?;
        let (inside, outside) = (at(&cluster.cluster_ips("echo")?), cluster.client()?);
        let node_ports = at_node_ports(cluster, "echo", &node_addresses(cluster, "node1")?)?;
        let askers = [("a pod", &client, &inside), ("outside", &outside, &node_ports)];
        let [busy, idle] = connect(node, askers)?;

        let silent = *cluster.cluster_ips("silent")?.first().context("a Service without an address")?;
        let (protocol, target) = of(&[Protocol::Udp], &at(&[silent]))[0];
        let flood = Load::new(protocol, target).over_one_flow().in_parallel(FLOOD);
        let flood = client.traffic(&flood.giving_up_after(Duration::from_millis(200)))?;
        // Nobody gets in, by whichever way.
        unanswered(("a pod", &client), &of(&[Protocol::Tcp], &inside))?;
        unanswered(("outside", &outside), &of(&[Protocol::Tcp], &node_ports))?;
        let dropped = sample(node, "fairlead_drops_total{reason=\"flow_table_full\"}")?;
        ensure!(dropped > 0.0, "node1 has dropped nothing because its table is full");
        wait_for("a sweep to find the table full", SWEEPS, || {
            let pressure = sample(node, "fairlead_flow_table_pressure_ratio")?;
            Ok((pressure > 0.8).then_some(()))
        })?;
        flood.stop()?;

        for (who, place, targets) in askers {
            served_again(place, targets).with_context(|| format!("from {who}, after the flood"))?;
        }
        busy.were_undisturbed(50)?;
        idle.were_undisturbed(TIMES as usize)
    });
}

/// A Service whose endpoint is nobody.
fn silent() -> Result<String> {
    let nobody = endpoint(NOBODY.parse()?, "node1", "");
    Ok(service_without_selector("silent", "ClusterIP") + &slice("silent", "hand", "IPv4", &nobody))
}

/// Opens two connections to each of the targets, of which one asks all the time, the other now and then.
fn connect(node: &Node, askers: [(&str, &Place, &Vec<Target>); 2]) -> Result<[Lasting; 2]> {
    let begun = || sample(node, "fairlead_packets_total{verdict=\"flow_created\"}");
    let all = askers.iter().flat_map(|&(who, place, targets)| {
        of(&[Protocol::Tcp], targets).into_iter().map(move |target| (who, place, target))
    });
    let all: Vec<_> = all.collect();
    for (who, place, (protocol, target)) in &all {
        place
            .request_until_answered(*protocol, *target)
            .with_context(|| format!("from {who} to {target}"))?;
    }
    let before = begun()?;
    let [mut busy, mut idle] = [Lasting::default(), Lasting::default()];
    for (who, place, (protocol, target)) in &all {
        let load = Load::new(*protocol, *target).over_one_flow();
        let what = format!("{protocol} from {who} to {target}");
        busy.begin(format!("{what}, all the time"), place, &load.clone().every(OFTEN))?;
        idle.begin(format!("{what}, now and then"), place, &load.every(RARELY).times(TIMES))?;
    }
    eventually(|| {
        let open = begun()? - before;
        ensure!(open >= 2.0 * all.len() as f64, "only {open} of {} connections are open", 2 * all.len());
        Ok(())
    })?;
    Ok([busy, idle])
}

/// New connections are answered, and none is kept waiting.
fn served_again(place: &Place, targets: &[Target]) -> Result<()> {
    for (protocol, target) in of(&[Protocol::Tcp], targets) {
        let load = Load::new(protocol, target).times(4).giving_up_after(Duration::from_millis(300));
        eventually(|| place.requests(&load)?.all_answered())?;
    }
    Ok(())
}
