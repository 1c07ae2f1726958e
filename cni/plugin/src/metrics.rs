//! What `fairlead-cni node` counts of its own work, and the page that shows it.
//!
//! The plugin's ADDs and DELs are processes of their own, and nothing of them is counted here: where an agent runs its
//! metrics tell of them (`fairlead_request_duration_seconds`), and the addresses in use are in the ledgers, which are read
//! when somebody asks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fairlead_daemon::exposition::{Histogram, Page};
use fairlead_daemon::process;
use fairlead_net::network::{Change, Item};
use fairlead_net::store::Store;

use crate::condition::Readiness;

/// What was counted.
#[derive(Debug)]
pub(crate) struct Counts(Mutex<State>);

#[derive(Debug)]
struct State {
    /// How long passes took, in seconds, by whether nothing failed.
    passes: BTreeMap<&'static str, Histogram>,
    /// When a pass last ended without a failure.
    last_good: Option<SystemTime>,
    /// Changes to the kernel's tables, by kind and what was done.
    changes: BTreeMap<(&'static str, &'static str), u64>,
    /// What should be in the kernel's tables, by kind.
    items: BTreeMap<&'static str, usize>,
    /// What keeps pods from running here, if anything; none in it: there is no Node.
    readiness: Option<Readiness>,
    /// What sweeps took away, and what they could not.
    swept: BTreeMap<&'static str, u64>,
    /// Nodes that are known.
    nodes: usize,
}

impl Default for Counts {
    fn default() -> Self {
        let durations = || Histogram::exponential(0.001, 2.0, 14);
        Self(Mutex::new(State {
            passes: BTreeMap::from([("done", durations()), ("failed", durations())]),
            last_good: None,
            changes: BTreeMap::new(),
            items: KINDS.map(|kind| (kind, 0)).into(),
            readiness: None,
            swept: BTreeMap::from([("removed", 0), ("failed", 0)]),
            nodes: 0,
        }))
    }
}

/// The kinds of items, as metrics call them.
const KINDS: [&str; 5] = ["device", "forward", "neighbour", "route", "rule"];

fn kind(item: &Item) -> &'static str {
    match item {
        Item::Device(_) => KINDS[0],
        Item::Forward { .. } => KINDS[1],
        Item::Neighbour { .. } => KINDS[2],
        Item::Route(_) => KINDS[3],
        Item::Rule { .. } => KINDS[4],
    }
}

impl Counts {
    /// A pass is over: how many things failed, how long it took, whether pods can be run here.
    pub(crate) fn pass(&self, failures: usize, took: Duration, readiness: Option<&Readiness>, nodes: usize) {
        let mut state = self.lock();
        let result = if failures == 0 { "done" } else { "failed" };
        if let Some(durations) = state.passes.get_mut(result) {
            durations.observe(took.as_secs_f64());
        }
        if failures == 0 {
            state.last_good = Some(SystemTime::now());
        }
        state.readiness = readiness.cloned();
        state.nodes = nodes;
    }

    /// This is what the kernel's tables should hold.
    pub(crate) fn planned<'a>(&self, items: impl IntoIterator<Item = &'a Item>) {
        let mut planned: BTreeMap<&'static str, usize> = KINDS.map(|kind| (kind, 0)).into();
        items.into_iter().for_each(|item| *planned.entry(kind(item)).or_default() += 1);
        self.lock().items = planned;
    }

    /// The kernel's tables were changed.
    pub(crate) fn changed(&self, change: &Change) {
        let key = match change {
            Change::Set(item) => (kind(item), "set"),
            Change::Remove(item) => (kind(item), "removed"),
        };
        *self.lock().changes.entry(key).or_default() += 1;
    }

    /// A sweep took something away, or could not.
    pub(crate) fn swept(&self, is_removed: bool) {
        let result = if is_removed { "removed" } else { "failed" };
        *self.lock().swept.entry(result).or_default() += 1;
    }

    /// The page. Reads ledgers, so not for an asynchronous thread.
    pub(crate) fn page(&self, data_dir: &Path, servers: &fairlead_api::View) -> String {
        let mut page = Page::default();
        page.gauge("fairlead_cni_build_info", "Which build this is; always 1.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.write(&mut page);
        addresses(data_dir, &mut page);
        servers.write(&mut page);
        process::write(&mut page);
        page.finish()
    }

    fn write(&self, page: &mut Page) {
        let state = self.lock();
        page.gauge("fairlead_cni_ready", "Whether pods can be run here; where not, the reason.");
        match &state.readiness {
            Some(Readiness::Ready) => page.sample(&[("reason", "")], 1),
            Some(Readiness::NotReady(reason, _)) => page.sample(&[("reason", reason)], 0),
            None => page.sample(&[("reason", "NoNode")], 0),
        };
        page.gauge("fairlead_cni_nodes", "Nodes that ways are kept to, this one among them.")
            .sample(&[], state.nodes);
        page.histograms(
            "fairlead_cni_pass_duration_seconds",
            "How long it took to compare and mend the node.",
        );
        for (result, durations) in &state.passes {
            page.distribution(&[("result", result)], durations);
        }
        let last = state.last_good.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        page.gauge("fairlead_cni_last_good_pass_timestamp_seconds", "When nothing failed the last time.")
            .sample(&[], last.unwrap_or_default().as_secs_f64());
        page.gauge("fairlead_cni_items", "What the kernel should hold for the ways to other nodes, by kind.");
        for (kind, count) in &state.items {
            page.sample(&[("kind", kind)], count);
        }
        page.counter("fairlead_cni_changes_total", "Changes to what the kernel holds, by kind.");
        for ((kind, action), count) in &state.changes {
            page.sample(&[("kind", kind), ("action", action)], count);
        }
        page.counter("fairlead_cni_swept_total", "What DEL and GC had left, by whether it could be removed.");
        for (result, count) in &state.swept {
            page.sample(&[("result", result)], count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many addresses pods have; nothing where a ledger can't be read.
fn addresses(data_dir: &Path, page: &mut Page) {
    let Ok(stores) = Store::all(data_dir) else { return };
    let mut used = BTreeMap::from([("IPv4", 0), ("IPv6", 0)]);
    for store in stores {
        let Ok(holdings) = store.holdings() else { return };
        for holding in holdings {
            let Ok(addresses) = store.addresses(&holding.attachment) else { return };
            for address in addresses {
                *used.entry(if address.is_ipv4() { "IPv4" } else { "IPv6" }).or_default() += 1;
            }
        }
    }
    page.gauge("fairlead_cni_addresses_used", "Addresses that pods of this node have, by family.");
    for (family, count) in used {
        page.sample(&[("family", family)], count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_and_sweeps_are_counted_by_how_they_ended() {
        let counts = Counts::default();
        counts.pass(0, Duration::from_millis(5), Some(&Readiness::Ready), 2);
        counts.pass(1, Duration::from_millis(5), Some(&Readiness::NotReady("NoPodCIDRs", "none".into())), 2);
        counts.swept(true);
        let rule = Item::Rule { source: "10.244.1.0/24".parse().expect("a range") };
        counts.planned([&rule]);
        counts.changed(&Change::Set(rule));
        let mut page = Page::default();
        counts.write(&mut page);
        let text = page.finish();
        for line in [
            "fairlead_cni_ready{reason=\"NoPodCIDRs\"} 0",
            "fairlead_cni_pass_duration_seconds_count{result=\"done\"} 1",
            "fairlead_cni_pass_duration_seconds_count{result=\"failed\"} 1",
            "fairlead_cni_items{kind=\"rule\"} 1",
            "fairlead_cni_changes_total{kind=\"rule\",action=\"set\"} 1",
            "fairlead_cni_swept_total{result=\"removed\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
