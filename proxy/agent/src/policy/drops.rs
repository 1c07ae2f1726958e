//! What policies dropped, under the names of the objects: events one by one, and counts.
//!
//! The programs tell of some drops ([`fairlead_abi::DropEvent`], so many in a second for each pod) and count all of
//! them, by the id of a compiled policy. Ids pass to other policies in time: counts are read before each reconcile, and
//! belong to whoever had the id until then.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fairlead_abi::{DropEvent, event_flags, policies, verdicts};
use fairlead_core::model::Protocol;
use fairlead_core::policy::{CompiledView, Direction};
use serde::{Deserialize, Serialize};

use super::Policies;
use crate::dataplane::events::DropEvents;
use crate::dataplane::policies::DropCounts;
use crate::health::stamp;

/// How many events are kept for those who ask.
const KEPT: usize = 1024;

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

/// A packet that was dropped, as `fairlead-proxy flows --drops` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drop {
    /// Counts up from 1 for each event since the agent started.
    pub number: u64,
    /// When it was dropped; RFC 3339.
    pub time: String,
    /// The side whose policies dropped it: "egress" of the client or "ingress" of the server.
    pub direction: String,
    /// Which tier of policies: "Admin", "NetworkPolicy" or "Baseline"; none where the pod's policies are not known.
    pub tier: Option<String>,
    /// Who began the flow.
    pub client: End,
    /// Who serves it: the backend, where it is to a Service.
    pub server: End,
    /// "tcp", "udp", "sctp", or a protocol's number.
    pub protocol: String,
    /// Whether the packet was the server's, on its way back.
    pub reply: bool,
    /// The objects of that tier that the pod is under in this direction: one of them denies it, or, if they are
    /// NetworkPolicies, none of them allows it.
    pub policies: Vec<String>,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 where the protocol has none.
    pub port: u16,
    /// Whose address it is, as in `Pod shop/web` or `Node a`; none if it is nobody's in the cluster.
    pub name: Option<String>,
}

/// Reads as `<time> ingress dropped by NetworkPolicy: tcp 10.0.0.1:4242 (Pod shop/web) → 10.0.0.2:80 (Pod db/pg):
/// NetworkPolicy db/default-deny`.
impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, direction, client, server, protocol, policies, .. } = self;
        let arrow = if self.reply { "←" } else { "→" };
        let why = match &self.tier {
            Some(tier) => format!("dropped by {tier}"),
            None => "dropped: the pod's policies are not known".to_owned(),
        };
        write!(f, "{time} {direction} {why}: {protocol} {client} {arrow} {server}")?;
        if policies.is_empty() { Ok(()) } else { write!(f, ": {}", policies.join(", ")) }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            0 => write!(f, "{}", self.address)?,
            port => write!(f, "{}", SocketAddr::new(self.address, port))?,
        }
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

/// The last events.
#[derive(Debug, Default)]
pub struct Drops(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    count: u64,
    last: VecDeque<Drop>,
}

impl Drops {
    /// The events that are kept with a number above `after`, oldest first.
    pub fn since(&self, after: u64) -> Vec<Drop> {
        self.lock().last.iter().filter(|event| event.number > after).cloned().collect()
    }

    fn add(&self, mut event: Drop) {
        let mut kept = self.lock();
        kept.count += 1;
        event.number = kept.count;
        if kept.last.len() == KEPT {
            kept.last.pop_front();
        }
        kept.last.push_back(event);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes up events for ever.
///
/// # Errors
/// When they can't be waited for.
pub async fn follow(mut events: DropEvents, policies: Arc<Policies>, drops: Arc<Drops>) -> io::Result<()> {
    loop {
        for (time, event) in events.take().await? {
            let event = policies.describe(time, &event);
            tracing::debug!(
                direction = event.direction,
                tier = event.tier,
                client = event.client.name,
                server = event.server.name,
                "dropped {} {}:{} to {}:{}",
                event.protocol,
                event.client.address,
                event.client.port,
                event.server.address,
                event.server.port
            );
            drops.add(event);
        }
    }
}

impl Policies {
    /// Packets that each object dropped, or its isolation, since the agent started.
    pub fn drop_totals(&self) -> DropTotals {
        let mut state = self.lock();
        state.tally.read();
        state.tally.totals().clone()
    }

    /// An event in the names of the API.
    fn describe(&self, time: SystemTime, event: &DropEvent) -> Drop {
        let state = self.lock();
        let engine = &state.engine;
        let end =
            |address: IpAddr, port: u16| End { address, port, name: super::name_of(&engine.who(address)) };
        let tuple = &event.tuple;
        let egress = event.flags & event_flags::EGRESS != 0;
        let tier = match event.verdict {
            _ if event.policy == policies::CLOSED => None,
            verdicts::DENY_ADMIN => Some("Admin"),
            verdicts::DENY_BASELINE => Some("Baseline"),
            _ => Some("NetworkPolicy"),
        };
        let policies = engine.compiled(event.policy).map(|view| view.policies).unwrap_or_default();
        Drop {
            number: 0,
            time: stamp(time),
            direction: if egress { Direction::Egress } else { Direction::Ingress }.to_string(),
            tier: tier.map(str::to_owned),
            client: end(tuple.source.into(), tuple.source_port.number()),
            server: end(tuple.destination.into(), tuple.destination_port.number()),
            protocol: match Protocol::from_number(tuple.protocol) {
                Some(protocol) => protocol.to_string(),
                None => tuple.protocol.to_string(),
            },
            reply: event.flags & event_flags::REPLY != 0,
            policies: policies.into_iter().filter(|name| is_of_tier(name, tier)).collect(),
        }
    }
}

/// Whether an object, as in `NetworkPolicy shop/web`, may have decided in this tier.
fn is_of_tier(name: &str, tier: Option<&str>) -> bool {
    name.starts_with("NetworkPolicy ") == (tier == Some("NetworkPolicy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(port: u16) -> Drop {
        let end = |port| End { address: IpAddr::from([10, 0, 0, 1]), port, name: None };
        Drop {
            number: 0,
            time: String::new(),
            direction: "ingress".into(),
            tier: None,
            client: end(1),
            server: end(port),
            protocol: "tcp".into(),
            reply: false,
            policies: Vec::new(),
        }
    }

    #[test]
    fn the_last_events_are_kept_and_asked_for_by_number() {
        let drops = Drops::default();
        (0..KEPT as u16 + 5).for_each(|port| drops.add(event(port)));
        assert_eq!(drops.since(0).len(), KEPT);
        let last: Vec<u16> = drops.since(KEPT as u64 + 3).iter().map(|event| event.server.port).collect();
        assert_eq!(last, [KEPT as u16 + 3, KEPT as u16 + 4]);
    }

    #[test]
    fn a_drop_names_the_objects_of_its_tier_alone() {
        let named =
            |tier| ["NetworkPolicy shop/web", "ClusterNetworkPolicy all"].map(|name| is_of_tier(name, tier));
        assert_eq!(named(Some("NetworkPolicy")), [true, false]);
        assert_eq!(named(Some("Admin")), [false, true]);
    }
}
