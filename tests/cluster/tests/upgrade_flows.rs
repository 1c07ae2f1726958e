//! A full flow table that is carried over to another layout and back, and how long that takes.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use fairlead_abi::{Flow, FlowKey, LAYOUT_VERSION, Port, flow_flags, maps, protocol};
use fairlead_cluster_tests::with_cluster;
use fairlead_harness::{Cluster, binary};
use nix::sys::signal::Signal;

/// How many connections there are.
const CONNECTIONS: [u32; 3] = [0, 5_000, 50_000];

type Table = HashMap<MapData, FlowKey, Flow>;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_hundred_thousand_entries_come_back_from_another_layout_as_they_were() {
    with_cluster(|cluster| CONNECTIONS.into_iter().try_for_each(|count| there_and_back(cluster, count)));
}

fn there_and_back(cluster: &mut Cluster, connections: u32) -> Result<()> {
    cluster.node_mut("node1")?.stop_proxy(Signal::SIGTERM)?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let now = uptime.split('.').next().context("no seconds")?.parse()?;
    let mut table = open(cluster)?;
    for number in 0..connections {
        for (key, flow) in connection(number, now)? {
            table.insert(key, flow, 0).context("enter a flow")?;
        }
    }
    drop(table);
    let before = read(&open(cluster)?)?;
    for build in ["fairlead-proxy-next", "fairlead-proxy"] {
        let node = cluster.node_mut("node1")?;
        node.start_proxy_from(&binary(build)?)?;
        node.wait_for_proxy()?;
        if build != "fairlead-proxy" {
            node.stop_proxy(Signal::SIGTERM)?;
        }
    }
    let after = read(&open(cluster)?)?;
    let lost = before.iter().filter(|(key, flow)| after.get(*key) != Some(flow)).count();
    ensure!(lost == 0, "of {} entries {lost} are gone or others", before.len());
    let log = fs::read_to_string(cluster.layout().log("node1-proxy"))?;
    let took = log.lines().rev().filter_map(|line| line.split_once("milliseconds=").map(|(_, rest)| rest));
    let took: Vec<&str> = took.take(2).collect();
    println!("{} entries: {took:?} ms back, there", before.len());
    Ok(())
}

/// The two entries of a connection that goes on, and was at work at this second of the machine's clock.
fn connection(number: u32, now: u64) -> Result<[(FlowKey, Flow); 2]> {
    let last_seen = now * 1_000_000_000;
    let ip = |text: &str| text.parse::<IpAddr>().map(Into::into);
    let [high, low] = [number >> 8 & 255, number & 255];
    let (client, service, backend) =
        (ip(&format!("198.18.{high}.{low}"))?, ip("198.19.0.1")?, ip("198.19.1.1")?);
    let forward = FlowKey {
        source: client,
        destination: service,
        source_port: Port::new(40_000),
        destination_port: Port::new(80),
        protocol: protocol::TCP,
        reserved: [0; 3],
    };
    let there = Flow {
        last_seen,
        source: client,
        destination: backend,
        source_port: Port::new(40_000),
        destination_port: Port::new(8080),
        backend: 7,
        generation: 9,
        flags: flow_flags::ANSWERED | flow_flags::CONFIRMED,
        place: number,
        revision: 3,
        ..Flow::default()
    };
    let reply = FlowKey {
        source: backend,
        destination: client,
        source_port: Port::new(8080),
        destination_port: Port::new(40_000),
        ..forward
    };
    let back = Flow {
        source: service,
        destination: client,
        source_port: Port::new(80),
        destination_port: Port::new(40_000),
        flags: there.flags | flow_flags::REPLY,
        ..there
    };
    Ok([(forward, there), (reply, back)])
}

fn open(cluster: &Cluster) -> Result<Table> {
    let pins = cluster.node("node1")?.layout().bpffs().join(format!("v{LAYOUT_VERSION}"));
    Ok(Map::HashMap(MapData::from_pin(pins.join(maps::FLOWS)).context("open the flow table")?).try_into()?)
}

/// The entries of made-up connections.
fn read(table: &Table) -> Result<BTreeMap<String, Flow>> {
    let mut flows = BTreeMap::new();
    for entry in table.iter() {
        let (key, flow) = entry.context("read a flow")?;
        if flow.backend == 7 {
            flows.insert(format!("{key:?}"), flow);
        }
    }
    Ok(flows)
}
