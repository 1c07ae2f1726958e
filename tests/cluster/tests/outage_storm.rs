//! A thousand changes within a second: nobody notices, and the maps end up as if they had been made one by one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::eventually;
use fairlead_cluster_tests::crowd::{Crowd, everywhere, lost_nothing};
use fairlead_cluster_tests::maps::{Dump, dump, dump_of_fresh_agent, same};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{service, with_cluster};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

/// How many Services the storm is about.
const SERVICES: u32 = 200;
/// The storm may take so long, at a thousand changes per second, on a machine that is busy with the crowd as well.
const STORM: Duration = Duration::from_secs(4);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_storm_of_a_thousand_changes_ends_in_the_maps_of_a_fresh_agent() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "NodePort"))?;
        let crowd = Crowd::gather(everywhere(cluster, &scene, "echo")?)?;
        let api = cluster.api();
        let all = || 0..SERVICES;
        let odd = || all().filter(|number| number % 2 == 1);

        let begin = Instant::now();
        api.create_all(&all().map(numbered).collect::<Result<Vec<_>>>()?)?;
        api.create_all(&all().map(|number| slice(number, 1)).collect::<Result<Vec<_>>>()?)?;
        api.update_all(&all().map(|number| slice(number, 2)).collect::<Result<Vec<_>>>()?)?;
        // Half of the Services go, and come back without their endpoints.
        api.delete_all(&odd().map(numbered).collect::<Result<Vec<_>>>()?)?;
        api.delete_all(&odd().map(|number| slice(number, 2)).collect::<Result<Vec<_>>>()?)?;
        api.create_all(&odd().map(numbered).collect::<Result<Vec<_>>>()?)?;
        api.update_all(&odd().map(|number| slice(number - 1, 3)).collect::<Result<Vec<_>>>()?)?;
        let took = begin.elapsed();
        println!("{} changes in {took:?}", 5 * SERVICES);
        ensure!(took < STORM, "that was no storm: {} changes in {took:?}", 5 * SERVICES);

        let mut wanted = BTreeMap::new();
        for number in all() {
            let addresses = cluster.cluster_ips(&name(number))?;
            let frontend = format!("{}:80/6", addresses.first().context("an address")?);
            wanted.insert(frontend, if number % 2 == 1 { Vec::new() } else { endpoints(number, 3) });
        }
        for node in ["node1", "node2"] {
            eventually(|| {
                let dump = dump(cluster.node(node)?)?;
                wanted.iter().try_for_each(|(frontend, endpoints)| leads_to(&dump, frontend, endpoints))
            })
            .with_context(|| format!("{node} after the storm"))?;
        }
        // The storm may be over sooner than a crowd has asked often enough to tell.
        thread::sleep(Duration::from_secs(1));
        lost_nothing(&crowd.disperse()?)?;
        for node in ["node1", "node2"] {
            let stormed = dump(cluster.node(node)?)?;
            let fresh = dump_of_fresh_agent(cluster, node)?;
            same(&format!("{node} beside a fresh agent"), &stormed, &fresh)?;
        }
        Ok(())
    });
}

fn leads_to(dump: &Dump, frontend: &str, endpoints: &[Ipv4Addr]) -> Result<()> {
    let line = dump.get(frontend).with_context(|| format!("{frontend} is not there"))?;
    let sockets: Vec<String> = endpoints.iter().map(|address| format!("{address}:8080")).collect();
    let wanted = format!("inside [{}]", sockets.join(", "));
    ensure!(line.contains(&wanted), "{frontend} leads to {line}, not {wanted}");
    Ok(())
}

fn numbered(number: u32) -> Result<Service> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name(number) },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    }))?)
}

/// The slice of that Service with so many endpoints.
fn slice(number: u32, count: u8) -> Result<EndpointSlice> {
    let endpoint = |address| json!({ "addresses": [address], "conditions": { "ready": true } });
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name(number), "labels": { "kubernetes.io/service-name": name(number) } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints(number, count).into_iter().map(endpoint).collect::<Vec<_>>(),
    }))?)
}

fn endpoints(number: u32, count: u8) -> Vec<Ipv4Addr> {
    let [.., high, low] = number.to_be_bytes();
    (1..=count).map(|last| Ipv4Addr::new(10, 200 + high, low, last)).collect()
}

fn name(number: u32) -> String {
    format!("storm-{number}")
}
