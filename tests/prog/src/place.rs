//! The node's surroundings: a network namespace with the interfaces, routes and neighbours that the
//! programs' route look-ups and redirects meet.
//!
//! ```text
//!   pod-a  10.1.0.2  fd00:1::2    ┐              ┌ 192.0.2.2    2001:db8::2   another node: 10.2.0.0/24, fd00:2::/64,
//!                                                                           by a narrow route 10.3.0.0/24, fd00:3::/64
//!   pod-b  10.1.0.3  fd00:1::3    ┴ node ─ uplink ┤
//!                192.0.2.1  2001:db8::1          └ 192.0.2.254  2001:db8::fe  the gateway: everything else
//! ```

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, ensure};
use fairlead_abi::Mac;
use fairlead_net::netns::{NamedNetns, Netns};

/// One of the two IP families, with an address of each party in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// One of two addresses, by family.
    fn of(self, v4: &str, v6: &str) -> IpAddr {
        let text = if self == Self::V4 { v4 } else { v6 };
        text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
    }

    /// The node's own address.
    #[must_use]
    pub fn node(self) -> IpAddr {
        self.of("192.0.2.1", "2001:db8::1")
    }

    /// A Service's cluster address.
    #[must_use]
    pub fn cluster_ip(self) -> IpAddr {
        self.of("10.96.0.1", "fd00:96::1")
    }

    /// Another Service's cluster address.
    #[must_use]
    pub fn other_cluster_ip(self) -> IpAddr {
        self.of("10.96.0.2", "fd00:96::2")
    }

    /// A pod on the other node.
    #[must_use]
    pub fn remote_pod(self) -> IpAddr {
        self.of("10.2.0.9", "fd00:2::9")
    }

    /// A pod on the other node, by a route that takes packets of [`NARROW`] bytes and no more.
    #[must_use]
    pub fn narrow_pod(self) -> IpAddr {
        self.of("10.3.0.9", "fd00:3::9")
    }

    /// An address that no route leads to.
    #[must_use]
    pub fn nowhere(self) -> IpAddr {
        self.of("192.88.99.7", "2001:db8:dead::7")
    }

    /// A client outside of the cluster, behind the gateway.
    #[must_use]
    pub fn client(self) -> IpAddr {
        self.of("198.51.100.7", "2001:db8:ffff::7")
    }

    /// An address that a pod may have whose sockets are in the node's namespace.
    #[must_use]
    pub fn home_pod(self) -> IpAddr {
        self.of("10.9.0.2", "fd00:9::2")
    }

    /// An address of the namespace that sockets can be connected to that pod's from.
    #[must_use]
    pub fn home_peer(self) -> IpAddr {
        self.of("10.9.0.9", "fd00:9::9")
    }

    /// A machine on the uplink's own network whose Ethernet address nobody knows yet.
    #[must_use]
    pub fn stranger(self) -> IpAddr {
        self.of("192.0.2.77", "2001:db8::77")
    }
}

/// What the uplink takes.
pub const WIDE: u16 = 1500;
/// What the route to [`Family::narrow_pod`] takes.
pub const NARROW: u16 = 1400;

/// The uplink's own Ethernet address.
pub const UPLINK_MAC: Mac = [2, 0, 0, 0, 0, 0x01];
/// The other node's.
pub const NODE2_MAC: Mac = [2, 0, 0, 0, 0, 0x02];
/// The gateway's.
pub const GATEWAY_MAC: Mac = [2, 0, 0, 0, 0, 0xfe];

/// A pod of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pod {
    /// The first.
    A,
    /// The second.
    B,
}

impl Pod {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// Its address.
    #[must_use]
    pub fn ip(self, family: Family) -> IpAddr {
        match self {
            Self::A => family.of("10.1.0.2", "fd00:1::2"),
            Self::B => family.of("10.1.0.3", "fd00:1::3"),
        }
    }

    /// The Ethernet address of the host's end of its veth pair.
    #[must_use]
    pub fn host_mac(self) -> Mac {
        [2, 0, 0, 0, self as u8 + 0x0a, 0x01]
    }

    /// The Ethernet address of its own end.
    #[must_use]
    pub fn pod_mac(self) -> Mac {
        [2, 0, 0, 0, self as u8 + 0x0a, 0x02]
    }

    /// The name of the host's end.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Self::A => "pod-a",
            Self::B => "pod-b",
        }
    }
}

/// The interfaces and their addresses. Duplicate address detection would hold IPv6 addresses back.
const INTERFACES: &str = "
link add pod-a address 02:00:00:00:0a:01 type veth peer name eth-a address 02:00:00:00:0a:02
link add pod-b address 02:00:00:00:0b:01 type veth peer name eth-b address 02:00:00:00:0b:02
link add uplink address 02:00:00:00:00:01 type veth peer name wire
addr add 192.0.2.1/24 dev uplink
addr add 2001:db8::1/64 dev uplink nodad
addr add 10.9.0.2/32 dev lo
addr add 10.9.0.9/32 dev lo
addr add fd00:9::2/128 dev lo nodad
addr add fd00:9::9/128 dev lo nodad
link set lo up
link set pod-a up
link set eth-a up
link set pod-b up
link set eth-b up
link set uplink up
link set wire up
route add 10.1.0.2/32 dev pod-a
route add 10.1.0.3/32 dev pod-b
route add fd00:1::2/128 dev pod-a
route add fd00:1::3/128 dev pod-b
neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev uplink nud permanent
neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev uplink nud permanent
neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev uplink nud permanent
neigh add 2001:db8::fe lladdr 02:00:00:00:00:fe dev uplink nud permanent
route add 10.2.0.0/24 via 192.0.2.2
route add fd00:2::/64 via 2001:db8::2
route add 10.3.0.0/24 via 192.0.2.2 mtu lock 1400
route add fd00:3::/64 via 2001:db8::2 mtu lock 1400
route add unreachable 192.88.99.0/24
route add unreachable 2001:db8:dead::/48
route add default via 192.0.2.254
route add default via 2001:db8::fe
";

/// Makes the namespace. It has lost its name when this returns: it goes when the last handle goes, however
/// the process ends.
///
/// # Errors
/// Without root, or when `ip` is missing or refuses a line.
pub fn build() -> Result<Netns> {
    let netns = NamedNetns::create(&format!("fl-prog-{}", process::id()))?;
    netns
        .run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })?
        .context("switch forwarding on")?;
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped());
    let mut ip = netns.enter(&mut command).spawn().context("start ip")?;
    ip.stdin.take().context("ip's input")?.write_all(INTERFACES.as_bytes()).context("write to ip")?;
    ensure!(ip.wait().context("wait for ip")?.success(), "ip refused a line");
    Ok(netns.netns().clone())
}
