//! Changes on the node that others make: of its interfaces and our routes, and in directories.
//!
//! What is told is only a reason to look again. Pods come and go with an interface each, which is no such reason.

use std::fs;
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::Notify;

use crate::ROUTE_PROTOCOL;
use crate::attachment::{Attachment, Mac};

/// What the kernel tells of.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Changes of the interfaces, in the namespace of the thread that began to follow them.
pub struct InterfaceChanges(UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>);

impl InterfaceChanges {
    /// Begins to follow them; within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn follow() -> io::Result<Self> {
        let (connection, _, messages) = new_multicast_connection(&GROUPS)?;
        tokio::spawn(connection);
        Ok(Self(messages))
    }

    /// Waits for a change that may bear on the ways to other nodes; for ever once the kernel tells no more.
    pub async fn next(&mut self) {
        while let Some((message, _)) = self.0.next().await {
            if let NetlinkPayload::InnerMessage(message) = message.payload
                && matters(&message)
            {
                return;
            }
        }
        pending::<()>().await;
    }
}

fn matters(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => !is_pods(link),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            !is_link_local(address)
        }
        RouteNetlinkMessage::DelRoute(route) => is_node_route(route),
        _ => false,
    }
}

fn is_pods(link: &LinkMessage) -> bool {
    let (mut ifname, mut mac) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => ifname = Some(name),
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
            _ => {}
        }
    }
    ifname.zip(mac).is_some_and(|(ifname, mac)| Attachment::is_host_side(ifname, mac))
}

fn is_link_local(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V6(v6)) => v6.is_unicast_link_local(),
        _ => false,
    })
}

fn is_node_route(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::from(ROUTE_PROTOCOL)
        && route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_)))
}

/// Changes of files in some directories.
pub struct FileChanges(Arc<Notify>);

impl FileChanges {
    /// Begins to follow them, on a thread of its own. Directories that are not there are made.
    ///
    /// # Errors
    /// When one can't be made or followed.
    pub fn follow(directories: &[&Path]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        let kinds = AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE;
        for directory in directories {
            fs::create_dir_all(directory)?;
            inotify.add_watch(*directory, kinds)?;
        }
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        thread::Builder::new().name("files".into()).spawn(move || {
            loop {
                match inotify.read_events() {
                    Ok(_) => notify.notify_one(),
                    Err(Errno::EINTR) => {}
                    Err(e) => return tracing::warn!("follow files: {e}; they are looked at now and then"),
                }
            }
        })?;
        Ok(Self(changed))
    }

    /// Waits for a change.
    pub async fn next(&self) {
        self.0.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_change_in_a_directory_is_told() {
        let directory = tempfile::tempdir().expect("directory");
        let inside = directory.path().join("made");
        let changes = FileChanges::follow(&[&inside]).expect("followed");
        assert!(timeout(Duration::from_millis(50), changes.next()).await.is_err(), "nothing has changed");
        fs::write(inside.join("a"), "1").expect("write");
        timeout(PATIENCE, changes.next()).await.expect("in time");
    }

    #[test]
    fn a_pods_interface_is_no_reason_to_look_again() {
        let pod = Attachment::new("pod", "eth0").expect("valid");
        let link = |name: &str| {
            let mut link = LinkMessage::default();
            link.attributes =
                vec![LinkAttribute::IfName(name.into()), LinkAttribute::Address(pod.host_mac().0.to_vec())];
            RouteNetlinkMessage::NewLink(link)
        };
        assert!(!matters(&link(&pod.host_ifname())));
        for name in ["eth0", "fairlead-vxlan", "flannel.1"] {
            assert!(matters(&link(name)), "{name}");
        }
    }
}
