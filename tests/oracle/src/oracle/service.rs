//! A Service, read as its documentation says.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service as Object, ServiceSpec};

use crate::cluster::{Name, name_of};

/// Labels with which a Service is none of a proxy's business.
pub(super) const LEFT_TO_OTHERS: [&str; 2] =
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// A Service that a proxy serves.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: Name,
    /// Seconds of the Unix epoch.
    pub(super) created: i64,
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) load_balancer_ips: Vec<IpAddr>,
    pub(super) external_ips: Vec<IpAddr>,
    pub(super) external_local: bool,
    pub(super) internal_local: bool,
    pub(super) affinity: bool,
    source_ranges: Vec<IpNet>,
    pub(super) ports: Vec<Port>,
}

/// One of its ports.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
}

impl Service {
    /// `None` for one that is left to DNS or to somebody else.
    pub(super) fn read(object: &Object) -> Option<Self> {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let spec = object.spec.as_ref()?;
        if LEFT_TO_OTHERS.iter().any(|label| labels.contains_key(*label))
            || spec.type_.as_deref() == Some("ExternalName")
            || spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).any(|ip| ip == "None")
            || spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).all(|ip| ip.is_empty())
        {
            return None;
        }
        let created = object.metadata.creation_timestamp.as_ref();
        let status =
            object.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let captured = status.into_iter().flatten().filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"));
        let external_ips = spec.external_ips.iter().flatten().filter_map(|text| unicast(text));
        let source_ranges = spec.load_balancer_source_ranges.iter().flatten();
        Some(Self {
            name: name_of(&object.metadata),
            created: created.map_or(i64::MAX, |time| time.0.as_second()),
            cluster_ips: cluster_ips(spec),
            load_balancer_ips: captured.filter_map(|entry| unicast(entry.ip.as_deref()?)).collect(),
            external_ips: external_ips.collect(),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
            source_ranges: source_ranges.filter_map(|text| text.trim().parse().ok()).collect(),
            ports: ports(spec),
        })
    }

    /// Whether its load balancer's addresses are there for this client.
    pub(super) fn admits(&self, client: IpAddr) -> bool {
        let family = |range: &&IpNet| range.addr().is_ipv4() == client.is_ipv4();
        let ranges: Vec<&IpNet> = self.source_ranges.iter().filter(family).collect();
        ranges.is_empty() || ranges.iter().any(|range| range.contains(&client))
    }
}

/// One of each family, which has to be that which `ipFamilies` says.
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let single: Vec<String> = spec.cluster_ip.iter().cloned().collect();
    let listed = spec.cluster_ips.as_ref().filter(|listed| !listed.is_empty()).unwrap_or(&single);
    let mut found: Vec<IpAddr> = Vec::new();
    for (index, text) in listed.iter().enumerate() {
        let Some(address) = unicast(text) else { continue };
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let said = spec.ip_families.as_ref().and_then(|families| families.get(index));
        if said.is_none_or(|said| said == family)
            && found.iter().all(|other| other.is_ipv4() != address.is_ipv4())
        {
            found.push(address);
        }
    }
    found
}

/// A number and protocol that came before is not taken again.
fn ports(spec: &ServiceSpec) -> Vec<Port> {
    let mut taken = BTreeSet::new();
    let mut found = Vec::new();
    for listed in spec.ports.iter().flatten() {
        let protocol = listed.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let Some(port) = port_number(listed.port) else { continue };
        if !["TCP", "UDP", "SCTP"].contains(&protocol.as_str()) || !taken.insert((port, protocol.clone())) {
            continue;
        }
        found.push(Port {
            name: listed.name.clone().unwrap_or_default(),
            protocol,
            port,
            node_port: listed.node_port.and_then(port_number),
        });
    }
    found
}

/// A port, if it is one.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// An address that one machine may have: the API admits no other for Services and endpoints.
pub(super) fn unicast(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let fits = match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    };
    (!special && fits).then_some(address)
}
