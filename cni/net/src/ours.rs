//! Which interfaces of the host are pods' and whose, as the kernel alone tells: for those who find them without a
//! record.
//!
//! An interface is ours if its name and its Ethernet address come from one digest ([`Attachment::is_host_side`]). Its
//! alias says whose it is; one whose ADD was killed before it wrote that has none, and no route leads to it yet.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use crate::alias;
use crate::attachment::{Attachment, Mac};
use crate::netlink::Kernel;
use crate::observe::device_routes;

/// The host's side of a pod's pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub ifname: String,
    /// The network and the attachment that it was made for, where its alias says so.
    pub owner: Option<(String, Attachment)>,
    /// The addresses that the host routes to it.
    pub addresses: Vec<IpAddr>,
}

/// The interfaces of ours in the calling thread's namespace.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn survey() -> io::Result<Vec<Ours>> {
    let kernel = Kernel::open()?;
    let links: Vec<LinkMessage> =
        kernel.ask(async |handle| handle.link().get().execute().try_collect().await)?;
    let found: Vec<Ours> = links.iter().filter_map(ours).collect();
    if found.is_empty() {
        return Ok(found);
    }
    let mut addresses: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for (index, route) in device_routes(&kernel)? {
        let destination = route.destination;
        if route.gateway.is_none() && destination.prefix_len() == destination.max_prefix_len() {
            addresses.entry(index).or_default().push(destination.addr());
        }
    }
    let with_addresses =
        |ours: Ours| Ours { addresses: addresses.remove(&ours.index).unwrap_or_default(), ..ours };
    Ok(found.into_iter().map(with_addresses).collect())
}

fn ours(link: &LinkMessage) -> Option<Ours> {
    let mut name = None;
    let mut mac = None;
    let mut owner = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
            LinkAttribute::IfAlias(text) => owner = alias::owner(text),
            _ => {}
        }
    }
    let (ifname, mac) = (name?, mac?);
    // An alias that another name goes with is somebody else's writing.
    let owner = owner.filter(|(_, attachment)| attachment.host_ifname() == ifname);
    Attachment::is_host_side(&ifname, mac).then_some(Ours {
        index: link.header.index,
        ifname,
        owner,
        addresses: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment::new("pod", "eth0").expect("valid")
    }

    #[test]
    fn an_interface_is_known_by_name_and_ethernet_address_and_its_owner_by_an_alias_that_goes_with_the_name()
    {
        let link = |ifname: &str, mac: Mac, alias: &str| {
            let mut link = LinkMessage::default();
            link.header.index = 7;
            link.attributes = vec![
                LinkAttribute::IfName(ifname.into()),
                LinkAttribute::Address(mac.0.to_vec()),
                LinkAttribute::IfAlias(alias.into()),
            ];
            link
        };
        let (name, mac) = (attachment().host_ifname(), attachment().host_mac());
        let found = ours(&link(&name, mac, "fairlead pods pod/eth0")).expect("ours");
        assert_eq!(found.owner, Some(("pods".into(), attachment())));
        let found = ours(&link(&name, mac, "fairlead pods other/eth0")).expect("ours");
        assert_eq!(found.owner, None);
        assert_eq!(ours(&link(&name, attachment().pod_mac(), "fairlead pods pod/eth0")), None);
    }
}
