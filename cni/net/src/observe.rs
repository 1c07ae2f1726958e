//! What the kernel holds about one interface: the other half of a comparison with a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};

use crate::attachment::Mac;
use crate::netlink::Kernel;
use crate::plan::{Step, default_of};
use crate::routes::Route;
use crate::shaping::{TokenBucket, token_bucket};

/// The state of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Its interface index.
    pub index: u32,
    /// The index of a veth pair's other end, in the namespace that that is in.
    pub peer: Option<u32>,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Whether it is set up.
    pub is_up: bool,
    /// Its alias.
    pub alias: Option<String>,
    /// Its addresses with their prefixes.
    pub addresses: BTreeSet<IpNet>,
    /// The routes of the main table through it.
    pub routes: BTreeSet<Route>,
    /// Its permanent neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Its root queue, if that is a token bucket.
    pub limit: Option<TokenBucket>,
    /// The settings that were asked for, by family and key.
    pub sysctls: BTreeMap<(&'static str, &'static str), String>,
}

/// Reads the interface `ifname` of the calling thread's namespace, and of its settings those that `steps` name; None
/// if there is no such interface.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn observe(kernel: &Kernel, ifname: &str, steps: &[Step]) -> io::Result<Option<Observed>> {
    let Ok(index) = if_nametoindex(ifname) else {
        return Ok(None);
    };
    let Some(mut seen) = link(kernel, index)? else {
        return Ok(None);
    };
    let addresses: Vec<AddressMessage> = kernel.ask(async |handle| {
        handle.address().get().set_link_index_filter(index).execute().try_collect().await
    })?;
    seen.addresses = addresses.iter().filter_map(address).collect();
    seen.routes = device_routes(kernel)?.into_iter().filter(|(i, _)| *i == index).map(|(_, r)| r).collect();
    seen.neighbours = neighbours(kernel, index)?;
    seen.limit = queue(kernel, index)?;
    for step in steps {
        if let Step::Sysctl { family, key, .. } = step
            && let Ok(value) = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{ifname}/{key}"))
        {
            seen.sysctls.insert((family, key), value.trim().into());
        }
    }
    Ok(Some(seen))
}

/// The routes of the main table that lead through one device, with its index.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn device_routes(kernel: &Kernel) -> io::Result<Vec<(u32, Route)>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let messages: Vec<RouteMessage> =
            kernel.ask(async |handle| handle.route().get(request).execute().try_collect().await)?;
        routes.extend(messages.iter().filter_map(device_route));
    }
    Ok(routes)
}

fn device_route(message: &RouteMessage) -> Option<(u32, Route)> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut index, mut destination, mut gateway) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    // A default route has no destination.
    let destination = match destination {
        Some(address) => IpNet::new(address, header.destination_prefix_length).ok()?,
        None => default_of(gateway?),
    };
    Some((index?, Route { destination, gateway }))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

fn link(kernel: &Kernel, index: u32) -> io::Result<Option<Observed>> {
    let found = kernel.ask(async |handle| {
        let mut links = handle.link().get().match_index(index).execute();
        links.try_next().await
    })?;
    let Some(link) = found else { return Ok(None) };
    let is_up = link.header.flags.contains(LinkFlags::Up);
    let mut seen = Observed { index, is_up, ..Observed::default() };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::Link(peer) => seen.peer = Some(peer),
            LinkAttribute::Address(bytes) => seen.mac = mac(&bytes),
            LinkAttribute::Mtu(mtu) => seen.mtu = Some(mtu),
            LinkAttribute::IfAlias(alias) => seen.alias = Some(alias),
            _ => {}
        }
    }
    Ok(Some(seen))
}

fn address(message: &AddressMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn neighbours(kernel: &Kernel, index: u32) -> io::Result<BTreeMap<IpAddr, Mac>> {
    let messages: Vec<_> =
        kernel.ask(async |handle| handle.neighbours().get().execute().try_collect().await)?;
    let permanent = messages.iter().filter(|message| {
        message.header.ifindex == index && message.header.state == NeighbourState::Permanent
    });
    let entry = |attributes: &[NeighbourAttribute]| {
        let (mut address, mut link) = (None, None);
        for attribute in attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    address = Some(IpAddr::V4(*v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    address = Some(IpAddr::V6(*v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => link = mac(bytes),
                _ => {}
            }
        }
        Some((address?, link?))
    };
    Ok(permanent.filter_map(|message| entry(&message.attributes)).collect())
}

fn queue(kernel: &Kernel, index: u32) -> io::Result<Option<TokenBucket>> {
    let index = index.cast_signed();
    let queues: Vec<_> =
        kernel.ask(async |handle| handle.qdisc().get().index(index).execute().try_collect().await)?;
    Ok(queues.iter().filter(|queue| queue.header.index == index).find_map(token_bucket))
}
