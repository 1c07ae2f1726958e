//! The two ends of a connection or packet under the names of the API, and which of them somebody asks about.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{FrontendKey, Port};
use fairlead_core::model::Protocol;
use fairlead_net::agent::FlowFilter;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, lock};

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 where the protocol has none.
    pub port: u16,
    /// Whose address it is, as in `Pod shop/web`, `Service shop/web` or `Node a`; none if it is nobody's in the cluster.
    pub name: Option<String>,
}

/// Reads as `10.0.0.1:80 (Pod shop/web)`.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

impl End {
    /// Address and port; the address alone where there is no port.
    pub fn place(&self) -> String {
        match self.port {
            0 => self.address.to_string(),
            port => SocketAddr::new(self.address, port).to_string(),
        }
    }

    /// Whether `text` means it: its address, a range that it is in, or the name of whose it is, `namespace/name` or
    /// `pod:`, `service:` or `node:` before a name.
    pub fn is_meant(&self, text: &str) -> bool {
        if let Ok(address) = text.parse::<IpAddr>() {
            return self.address == address;
        }
        if let Ok(range) = text.parse::<IpNet>() {
            return range.contains(&self.address);
        }
        let Some((kind, name)) = self.name.as_ref().and_then(|name| name.split_once(' ')) else {
            return false;
        };
        match text.split_once(':') {
            Some((wanted, text)) => wanted.eq_ignore_ascii_case(kind) && text == name,
            None => text == name,
        }
    }

    fn is(&self, kind: &str, name: &str) -> bool {
        self.name.as_ref().and_then(|own| own.strip_prefix(kind)).is_some_and(|own| own.trim_start() == name)
    }
}

/// What a filter looks at.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// "tcp", "udp", "sctp", or a protocol's number.
    pub protocol: &'a str,
    /// Who began it.
    pub client: &'a End,
    /// What was dialled.
    pub dialled: &'a End,
    /// Who serves it.
    pub server: &'a End,
    /// The connection's state, if it is one.
    pub state: Option<&'a str>,
}

/// Whether the filter lets it through. What a filter does not name it does not ask.
pub fn admits(filter: &FlowFilter, seen: Seen<'_>) -> bool {
    let FlowFilter { pod, service, from, to, port, protocol, state } = filter;
    let Seen { client, dialled, server, .. } = seen;
    let ends = [client, dialled, server];
    pod.as_ref().is_none_or(|pod| ends.iter().any(|end| end.is("Pod", pod)))
        && service.as_ref().is_none_or(|service| dialled.is("Service", service))
        && from.as_ref().is_none_or(|from| client.is_meant(from))
        && to.as_ref().is_none_or(|to| dialled.is_meant(to) || server.is_meant(to))
        && port.is_none_or(|port| [dialled.port, server.port].contains(&port))
        && protocol.as_ref().is_none_or(|protocol| protocol.eq_ignore_ascii_case(seen.protocol))
        && state.as_ref().is_none_or(|state| seen.state == Some(state))
}

/// "tcp", "udp", "sctp", or the protocol's number.
pub fn protocol_name(number: u8) -> String {
    Protocol::from_number(number).map_or_else(|| number.to_string(), |protocol| protocol.to_string())
}

/// Who has which address, as the agent knows it now. Each address is asked for once.
pub struct Names<'a> {
    agent: &'a Agent,
    known: HashMap<IpAddr, Option<String>>,
    frontends: HashMap<FrontendKey, Option<String>>,
}

impl<'a> Names<'a> {
    /// Of this agent.
    pub fn new(agent: &'a Agent) -> Self {
        Self { agent, known: HashMap::new(), frontends: HashMap::new() }
    }

    /// The pod or node that has the address.
    pub fn who(&mut self, address: IpAddr) -> Option<String> {
        let agent = self.agent;
        self.known.entry(address).or_insert_with(|| agent.policies.who(address)).clone()
    }

    /// An end that is a pod, a node, or outside.
    pub fn end(&mut self, address: IpAddr, port: u16) -> End {
        End { address, port, name: self.who(address) }
    }

    /// An end that may be a frontend.
    pub fn dialled(&mut self, address: IpAddr, port: u16, protocol: u8) -> End {
        let key = FrontendKey { address: address.into(), port: Port::new(port), protocol, reserved: 0 };
        let agent = self.agent;
        let owner = self.frontends.entry(key).or_insert_with(|| lock(&agent.reconciler).frontend_owner(&key));
        match owner.clone() {
            Some(owner) => End { address, port, name: Some(owner) },
            None => self.end(address, port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(address: &str, port: u16, name: Option<&str>) -> End {
        End { address: address.parse().expect("an address"), port, name: name.map(str::to_owned) }
    }

    #[test]
    fn an_end_is_meant_by_its_address_a_range_or_the_name_of_whose_it_is() {
        let pod = end("10.244.0.2", 8080, Some("Pod shop/web"));
        for text in ["10.244.0.2", "10.244.0.0/24", "shop/web", "pod:shop/web"] {
            assert!(pod.is_meant(text), "{text}");
        }
        for text in ["10.244.0.3", "10.244.1.0/24", "shop/we", "service:shop/web", "web"] {
            assert!(!pod.is_meant(text), "{text}");
        }
        assert!(end("192.0.2.1", 0, Some("Node a")).is_meant("node:a"));
        assert!(!end("192.0.2.1", 0, None).is_meant("a"));
    }

    #[test]
    fn a_filter_asks_for_all_that_it_names_and_nothing_else() {
        let client = end("10.244.0.2", 40_000, Some("Pod shop/web"));
        let dialled = end("10.96.0.1", 80, Some("Service shop/api"));
        let server = end("10.244.1.3", 8080, Some("Pod shop/api-1"));
        let seen = Seen {
            protocol: "tcp",
            client: &client,
            dialled: &dialled,
            server: &server,
            state: Some("established"),
        };
        let text = |text: &str| Some(text.to_owned());
        let any = FlowFilter::default();
        assert!(admits(&any, seen));
        for filter in [
            FlowFilter { pod: text("shop/web"), ..any.clone() },
            FlowFilter { pod: text("shop/api-1"), port: Some(80), ..any.clone() },
            FlowFilter { service: text("shop/api"), protocol: text("TCP"), ..any.clone() },
            FlowFilter { from: text("10.244.0.0/16"), to: text("10.244.1.3"), ..any.clone() },
            FlowFilter { to: text("shop/api"), port: Some(8080), state: text("established"), ..any.clone() },
        ] {
            assert!(admits(&filter, seen), "{filter:?}");
        }
        for filter in [
            FlowFilter { pod: text("shop/api"), ..any.clone() },
            FlowFilter { service: text("shop/web"), ..any.clone() },
            FlowFilter { from: text("shop/api-1"), ..any.clone() },
            FlowFilter { port: Some(40_000), ..any.clone() },
            FlowFilter { pod: text("shop/web"), state: text("closed"), ..any },
        ] {
            assert!(!admits(&filter, seen), "{filter:?}");
        }
    }
}
