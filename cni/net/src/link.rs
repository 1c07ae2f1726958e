//! What the kernel says about one link of the calling thread's network namespace.

use std::io;
use std::thread;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::LinkAttribute;

use crate::netlink::Kernel;

/// The id by which this namespace knows the one that the link's other end is in (`IFLA_LINK_NETNSID`, kernel 4.0);
/// the kernel gives it one if it has none. None if both ends are in this namespace, or the link has only one.
///
/// # Errors
/// When there is no such link, or the kernel refuses.
pub fn peer_namespace(index: u32) -> io::Result<Option<u32>> {
    // The conversation has a runtime of its own, which the caller's thread may already be part of.
    thread::scope(|scope| scope.spawn(|| ask(index)).join())
        .map_err(|_| io::Error::other("the thread panicked"))?
}

fn ask(index: u32) -> io::Result<Option<u32>> {
    let link = Kernel::open()?.ask(async |handle| {
        let mut links = handle.link().get().match_index(index).execute();
        links.try_next().await
    })?;
    let link = link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    Ok(link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(id) => u32::try_from(*id).ok(),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::net::if_::if_nametoindex;

    use super::*;
    use crate::netns::NamedNetns;

    fn ask_for(netns: &NamedNetns, link: &'static str) -> Option<u32> {
        let found = netns.netns().run(|| peer_namespace(if_nametoindex(link).expect("the link")));
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
        assert!(ask_for(&here, "near").is_some());
        assert_eq!(ask_for(&here, "lo"), None);
    }
}
