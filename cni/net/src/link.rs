//! What the kernel says about links of the calling thread's network namespace.

use std::collections::BTreeMap;
use std::io;
use std::thread;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use crate::netlink::Kernel;

/// What matters to packets that are sent to a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The id by which this namespace knows the one that the link's other end is in (`IFLA_LINK_NETNSID`, kernel 4.0);
    /// the kernel gives it one if it has none. None if both ends are in this namespace, or the link has only one.
    pub peer_namespace: Option<u32>,
    /// The kind of queue that what it sends passes (`IFLA_QDISC`), as in `noqueue`, `tbf`.
    pub queue: Option<String>,
}

impl Link {
    /// Whether its queue does more than pass packets on in their order.
    pub fn is_shaped(&self) -> bool {
        // `noop` has none while the link is down; a fifo is what drivers with a queue have by default.
        let plain = ["noqueue", "noop", "pfifo_fast"];
        self.queue.as_deref().is_some_and(|queue| !plain.contains(&queue))
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self::default();
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::LinkNetNsId(id) => link.peer_namespace = u32::try_from(id).ok(),
                LinkAttribute::Qdisc(queue) => link.queue = Some(queue),
                _ => {}
            }
        }
        link
    }
}

/// The link of that index.
///
/// # Errors
/// When there is no such link, or the kernel refuses.
pub fn look(index: u32) -> io::Result<Link> {
    let message = apart(|| {
        Kernel::open()?.ask(async |handle| {
            let mut links = handle.link().get().match_index(index).execute();
            links.try_next().await
        })
    })?;
    message.map(Link::from).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Every link, by its index.
///
/// # Errors
/// When the kernel refuses.
pub fn look_at_all() -> io::Result<BTreeMap<u32, Link>> {
    let messages: Vec<LinkMessage> =
        apart(|| Kernel::open()?.ask(async |handle| handle.link().get().execute().try_collect().await))?;
    Ok(messages.into_iter().map(|message| (message.header.index, message.into())).collect())
}

/// Has a conversation with the kernel on a thread of its own: it has a runtime, and the caller's thread may already be
/// part of one.
fn apart<T: Send>(conversation: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| scope.spawn(conversation).join())
        .map_err(|_| io::Error::other("the thread panicked"))?
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::net::if_::if_nametoindex;

    use super::*;
    use crate::netns::NamedNetns;

    fn ask_for(netns: &NamedNetns, link: &'static str) -> Link {
        let found = netns.netns().run(|| look(if_nametoindex(link).expect("the link")));
        found.expect("entered").expect("asked")
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn the_other_end_of_a_veth_pair_is_in_a_namespace_and_loopback_has_no_other_end() {
        let name = |end| format!("fltest-link-{}-{end}", std::process::id());
        let here = NamedNetns::create(&name("a")).expect("a namespace");
        let there = NamedNetns::create(&name("b")).expect("a namespace");
        let mut ip = Command::new("ip");
        ip.args([
            "-n",
            here.name(),
            "link",
            "add",
            "near",
            "type",
            "veth",
            "peer",
            "far",
            "netns",
            there.name(),
        ]);
        assert!(ip.status().expect("ip runs").success());
        assert!(ask_for(&here, "near").peer_namespace.is_some());
        assert_eq!(ask_for(&here, "lo").peer_namespace, None);
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn a_link_is_shaped_from_when_its_queue_is_a_token_bucket_until_that_is_gone() {
        let netns =
            NamedNetns::create(&format!("fltest-link-{}-c", std::process::id())).expect("a namespace");
        let run = |program: &str, arguments: &str| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", netns.name(), program]).args(arguments.split(' '));
            assert!(command.status().expect("ip runs").success(), "{program} {arguments}");
        };
        run("ip", "link add near type veth peer far");
        run("ip", "link set near up");
        assert!(!ask_for(&netns, "near").is_shaped());
        run("tc", "qdisc add dev near clsact");
        assert!(!ask_for(&netns, "near").is_shaped(), "programs hang there");
        run("tc", "qdisc add dev near root tbf rate 1mbit burst 1600 limit 100000");
        assert!(ask_for(&netns, "near").is_shaped());
        let all = netns.netns().run(look_at_all).expect("entered").expect("asked");
        assert_eq!(all.values().filter(|link| link.is_shaped()).count(), 1);
        run("tc", "qdisc del dev near root");
        assert!(!ask_for(&netns, "near").is_shaped());
    }
}
