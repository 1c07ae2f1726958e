//! Why a packet passes or not, from the rules that fill the maps.

use std::net::IpAddr;

use serde::Serialize;

use super::Engine;
use super::model::Direction;
use crate::model::{ObjectName, Protocol};

/// One side of a flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// A pod of the API.
    Pod(ObjectName),
    /// Whoever has this address.
    Address(IpAddr),
}

/// What becomes of a flow, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who begins the flow.
    pub client: PartyView,
    /// Who serves it.
    pub server: PartyView,
    /// The protocol; none for one without ports, such as ICMP.
    pub protocol: Option<Protocol>,
    /// The server's port.
    pub port: u16,
    /// Whether it passes.
    pub allowed: bool,
    /// What the client's policies say.
    pub egress: Side,
    /// What the server's policies say.
    pub ingress: Side,
}

/// A side of a flow, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartyView {
    /// The address, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The pod, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node that has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether the address is this node's own.
    pub own_node: bool,
    /// The index of its endpoint, if the pod is on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<u32>,
}

/// What the policies of one side say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// Which side.
    pub direction: Direction,
    /// Whether the flow passes here.
    pub allowed: bool,
    /// The objects that select the pod in this direction, in the order in which they are asked.
    pub policies: Vec<String>,
    /// The rule that decided, as in `NetworkPolicy shop/web ingress rule 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// Of rules that might have decided otherwise: why each did not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub misses: Vec<String>,
}

impl Engine {
    /// What becomes of a flow from `client` to `port` of `server`, and why.
    pub fn why(&self, client: &Party, server: &Party, protocol: Option<Protocol>, port: u16) -> Explanation {
        let view = |party: &Party| match party {
            Party::Pod(name) => PartyView { pod: Some(name.to_string()), ..PartyView::default() },
            Party::Address(address) => PartyView { address: Some(*address), ..PartyView::default() },
        };
        let side = |direction: Direction| Side {
            direction,
            allowed: true,
            policies: Vec::new(),
            decided_by: None,
            reason: String::new(),
            misses: Vec::new(),
        };
        Explanation {
            client: view(client),
            server: view(server),
            protocol,
            port,
            allowed: true,
            egress: side(Direction::Egress),
            ingress: side(Direction::Ingress),
        }
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stub")
    }
}
