//! From kube-proxy and back, with the connections that are open.
//!
//! A connection that kube-proxy's rules have translated is known to the kernel's connection tracking alone: which backend
//! it has, and which port it leaves with. So it stays there until it ends ([`drain`]), and all that begins is ours.
//! [`perform`] takes the rules away; the way back ([`hand_over`]) gives connection tracking what the flow table knows.
//!
//! | module | owns |
//! |---|---|
//! | [`netlink`] | messages of nfnetlink |
//! | [`conntrack`] | the table of connections, its events, entries of ours |
//! | [`rules`] | what of the rules is kube-proxy's: pure |
//! | [`ruleset`] | reading and removing rules, and the table of ours |
//! | [`entries`] | what of a connection is entered in the flow table: pure |
//! | [`drain`] | the thread that knows connections of before |
//! | [`hand_over`] | the way back |

pub mod conntrack;
pub mod drain;
pub mod entries;
pub mod hand_over;
pub mod netlink;
pub mod rules;
pub mod ruleset;

use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};

use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use rules::Inventory;

/// Where the kernel names the tables that the older iptables has made in this network namespace.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
/// The interface that kube-proxy makes in its mode `ipvs`.
const IPVS: &str = "kube-ipvs0";
/// The name of its processes.
const KUBE_PROXY: &str = "kube-proxy";

/// What a takeover found, and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What keeps it from being done.
    pub obstacles: Vec<String>,
    /// What is kube-proxy's, and is removed.
    pub inventory: Inventory,
    /// What only others can remove, and how.
    pub advice: Vec<String>,
    /// Whether it was removed.
    pub removed: bool,
    /// How many connections through Services connection tracking still has.
    pub left: usize,
}

/// Takes kube-proxy's rules away, or only says what that would be. The table that keeps translation going comes first, so
/// that it may be interrupted anywhere, and done again.
///
/// # Errors
/// When something keeps it from being done, or the kernel refuses.
pub fn perform(agent: &Agent, dry_run: bool) -> Result<Report, String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| format!("{what}: {e}")
    };
    let rules = ruleset::read().map_err(failed("read the rules of nftables"))?;
    let mut report = Report {
        obstacles: obstacles(agent),
        inventory: Inventory::of(&rules, true),
        advice: advice(),
        removed: false,
        left: agent.drain.look().left,
    };
    if dry_run {
        return Ok(report);
    }
    if !report.obstacles.is_empty() {
        return Err(report.obstacles.join("; "));
    }
    // Also where others are to remove the rules.
    if !report.inventory.is_empty() || report.left > 0 {
        ruleset::put_drain().map_err(failed("put the table that keeps translation going"))?;
    }
    if !report.inventory.is_empty() {
        ruleset::remove(&report.inventory).map_err(failed("remove kube-proxy's rules"))?;
        report.removed = true;
        tracing::info!(left = report.left, "kube-proxy's rules are removed");
    }
    report.left = agent.drain.look().left;
    Ok(report)
}

fn obstacles(agent: &Agent) -> Vec<String> {
    let mut obstacles = Vec::new();
    if agent.progress().first_programmed.is_none() {
        obstacles.push(
            "the agent is not ready: not everything is programmed yet, see fairlead-proxy status".into(),
        );
    }
    let node = agent.node.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    obstacles.extend(node.errors.into_iter().map(|error| format!("the agent is not ready: {error}")));
    obstacles.extend(running(Path::new("/proc")).map(|id| {
        format!("kube-proxy still runs here, as process {id}, and would write its rules anew: end it first")
    }));
    obstacles
}

/// A kube-proxy in this network namespace, as far as its processes can be seen.
fn running(proc: &Path) -> Option<u32> {
    let own = fs::read_link(proc.join("self/ns/net")).ok()?;
    fs::read_dir(proc).ok()?.flatten().find_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let is_here = || fs::read_link(entry.path().join("ns/net")).is_ok_and(|netns| netns == own);
        (name.trim_end() == KUBE_PROXY && is_here()).then_some(id)
    })
}

fn advice() -> Vec<String> {
    let mut advice = Vec::new();
    let tables = LEGACY.map(|path| fs::read_to_string(PathBuf::from(path)).unwrap_or_default());
    let mut tables: Vec<&str> = tables.iter().flat_map(|names| names.lines()).collect();
    tables.sort_unstable();
    tables.dedup();
    if !tables.is_empty() {
        advice.push(format!(
            "the older iptables has the tables {} here, which can't be looked into: where iptables-legacy-save on the node \
             shows chains KUBE-SERVICES, run kube-proxy --cleanup there",
            tables.join(", ")
        ));
    }
    if if_nametoindex(IPVS).is_ok() {
        advice.push(format!("kube-proxy in mode ipvs has left {IPVS}: run kube-proxy --cleanup on the node"));
    }
    advice
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.inventory.is_nothing() {
            writeln!(f, "rules of kube-proxy's: none")?;
        } else {
            let done = if self.removed { "removed" } else { "there" };
            writeln!(f, "rules of kube-proxy's, {done}:")?;
            write!(f, "{}", self.inventory)?;
        }
        for obstacle in &self.obstacles {
            writeln!(f, "in the way: {obstacle}")?;
        }
        for advice in &self.advice {
            writeln!(f, "to do: {advice}")?;
        }
        match self.left {
            0 => writeln!(f, "connections of before: none"),
            left => writeln!(f, "connections of before: {left}, which go on until they end"),
        }
    }
}
