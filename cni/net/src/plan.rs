//! What is to be made for one pod, as a list of steps: a pure function of its identity and addresses.
//!
//! ```text
//!        host                         │            pod
//!   <ip>/32  dev flX scope link       │   169.254.1.1/32 dev eth0 scope link
//!   <ip6>/128 dev flX                 │   default via 169.254.1.1 ; default via fe80::1
//!   neighbours <ip>, <ip6> = pod MAC  │   neighbours 169.254.1.1, fe80::1 = host MAC
//!        flX ═════════════ veth ══════╪══ eth0  <ip>/32 <ip6>/128
//! ```
//!
//! There is no bridge and no subnet: the pod sends everything to a next hop that only exists as a permanent
//! neighbour entry, so it never asks (ARP, neighbour discovery) and nobody has to answer.
//!
//! The host's end is made down and comes up last: until then no packet gets into the pod or out of it, and the agent
//! has that time to say which may. [`crate::exec`] carries the steps out, in this order.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::alias;
use crate::attachment::{Attachment, Mac};
use crate::capabilities::Bandwidth;
use crate::routes::Route;
use crate::shaping::Limit;

/// The pod's IPv4 next hop: link-local, and no one's address (RFC 3927).
pub const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The pod's IPv6 next hop: link-local, and no one's address.
pub const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The next hop of `address`'s family.
#[must_use]
pub fn next_hop(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { NEXT_HOP_V4.into() } else { NEXT_HOP_V6.into() }
}

/// One end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The interface's name.
    pub ifname: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// What is done to it once the pair exists, while the host's end is down.
    pub steps: Vec<Step>,
}

/// One thing to do to an interface, inside the namespace it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write `value` to `/proc/sys/net/<family>/conf/<interface>/<key>`.
    Sysctl {
        /// "ipv4" or "ipv6".
        family: &'static str,
        /// The setting's name.
        key: &'static str,
        /// Its value.
        value: &'static str,
    },
    /// Write down whose it is, for those who find it without a record.
    Alias(String),
    /// Limit what it sends.
    Limit(Limit),
    /// Set the link up.
    Up,
    /// Give it an address, alone in its prefix, without duplicate address detection.
    Address(IpAddr),
    /// Add a permanent neighbour.
    Neighbour {
        /// The neighbour's address.
        address: IpAddr,
        /// Its Ethernet address.
        mac: Mac,
    },
    /// Add a route through it.
    Route(Route),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { family, key, value } => write!(f, "set {family} {key} to {value}"),
            Self::Alias(text) => write!(f, "set the alias {text:?}"),
            Self::Limit(limit) => write!(f, "limit it to {limit}"),
            Self::Up => f.write_str("set up"),
            Self::Address(address) => write!(f, "add address {address}"),
            Self::Neighbour { address, mac } => write!(f, "add neighbour {address} at {mac}"),
            Self::Route(route) => write!(f, "add route {route}"),
        }
    }
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// The network's name.
    pub network: &'a str,
    /// Whose pair it is.
    pub attachment: &'a Attachment,
    /// The pod's addresses, at most one of each family.
    pub addresses: &'a [IpAddr],
    /// Both ends' MTU in bytes; the kernel's default if None.
    pub mtu: Option<u32>,
    /// The Ethernet address of the pod's end; the attachment's own if None.
    pub mac: Option<Mac>,
    /// Limits on the pod's traffic.
    pub bandwidth: Bandwidth,
}

/// All that is made for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The end that stays on the host.
    pub host: End,
    /// The pod's end.
    pub pod: End,
    /// What is done to the host's end at last: it comes up, and the host knows the way to the pod.
    pub opening: Vec<Step>,
    /// Both ends' MTU in bytes; the kernel's default if None.
    pub mtu: Option<u32>,
}

impl Plan {
    /// The plan for `order`.
    #[must_use]
    pub fn new(order: &Order<'_>) -> Self {
        let &Order { network, attachment, addresses, mtu, mac, bandwidth } = order;
        let (host_mac, pod_mac) = (attachment.host_mac(), mac.unwrap_or_else(|| attachment.pod_mac()));
        let v6 = addresses.iter().any(IpAddr::is_ipv6);

        let mut host: Vec<Step> = alias::of(network, attachment).map(Step::Alias).into_iter().collect();
        host.extend(bandwidth.ingress.map(Step::Limit));
        host.extend([("forwarding", "1"), ("rp_filter", "0")].map(|(key, value)| Step::Sysctl {
            family: "ipv4",
            key,
            value,
        }));
        let mut pod: Vec<Step> = bandwidth.egress.map(Step::Limit).into_iter().collect();
        if v6 {
            host.extend(
                [("disable_ipv6", "0"), ("forwarding", "1"), ("accept_ra", "0"), ("accept_dad", "0")]
                    .map(|(key, value)| Step::Sysctl { family: "ipv6", key, value }),
            );
            pod.extend(
                [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")]
                    .map(|(key, value)| Step::Sysctl { family: "ipv6", key, value }),
            );
        }
        let mut opening = vec![Step::Up];
        pod.push(Step::Up);
        for &address in addresses {
            let own = IpNet::from(address);
            let hop = next_hop(address);
            opening.push(Step::Neighbour { address, mac: pod_mac });
            opening.push(Step::Route(Route { destination: own, gateway: None }));
            pod.push(Step::Address(address));
            pod.push(Step::Neighbour { address: hop, mac: host_mac });
            if address.is_ipv4() {
                // The IPv6 next hop is on-link by being link-local; this one must be said to be.
                pod.push(Step::Route(Route { destination: IpNet::from(hop), gateway: None }));
            }
            pod.push(Step::Route(Route { destination: default_of(address), gateway: Some(hop) }));
        }
        Self {
            host: End { ifname: attachment.host_ifname(), mac: host_mac, steps: host },
            pod: End { ifname: attachment.ifname().into(), mac: pod_mac, steps: pod },
            opening,
            mtu,
        }
    }
}

/// Everything in `address`'s family.
#[must_use]
pub fn default_of(address: IpAddr) -> IpNet {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    IpNet::new_assert(any, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(addresses: &[&str]) -> Plan {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().expect("address")).collect();
        Plan::new(&Order {
            network: "pods",
            attachment: &Attachment::new("pod", "eth0").expect("valid"),
            addresses: &addresses,
            mtu: Some(1450),
            mac: None,
            bandwidth: Bandwidth::default(),
        })
    }

    fn routes(steps: &[Step]) -> Vec<String> {
        let text = |step: &Step| match step {
            Step::Route(route) => Some(route.to_string()),
            _ => None,
        };
        steps.iter().filter_map(text).collect()
    }

    #[test]
    fn a_dual_stack_pod_has_one_route_on_the_host_and_a_default_inside_for_each_address() {
        let plan = plan(&["10.244.1.2", "fd00::2"]);
        assert_eq!(routes(&plan.opening), ["10.244.1.2/32", "fd00::2/128"]);
        assert_eq!(
            routes(&plan.pod.steps),
            ["169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1", "::/0 via fe80::1"]
        );
    }

    #[test]
    fn each_end_knows_the_others_ethernet_address() {
        let plan = plan(&["10.244.1.2", "fd00::2"]);
        let neighbours = |steps: &[Step]| -> Vec<(String, Mac)> {
            let text = |step: &Step| match step {
                Step::Neighbour { address, mac } => Some((address.to_string(), *mac)),
                _ => None,
            };
            steps.iter().filter_map(text).collect()
        };
        let (host, pod) = (plan.host.mac, plan.pod.mac);
        assert_eq!(neighbours(&plan.opening), [("10.244.1.2".into(), pod), ("fd00::2".into(), pod)]);
        assert_eq!(neighbours(&plan.pod.steps), [("169.254.1.1".into(), host), ("fe80::1".into(), host)]);
    }

    #[test]
    fn a_pod_without_ipv6_leaves_ipv6_settings_alone() {
        let plan = plan(&["10.244.1.2"]);
        let steps = plan.host.steps.iter().chain(&plan.pod.steps).chain(&plan.opening);
        let touched = steps.filter(|s| matches!(s, Step::Sysctl { family: "ipv6", .. })).count();
        assert_eq!(touched, 0);
    }

    #[test]
    fn duplicate_address_detection_is_off_before_the_link_comes_up() {
        let plan = plan(&["fd00::2"]);
        for steps in [[plan.host.steps, plan.opening].concat(), plan.pod.steps] {
            let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).expect("step");
            let off = at(&|s| matches!(s, Step::Sysctl { key: "accept_dad", value: "0", .. }));
            assert!(off < at(&|s| *s == Step::Up), "{steps:?}");
        }
    }

    #[test]
    fn before_the_opening_the_hosts_end_is_down_and_the_host_knows_no_way_to_the_pod() {
        let plan = plan(&["10.244.1.2", "fd00::2"]);
        assert!(!plan.host.steps.iter().any(|step| matches!(step, Step::Up | Step::Route(_))));
        assert_eq!(plan.opening[0], Step::Up);
    }
}
