//! The kernel's tables of links, neighbours, routes and rules, read and changed an item at a time.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, IpVersion, LinkUnspec, LinkVxlan};

use crate::here::Here;
use crate::messages;
use crate::netlink::{cause, open};
use crate::network::{Change, Item, NodeRoute};
use crate::vxlan::{Device, Underlay};

/// The kernel's tables, in the namespace of the thread that opened them.
pub struct Tables {
    handle: Handle,
    proc_sys: PathBuf,
}

impl Tables {
    /// Opens the tables; within a tokio runtime. Settings of devices are written under `proc_sys`
    /// ([`PROC_SYS`](crate::sysctl::PROC_SYS), or where the node's is mounted).
    ///
    /// # Errors
    /// When the system gives no netlink socket.
    pub fn open(proc_sys: &Path) -> io::Result<Self> {
        Ok(Self { handle: open()?, proc_sys: proc_sys.to_owned() })
    }

    /// The addresses of this node's interfaces.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn here(&self) -> io::Result<Here> {
        Here::read(&self.handle).await
    }

    /// The items that there are.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn read(&self) -> io::Result<BTreeSet<Item>> {
        let mut items = BTreeSet::new();
        let mut devices = messages::Devices::new();
        for underlay in Underlay::ALL {
            if let Some((index, device)) = self.device(underlay).await? {
                devices.insert(underlay, index);
                items.extend(device.map(Item::Device));
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut routes = std::pin::pin!(self.handle.route().get(request).execute());
            while let Some(message) = routes.try_next().await.map_err(cause)? {
                items.extend(messages::node_route(&message, &devices).map(Item::Route));
            }
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut rules = std::pin::pin!(self.handle.rule().get(version).execute());
            while let Some(message) = rules.try_next().await.map_err(cause)? {
                items.extend(messages::rule(&message));
            }
        }
        if !devices.is_empty() {
            for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
                let request = self.handle.neighbours().get().set_address_family(family);
                let mut neighbours = std::pin::pin!(request.execute());
                while let Some(message) = neighbours.try_next().await.map_err(cause)? {
                    items.extend(messages::neighbour(&message, &devices));
                }
            }
        }
        Ok(items)
    }

    /// Carries out one change.
    ///
    /// # Errors
    /// When the kernel refuses, as it does where a route's gateway is not on a connected subnet.
    pub async fn apply(&self, change: &Change) -> io::Result<()> {
        match change {
            Change::Set(item) => self.set(item).await,
            Change::Remove(item) => match self.remove(item).await {
                Err(e) if is_gone(&e) => Ok(()),
                outcome => outcome,
            },
        }
    }

    async fn set(&self, item: &Item) -> io::Result<()> {
        let neighbours = self.handle.neighbours();
        match item {
            Item::Device(device) => self.set_device(device).await,
            Item::Forward { device, mac, remote } => {
                let request = neighbours.add_bridge(index(*device)?, &mac.0).destination(*remote);
                request.flags(NeighbourFlags::Own).replace().execute().await.map_err(cause)
            }
            Item::Neighbour { device, address, mac } => {
                let request = neighbours.add(index(*device)?, *address).link_layer_address(&mac.0);
                request.replace().execute().await.map_err(cause)
            }
            Item::Route(route) => {
                let request = self.handle.route().add(message_of(route)?).replace();
                request.execute().await.map_err(cause)
            }
            Item::Rule { source } => {
                let mut request = self.handle.rule().add();
                *request.message_mut() = messages::rule_message(*source);
                match request.execute().await.map_err(cause) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    outcome => outcome,
                }
            }
        }
    }

    async fn remove(&self, item: &Item) -> io::Result<()> {
        let neighbours = self.handle.neighbours();
        match item {
            Item::Device(device) => {
                let index = index(device.underlay)?;
                self.handle.link().del(index).execute().await.map_err(cause)
            }
            Item::Forward { device, mac, remote } => {
                let request = neighbours.add_bridge(index(*device)?, &mac.0).destination(*remote);
                let message = request.flags(NeighbourFlags::Own).message_mut().clone();
                neighbours.del(message).execute().await.map_err(cause)
            }
            Item::Neighbour { device, address, .. } => {
                let message = neighbours.add(index(*device)?, *address).message_mut().clone();
                neighbours.del(message).execute().await.map_err(cause)
            }
            Item::Route(route) => self.handle.route().del(message_of(route)?).execute().await.map_err(cause),
            Item::Rule { source } => {
                self.handle.rule().del(messages::rule_message(*source)).execute().await.map_err(cause)
            }
        }
    }

    /// The interface of that name, with what it is like; None for that if it is something else.
    async fn device(&self, underlay: Underlay) -> io::Result<Option<(u32, Option<Device>)>> {
        let mut links =
            std::pin::pin!(self.handle.link().get().match_name(underlay.ifname().to_owned()).execute());
        match links.try_next().await.map_err(cause) {
            Ok(link) => Ok(link.map(|link| (link.header.index, messages::device(&link, underlay)))),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Changes the MTU of a device that is right otherwise; any other is made anew, and what hung on it is gone.
    async fn set_device(&self, device: &Device) -> io::Result<()> {
        let links = self.handle.link();
        if let Some((index, found)) = self.device(device.underlay).await? {
            if found.is_some_and(|found| Device { mtu: device.mtu, ..found } == *device) {
                let resized = LinkUnspec::new_with_index(index).mtu(device.mtu).build();
                return links.change(resized).execute().await.map_err(cause);
            }
            links.del(index).execute().await.map_err(cause)?;
        }
        let name = device.underlay.ifname();
        let message = LinkVxlan::new(name, device.vni)
            .port(device.port)
            .learning(false)
            .address(device.mac.0.to_vec())
            .mtu(device.mtu);
        let message = match device.source {
            IpAddr::V4(source) => message.local(source),
            IpAddr::V6(source) => message.local6(source),
        };
        links.add(message.build()).execute().await.map_err(cause)?;
        settle(&self.proc_sys, name);
        let up = LinkUnspec::new_with_index(index(device.underlay)?).up().build();
        links.change(up).execute().await.map_err(cause)
    }
}

/// Lets the device have no address of its own, so that nothing is sent by it that is not for a pod or a node.
fn settle(proc_sys: &Path, ifname: &str) {
    let mode = proc_sys.join(format!("net/ipv6/conf/{ifname}/addr_gen_mode"));
    if let Err(e) = fs::write(mode, "1") {
        // It then has a link-local address, which does no harm; or the kernel is without IPv6.
        tracing::debug!("{ifname}: set addr_gen_mode: {e}");
    }
}

fn index(underlay: Underlay) -> io::Result<u32> {
    Ok(if_nametoindex(underlay.ifname())?)
}

fn message_of(route: &NodeRoute) -> io::Result<RouteMessage> {
    Ok(messages::route_message(route, route.device.map(index).transpose()?))
}

/// Whether the kernel says that there is no such thing: what it was about may have taken it along.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL))
}
