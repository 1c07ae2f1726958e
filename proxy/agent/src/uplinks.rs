//! What follows the node's own Node object: the programs' configuration and the programs at the uplinks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, MapData};
use fairlead_abi::Config;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use crate::dataplane::clients::Clients;
use crate::dataplane::links::{Links, Place};
use crate::errors::chain;
use crate::interfaces;
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

/// What of the node does not follow its Node object.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// The uplinks, or none if they are to be found by the node's addresses.
    pub uplinks: Vec<String>,
    /// The ports that masqueraded flows leave with.
    pub ports: PortRange,
    /// How many connections there is room for.
    pub places: u32,
    /// The cookie of the host's network namespace.
    pub host_netns: u64,
}

/// Keeps [`fairlead_abi::maps::CONFIG`], the host among the socket clients and the uplinks as the Node object says.
pub struct Uplinks {
    config: Array<MapData, Config>,
    clients: Arc<Mutex<Clients>>,
    links: Arc<Mutex<Links>>,
    fixed: Fixed,
    view: Arc<Mutex<NodeView>>,
}

impl Uplinks {
    /// Over these maps and links.
    pub fn new(
        config: Array<MapData, Config>,
        clients: Arc<Mutex<Clients>>,
        links: Arc<Mutex<Links>>,
        fixed: Fixed,
    ) -> Self {
        Self { config, clients, links, fixed, view: Arc::default() }
    }

    /// Where the state is shown.
    pub fn view(&self) -> Arc<Mutex<NodeView>> {
        Arc::clone(&self.view)
    }

    /// Brings configuration and uplinks to a node with these addresses. What fails is shown and tried again
    /// at the next call; a node that is not known changes nothing.
    pub fn apply(&mut self, addresses: &[IpAddr]) {
        let mut view = NodeView { addresses: addresses.to_vec(), ..NodeView::default() };
        if !addresses.is_empty() || !self.fixed.uplinks.is_empty() {
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
        let Fixed { ports, places, host_netns, .. } = self.fixed;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = clients.set(host_netns, addresses) {
            view.errors.push(chain(&e));
        }
        drop(clients);
        let wanted = node::config(addresses, ports, host_netns, places);
        if self.config.get(&0, 0).is_ok_and(|config| config == wanted) {
            return;
        }
        if let Err(e) = self.config.set(0, wanted, 0) {
            view.errors.push(format!("write the node's configuration: {e}"));
        }
    }

    fn attach(&mut self, addresses: &[IpAddr], view: &mut NodeView) {
        let names = if self.fixed.uplinks.is_empty() {
            let listed = node::interface_addresses().unwrap_or_else(|e| {
                view.errors.push(format!("list interfaces: {e}"));
                Vec::new()
            });
            node::uplinks_of(&listed, addresses)
        } else {
            self.fixed.uplinks.iter().cloned().collect()
        };
        if names.is_empty() {
            view.errors.push(format!("no interface carries one of {addresses:?}: see --uplink"));
            return;
        }
        // Other nodes' packets come out of the overlay's devices, and the node's own answers go into them.
        let names = names.into_iter().chain(interfaces::overlays().map(str::to_owned));
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
