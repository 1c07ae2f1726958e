//! How much policies dropped, under the names of the objects.
//!
//! The programs count by the id of a compiled policy. Ids pass to other policies in time: counts are read before each
//! reconcile, and belong to whoever had the id until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use fairlead_abi::Isolation;
use fairlead_core::policy::{CompiledView, Direction};

use super::Policies;
use crate::dataplane::policies::DropCounts;

/// Packets that an object's isolation, or its rule, dropped, by the object and the direction.
pub type DropTotals = BTreeMap<(String, Direction), u64>;

/// Counts of drops, by the objects behind the policies that dropped.
pub(super) struct Tally {
    counts: DropCounts,
    /// What each compiled policy had counted when it was last read, and whose it is.
    seen: HashMap<u32, (u64, CompiledView)>,
    totals: DropTotals,
}

impl Tally {
    pub(super) fn new(counts: DropCounts) -> Self {
        Self { counts, seen: HashMap::new(), totals: DropTotals::new() }
    }

    /// Gives what was counted since the last time to those who had the ids.
    pub(super) fn read(&mut self) {
        for (id, (before, whose)) in &mut self.seen {
            // What can't be read now is read the next time.
            let Ok(now) = self.counts.of(*id) else { continue };
            let dropped = now.wrapping_sub(*before);
            *before = now;
            if dropped > 0 {
                for object in &whose.policies {
                    *self.totals.entry((object.clone(), whose.direction)).or_default() += dropped;
                }
            }
        }
    }

    /// Learns who has the ids from now on.
    pub(super) fn name(&mut self, ids: BTreeSet<u32>, whose: impl Fn(u32) -> Option<CompiledView>) {
        self.seen.retain(|id, _| ids.contains(id));
        for id in ids {
            let Some(whose) = whose(id) else { continue };
            match self.seen.get_mut(&id) {
                Some((_, known)) => *known = whose,
                None => {
                    let before = self.counts.of(id).unwrap_or(0);
                    self.seen.insert(id, (before, whose));
                }
            }
        }
    }

    pub(super) fn totals(&self) -> &DropTotals {
        &self.totals
    }
}

impl Policies {
    /// Packets that each object dropped, or its isolation, since the agent started.
    pub fn drop_totals(&self) -> DropTotals {
        let mut state = self.lock();
        state.tally.read();
        state.tally.totals().clone()
    }

    /// Whose address it is, as in `Pod shop/web`; none if it is nobody's in the cluster.
    pub(crate) fn who(&self, address: IpAddr) -> Option<String> {
        super::name_of(&self.lock().engine.who(address))
    }

    /// The objects that a compiled policy is made of, as in `NetworkPolicy shop/web`.
    pub(crate) fn behind(&self, policy: u32) -> Vec<String> {
        self.lock().engine.compiled(policy).map(|view| view.policies).unwrap_or_default()
    }

    /// The policies that the endpoint at `index` is under, as the engine has them.
    pub(crate) fn isolation(&self, index: u32) -> Isolation {
        self.lock().engine.endpoint_policies(index)
    }
}
