//! Metrics as Prometheus takes them: what the daemons serve, the page that documents it, the alerts and the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fairlead_cluster_tests::ask::{answered_by, eventually};
use fairlead_cluster_tests::objects::at;
use fairlead_cluster_tests::policy::web_ingress;
use fairlead_cluster_tests::promtool::{alerts, families, family, labels, named, rules, run};
use fairlead_cluster_tests::scene::Scene;
use fairlead_cluster_tests::{manifests, service, with_cluster};
use fairlead_harness::{Node, http_get};
use serde_json::{Value, json};

/// Where `fairlead-cni node` serves its metrics.
const CNI: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10247);

/// kube-proxy's name for what is no counter there either, which promtool finds fault with.
const NO_COUNTER: &str = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";

fn page_of_cni(node: &Node) -> Result<String> {
    let (status, page) = node.place().netns().run(|| http_get(CNI, "/metrics"))??;
    ensure!(status == 200, "{status}: {page}");
    Ok(page)
}

/// What docs/metrics.md says of each metric: its type, and the names of its labels.
fn documented() -> Result<BTreeMap<String, (String, BTreeSet<String>)>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let text = fs::read_to_string(path)?;
    let mut found = BTreeMap::new();
    for line in
        text.lines().filter(|line| line.starts_with("| `fairlead_") || line.starts_with("| `kubeproxy_"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { anyhow::bail!("not four columns: {line}") };
        ensure!(meaning.len() > 10, "says little: {line}");
        // Behind a colon are values; semicolons and commas separate.
        let mut names = BTreeSet::new();
        for part in labels.split(';') {
            let part = part.split_once(':').map_or(part, |(label, _)| label);
            names.extend(part.split(',').map(|label| label.trim().trim_matches('`').to_owned()));
        }
        names.remove("");
        found.insert(name.trim_matches('`').to_owned(), (kind.to_owned(), names));
    }
    // Those of every process are named in a sentence.
    let (counters, gauges) =
        text.split_once("`process_cpu_seconds_total` (counter)").context("no processes")?;
    ensure!(!counters.is_empty());
    found.insert("process_cpu_seconds_total".into(), ("counter".into(), BTreeSet::new()));
    for name in named(gauges).into_iter().filter(|name| name.starts_with("process_")) {
        found.insert(name, ("gauge".into(), BTreeSet::new()));
    }
    Ok(found)
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn the_page_on_metrics_names_what_the_daemons_serve_and_nothing_else() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        cluster.api().apply(&web_ingress("unused", json!([])))?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("echo")?), &["near", "far"])?;
        let node = cluster.node("node1")?;
        node.healthz()?;
        let documented = documented()?;
        // Some come with the first sweep, or the first pass.
        eventually(|| {
            let pages = [node.metrics()?, page_of_cni(node)?];
            let served: BTreeMap<String, String> = pages.iter().flat_map(|page| families(page)).collect();
            let kinds = |of: &BTreeMap<String, (String, BTreeSet<String>)>| -> BTreeMap<String, String> {
                of.iter().map(|(name, (kind, _))| (name.clone(), kind.clone())).collect()
            };
            ensure!(
                kinds(&documented) == served,
                "documented: {:#?}\nserved: {served:#?}",
                kinds(&documented)
            );
            for (name, labels) in pages.iter().flat_map(|page| labels(page)) {
                let (_, expected) = documented.get(&name).with_context(|| format!("{name} is not said"))?;
                ensure!(labels == *expected, "{name} has {labels:?}, and is said to have {expected:?}");
            }
            Ok(())
        })?;
        for page in [node.metrics()?, page_of_cni(node)?] {
            let judged: Vec<&str> = page.lines().filter(|line| !line.contains(NO_COUNTER)).collect();
            run(&["check", "metrics"], Path::new("/"), &(judged.join("\n") + "\n"))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn every_metric_that_alerts_and_dashboard_name_is_served() {
    with_cluster(|cluster| {
        let scene = Scene::set(cluster, &service("echo", "echo", "ClusterIP"))?;
        answered_by(("a pod", &scene.client.place), &at(&cluster.cluster_ips("echo")?), &["near", "far"])?;
        let node = cluster.node("node1")?;
        let dashboard = fs::read_to_string(manifests::path("monitoring/dashboard.json"))?;
        serde_json::from_str::<Value>(&dashboard).context("understand the dashboard")?;
        let of_alerts =
            alerts()?.into_values().map(|alert| alert["expr"].as_str().unwrap_or_default().to_owned());
        let texts: Vec<String> = of_alerts.chain([dashboard]).collect();
        let pages = [node.metrics()?, page_of_cni(node)?];
        let served: BTreeMap<String, String> = pages.iter().flat_map(|page| families(page)).collect();
        let all = named(&texts.join("\n"));
        ensure!(all.len() > 20, "few are named: {all:?}");
        for name in all {
            ensure!(served.contains_key(family(&name, &served)), "{name} is named, and nobody serves it");
        }
        Ok(())
    });
}

#[test]
fn the_alerts_are_ones_that_prometheus_takes_and_fire_when_they_should() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("whole.yaml"), rules()?.to_string())?;
    run(&["check", "rules", "whole.yaml"], directory.path(), "")?;
    // promtool would have every word of the annotations said again.
    let mut bare = rules()?;
    for group in bare["groups"].as_array_mut().into_iter().flatten() {
        for alert in group["rules"].as_array_mut().into_iter().flatten() {
            alert.as_object_mut().context("an alert")?.remove("annotations");
        }
    }
    fs::write(directory.path().join("rules.yaml"), bare.to_string())?;
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/alerts.yaml");
    fs::copy(&tests, directory.path().join("alerts.yaml"))?;
    run(&["test", "rules", "alerts.yaml"], directory.path(), "")?;
    let tried = fs::read_to_string(&tests)?;
    for (name, alert) in alerts()? {
        ensure!(
            tried.contains(&format!("alertname: {name}\n")),
            "{name} is not tried in {}",
            tests.display()
        );
        ensure!(alert["annotations"]["summary"].is_string(), "{name} says nothing");
    }
    Ok(())
}

/// The anchors of a page's headings, as they are made on the web: small letters, and hyphens for spaces.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let anchor = |heading: &str| -> String {
        let words: String = heading.trim_start_matches('#').trim().to_lowercase();
        words.chars().filter(is_kept).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_alert_leads_to_a_paragraph_of_our_pages() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (name, alert) in alerts()? {
        let runbook = alert["annotations"]["runbook_url"].as_str().unwrap_or_default();
        let (page, anchor) = runbook.split_once('#').with_context(|| format!("{name}: {runbook:?}"))?;
        let Ok(text) = fs::read_to_string(docs.join(page)) else {
            println!("left out: {name} leads to {page}, which is not there");
            continue;
        };
        let anchors = anchors(&text);
        ensure!(anchors.contains(anchor), "{name} leads to {page}#{anchor}, which has {anchors:#?}");
    }
    Ok(())
}

#[test]
fn the_monitors_look_where_the_daemons_serve_and_the_kustomization_is_whole() -> Result<()> {
    let text = fs::read_to_string(manifests::path("monitoring/pod-monitor.yaml"))?;
    for (container, port) in [("proxy", 10249), ("cni", CNI.port())] {
        let of_container = format!("regex: {container}, action: keep");
        let part = text.split("- path: /metrics").find(|part| part.contains(&of_container));
        let part = part.with_context(|| format!("nothing scrapes {container}"))?;
        ensure!(part.contains(&format!(":{port}\"")), "{container} is scraped elsewhere: {part}");
    }
    match manifests::kustomized("monitoring")? {
        Ok(objects) => {
            let kinds: BTreeSet<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
            ensure!(kinds == BTreeSet::from(["ConfigMap", "PodMonitor", "PrometheusRule"]), "{kinds:?}");
        }
        Err(why) => println!("left out: {why}"),
    }
    Ok(())
}
