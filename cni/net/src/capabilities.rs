//! What a runtime may ask of an attachment: the capabilities `portMappings`, `bandwidth`, `ips` and `mac`.
//!
//! They come in `runtimeConfig`, where the configuration declares them. Addresses and the Ethernet address may be
//! asked for in `args.cni` of the configuration too, which counts where `runtimeConfig` does not say.
//!
//! Rules, those of the reference plugins where they have any:
//! - A port mapping with hostPort 0 is none. The protocol is TCP unless it says otherwise, in letters of either
//!   case. The same port of the same address must not lead to two ports of one pod. An unspecified hostIP
//!   (`0.0.0.0`, `::`) stands for every address, as an absent one does.
//! - A rate needs a burst, and the other way round; neither is no limit.
//! - At most one address of each family, with a prefix or without: the pod's address is alone in its prefix anyway.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::agent::PortMapping;
use crate::attachment::Mac;
use crate::config::{ConfigError, NetConf};
use crate::shaping::Limit;

/// The capabilities that the plugin has, as a configuration declares them.
pub const NAMES: [&str; 4] = ["portMappings", "bandwidth", "ips", "mac"];

/// What is asked for one attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The node's ports that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// How much may go in and out.
    pub bandwidth: Bandwidth,
    /// The addresses that the pod must have, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The Ethernet address that the pod's end must have.
    pub mac: Option<Mac>,
}

/// Limits on a pod's traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// On what the pod is sent.
    pub ingress: Option<Limit>,
    /// On what the pod sends.
    pub egress: Option<Limit>,
}

impl Capabilities {
    /// Reads what `conf` asks for.
    ///
    /// # Errors
    /// When a field makes no sense; the error has its path, such as `runtimeConfig.portMappings[1].hostPort`.
    pub fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        let runtime = Field::of(conf, "runtimeConfig");
        let cni = Field::of(conf, "args").get("cni");
        let requested = |name| runtime.get(name).or(cni.get(name));
        Ok(Self {
            port_mappings: port_mappings(&runtime.get("portMappings"))?,
            bandwidth: bandwidth(&runtime.get("bandwidth"))?,
            addresses: addresses(&requested("ips"))?,
            mac: requested("mac").text()?.map(|(field, text)| field.check(text.parse())).transpose()?,
        })
    }
}

/// Addresses, with prefixes or without, at most one of each family.
///
/// # Errors
/// The position of the first that is no address of a pod or the second of its family, and what is wrong with it.
pub fn parse_addresses<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<IpAddr>, (usize, String)> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (n, text) in texts.into_iter().enumerate() {
        let parsed = text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse::<IpAddr>());
        let address = parsed.map_err(|_| (n, format!("{text:?} is no IP address")))?;
        if let Some(first) = addresses.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err((n, format!("{address} is of the same family as {first}: a pod has one of each")));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn port_mappings(list: &Field<'_>) -> Result<Vec<PortMapping>, ConfigError> {
    let mut mappings: Vec<PortMapping> = Vec::new();
    for entry in list.entries()? {
        let host_port: u16 = entry.number("hostPort", 0)?;
        if host_port == 0 {
            continue;
        }
        let container_port = entry.number("containerPort", 1)?;
        let protocol = match entry.get("protocol").text()? {
            None => "tcp".into(),
            Some((field, text)) => match text.to_ascii_lowercase() {
                known if matches!(known.as_str(), "tcp" | "udp" | "sctp") => known,
                _ => return Err(field.wrong(format!("{text:?} is none of tcp, udp, sctp"))),
            },
        };
        let host_ip = match entry.get("hostIP").text()? {
            None => None,
            Some((field, text)) => {
                let address: IpAddr = field.check(text.parse())?;
                Some(address).filter(|address| !address.is_unspecified())
            }
        };
        let mapping = PortMapping { host_port, container_port, protocol, host_ip };
        if mappings.iter().any(|other| overlap(other, &mapping) && other.container_port != container_port) {
            let problem = format!("{} {host_port} is mapped already", mapping.protocol);
            return Err(entry.get("hostPort").wrong(problem));
        }
        // The same said twice, as for `0.0.0.0` and for `::`, counts once.
        if !mappings.iter().any(|other| covers(other, &mapping)) {
            mappings.retain(|other| !covers(&mapping, other));
            mappings.push(mapping);
        }
    }
    Ok(mappings)
}

/// Whether two mappings claim the same port of an address of the node.
fn overlap(a: &PortMapping, b: &PortMapping) -> bool {
    let same_address = a.host_ip.is_none() || b.host_ip.is_none() || a.host_ip == b.host_ip;
    same_address && (a.host_port, &a.protocol) == (b.host_port, &b.protocol)
}

/// Whether `a` says all that `b` says, or more.
fn covers(a: &PortMapping, b: &PortMapping) -> bool {
    overlap(a, b) && a.container_port == b.container_port && (a.host_ip.is_none() || a.host_ip == b.host_ip)
}

fn bandwidth(entry: &Field<'_>) -> Result<Bandwidth, ConfigError> {
    let limit = |rate_field, burst_field| -> Result<Option<Limit>, ConfigError> {
        let amount = |name| entry.get(name).parse::<u64>().map(Option::unwrap_or_default);
        match (amount(rate_field)?, amount(burst_field)?) {
            (0, 0) => Ok(None),
            (0, _) => Err(entry.get(rate_field).wrong(format!("is needed where there is {burst_field}"))),
            (_, 0) => Err(entry.get(burst_field).wrong(format!("is needed where there is {rate_field}"))),
            (rate @ 1..8, _) => Err(entry.get(rate_field).wrong(format!("{rate} is less than 8 bit/s"))),
            (rate, burst) => Ok(Some(Limit { rate, burst })),
        }
    };
    Ok(Bandwidth {
        ingress: limit("ingressRate", "ingressBurst")?,
        egress: limit("egressRate", "egressBurst")?,
    })
}

fn addresses(list: &Field<'_>) -> Result<Vec<IpAddr>, ConfigError> {
    let entries = list.entries()?;
    let texts = entries.iter().map(|entry| {
        let text: Option<&str> = entry.value.and_then(Value::as_str);
        text.ok_or_else(|| entry.wrong("is no text"))
    });
    let texts = texts.collect::<Result<Vec<&str>, _>>()?;
    parse_addresses(texts).map_err(|(n, problem)| entries[n].wrong(problem))
}

/// A place in the configuration, and what stands there; null counts as nothing.
struct Field<'a> {
    path: String,
    value: Option<&'a Value>,
}

impl<'a> Field<'a> {
    fn of(conf: &'a NetConf, name: &str) -> Self {
        Self { path: name.into(), value: conf.field(name) }
    }

    fn get(&self, name: &str) -> Self {
        let value = self.value.and_then(|value| value.get(name)).filter(|value| !value.is_null());
        Self { path: format!("{}.{name}", self.path), value }
    }

    fn or(self, other: Self) -> Self {
        if self.value.is_some() { self } else { other }
    }

    fn wrong(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::field(self.path.clone(), problem)
    }

    fn check<T, E: ToString>(&self, parsed: Result<T, E>) -> Result<T, ConfigError> {
        parsed.map_err(|error| self.wrong(error.to_string()))
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<Option<T>, ConfigError> {
        self.value.map(|value| self.check(T::deserialize(value))).transpose()
    }

    /// The text, unless it is empty, and the field itself, to name what is wrong with it.
    fn text(self) -> Result<Option<(Self, String)>, ConfigError> {
        let text: Option<String> = self.parse()?;
        Ok(text.filter(|text| !text.is_empty()).map(|text| (self, text)))
    }

    fn entries(&self) -> Result<Vec<Self>, ConfigError> {
        let Some(value) = self.value else { return Ok(Vec::new()) };
        let list = value.as_array().ok_or_else(|| self.wrong("is no list"))?;
        let entry = |(n, value)| Self { path: format!("{}[{n}]", self.path), value: Some(value) };
        Ok(list.iter().enumerate().map(entry).collect())
    }

    /// The port at `name`, which must be there and at least `min`.
    fn number(&self, name: &str, min: u16) -> Result<u16, ConfigError> {
        let field = self.get(name);
        let Some(value) = field.value else { return Err(field.wrong("is missing")) };
        let port = value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port >= min);
        port.ok_or_else(|| field.wrong(format!("{value} is no port")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(conf: Value) -> Result<Capabilities, ConfigError> {
        let mut whole = json!({"cniVersion": "1.1.0", "name": "pods", "type": "fairlead-cni"});
        whole.as_object_mut().expect("object").extend(conf.as_object().expect("object").clone());
        Capabilities::parse(&NetConf::parse(whole.to_string().as_bytes()).expect("a configuration"))
    }

    fn runtime(capability: &str, value: Value) -> Result<Capabilities, String> {
        parse(json!({"runtimeConfig": {capability: value}})).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_that_asks_for_nothing_gets_nothing() {
        for conf in [json!({}), json!({"runtimeConfig": {}}), json!({"runtimeConfig": null, "args": null})] {
            assert_eq!(parse(conf).expect("valid"), Capabilities::default());
        }
        for capability in NAMES {
            assert_eq!(runtime(capability, Value::Null).expect("valid"), Capabilities::default());
        }
    }

    #[test]
    fn port_mappings_are_tcp_unless_they_say_otherwise_and_host_port_0_is_none() {
        let found = runtime(
            "portMappings",
            json!([
                {"hostPort": 8080, "containerPort": 80},
                {"hostPort": 8080, "containerPort": 81, "protocol": "UDP", "hostIP": "192.0.2.1"},
                {"hostPort": 8080, "containerPort": 82, "protocol": "udp", "hostIP": "192.0.2.2"},
                {"hostPort": 0, "containerPort": 83},
                {"hostPort": 9, "containerPort": 9, "protocol": "Sctp", "hostIP": ""},
                {"hostPort": 10, "containerPort": 10, "hostIP": "0.0.0.0"},
            ]),
        );
        let mapping = |host_port, container_port, protocol: &str, host_ip: Option<&str>| PortMapping {
            host_port,
            container_port,
            protocol: protocol.into(),
            host_ip: host_ip.map(|text| text.parse().expect("address")),
        };
        assert_eq!(
            found.expect("valid").port_mappings,
            [
                mapping(8080, 80, "tcp", None),
                mapping(8080, 81, "udp", Some("192.0.2.1")),
                mapping(8080, 82, "udp", Some("192.0.2.2")),
                mapping(9, 9, "sctp", None),
                mapping(10, 10, "tcp", None),
            ]
        );
    }

    #[test]
    fn a_port_mapping_that_another_one_says_too_counts_once() {
        let at = |host_ip: &str| json!({"hostPort": 80, "containerPort": 8080, "hostIP": host_ip});
        for addresses in [["0.0.0.0", "::"], ["192.0.2.1", ""], ["", "192.0.2.1"]] {
            let found = runtime("portMappings", json!(addresses.map(at))).expect("valid").port_mappings;
            assert_eq!(found.len(), 1, "{addresses:?}");
            assert_eq!(found[0].host_ip, None, "{addresses:?}");
        }
        let found = runtime("portMappings", json!([at("192.0.2.1"), at("192.0.2.1"), at("192.0.2.2")]));
        assert_eq!(found.expect("valid").port_mappings.len(), 2);
    }

    #[test]
    fn a_port_mapping_that_makes_no_sense_is_named_by_its_path() {
        let good = json!({"hostPort": 80, "containerPort": 80});
        let cases = [
            (json!({"hostPort": 65536, "containerPort": 80}), "hostPort: 65536 is no port"),
            (json!({"hostPort": -1, "containerPort": 80}), "hostPort: -1 is no port"),
            (json!({"containerPort": 80}), "hostPort: is missing"),
            (json!({"hostPort": 81}), "containerPort: is missing"),
            (json!({"hostPort": 81, "containerPort": 0}), "containerPort: 0 is no port"),
            (json!({"hostPort": "81", "containerPort": 1}), "hostPort: \"81\" is no port"),
            (
                json!({"hostPort": 81, "containerPort": 1, "protocol": "icmp"}),
                "protocol: \"icmp\" is none of tcp, udp, sctp",
            ),
            (
                json!({"hostPort": 81, "containerPort": 1, "hostIP": "localhost"}),
                "hostIP: invalid IP address syntax",
            ),
            (
                json!({"hostPort": 80, "containerPort": 1, "hostIP": "192.0.2.1"}),
                "hostPort: tcp 80 is mapped already",
            ),
        ];
        for (bad, expected) in cases {
            let error = runtime("portMappings", json!([good, bad])).expect_err("refused");
            assert_eq!(error, format!("runtimeConfig.portMappings[1].{expected}"));
        }
        assert_eq!(
            runtime("portMappings", json!({})).expect_err("refused"),
            "runtimeConfig.portMappings: is no list"
        );
    }

    #[test]
    fn a_rate_needs_its_burst_and_a_burst_its_rate() {
        let found = runtime("bandwidth", json!({"ingressRate": 1_000_000, "ingressBurst": 80_000}));
        let limit = Limit { rate: 1_000_000, burst: 80_000 };
        assert_eq!(found.expect("valid").bandwidth, Bandwidth { ingress: Some(limit), egress: None });
        let cases = [
            (json!({"ingressRate": 1000}), "ingressBurst: is needed where there is ingressRate"),
            (json!({"egressBurst": 1000}), "egressRate: is needed where there is egressBurst"),
            (json!({"egressRate": 7, "egressBurst": 1000}), "egressRate: 7 is less than 8 bit/s"),
        ];
        for (bad, expected) in cases {
            let error = runtime("bandwidth", bad).expect_err("refused");
            assert_eq!(error, format!("runtimeConfig.bandwidth.{expected}"));
        }
        let error = runtime("bandwidth", json!({"egressRate": -1})).expect_err("refused");
        assert!(error.starts_with("runtimeConfig.bandwidth.egressRate: "), "{error}");
    }

    #[test]
    fn addresses_come_with_a_prefix_or_without_and_one_of_each_family() {
        let found = runtime("ips", json!(["10.244.1.9/24", "fd00::9"])).expect("valid");
        let expected: [IpAddr; 2] = ["10.244.1.9", "fd00::9"].map(|text| text.parse().expect("address"));
        assert_eq!(found.addresses, expected);
        let error = runtime("ips", json!(["10.244.1.9", "10.244.1.10"])).expect_err("two of IPv4");
        assert!(error.starts_with("runtimeConfig.ips[1]: 10.244.1.10 is of the same family"), "{error}");
        let error = runtime("ips", json!(["fd00::9", "here"])).expect_err("no address");
        assert_eq!(error, "runtimeConfig.ips[1]: \"here\" is no IP address");
        let error = runtime("ips", json!([7])).expect_err("no text");
        assert_eq!(error, "runtimeConfig.ips[0]: is no text");
    }

    #[test]
    fn what_args_ask_for_counts_where_the_runtime_does_not_say() {
        let args = json!({"cni": {"ips": ["10.0.0.9"], "mac": "02:00:00:00:00:09"}});
        let found = parse(json!({"args": args})).expect("valid");
        assert_eq!(found.addresses, ["10.0.0.9".parse::<IpAddr>().expect("address")]);
        assert_eq!(found.mac, Some(Mac([2, 0, 0, 0, 0, 9])));
        let runtime = json!({"ips": ["10.0.0.8"], "mac": "02-00-00-00-00-08"});
        let found = parse(json!({"args": args, "runtimeConfig": runtime})).expect("valid");
        assert_eq!(found.addresses, ["10.0.0.8".parse::<IpAddr>().expect("address")]);
        assert_eq!(found.mac, Some(Mac([2, 0, 0, 0, 0, 8])));
    }

    #[test]
    fn an_ethernet_address_must_be_one_that_an_interface_can_have() {
        for bad in
            ["02:00:00:00:00", "02:00:00:00:00:zz", "01:00:00:00:00:01", "00:00:00:00:00:00", "+2:0:0:0:0:1"]
        {
            let error = runtime("mac", bad.into()).expect_err("refused");
            assert!(error.starts_with(&format!("runtimeConfig.mac: {bad:?} is no")), "{error}");
        }
    }
}
