//! Changes of the node's interfaces, their addresses and their queues, as the kernel tells them over rtnetlink.
//!
//! What is told is not read: it says that it is time to list anew. Pods come and go with an interface each, so only
//! what bears on the node is passed on, and what comes together once.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use fairlead_net::vxlan::Underlay;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::node;

/// How long to wait for what comes together with a change.
const PAUSE: Duration = Duration::from_millis(100);

/// What bears on the node.
#[derive(PartialEq, Eq)]
struct Seen {
    /// The interfaces that have an address which clients may dial: name, index and address, in order.
    dialable: Vec<(String, u32, IpAddr)>,
    /// The indices of the overlay's devices.
    overlays: Vec<u32>,
}

/// Tells `send` the addresses of the node's interfaces, now and whenever these or their addresses change, for as long
/// as it takes them. Runs on a thread of its own, in the network namespace of the caller.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn follow(send: impl Fn(Vec<IpAddr>) -> bool + Send + 'static) -> io::Result<()> {
    let changes = subscribe(libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR)?;
    let mut seen = look();
    std::thread::Builder::new().name("interfaces".into()).spawn(move || {
        let mut heard = send(addresses(&seen));
        while heard {
            if let Err(e) = wait(&changes) {
                tracing::warn!("follow the interfaces: {e}; they are looked at now and then");
                return;
            }
            std::thread::sleep(PAUSE);
            let _ = drain(&changes);
            let now = look();
            if now.dialable.is_empty() || now == seen {
                continue;
            }
            heard = send(addresses(&now));
            seen = now;
        }
    })?;
    Ok(())
}

/// Calls `changed` whenever a queue of any interface has come, changed or gone. Runs on a thread of its own, in the
/// network namespace of the caller.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn follow_queues(changed: impl Fn() + Send + 'static) -> io::Result<()> {
    let changes = subscribe(libc::RTMGRP_TC)?;
    std::thread::Builder::new().name("queues".into()).spawn(move || {
        loop {
            if let Err(e) = wait(&changes) {
                tracing::warn!("follow the interfaces' queues: {e}; they are looked at now and then");
                return;
            }
            let _ = drain(&changes);
            changed();
        }
    })?;
    Ok(())
}

/// The addresses of the node's interfaces that clients may dial. None if the kernel refuses to list them.
pub fn local_addresses() -> Vec<IpAddr> {
    addresses(&look())
}

/// The names of the overlay's devices that there are.
pub fn overlays() -> impl Iterator<Item = &'static str> {
    Underlay::ALL.map(Underlay::ifname).into_iter().filter(|name| if_nametoindex(*name).is_ok())
}

fn addresses(seen: &Seen) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = seen.dialable.iter().map(|(_, _, address)| *address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn look() -> Seen {
    let listed = node::interface_addresses().unwrap_or_else(|e| {
        tracing::warn!("list interfaces: {e}");
        Vec::new()
    });
    let dialable = listed.into_iter().filter(|(_, address)| node::is_dialable(*address));
    let index = |name: &str| if_nametoindex(name).unwrap_or(0);
    let mut dialable: Vec<_> =
        dialable.map(|(name, address)| (name.clone(), index(&name), address)).collect();
    dialable.sort();
    Seen { dialable, overlays: overlays().map(index).collect() }
}

fn subscribe(groups: i32) -> io::Result<OwnedFd> {
    let changes =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(changes.as_raw_fd(), &NetlinkAddr::new(0, groups.cast_unsigned()))?;
    Ok(changes)
}

/// Waits for a change. Changes that the kernel had no room for are some, too.
fn wait(changes: &OwnedFd) -> io::Result<()> {
    loop {
        match recv(changes.as_raw_fd(), &mut [0; 8192], MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Passes over the changes that are there.
fn drain(changes: &OwnedFd) -> io::Result<()> {
    loop {
        match recv(changes.as_raw_fd(), &mut [0; 8192], MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}
