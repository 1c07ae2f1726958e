//! Policies that change under what is going on.

use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use fairlead_cluster_tests::ask::{Lasting, of};
use fairlead_cluster_tests::policy::{Estate, by_sockets, closed};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, service, variants, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Load, Options, Place, Protocol};

/// A request over a flow that lasts counts as failed after this.
const SILENCE: Duration = Duration::from_millis(300);
/// How long flows go on before and after a change.
const A_WHILE: Duration = Duration::from_millis(700);

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_change_of_a_policy_ends_the_flows_that_it_denies() {
    with_cluster(|cluster| {
        for directions in [["Ingress"], ["Egress"]] {
            let estate = Estate::set(cluster)?;
            let flows = begin(cluster, &estate, &Protocol::ALL)?;
            thread::sleep(A_WHILE);
            let changed = SystemTime::now();
            let denied = deny(cluster, &estate, &directions)?;
            thread::sleep(A_WHILE);
            for (what, report) in flows.end()? {
                let before = report.replies().filter(|reply| reply.at < changed).count();
                ensure!(before > 10, "{what}: {before} answers before the change");
                let after = report.replies().filter(|reply| reply.at > denied).count();
                ensure!(after == 0, "{what}: {after} answers after the change, by {directions:?}");
                ensure!(!report.failures().is_empty(), "{what}: nothing has failed, by {directions:?}");
            }
            allow(cluster, &estate)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn where_flows_are_kept_a_change_of_a_policy_is_for_new_ones_alone() {
    let keep = Options::default().with_arguments(&["--policy-established=keep"]);
    with_cluster_of(keep, |cluster| {
        for directions in [["Ingress"], ["Egress"]] {
            let estate = Estate::set(cluster)?;
            let flows = begin(cluster, &estate, &Protocol::ALL)?;
            thread::sleep(A_WHILE);
            deny(cluster, &estate, &directions)?;
            thread::sleep(A_WHILE);
            flows.were_undisturbed(20)?;
            allow(cluster, &estate)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_flow_that_is_allowed_outlasts_every_change_of_other_rules() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        // An association that began before its client was under a policy is not known as one, and lost.
        let flows = begin(cluster, &estate, &Protocol::SOCKETS)?;
        let matrix = estate.matrix(by_sockets);
        for round in 0..10 {
            let name = format!("round-{round}");
            let policy = closed(&name, "peer", &["Ingress"]);
            cluster.api().apply(&policy)?;
            matrix.shows("far\n away X\n web X")?;
            cluster.api().remove(&policy)?;
            matrix.shows("far\n away .\n web .")?;
        }
        flows.were_undisturbed(50)
    });
}

/// Begins flows that last over these protocols.
fn begin(cluster: &Cluster, estate: &Estate, protocols: &[Protocol]) -> Result<Lasting> {
    let mut flows = Lasting::default();
    for (what, place, load) in targets(cluster, estate, protocols)? {
        place.request_until_answered(load.protocol, load.target)?;
        flows.begin(what, place, &load)?;
    }
    Ok(flows)
}

/// From the pods `near`, on the node of the pod `web`, and `far`, to `web`'s addresses and its Service's, each over one
/// flow.
fn targets<'a>(
    cluster: &Cluster,
    estate: &'a Estate,
    protocols: &[Protocol],
) -> Result<Vec<(String, &'a Place, Load)>> {
    cluster.apply(&service("web", "web", "ClusterIP"))?;
    let plain = variants(&estate.pod("web")?.ips, POD_PORT);
    let service = variants(&cluster.cluster_ips("web")?, SERVICE_PORT);
    let mut all = Vec::new();
    for who in ["near", "far"] {
        let place = &estate.pod(who)?.place;
        for (protocol, target) in of(protocols, &[&plain[..], &service[..]].concat()) {
            let load = Load::new(protocol, target).over_one_flow().giving_up_after(SILENCE);
            all.push((format!("{protocol} from {who} to {target}"), place, load));
        }
    }
    Ok(all)
}

/// Denies the flows: those to `web` at its end, or at that of its peers. Returns when nothing new comes through.
fn deny(cluster: &Cluster, estate: &Estate, directions: &[&str]) -> Result<SystemTime> {
    let app = if directions == ["Ingress"] { "web" } else { "peer" };
    cluster.api().apply(&closed("closed", app, directions))?;
    estate.matrix(by_sockets).shows("web\n near X\n far X")?;
    Ok(SystemTime::now())
}

fn allow(cluster: &Cluster, estate: &Estate) -> Result<()> {
    cluster.api().remove(&closed("closed", "web", &[]))?;
    estate.matrix(by_sockets).shows("web\n near .\n far .")
}
