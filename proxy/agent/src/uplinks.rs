//! What follows the node's own Node object: the programs' configuration and the programs at the uplinks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, MapData};
use fairlead_abi::Config;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use crate::dataplane::links::{Links, Place};
use crate::errors::chain;
use crate::node::{self, PortRange};

/// The node as the agent has it, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its addresses; empty while its Node object is not known.
    pub addresses: Vec<IpAddr>,
    /// The uplinks that carry the programs.
    pub uplinks: Vec<String>,
    /// What is not as it should be.
    pub errors: Vec<String>,
}

/// Keeps [`fairlead_abi::maps::CONFIG`] and the uplinks as the Node object says.
pub struct Uplinks {
    config: Array<MapData, Config>,
    links: Arc<Mutex<Links>>,
    named: Vec<String>,
    ports: PortRange,
    host_netns: u64,
    view: Arc<Mutex<NodeView>>,
}

impl Uplinks {
    /// Uplinks that are `named`, or found by the node's addresses if none is.
    pub fn new(
        config: Array<MapData, Config>,
        links: Arc<Mutex<Links>>,
        named: Vec<String>,
        ports: PortRange,
        host_netns: u64,
    ) -> Self {
        Self { config, links, named, ports, host_netns, view: Arc::default() }
    }

    /// Where the state is shown.
    pub fn view(&self) -> Arc<Mutex<NodeView>> {
        Arc::clone(&self.view)
    }

    /// Brings configuration and uplinks to a node with these addresses. What fails is shown and tried again
    /// at the next call; a node that is not known changes nothing.
    pub fn apply(&mut self, addresses: &[IpAddr]) {
        let mut view = NodeView { addresses: addresses.to_vec(), ..NodeView::default() };
        if !addresses.is_empty() || !self.named.is_empty() {
            self.configure(addresses, &mut view);
            self.attach(addresses, &mut view);
        }
        let mut shown = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        for error in view.errors.iter().filter(|error| !shown.errors.contains(error)) {
            tracing::warn!("{error}");
        }
        if shown.uplinks != view.uplinks || shown.addresses != view.addresses {
            tracing::info!(addresses = ?view.addresses, uplinks = ?view.uplinks, "the node's network");
        }
        *shown = view;
    }

    fn configure(&mut self, addresses: &[IpAddr], view: &mut NodeView) {
        if addresses.is_empty() {
            return;
        }
        let wanted = node::config(addresses, self.ports, self.host_netns);
        if self.config.get(&0, 0).is_ok_and(|config| config == wanted) {
            return;
        }
        if let Err(e) = self.config.set(0, wanted, 0) {
            view.errors.push(format!("write the node's configuration: {e}"));
        }
    }

    fn attach(&mut self, addresses: &[IpAddr], view: &mut NodeView) {
        let names = if self.named.is_empty() {
            node::uplinks_of(addresses).unwrap_or_else(|e| {
                view.errors.push(format!("list interfaces: {e}"));
                BTreeSet::new()
            })
        } else {
            self.named.iter().cloned().collect()
        };
        if names.is_empty() {
            view.errors.push(format!("no interface carries one of {addresses:?}: see --uplink"));
            return;
        }
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = BTreeSet::new();
        for name in names {
            let index = match if_nametoindex(name.as_str()) {
                Ok(index) => index,
                Err(e) => {
                    view.errors.push(format!("uplink {name}: {e}"));
                    continue;
                }
            };
            wanted.insert(index);
            match links.attach(Place::Uplink, index) {
                Ok(()) => view.uplinks.push(name),
                Err(e) => view.errors.push(format!("uplink {name}: {}", chain(&e))),
            }
        }
        for index in links.attached(Place::Uplink).unwrap_or_default() {
            if !wanted.contains(&index)
                && let Err(e) = links.detach(Place::Uplink, index)
            {
                view.errors.push(e.to_string());
            }
        }
    }
}
