//! What the operator of a node chooses, and the API says nothing of.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// The choices of one node; the defaults are kube-proxy's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// On which of the node's addresses NodePorts stand.
    pub nodeport_addresses: NodePortAddresses,
    /// Whether NodePorts also stand on 127.0.0.1 and ::1, for processes of the node alone.
    pub nodeport_loopback: bool,
    /// The ranges that ClusterIPs are from, instead of those of ServiceCIDR objects.
    pub service_cidrs: Option<Vec<IpNet>>,
    /// The size of Maglev tables, a prime ([`crate::maglev::is_prime`]); none: backends are chosen at random.
    pub maglev: Option<u32>,
}

/// On which of the node's addresses NodePorts stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The first address of each family in the Node object.
    #[default]
    Primary,
    /// Those addresses of its interfaces that are in any of these ranges. A family without a range has none.
    Within(Vec<IpNet>),
}

impl Settings {
    /// Where NodePorts stand on a node with these primary addresses and these on its interfaces: in order, each
    /// once. Of the latter only those count that other nodes can reach, and `::` is among them, for whoever binds a
    /// port at every address.
    pub(crate) fn nodeport_addresses(
        &self,
        primary: impl IntoIterator<Item = IpAddr>,
        local: &[IpAddr],
    ) -> Vec<IpAddr> {
        let mut chosen: Vec<IpAddr> = match &self.nodeport_addresses {
            NodePortAddresses::Primary => primary.into_iter().collect(),
            NodePortAddresses::Within(ranges) => {
                let within = |address: &&IpAddr| ranges.iter().any(|range| range.contains(*address));
                let mut chosen: Vec<IpAddr> =
                    local.iter().filter(|address| is_global(**address)).filter(within).copied().collect();
                if !chosen.is_empty() {
                    chosen.push(EVERY_ADDRESS);
                }
                chosen
            }
        };
        if self.nodeport_loopback {
            chosen.extend([IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16])]);
        }
        chosen.sort();
        chosen.dedup();
        chosen
    }
}

/// A process that binds a NodePort at every address is kept from it by an entry at this one. Those of the primary
/// addresses do so themselves.
pub(crate) const EVERY_ADDRESS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn is_global(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|address| address.parse().expect("an address")).collect()
    }

    #[test]
    fn ranges_choose_among_the_addresses_of_interfaces_that_others_can_reach() {
        let ranges =
            |text: &str| text.split_whitespace().map(|range| range.parse().expect("a range")).collect();
        let of = |text: &str| {
            let within = NodePortAddresses::Within(ranges(text));
            let settings = Settings { nodeport_addresses: within, ..Settings::default() };
            let local = addresses("127.0.0.1 ::1 192.0.2.1 192.0.2.1 10.0.0.5 fe80::1 fd00::5");
            settings.nodeport_addresses(addresses("192.0.2.1"), &local)
        };
        assert_eq!(of("10.0.0.0/8"), addresses("10.0.0.5 ::"));
        assert_eq!(of("0.0.0.0/0 ::/0"), addresses("10.0.0.5 192.0.2.1 :: fd00::5"));
        assert!(of("198.51.100.0/24").is_empty());
    }

    #[test]
    fn loopback_comes_beside_the_primary_addresses() {
        let settings = Settings { nodeport_loopback: true, ..Settings::default() };
        let chosen = settings.nodeport_addresses(addresses("192.0.2.1"), &[]);
        assert_eq!(chosen, addresses("127.0.0.1 192.0.2.1 ::1"));
    }
}
