//! What people are told of the maps: whose a frontend is, and which backends there are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_abi::FrontendKey;
use serde::Serialize;

use super::Reconciler;
use crate::model::{ObjectName, Protocol};

/// A backend that has an id in the maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// Its id: its place in [`fairlead_abi::maps::BACKENDS`].
    pub id: u32,
    /// The object that leads to it, as in `Service shop/web`.
    pub owner: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether new flows may get it. Without that, it only serves those that are under way.
    pub takes_new: bool,
    /// The node that it is on, as its EndpointSlice says.
    pub node: Option<String>,
    /// That node's zone.
    pub zone: Option<String>,
    /// Whether its EndpointSlice says that it is on its way out.
    pub terminating: bool,
}

impl Reconciler {
    /// Whose frontend the map has at `key`, or at the whole of its address: `Service shop/web`, `Pod shop/web-1`.
    pub fn frontend_owner(&self, key: &FrontendKey) -> Option<String> {
        let of = |key: &FrontendKey| self.ledger.frontends.get(key)?.owner.as_ref();
        let owner = of(key).or_else(|| of(&FrontendKey::whole(key.address)))?;
        Some(self.index.label(owner))
    }

    /// The backends in the maps, in order of owner and address: of one Service, or of all.
    pub fn backends(&self, service: Option<&ObjectName>) -> Vec<BackendView> {
        let mut owners: Vec<&ObjectName> = match service {
            Some(name) => vec![name],
            None => self.ledger.holdings.keys().collect(),
        };
        owners.sort_unstable();
        owners.into_iter().flat_map(|owner| self.backends_of(owner)).collect()
    }

    fn backends_of(&self, owner: &ObjectName) -> Vec<BackendView> {
        let Some(holding) = self.ledger.holdings.get(owner) else { return Vec::new() };
        let listed: HashMap<IpAddr, (Option<&Arc<str>>, bool)> = self
            .index
            .slices(owner)
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| (endpoint.address, (endpoint.node.as_ref(), endpoint.terminating)))
            .collect();
        let zone = |node: &str| self.index.nodes().find(|known| known.name == node)?.zone.clone();
        let view = |((protocol, address), id): (&(Protocol, crate::endpoints::BackendAddress), &u32)| {
            let (node, terminating) = listed.get(&address.ip).copied().unwrap_or_default();
            BackendView {
                id: *id,
                owner: self.index.label(owner),
                protocol: *protocol,
                address: address.ip,
                port: address.port,
                takes_new: self.ledger.is_referred_to(*id),
                node: node.map(|node| node.to_string()),
                zone: node.and_then(|node| zone(node)),
                terminating,
            }
        };
        holding.backends.iter().map(view).collect()
    }
}
