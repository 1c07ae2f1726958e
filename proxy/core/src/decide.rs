//! What the programs do with the first packet of a flow, from what the maps hold.
//!
//! Pure; the same look-ups in the same order as `ebpf/prog` makes them. Tests read tables of flows through it, and it
//! can explain an agent's maps. What depends on the past is left out: a known flow, or affinity, only narrows the
//! choice to one of the backends that are named here.

use std::fmt;
use std::net::IpAddr;

use fairlead_abi::{FrontendKey, Port, Reason, cidr_flags, frontend_flags, protocol};

use crate::dataplane::MemoryMaps;
use crate::endpoints::BackendAddress;

/// The first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where it comes from.
    pub client: Client,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// The destination's port; 0 for protocols without ports.
    pub port: u16,
    /// An IP protocol number.
    pub protocol: u8,
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod of this node, or the node itself.
    Inside,
    /// Anywhere else: it came over an uplink.
    Outside,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No Service concerns it.
    Pass,
    /// It goes to one of these.
    Forward(Vec<Choice>),
    /// It is answered with port unreachable or RST.
    Reject(Reason),
    /// It is dropped without an answer.
    Drop(Reason),
}

/// One of the backends that a flow may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// The backend.
    pub backend: BackendAddress,
    /// Whether the flow then leaves with the node's address.
    pub masquerade: bool,
}

/// What becomes of `flow` on the node with the addresses `node`.
pub fn decide(maps: &MemoryMaps, node: &[IpAddr], flow: &Flow) -> Outcome {
    let Flow { client, source, destination, port, protocol } = *flow;
    let key = FrontendKey { address: destination.into(), port: Port::new(port), protocol, reserved: 0 };
    let Some(frontend) = maps.frontend(&key).filter(|_| has_ports(protocol)) else {
        return unclaimed(maps, destination);
    };
    let has = |flag| frontend.flags & flag != 0;
    if has(frontend_flags::GUARDED) && !maps.admits(frontend.service, source.into()) {
        return Outcome::Drop(Reason::SourceNotAllowed);
    }
    let region = if client == Client::Inside { frontend.internal } else { frontend.external };
    if region.len == 0 {
        return match has(frontend_flags::HAS_ENDPOINTS) {
            true => Outcome::Drop(Reason::NoLocalEndpoint),
            false => Outcome::Reject(Reason::NoEndpoint),
        };
    }
    let masquerade = client == Client::Outside && !has(frontend_flags::KEEP_SOURCE);
    let choice = |backend: &fairlead_abi::Backend| {
        let backend = BackendAddress { ip: backend.address.into(), port: backend.port.number() };
        // A pod must not see its own address as its client's, and the node would not believe its own.
        let masquerade = backend.ip == source || masquerade && !node.contains(&backend.ip);
        Choice { backend, masquerade }
    };
    let mut choices: Vec<Choice> = maps.backends_in(region).iter().map(choice).collect();
    choices.sort();
    Outcome::Forward(choices)
}

/// Reads as `10.244.0.2:80 10.244.1.2:80`, `masqueraded 10.244.0.2:80`, `reject (no_endpoint)`, `pass`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Reject(reason) => write!(f, "reject ({})", reason.label()),
            Self::Drop(reason) => write!(f, "drop ({})", reason.label()),
            Self::Forward(choices) => {
                let list = |masquerade: bool| {
                    let own = choices.iter().filter(|choice| choice.masquerade == masquerade);
                    own.map(|choice| choice.backend.to_string()).collect::<Vec<_>>().join(" ")
                };
                let (plain, masqueraded) = (list(false), list(true));
                let between = if plain.is_empty() || masqueraded.is_empty() { "" } else { "; " };
                let word = if masqueraded.is_empty() { "" } else { "masqueraded " };
                write!(f, "{plain}{between}{word}{masqueraded}")
            }
        }
    }
}

fn unclaimed(maps: &MemoryMaps, destination: IpAddr) -> Outcome {
    let Some(flags) = maps.service_cidr(destination.into()) else { return Outcome::Pass };
    if maps.frontend(&FrontendKey::whole(destination.into())).is_some() {
        Outcome::Reject(Reason::UnknownPort)
    } else if flags & cidr_flags::DROP != 0 {
        Outcome::Drop(Reason::NoService)
    } else {
        Outcome::Pass
    }
}

fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}
