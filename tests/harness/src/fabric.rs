//! The uplink fabric: a bridge for each subnet in a namespace of its own, and a veth pair to everyone on it.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use fairlead_net::netns::Netns;
use futures::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::layout::{MAIN_SUBNET, SUBNET_BITS, fabric_address};

/// The interface by which everyone is on the fabric.
pub const UPLINK: &str = "eth0";

/// Makes the bridge of a subnet, with the addresses of host `host` on it.
///
/// # Errors
/// When the kernel refuses.
pub fn create(fabric: &Netns, subnet: u8, host: u8) -> Result<()> {
    let bridge = bridge(subnet);
    netlink(fabric, async move |netlink| {
        netlink.link().add(LinkBridge::new(&bridge).up().build()).execute().await?;
        add_fabric_addresses(&netlink, &bridge, subnet, host).await
    })
    .with_context(|| format!("make the bridge of subnet {subnet}"))
}

/// The name of a subnet's bridge.
fn bridge(subnet: u8) -> String {
    if subnet == MAIN_SUBNET { "fabric".to_owned() } else { format!("fabric{subnet}") }
}

/// The name of the bridge's port that leads to host `host`.
pub fn port(host: u8) -> String {
    format!("port{host}")
}

/// The Ethernet address of a host's interface: a machine keeps it when it reboots.
fn mac(subnet: u8, host: u8) -> Vec<u8> {
    vec![0x02, 0x90, 0, 0, subnet, host]
}

/// Joins a namespace to a subnet by an interface [`UPLINK`] with the addresses of host `host`. No two have one number,
/// also if they are on different subnets.
///
/// # Errors
/// When the kernel refuses.
pub fn join(fabric: &Netns, netns: &Netns, subnet: u8, host: u8) -> Result<()> {
    let (port, bridge) = (port(host), bridge(subnet));
    let far = LinkMessageBuilder::<LinkUnspec>::new()
        .name(port.clone())
        .setns_by_fd(fabric.as_fd().as_raw_fd())
        .build();
    netlink(netns, async move |netlink| {
        let pair =
            LinkMessageBuilder::<LinkVeth>::new_with_info_kind(rtnetlink::packet_route::link::InfoKind::Veth)
                .name(UPLINK)
                .address(mac(subnet, host))
                .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
                .up()
                .build();
        netlink.link().add(pair).execute().await?;
        add_fabric_addresses(&netlink, UPLINK, subnet, host).await
    })
    .with_context(|| format!("make the interface of host {host} on the fabric"))?;
    netlink(fabric, async move |netlink| {
        let bridge = index_of(&netlink, &bridge).await?;
        let member = LinkMessageBuilder::<LinkUnspec>::new().name(port).controller(bridge).up().build();
        Ok(netlink.link().set(member).execute().await?)
    })
    .with_context(|| format!("plug host {host} into the fabric"))
}

/// Sends what the namespace has no other route for to host `gateway` of its subnet, as a node's default route
/// does. Without one, the kernel refuses to connect a socket to a ClusterIP before any program sees it.
///
/// # Errors
/// When the kernel refuses.
pub fn add_default_routes(netns: &Netns, subnet: u8, gateway: u8) -> Result<()> {
    netlink(netns, async move |netlink| {
        let (v4, v6) = fabric_address(subnet, gateway);
        for (unspecified, gateway) in
            [(IpAddr::V4(Ipv4Addr::UNSPECIFIED), v4), (IpAddr::V6(Ipv6Addr::UNSPECIFIED), v6)]
        {
            let route = RouteMessageBuilder::<IpAddr>::new();
            let route = route.destination_prefix(unspecified, 0)?.gateway(gateway)?.build();
            netlink.route().add(route).execute().await?;
        }
        Ok(())
    })
    .context("add the default routes")
}

/// Gives an interface inside the namespace one more address.
///
/// # Errors
/// When there is no such interface or the kernel refuses.
pub fn add_address(netns: &Netns, interface: &str, address: IpAddr, prefix_length: u8) -> Result<()> {
    let interface = interface.to_owned();
    netlink(netns, async move |netlink| {
        let index = index_of(&netlink, &interface).await?;
        Ok(netlink.address().add(index, address, prefix_length).execute().await?)
    })
    .with_context(|| format!("add address {address}"))
}

async fn add_fabric_addresses(netlink: &Handle, interface: &str, subnet: u8, host: u8) -> Result<()> {
    let index = index_of(netlink, interface).await?;
    let (v4, v6) = fabric_address(subnet, host);
    netlink.address().add(index, v4, SUBNET_BITS.0).execute().await?;
    netlink.address().add(index, v6, SUBNET_BITS.1).execute().await?;
    Ok(())
}

async fn index_of(netlink: &Handle, interface: &str) -> Result<u32> {
    let found = netlink.link().get().match_name(interface.to_owned()).execute().try_next().await;
    let link = found.with_context(|| format!("look for {interface}"))?;
    Ok(link.with_context(|| format!("no interface {interface}"))?.header.index)
}

/// Talks rtnetlink inside the namespace.
fn netlink<F>(netns: &Netns, work: impl FnOnce(Handle) -> F + Send) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(handle).await
        })
    })?
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::netns;

    #[test]
    #[ignore = "needs root: run make test"]
    fn everyone_on_the_fabric_is_reached_over_both_families() {
        let netns = |what: &str| netns::create(&format!("fl-fabric-{}-{what}", std::process::id())).unwrap();
        let (bridge, near, far) = (netns("bridge"), netns("near"), netns("far"));
        create(&bridge, MAIN_SUBNET, 1).unwrap();
        join(&bridge, &near, MAIN_SUBNET, 11).unwrap();
        join(&bridge, &far, MAIN_SUBNET, 12).unwrap();
        let (v4, v6) = fabric_address(MAIN_SUBNET, 12);
        for address in [v4, v6] {
            let listener = far.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
            let target: SocketAddr = listener.local_addr().unwrap();
            let stream = near.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(5))).unwrap();
            assert_eq!(stream.unwrap().peer_addr().unwrap(), target);
        }
    }
}
