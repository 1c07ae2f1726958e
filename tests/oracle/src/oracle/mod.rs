//! The interpreter: what must become of a client's first packet, by the objects that the API holds.
//!
//! Written from the API's documentation and the project's statement of semantics, without a thought for speed:
//! every packet asks every Service, the oldest first. Where kube-proxy's behaviour decides, it is that of version
//! 1.36 in nftables mode.

mod endpoints;
mod service;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use fairlead_abi::Reason;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use crate::case::{At, Probe, Settings};
use crate::cluster::{Cluster, Name};
use crate::world;

use endpoints::Usable;
use service::{Port, Service, unicast};

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No Service has a say: it goes where its destination is, as it is.
    Untouched,
    /// It is answered: a SYN with RST, all else with port unreachable.
    Refused(Reason),
    /// It is dropped.
    Dropped(Reason),
    /// It goes to a backend.
    Balanced(Balanced),
}

/// The backends that a packet may get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balanced {
    /// The Service port that it is for.
    pub service_port: ServicePort,
    /// Each backend, and what happens if it is chosen.
    pub choices: BTreeMap<SocketAddr, Leaves>,
    /// Whether a client keeps its backend from one connection to the next.
    pub sticks: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// The Service.
    pub service: Name,
    /// The port's name.
    pub port: String,
    /// The port's protocol, as Services name it.
    pub protocol: String,
}

/// How a packet leaves for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// With the client's address and port.
    KeepingSource,
    /// With this address of the node, and a port of the range for that.
    Masqueraded(IpAddr),
    /// Not at all.
    Dropped(Reason),
}

/// How a Service came to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

/// The objects, read.
#[derive(Debug)]
pub struct Oracle<'a> {
    cluster: &'a Cluster,
    /// Those that a proxy serves, in the order in which they get an address that several want.
    services: Vec<Service>,
    service_cidrs: Vec<IpNet>,
    /// The node's primary addresses.
    primary: Vec<IpAddr>,
    nodeport_addresses: Vec<IpAddr>,
    zone: Option<String>,
}

impl<'a> Oracle<'a> {
    /// Of these objects, on the node [`world::NODE`], which has the addresses `local`.
    #[must_use]
    pub fn new(cluster: &'a Cluster, settings: &Settings, local: &[IpAddr]) -> Self {
        let mut services: Vec<Service> = cluster.services.values().filter_map(Service::read).collect();
        services.sort_by_key(|service| (service.created, service.name.clone()));
        let node = cluster.nodes.get(&(String::new(), world::NODE.to_owned()));
        let primary = node.map(primary_addresses).unwrap_or_default();
        let nodeport_addresses = match &settings.nodeport_addresses {
            None => primary.clone(),
            Some(ranges) => {
                let listed = |address: &&IpAddr| ranges.iter().any(|range| range.contains(*address));
                local.iter().filter(listed).copied().collect()
            }
        };
        let service_cidrs = match &settings.service_cidrs {
            Some(cidrs) => cidrs.clone(),
            None => {
                let listed =
                    cluster.service_cidrs.values().filter_map(|object| object.spec.as_ref()?.cidrs.as_ref());
                listed.flatten().filter_map(|text| text.parse().ok()).collect()
            }
        };
        let zone = node
            .and_then(|node| node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned())
            .filter(|zone| !zone.is_empty());
        Self { cluster, services, service_cidrs, primary, nodeport_addresses, zone }
    }

    /// The node's primary address of this family.
    #[must_use]
    pub fn node_address(&self, v4: bool) -> Option<IpAddr> {
        self.primary.iter().copied().find(|address| address.is_ipv4() == v4)
    }

    /// What must become of the packet, if its client has no backend to keep.
    #[must_use]
    pub fn expect(&self, probe: &Probe) -> Expected {
        let client = probe.from.ip();
        let dialled = probe.to.ip();
        // What a host process sends from an address that is not the node's is not known for its own.
        if world::pod_at(dialled).is_some() || probe.at == At::Host && !self.primary.contains(&client) {
            return Expected::Untouched;
        }
        let frontend = probe.kind.protocol().and_then(|protocol| self.frontend(probe.to, protocol));
        if let Some((service, port, kind)) = frontend {
            self.at_frontend(probe, service, port, kind)
        } else if self.is_live_cluster_ip(dialled) {
            Expected::Refused(Reason::UnknownPort)
        } else if self.service_cidrs.iter().any(|cidr| cidr.contains(&dialled)) {
            Expected::Dropped(Reason::NoService)
        } else {
            Expected::Untouched
        }
    }

    /// Whether the Service has that endpoint for a port of this protocol, and it serves, ready or not.
    #[must_use]
    pub fn serves(&self, port: &ServicePort, backend: SocketAddr) -> bool {
        let service = self.services.iter().find(|service| service.name == port.service);
        service.is_some_and(|service| {
            let ports = service.ports.iter().filter(|other| other.protocol == port.protocol);
            ports.into_iter().any(|port| endpoints::serves(self.cluster, service, port, backend))
        })
    }

    /// Who answers at that address: the first Service, and its first port, that wants to.
    fn frontend(&self, dialled: SocketAddr, protocol: &str) -> Option<(&Service, &Port, Kind)> {
        for service in &self.services {
            for port in service.ports.iter().filter(|port| port.protocol == protocol) {
                if let Some(kind) = self.kind(service, port, dialled) {
                    return Some((service, port, kind));
                }
            }
        }
        None
    }

    /// Whether, and why, the Service port is at that address. A Service has no business in a family in which it has
    /// no ClusterIP.
    fn kind(&self, service: &Service, port: &Port, dialled: SocketAddr) -> Option<Kind> {
        let (ip, number) = (dialled.ip(), dialled.port());
        if service.cluster_ips.iter().all(|cluster_ip| cluster_ip.is_ipv4() != ip.is_ipv4()) {
            None
        } else if number == port.port && service.cluster_ips.contains(&ip) {
            Some(Kind::ClusterIp)
        } else if Some(number) == port.node_port && self.nodeport_addresses.contains(&ip) {
            Some(Kind::NodePort)
        } else if number == port.port && service.load_balancer_ips.contains(&ip) {
            Some(Kind::LoadBalancer)
        } else if number == port.port && service.external_ips.contains(&ip) {
            Some(Kind::ExternalIp)
        } else {
            None
        }
    }

    /// Whether a Service with any port has that ClusterIP, even if others have its ports there.
    fn is_live_cluster_ip(&self, ip: IpAddr) -> bool {
        let mut services = self.services.iter().filter(|service| !service.ports.is_empty());
        services.any(|service| service.cluster_ips.contains(&ip))
    }

    fn at_frontend(&self, probe: &Probe, service: &Service, port: &Port, kind: Kind) -> Expected {
        let client = probe.from.ip();
        let outside = probe.at == At::Wire;
        if kind == Kind::LoadBalancer && !service.admits(client) {
            return Expected::Dropped(Reason::SourceNotAllowed);
        }
        let usable = Usable::of(self.cluster, service, port, probe.to.is_ipv4(), self.zone.as_deref());
        let local_only = match kind {
            Kind::ClusterIp => service.internal_local,
            _ => outside && service.external_local,
        };
        let backends = if local_only { usable.local } else { usable.cluster };
        if backends.is_empty() {
            return if usable.any {
                Expected::Dropped(Reason::NoLocalEndpoint)
            } else {
                Expected::Refused(Reason::NoEndpoint)
            };
        }
        let keeps = !outside || kind != Kind::ClusterIp && service.external_local;
        let choices = backends.into_iter().map(|backend| (backend, self.leaves(probe, backend.ip(), keeps)));
        let service_port = ServicePort {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol.clone(),
        };
        Expected::Balanced(Balanced { service_port, choices: choices.collect(), sticks: service.affinity })
    }

    /// Whoever reaches itself must not see its own address; the node refuses packets that claim to be its own.
    fn leaves(&self, probe: &Probe, backend: IpAddr, keeps: bool) -> Leaves {
        let client = probe.from.ip();
        let is_node = self.primary.contains(&backend);
        if backend != client && (keeps || is_node) {
            // A packet that has left the node's stack can't come back to it.
            return if probe.at == At::Host && is_node {
                Leaves::Dropped(Reason::NotForwarded)
            } else {
                Leaves::KeepingSource
            };
        }
        match self.node_address(backend.is_ipv4()) {
            None => Leaves::Dropped(Reason::NoNodeAddress),
            Some(_) if is_node => Leaves::Dropped(Reason::NotForwarded),
            Some(address) => Leaves::Masqueraded(address),
        }
    }
}

/// The first InternalIP of each family.
fn primary_addresses(node: &Node) -> Vec<IpAddr> {
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let mut primary: Vec<IpAddr> = Vec::new();
    for entry in listed.into_iter().flatten().filter(|entry| entry.type_ == "InternalIP") {
        if let Some(address) = unicast(&entry.address)
            && primary.iter().all(|other| other.is_ipv4() != address.is_ipv4())
        {
            primary.push(address);
        }
    }
    primary
}

#[cfg(test)]
mod tests;
