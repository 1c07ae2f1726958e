//! Packets that were dropped or refused, one by one, under the names of the objects.
//!
//! The programs tell of some ([`fairlead_abi::DropEvent`]: so many in a second for each pod and each reason) and count
//! all of them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fairlead_abi::{DropEvent, FlowKey, Reason, event_flags, policies, verdicts};
use fairlead_core::policy::Direction;
use nix::net::if_::if_indextoname;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, lock};
use crate::dataplane::events::DropEvents;
use crate::ends::{End, Names, Seen, protocol_name};
use crate::health::stamp;

/// How many events are kept for those who ask.
const KEPT: usize = 1024;

/// A packet that was dropped or refused, as `fairlead-proxy flows --drops` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drop {
    /// Counts up from 1 for each event since the agent started.
    pub number: u64,
    /// When it was dropped; RFC 3339.
    pub time: String,
    /// Why, as `fairlead_drops_total` labels it.
    pub reason: String,
    /// The same in a sentence.
    pub meaning: String,
    /// Whether its sender was answered: by an RST, an ICMP error, or an error of its call.
    pub refused: bool,
    /// Whether there was no packet yet: a process of the node, or of a pod, asked for a connection.
    pub socket: bool,
    /// The interface whose program dropped it; none where it is not told.
    pub interface: Option<String>,
    /// The pod that has that interface.
    pub pod: Option<String>,
    /// Of what a policy dropped, the side whose policies did: "egress" of the client or "ingress" of the server.
    pub direction: Option<String>,
    /// Which tier of policies: "Admin", "NetworkPolicy" or "Baseline"; none where the pod's policies are not known, and
    /// where it was none.
    pub tier: Option<String>,
    /// Who began the flow, or sent the packet.
    pub client: End,
    /// Who serves it, or was sent the packet: of what a policy dropped the backend, else what was dialled.
    pub server: End,
    /// "tcp", "udp", "sctp", or a protocol's number.
    pub protocol: String,
    /// Of what a policy dropped, whether the packet was the server's, on its way back.
    pub reply: bool,
    /// The objects of that tier that the pod is under in this direction: one of them denies it, or, if they are
    /// NetworkPolicies, none of them allows it.
    pub policies: Vec<String>,
}

impl Drop {
    /// As filters see it.
    pub fn seen(&self) -> Seen<'_> {
        let Self { client, server, protocol, .. } = self;
        Seen { protocol, client, dialled: server, server, state: None }
    }

    /// Whether the packet could not be read, so that nothing is known of its ends.
    fn is_unreadable(&self) -> bool {
        self.reason == Reason::Malformed.label() && self.client.address.is_unspecified()
    }
}

/// Reads as `<time> ingress dropped by NetworkPolicy: tcp 10.0.0.1:4242 (Pod shop/web) → 10.0.0.2:80 (Pod db/pg):
/// NetworkPolicy db/default-deny`, or as `<time> refused, no_endpoint: tcp 10.0.0.1:4242 (Pod shop/web) → 10.96.0.1:80
/// (Service shop/api): The Service has no endpoint at all: answered with port unreachable.`
impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, client, server, protocol, policies, reason, meaning, .. } = self;
        let arrow = if self.reply { "←" } else { "→" };
        if let Some(direction) = &self.direction {
            let why = match &self.tier {
                Some(tier) => format!("dropped by {tier}"),
                None => "dropped: the pod's policies are not known".to_owned(),
            };
            write!(f, "{time} {direction} {why}: {protocol} {client} {arrow} {server}")?;
            return if policies.is_empty() { Ok(()) } else { write!(f, ": {}", policies.join(", ")) };
        }
        let end = if self.refused { "refused" } else { "dropped" };
        write!(f, "{time} {end}, {reason}")?;
        if !self.is_unreadable() {
            write!(f, ": {protocol} {client} {arrow} {server}")?;
        }
        match (&self.interface, &self.pod) {
            (Some(interface), Some(pod)) => write!(f, " at {interface} ({pod})")?,
            (Some(interface), None) => write!(f, " at {interface}")?,
            (None, _) if self.socket => write!(f, " at its socket")?,
            (None, _) => {}
        }
        write!(f, ": {meaning}")
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
pub async fn follow(mut events: DropEvents, agent: Arc<Agent>) -> io::Result<()> {
    loop {
        let taken = events.take().await?;
        let agent = Arc::clone(&agent);
        // Names are asked of loops that may be at work.
        let described = tokio::task::spawn_blocking(move || {
            for (time, event) in &taken {
                let event = describe(&agent, *time, event);
                tracing::debug!(reason = event.reason, "{event}");
                agent.drops.add(event);
            }
        });
        described.await.map_err(io::Error::other)?;
    }
}

/// An event in the names of the API.
fn describe(agent: &Agent, time: SystemTime, event: &DropEvent) -> Drop {
    let reason = Reason::numbered(event.reason);
    let has = |flag| event.flags & flag != 0;
    let FlowKey { source, destination, source_port, destination_port, protocol, .. } = event.tuple;
    let mut names = Names::new(agent);
    let client = names.end(source.into(), source_port.number());
    let (address, port): (IpAddr, u16) = (destination.into(), destination_port.number());
    let is_policy = is_of_policy(event, reason);
    let server = match is_policy {
        true => names.end(address, port),
        false => names.dialled(address, port, protocol),
    };
    let tier = match event.verdict {
        _ if !is_policy || event.policy == policies::CLOSED => None,
        verdicts::DENY_ADMIN => Some("Admin"),
        verdicts::DENY_BASELINE => Some("Baseline"),
        _ => Some("NetworkPolicy"),
    };
    let direction = if has(event_flags::EGRESS) { Direction::Egress } else { Direction::Ingress };
    let under = if is_policy { agent.policies.behind(event.policy) } else { Vec::new() };
    Drop {
        number: 0,
        time: stamp(time),
        reason: reason.label().to_owned(),
        meaning: reason.sentence().trim().to_owned(),
        refused: has(event_flags::REFUSED | event_flags::SOCKET),
        socket: has(event_flags::SOCKET),
        interface: interface_name(event.interface),
        pod: lock(&agent.endpoints).pod_at(event.interface).map(|pod| format!("Pod {pod}")),
        direction: is_policy.then(|| direction.to_string()),
        tier: tier.map(str::to_owned),
        client,
        server,
        protocol: protocol_name(protocol),
        reply: is_policy && has(event_flags::REPLY),
        policies: under.into_iter().filter(|name| is_of_tier(name, tier)).collect(),
    }
}

/// The name of the interface; none for 0, which is no interface's index.
fn interface_name(index: u32) -> Option<String> {
    let name = if_indextoname(index).ok().filter(|_| index != 0)?;
    Some(name.to_string_lossy().into_owned())
}

/// Whether a pod's policies dropped it. What is dropped because nobody knows the pod has an interface, what they drop
/// has none.
fn is_of_policy(event: &DropEvent, reason: Reason) -> bool {
    let may_be = matches!(reason, Reason::PolicyIngress | Reason::PolicyEgress | Reason::PolicyUnknown);
    may_be && event.interface == 0
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
            time: "now".into(),
            reason: "no_endpoint".into(),
            meaning: "Nobody is there.".into(),
            refused: true,
            socket: false,
            interface: Some("fl1".into()),
            pod: Some("Pod shop/web".into()),
            direction: None,
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

    #[test]
    fn a_drop_reads_as_a_sentence_whatever_dropped_it() {
        let refused =
            "now refused, no_endpoint: tcp 10.0.0.1:1 → 10.0.0.1:80 at fl1 (Pod shop/web): Nobody is there.";
        assert_eq!(event(80).to_string(), refused);
        let policy = Drop {
            direction: Some("ingress".into()),
            tier: Some("NetworkPolicy".into()),
            policies: vec!["NetworkPolicy shop/web".into()],
            ..event(80)
        };
        let text =
            "now ingress dropped by NetworkPolicy: tcp 10.0.0.1:1 → 10.0.0.1:80: NetworkPolicy shop/web";
        assert_eq!(policy.to_string(), text);
        let nothing = End { address: IpAddr::from([0_u16; 8]), port: 0, name: None };
        let malformed = Drop {
            reason: "malformed".into(),
            refused: false,
            client: nothing.clone(),
            server: nothing,
            pod: None,
            ..event(0)
        };
        assert_eq!(malformed.to_string(), "now dropped, malformed at fl1: Nobody is there.");
    }
}
