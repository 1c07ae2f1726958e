//! Who is outside the cluster: a client on the fabric, one behind routers, and the routes that bring their packets
//! to a node.
//!
//! ```text
//!  client ──────────────── fabric ── nodes
//!  (four addresses)           │ 10.91.0.0/24, fd00:91::/64
//!                          router
//!                             │ 10.92.0.0/24, fd00:92::/64
//!                            far
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use anyhow::Result;
use fairlead_net::netns::Netns;

use super::Cluster;
use crate::layout::{Layout, MAIN_SUBNET, fabric_address};
use crate::place::Place;
use crate::process::{Process, binary};
use crate::protocol::{Port, Protocol};
use crate::{fabric, netns};

/// The outside client's host numbers on the fabric.
const CLIENT_HOSTS: RangeInclusive<u8> = 100..=103;
/// The interface of the fabric and of the router towards the other, and of the router and the far client.
const LINK: &str = "transit";
const FAR_LINK: &str = "far";

/// Makes the client on the fabric.
pub(super) fn make_client(layout: &Layout, fabric: &Netns, client: &Netns) -> Result<()> {
    fabric::join(fabric, client, MAIN_SUBNET, *CLIENT_HOSTS.start())?;
    let client = Place::new(client.clone(), &layout.outside_cgroup());
    for (v4, v6) in CLIENT_HOSTS.skip(1).map(|host| fabric_address(MAIN_SUBNET, host)) {
        client.ip(&["address", "add", &format!("{v4}/24"), "dev", fabric::UPLINK])?;
        // Deprecated from its beginning, so that nobody has it who does not ask for it.
        client.ip(&["address", "add", &format!("{v6}/64"), "dev", fabric::UPLINK, "preferred_lft", "0"])?;
    }
    Ok(())
}

impl Cluster {
    /// The client outside the cluster: on the fabric, without routes to pods or Services.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn client(&self) -> Result<Place> {
        Place::open(&self.layout.client_netns(), &self.layout.outside_cgroup())
    }

    /// Starts a server beside that client, which answers on `port` by every protocol as the pod `name` would.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn serve_outside(&mut self, name: &str, port: u16) -> Result<()> {
        let mut command = self.client()?.command(binary("fairlead-harness")?)?;
        command.args(["serve", "--pod", name]);
        for protocol in Protocol::ALL {
            command.arg("--port").arg(Port { number: port, protocol }.to_string());
        }
        let (server, _) = Process::announced(name, &mut command, &self.layout.log(name))?;
        self.processes.push(server);
        Ok(())
    }

    /// The addresses of that client, of the family of `like`; the first is the one it uses unasked.
    pub fn client_addresses(&self, like: IpAddr) -> Vec<IpAddr> {
        let addresses = CLIENT_HOSTS.map(|host| fabric_address(MAIN_SUBNET, host));
        addresses.map(|(v4, v6)| if like.is_ipv4() { v4 } else { v6 }).collect()
    }

    /// Sends what is for `address` to that node, from the client and from the fabric, and so from wherever the fabric
    /// is the gateway: the nodes, and the far client. Called again with another node, it moves the address.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub fn route_via(&self, address: IpAddr, node: &str) -> Result<()> {
        let gateway = self.node(node)?.address(address).to_string();
        self.forward_on_the_fabric()?;
        for place in [self.client()?, self.fabric()?] {
            place.ip(&["route", "replace", &address.to_string(), "via", &gateway])?;
        }
        Ok(())
    }

    /// A client two routers away from the nodes, which reach it by their default route. Its way to an address is that
    /// of [`route_via`](Self::route_via).
    ///
    /// # Errors
    /// When the system refuses to make it.
    pub fn far_client(&self) -> Result<Place> {
        let (router, far) = (self.layout.router_netns(), self.layout.far_netns());
        if !netns::path(&far).exists() {
            self.forward_on_the_fabric()?;
            for name in [&router, &far] {
                // It stays when the handle is gone, as its name does.
                drop(netns::create(name)?.keep());
            }
            self.make_far_client()?;
        }
        Place::open(&far, &self.layout.outside_cgroup())
    }

    /// The address of the far client, of the family of `like`.
    pub fn far_address(&self, like: IpAddr) -> IpAddr {
        far_address(92, 2, like.is_ipv4())
    }

    /// Sets the MTU of the link between the fabric and the far client's router: packets of up to 1500 bytes find
    /// their way from either end to it, and are then told what fits.
    ///
    /// # Errors
    /// Without a far client.
    pub fn set_far_mtu(&self, mtu: u32) -> Result<()> {
        for place in [self.fabric()?, self.router()?] {
            place.set_mtu(LINK, mtu)?;
        }
        Ok(())
    }

    /// The namespace of the fabric's bridge, which is every node's default gateway.
    ///
    /// # Errors
    /// When it is gone.
    pub fn fabric(&self) -> Result<Place> {
        Place::open(&self.layout.fabric_netns(), &self.layout.outside_cgroup())
    }

    fn router(&self) -> Result<Place> {
        Place::open(&self.layout.router_netns(), &self.layout.outside_cgroup())
    }

    fn make_far_client(&self) -> Result<()> {
        let (fabric, router) = (self.fabric()?, self.router()?);
        let far = Place::open(&self.layout.far_netns(), &self.layout.outside_cgroup())?;
        let (router_netns, far_netns) = (self.layout.router_netns(), self.layout.far_netns());
        let pair = ["link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", &router_netns];
        fabric.ip(&pair)?;
        router
            .ip(&["link", "add", FAR_LINK, "type", "veth", "peer", "name", FAR_LINK, "netns", &far_netns])?;
        for (place, link, network, host) in [
            (&fabric, LINK, 91, 1),
            (&router, LINK, 91, 2),
            (&router, FAR_LINK, 92, 1),
            (&far, FAR_LINK, 92, 2),
        ] {
            place.ip(&["link", "set", link, "up"])?;
            for v4 in [true, false] {
                let bits = if v4 { 24 } else { 64 };
                let address = format!("{}/{bits}", far_address(network, host, v4));
                place.ip(&["address", "add", &address, "dev", link])?;
            }
        }
        forward(&router)?;
        for v4 in [true, false] {
            let family = if v4 { "-4" } else { "-6" };
            let via = |network, host| far_address(network, host, v4).to_string();
            let far_network = format!("{}/{}", far_address(92, 0, v4), if v4 { 24 } else { 64 });
            fabric.ip(&[family, "route", "add", &far_network, "via", &via(91, 2)])?;
            router.ip(&[family, "route", "add", "default", "via", &via(91, 1)])?;
            far.ip(&[family, "route", "add", "default", "via", &via(92, 1)])?;
        }
        Ok(())
    }

    /// Makes the fabric a router that drops what it has no route for, as it does when it is none.
    fn forward_on_the_fabric(&self) -> Result<()> {
        let fabric = self.fabric()?;
        forward(&fabric)?;
        for family in ["-4", "-6"] {
            fabric.ip(&[family, "route", "replace", "blackhole", "default", "metric", "4000000000"])?;
        }
        Ok(())
    }
}

/// Forwards without telling anyone of a shorter way: hosts of these tests keep to the routes they are given.
pub(super) fn forward(place: &Place) -> Result<()> {
    for (setting, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/fabric/send_redirects", "0"),
    ] {
        if setting.contains("fabric") && place.setting(setting).is_err() {
            continue;
        }
        place.set_setting(setting, value)?;
    }
    Ok(())
}

/// A host of the networks beyond the fabric; the address's digits are the same in both families.
fn far_address(network: u8, host: u8, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, network, 0, host).into()
    } else {
        let digits = u16::from(network / 10) << 4 | u16::from(network % 10);
        Ipv6Addr::new(0xfd00, digits, 0, 0, 0, 0, 0, host.into()).into()
    }
}
