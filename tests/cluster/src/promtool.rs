//! promtool, which judges metrics, rules and alerts as Prometheus does, and what Fairlead's rules and dashboard name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::manifests;

/// The families of a page of metrics, with their types.
pub fn families(page: &str) -> BTreeMap<String, String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// The names of labels that each family of a page has, but for a histogram's bounds.
pub fn labels(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let families = families(page);
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once(['{', ' ']) else { continue };
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let family = name.strip_suffix(end)?;
            families.get(family).filter(|kind| *kind == "histogram").map(|_| family)
        });
        let of_family = found.entry(family.unwrap_or(name).to_owned()).or_default();
        if line.contains('{') {
            // Every value is in quotes, so every second piece between them is what stands before one.
            let pieces = rest.split('"').step_by(2).filter_map(|piece| piece.strip_suffix('='));
            of_family.extend(pieces.map(|name| name.trim_start_matches(',').to_owned()));
            of_family.remove("le");
        }
    }
    found
}

/// Has promtool look at something.
///
/// # Errors
/// When it finds fault; with what it says.
pub fn run(arguments: &[&str], directory: &Path, input: &str) -> Result<String> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("run promtool: make setup has it")?;
    child.stdin.take().context("promtool's input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "promtool {}: {said}", arguments.join(" "));
    Ok(said)
}

/// The groups of the PrometheusRule, as a file for Prometheus itself.
///
/// # Errors
/// When it can't be read.
pub fn rules() -> Result<Value> {
    let text = fs::read_to_string(manifests::path("monitoring/rules.yaml"))?;
    let rule = manifests::objects(&text)?.into_iter().next().context("rules.yaml is empty")?;
    ensure!(rule["kind"] == "PrometheusRule", "{rule}");
    Ok(json!({ "groups": rule["spec"]["groups"] }))
}

/// The expressions of all alerts, by name.
///
/// # Errors
/// As [`rules`].
pub fn alerts() -> Result<BTreeMap<String, Value>> {
    let rules = rules()?;
    let groups = rules["groups"].as_array().into_iter().flatten();
    let alerts = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
    Ok(alerts.map(|alert| (alert["alert"].as_str().unwrap_or_default().to_owned(), alert.clone())).collect())
}

/// The metrics of ours that a text names, whatever else is in it.
pub fn named(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_part(c));
    let ours = ["fairlead_", "kubeproxy_", "process_"];
    words.filter(|word| ours.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned).collect()
}

/// The family that a sample's name belongs to, among these.
pub fn family<'a>(name: &'a str, families: &BTreeMap<String, String>) -> &'a str {
    let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    histogram.filter(|family| families.get(*family).is_some_and(|kind| kind == "histogram")).unwrap_or(name)
}
