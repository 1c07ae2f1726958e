//! Transport protocols and ports, as pods, Services and the command line name them.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A line over a connection.
    Tcp,
    /// A datagram.
    Udp,
    /// A heartbeat over an association, by raw sockets ([`crate::sctp`]).
    Sctp,
}

impl Protocol {
    /// All, in the order in which tables show them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];
    /// Those that the kernel has sockets for, and socket hooks see.
    pub const SOCKETS: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port to serve, written `8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

impl FromStr for Port {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => bail!("protocol {other:?} of port {text:?} is none of tcp, udp and sctp"),
        };
        let number = number.parse().with_context(|| format!("port {text:?}"))?;
        Ok(Self { number, protocol })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_written_as_number_and_protocol() {
        let port: Port = "53/udp".parse().unwrap();
        assert_eq!(port, Port { number: 53, protocol: Protocol::Udp });
        assert_eq!(port.to_string(), "53/udp");
        assert_eq!("80/sctp".parse::<Port>().unwrap().protocol, Protocol::Sctp);
        assert!("70000/tcp".parse::<Port>().is_err());
        assert!("80/dccp".parse::<Port>().is_err());
    }
}
