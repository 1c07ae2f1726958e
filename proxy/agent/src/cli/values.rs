//! Values of options that need a form of their own.

use std::str::FromStr;

use fairlead_core::maglev::is_prime;
use ipnet::IpNet;

/// The largest Maglev table: beyond, it costs more memory than evenness is worth.
const LARGEST_TABLE: u32 = 131_071;

/// One value of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// The node's primary addresses: the first InternalIP of each family.
    Primary,
    /// The addresses of its interfaces that are in the range.
    In(IpNet),
}

impl FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "primary" {
            return Ok(Self::Primary);
        }
        range(text).map(Self::In).map_err(|e| format!("{e}, nor \"primary\""))
    }
}

/// An address range, as in `10.96.0.0/16`.
///
/// # Errors
/// When it is none, or has bits set beyond its prefix.
pub(super) fn range(text: &str) -> Result<IpNet, String> {
    let parsed: IpNet =
        text.trim().parse().map_err(|_| format!("{text:?} is not an address range such as 10.96.0.0/16"))?;
    if parsed.addr() != parsed.network() {
        return Err(format!("{text:?} has address bits beyond its prefix: {} is meant?", parsed.trunc()));
    }
    Ok(parsed)
}

/// The size of a Maglev table, which must be prime for every backend's sequence to visit every entry.
///
/// # Errors
/// When it is no prime, or too small or large to be of use.
pub(super) fn table_size(text: &str) -> Result<u32, String> {
    let size: u32 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if !(11..=LARGEST_TABLE).contains(&size) {
        return Err(format!("{size} is not between 11 and {LARGEST_TABLE}"));
    }
    if is_prime(size) {
        return Ok(size);
    }
    let next = (size..).find(|size| is_prime(*size)).unwrap_or(LARGEST_TABLE);
    Err(format!("{size} is not prime: the next prime is {next}"))
}

/// A protocol and its port, as in `tcp/80`; `icmp` has none.
pub(super) fn protocol_and_port(text: &str) -> Result<(String, u16), String> {
    let wanted = "not PROTOCOL/PORT, as in tcp/80, udp/53, sctp/3868, or icmp";
    let (protocol, port) = match text.split_once('/') {
        Some((protocol, port)) => (protocol, port.parse().map_err(|_| wanted.to_owned())?),
        None => (text, 0),
    };
    let protocol = protocol.to_lowercase();
    match (protocol.as_str(), port) {
        ("tcp" | "udp" | "sctp", 1..) | ("icmp", 0) => Ok((protocol, port)),
        _ => Err(wanted.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maglev_table_has_a_prime_size() {
        for size in ["11", "251", "1021", "65537", "131071"] {
            assert_eq!(table_size(size), Ok(size.parse().expect("a number")));
        }
        assert_eq!(table_size("1024"), Err("1024 is not prime: the next prime is 1031".into()));
        for wrong in ["0", "2", "131072", "4294967295", "-7", "many", ""] {
            assert!(table_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_range_must_be_written_as_one() {
        assert_eq!(range("10.96.0.0/16").expect("a range").to_string(), "10.96.0.0/16");
        assert!(range("10.96.0.1/16").expect_err("refused").contains("10.96.0.0/16 is meant?"));
        assert!(range("10.96.0.0").expect_err("refused").contains("not an address range"));
        assert!(range("fd00::/200").is_err());
    }

    #[test]
    fn node_ports_are_at_primary_addresses_or_in_ranges() {
        assert_eq!("primary".parse(), Ok(NodePortAddress::Primary));
        assert_eq!("192.0.2.0/24".parse(), Ok(NodePortAddress::In(range("192.0.2.0/24").expect("a range"))));
        let error = "eth0".parse::<NodePortAddress>().expect_err("refused");
        assert!(error.contains("nor \"primary\""), "{error}");
    }

    #[test]
    fn a_port_is_named_with_its_protocol() {
        assert_eq!(protocol_and_port("TCP/80"), Ok(("tcp".to_owned(), 80)));
        assert_eq!(protocol_and_port("icmp"), Ok(("icmp".to_owned(), 0)));
        for text in ["80", "tcp", "tcp/0", "tcp/65536", "icmp/8", "gre/1", "tcp/http", ""] {
            assert!(protocol_and_port(text).is_err(), "{text}");
        }
    }
}
