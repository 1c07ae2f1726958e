//! The node that the agent runs on: its addresses, its uplinks, the ports set aside for masquerading, and
//! the kernel's switches that forwarding needs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use aya::maps::{Array, MapData};
use fairlead_abi::{Address, Config};
use nix::ifaddrs::getifaddrs;

/// The setting that withholds ports from sockets that ask for any, below the directory of settings.
pub(crate) const RESERVED_PORTS: &str = "net/ipv4/ip_local_reserved_ports";

/// A range of ports whose length is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    count: u16,
}

impl PortRange {
    /// The range that is taken unless another one is asked for: 49152-65535.
    pub const DEFAULT: Self = Self { first: 49_152, count: 16_384 };

    /// The first port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// How many ports.
    pub fn count(self) -> u16 {
        self.count
    }

    /// The last port.
    pub fn last(self) -> u16 {
        self.first + (self.count - 1)
    }
}

/// Why text is no [`PortRange`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    /// Not `FIRST-LAST`.
    #[error("not two port numbers with a dash between, as in 49152-65535")]
    Form,
    /// The last comes before the first, or the first is 0.
    #[error("the range must begin at 1 or above and not end before it begins")]
    Order,
    /// The length.
    #[error("the range has {0} ports, which is no power of two: 49152-65535 has 16384")]
    Length(u32),
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').ok_or(PortRangeError::Form)?;
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| PortRangeError::Form);
        let (first, last) = (number(first)?, number(last)?);
        if first == 0 || last < first {
            return Err(PortRangeError::Order);
        }
        let count = u32::from(last) - u32::from(first) + 1;
        match u16::try_from(count) {
            Ok(count) if count.is_power_of_two() => Ok(Self { first, count }),
            _ => Err(PortRangeError::Length(count)),
        }
    }
}

/// The node's primary addresses as the programs know them from an earlier agent.
pub fn addresses_in(config: &Array<MapData, Config>) -> Vec<IpAddr> {
    let Config { node_v4, node_v6, .. } = config.get(&0, 0).unwrap_or_default();
    let known = [node_v4, node_v6].into_iter().filter(|address| !address.is_unspecified());
    known.map(IpAddr::from).collect()
}

/// What the programs must know about a node with these addresses, the first of each family being primary.
/// `places` is how many connections there is room for.
pub fn config(addresses: &[IpAddr], ports: PortRange, host_netns: u64, places: u32) -> Config {
    let first = |is: fn(&IpAddr) -> bool| {
        addresses.iter().copied().find(is).map_or(Address::UNSPECIFIED, Address::from)
    };
    Config {
        node_v4: first(IpAddr::is_ipv4),
        node_v6: first(IpAddr::is_ipv6),
        host_netns,
        snat_first: ports.first(),
        snat_count: ports.count(),
        places,
        ..Config::default()
    }
}

/// The addresses of the node's interfaces, each with its interface's name.
///
/// # Errors
/// When the kernel refuses to list interfaces.
pub fn interface_addresses() -> io::Result<Vec<(String, IpAddr)>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let storage = interface.address?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let address = v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
        Some((interface.interface_name, address))
    };
    Ok(getifaddrs()?.filter_map(address).collect())
}

/// Whether clients may dial this address of an interface: it is neither loopback nor link-local.
pub fn is_dialable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// The interfaces that carry one of these addresses.
pub fn uplinks_of(interfaces: &[(String, IpAddr)], addresses: &[IpAddr]) -> BTreeSet<String> {
    let carries = |(name, address): &&(String, IpAddr)| name != "lo" && addresses.contains(address);
    interfaces.iter().filter(carries).map(|(name, _)| name.clone()).collect()
}

/// The kernel's release, as in `6.12.1-amd64`; empty if it can't be read.
pub fn kernel_release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// How much memory the machine has, in bytes.
///
/// # Errors
/// When /proc/meminfo can't be read, or does not say.
pub fn memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let kibibytes = kibibytes.and_then(|number| number.trim().parse::<u64>().ok());
    Ok(kibibytes.ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))? * 1024)
}

/// Withholds the range from sockets that ask for any port, by the kernel's setting under `proc_sys`. Ports withheld
/// already stay so.
///
/// # Errors
/// When the kernel's setting can't be read or written.
pub fn reserve_ports(proc_sys: &Path, range: PortRange) -> io::Result<()> {
    let path = proc_sys.join(RESERVED_PORTS);
    let before = fs::read_to_string(&path)?;
    match with_range(before.trim(), range) {
        Some(after) => fs::write(path, after),
        None => Ok(()),
    }
}

/// Switches forwarding on where it is off, by the kernel's settings under `proc_sys`, and says so. An address family that
/// the kernel does not have is no error.
///
/// # Errors
/// When a switch can't be written.
pub fn enable_forwarding(proc_sys: &Path) -> io::Result<()> {
    for switch in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let path = proc_sys.join(switch);
        match fs::read_to_string(&path) {
            Ok(value) if value.trim() == "0" => {
                tracing::warn!("{} was 0, now 1: packets for pods are forwarded", path.display());
                fs::write(&path, "1")?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The list `before` (`1000,2000-2010`) with the range added, or `None` if it holds it already.
pub(crate) fn with_range(before: &str, range: PortRange) -> Option<String> {
    let parse = |part: &str| -> Option<(u16, u16)> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    let mut parts = before.split(',').filter_map(parse);
    if parts.any(|(first, last)| first <= range.first() && last >= range.last()) {
        return None;
    }
    let added = format!("{}-{}", range.first(), range.last());
    Some(if before.is_empty() { added } else { format!("{before},{added}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> PortRange {
        text.parse().expect("a range")
    }

    #[test]
    fn a_port_range_is_a_power_of_two_long() {
        let whole = range("49152-65535");
        assert_eq!((whole.first(), whole.count(), whole.last()), (49152, 16384, 65535));
        assert_eq!("1-3".parse::<PortRange>(), Err(PortRangeError::Length(3)));
        assert_eq!("0-7".parse::<PortRange>(), Err(PortRangeError::Order));
        assert_eq!("9-8".parse::<PortRange>(), Err(PortRangeError::Order));
        assert_eq!("49152".parse::<PortRange>(), Err(PortRangeError::Form));
        assert_eq!("1-99999".parse::<PortRange>(), Err(PortRangeError::Form));
    }

    #[test]
    fn ports_withheld_already_stay_withheld() {
        assert_eq!(with_range("", range("49152-65535")).as_deref(), Some("49152-65535"));
        assert_eq!(with_range("6443", range("50000-50015")).as_deref(), Some("6443,50000-50015"));
        assert_eq!(with_range("6443,49000-65535", range("49152-65535")), None);
    }

    #[test]
    fn the_programs_learn_the_first_address_of_each_family() {
        let addresses = ["fd00::2", "192.0.2.1", "192.0.2.9"].map(|text| text.parse().expect("an address"));
        let config = config(&addresses, range("49152-65535"), 7, 32);
        assert_eq!(config.node_v4, Address::from(addresses[1]));
        assert_eq!(config.node_v6, Address::from(addresses[0]));
        assert_eq!((config.snat_first, config.snat_count), (49152, 16384));
        assert_eq!((config.host_netns, config.places), (7, 32));
    }

    #[test]
    fn a_node_without_ipv6_has_no_ipv6_address() {
        let config = config(&["192.0.2.1".parse().expect("an address")], range("1-1"), 0, 1);
        assert!(config.node_v6.is_unspecified());
    }

    #[test]
    fn loopback_is_never_an_uplink() {
        let loopback: IpAddr = "127.0.0.1".parse().expect("an address");
        let found = uplinks_of(&interface_addresses().expect("listed"), &[loopback]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn clients_dial_neither_loopback_nor_link_local_addresses() {
        let is_dialable = |text: &str| is_dialable(text.parse().expect("an address"));
        assert!(["127.0.0.1", "::1", "fe80::1", "169.254.1.1"].iter().all(|text| !is_dialable(text)));
        assert!(["192.0.2.1", "fd00::1"].iter().all(|text| is_dialable(text)));
    }

    #[test]
    fn the_machine_has_memory() {
        assert!(memory().expect("known") > 1 << 20);
    }
}
