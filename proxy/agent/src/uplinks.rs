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
use crate::takeover::drain::Flags;

/// The node as the agent has it, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its addresses; empty while its Node object is not known.
    pub addresses: Vec<IpAddr>,
    /// The uplinks that carry the programs.
    pub uplinks: Vec<String>,
    /// The interfaces of other CNIs' pods that carry the programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_interfaces: Vec<String>,
    /// What is not as it should be.
    pub errors: Vec<String>,
}

/// What of the node does not follow its Node object.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// The uplinks, or none if they are to be found by the node's addresses.
    pub uplinks: Vec<String>,
    /// The interfaces behind which another CNI has its pods.
    pub pod_interfaces: Vec<String>,
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
    flags: Flags,
    view: Arc<Mutex<NodeView>>,
}

impl Uplinks {
    /// Over these maps and links.
    pub fn new(
        config: Array<MapData, Config>,
        clients: Arc<Mutex<Clients>>,
        links: Arc<Mutex<Links>>,
        fixed: Fixed,
        flags: Flags,
    ) -> Self {
        Self { config, clients, links, fixed, flags, view: Arc::default() }
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
            self.attach_uplinks(addresses, &mut view);
            view.pod_interfaces =
                self.attach(Place::Pods, "pod interface", &self.fixed.pod_interfaces, &mut view.errors);
        }
        let mut shown = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        for error in view.errors.iter().filter(|error| !shown.errors.contains(error)) {
            tracing::warn!("{error}");
        }
        let is_new = shown.uplinks != view.uplinks || shown.addresses != view.addresses;
        if is_new || shown.pod_interfaces != view.pod_interfaces {
            let NodeView { addresses, uplinks, pod_interfaces, .. } = &view;
            tracing::info!(?addresses, ?uplinks, ?pod_interfaces, "the node's network");
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
        // Held until they are written: another may change them.
        let flags = self.flags.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = Config { flags: *flags, ..node::config(addresses, ports, host_netns, places) };
        if self.config.get(&0, 0).is_ok_and(|config| config == wanted) {
            return;
        }
        if let Err(e) = self.config.set(0, wanted, 0) {
            view.errors.push(format!("write the node's configuration: {e}"));
        }
    }

    fn attach_uplinks(&mut self, addresses: &[IpAddr], view: &mut NodeView) {
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
        let overlays = interfaces::overlays().map(str::to_owned);
        let names: Vec<String> = names.into_iter().chain(overlays).collect();
        view.uplinks = self.attach(Place::Uplink, "uplink", &names, &mut view.errors);
    }

    /// Attaches the programs of `place`, which people call `what`, to the interfaces of these names, and takes them from
    /// all others. Returns to which it did.
    fn attach(&self, place: Place, what: &str, names: &[String], errors: &mut Vec<String>) -> Vec<String> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut wanted, mut attached) = (BTreeSet::new(), Vec::new());
        for name in names {
            let index = match if_nametoindex(name.as_str()) {
                Ok(index) => index,
                Err(e) => {
                    errors.push(format!("{what} {name}: {e}"));
                    continue;
                }
            };
            wanted.insert(index);
            match links.attach(place, index) {
                Ok(()) => attached.push(name.clone()),
                Err(e) => errors.push(format!("{what} {name}: {}", chain(&e))),
            }
        }
        for index in links.attached(place).unwrap_or_default() {
            if !wanted.contains(&index)
                && let Err(e) = links.detach(place, index)
            {
                errors.push(e.to_string());
            }
        }
        attached
    }
}
