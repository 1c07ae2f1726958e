//! The way back: gives connection tracking the flows to Services that the flow table has, so that kube-proxy's rules find
//! them translated.
//!
//! By the pinned maps, without the agent, which must have ended: it would attach its programs again. Each flow becomes the stack's: first its entry in connection tracking is there,
//! then a bit in its two entries of the flow table has the programs leave its packets to the stack. Until kube-proxy's
//! rules are there only what is translated is kept so, by our own table; new flows are Fairlead's. So packets are always
//! somebody's. Flows that begin meanwhile are found by looking again; in the end another bit leaves what begins to the
//! stack as well, and the programs, which do nothing any more, are detached.
//!
//! A host's own sockets that were connected straight to a backend need nothing.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use fairlead_abi::{Flow, FlowKey, config_flags, flow_flags, protocol};
use fairlead_flow::life;
use serde::Serialize;

use super::netlink::Socket;
use super::rules::Inventory;
use super::{conntrack, ruleset};
use crate::dataplane::tracked::TrackedFlows;
use crate::dataplane::{DataplaneError, Pins};

/// How often it is looked for new flows, and for rules.
const PERIOD: Duration = Duration::from_millis(100);
/// How long rules must have been there: kube-proxy writes them in one step, for each family by itself.
const SETTLED: Duration = Duration::from_secs(2);

/// What was handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HandedOver {
    /// Flows that go on.
    pub flows: usize,
    /// Flows that connection tracking would not take.
    pub refused: usize,
}

/// The flows of a node, on their way to connection tracking.
pub struct HandOver {
    flows: TrackedFlows,
    socket: Socket,
    /// What has been done.
    pub done: HandedOver,
}

impl HandOver {
    /// Opens the pinned maps, and has the kernel go on with whatever connection tracking translates.
    ///
    /// # Errors
    /// When there are none of this layout, or the kernel refuses.
    pub fn begin(pins: &Pins) -> Result<Self, DataplaneError> {
        let mut flows = TrackedFlows::open(pins)?;
        let refused = |e: io::Error| DataplaneError::new("put", "the table that keeps translation going", e);
        ruleset::put_drain().map_err(refused)?;
        flows.set_flag(config_flags::DRAINING, true)?;
        let socket = Socket::open().map_err(|e| DataplaneError::new("open", "nfnetlink", e))?;
        Ok(Self { flows, socket, done: HandedOver::default() })
    }

    /// Hands over what is in the flow table and has not been.
    ///
    /// # Errors
    /// When the table can't be read or changed.
    pub fn pass(&mut self) -> Result<(), DataplaneError> {
        let now = self.flows.now();
        for (key, flow) in self.flows.all()? {
            if !is_due(&key, &flow, now) {
                continue;
            }
            if let Err(e) = conntrack::enter(&mut self.socket, &key, &flow) {
                tracing::warn!("hand over the flow {key:?}: {e}");
                self.done.refused += 1;
                continue;
            }
            let back = flow.leaving(key.protocol).reversed();
            if let Some(reply) = self.flows.get(&back) {
                self.flows.replace(&back, &stacks(reply))?;
            }
            self.flows.replace(&key, &stacks(flow))?;
            self.done.flows += 1;
        }
        Ok(())
    }

    /// Goes on until kube-proxy's rules have been there for a while; false if that takes longer than `patience`.
    ///
    /// # Errors
    /// As [`Self::pass`].
    pub fn until_rules(&mut self, patience: Duration) -> Result<bool, DataplaneError> {
        let deadline = Instant::now() + patience;
        let mut since = None;
        loop {
            self.pass()?;
            let rules =
                ruleset::read().map_err(|e| DataplaneError::new("read", "the rules of nftables", e))?;
            let there = !Inventory::of(&rules, false).is_empty();
            since = if there { since.or(Some(Instant::now())) } else { None };
            if since.is_some_and(|since| since.elapsed() >= SETTLED) {
                return Ok(true);
            }
            if since.is_none() && Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(PERIOD);
        }
    }

    /// Has what begins be left to the stack from now on, and hands over what began until now: then nothing is left that the
    /// programs do.
    ///
    /// # Errors
    /// As [`Self::pass`].
    pub fn leave(&mut self) -> Result<(), DataplaneError> {
        self.flows.set_flag(config_flags::LEAVING, true)?;
        self.pass()?;
        // Packets that were under way in a program.
        std::thread::sleep(PERIOD);
        self.pass()
    }

    /// Takes back what [`Self::begin`] put there; the rules keep translation going from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn end(self) -> Result<HandedOver, DataplaneError> {
        ruleset::remove_drain().map_err(|e| DataplaneError::new("remove", "our table of nftables", e))?;
        Ok(self.done)
    }
}

/// Hands over what the pinned maps below `bpffs` hold, and has everything detached in the midst of it.
///
/// # Errors
/// When no rules of kube-proxy's come within `patience`, unless `force`, or the kernel refuses. Until the end, everything
/// works as before.
pub fn perform<T>(
    bpffs: &Path,
    patience: Duration,
    force: bool,
    detach: impl FnOnce() -> Result<T>,
) -> Result<(HandedOver, T)> {
    let mut hand_over = HandOver::begin(&Pins::new(bpffs))?;
    if !hand_over.until_rules(patience)? && !force {
        let why =
            "no rules of kube-proxy's are here to go on with them: start it, and see --wait and --force";
        return Err(DataplaneError::new("hand over", "connections", why).into());
    }
    hand_over.leave()?;
    let detached = detach()?;
    Ok((hand_over.end()?, detached))
}

/// Whether the entry is the forward one of a live flow that is translated and not the stack's.
fn is_due(key: &FlowKey, flow: &Flow, now: u64) -> bool {
    let is_spoken = matches!(key.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    let is_forward = flow.flags & (flow_flags::REPLY | flow_flags::STACK) == 0;
    let has_ended = flow.flags & (flow_flags::CLOSED | flow_flags::RESET) != 0;
    is_spoken
        && is_forward
        && !has_ended
        && flow.leaving(key.protocol) != *key
        && !life::is_over(flow, key.protocol, now)
}

fn stacks(flow: Flow) -> Flow {
    let flags = flow.flags | flow_flags::STACK | flow_flags::TRACKED | flow_flags::NODE;
    Flow { flags, ..flow }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use fairlead_abi::{Address, Port};

    use super::*;

    #[test]
    fn live_flows_to_services_are_handed_over_and_nothing_else() {
        let address = |last| Address::from(Ipv4Addr::new(10, 0, 0, last));
        let key = FlowKey {
            source: address(1),
            destination: address(2),
            source_port: Port::new(40_000),
            destination_port: Port::new(80),
            protocol: protocol::TCP,
            reserved: [0; 3],
        };
        let flow = |destination, flags| Flow {
            last_seen: 1,
            source: key.source,
            destination,
            source_port: key.source_port,
            destination_port: key.destination_port,
            flags,
            ..Flow::default()
        };
        let open = flow_flags::ANSWERED | flow_flags::CONFIRMED;
        assert!(is_due(&key, &flow(address(3), open), 2));
        // One that leaves as it came, replies, and what is over or handed over.
        assert!(!is_due(&key, &flow(key.destination, open), 2));
        for flags in [flow_flags::REPLY, flow_flags::STACK, flow_flags::CLOSED, flow_flags::RESET] {
            assert!(!is_due(&key, &flow(address(3), open | flags), 2), "{flags}");
        }
        assert!(!is_due(&key, &flow(address(3), open), u64::MAX));
        assert!(!is_due(&FlowKey { protocol: 1, ..key }, &flow(address(3), open), 2));
    }
}
