//! A Service port's endpoints, and which of them may be used from here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1::{Endpoint as Object, EndpointSlice};

use super::service::{LEFT_TO_OTHERS, Port, Service, port_number, unicast};
use crate::cluster::Cluster;
use crate::world;

/// An endpoint, as it is listed once.
#[derive(Clone, Debug)]
struct Endpoint {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    for_nodes: BTreeSet<String>,
    for_zones: BTreeSet<String>,
}

/// The endpoints of one family that flows may be given to.
#[derive(Clone, Debug, Default)]
pub(super) struct Usable {
    /// By a policy of Cluster.
    pub(super) cluster: BTreeSet<SocketAddr>,
    /// By a policy of Local.
    pub(super) local: BTreeSet<SocketAddr>,
    /// Whether there is one anywhere.
    pub(super) any: bool,
}

impl Usable {
    /// The endpoints of one family of a Service port, on a node of that zone.
    pub(super) fn of(
        cluster: &Cluster,
        service: &Service,
        port: &Port,
        v4: bool,
        zone: Option<&str>,
    ) -> Self {
        let mut endpoints = listed(cluster, service, port);
        endpoints.retain(|address, _| address.is_ipv4() == v4);
        let those = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
            endpoints.iter().filter(|(_, endpoint)| wanted(endpoint)).map(|(address, _)| *address).collect()
        };
        let mut usable = Self {
            cluster: those(&|endpoint| endpoint.ready && hinted(&endpoints, endpoint, zone)),
            local: those(&|endpoint| endpoint.local && endpoint.ready),
            any: endpoints.values().any(|endpoint| endpoint.ready || endpoint.drains()),
        };
        // Only where none is ready, those that terminate but still serve.
        if usable.cluster.is_empty() {
            usable.cluster = those(&Endpoint::drains);
        }
        if usable.local.is_empty() {
            usable.local = those(&|endpoint| endpoint.local && endpoint.drains());
        }
        usable
    }
}

impl Endpoint {
    fn read(object: &Object) -> Self {
        let conditions = object.conditions.clone().unwrap_or_default();
        let hints = object.hints.clone().unwrap_or_default();
        Self {
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            local: object.node_name.as_deref() == Some(world::NODE),
            for_nodes: hints.for_nodes.iter().flatten().map(|hint| hint.name.clone()).collect(),
            for_zones: hints.for_zones.iter().flatten().map(|hint| hint.name.clone()).collect(),
        }
    }

    fn drains(&self) -> bool {
        self.serving && self.terminating
    }

    /// The one that counts of two states in which slices list the same endpoint: where one terminates, the address has
    /// passed to the other; else the better one. An endpoint that is said to be here is.
    fn or(self, other: Self) -> Self {
        let rank = |of: &Self| (!of.terminating, of.ready, of.serving, of.local);
        if rank(&other) > rank(&self) { other } else { self }
    }
}

/// Whether the hints send this node's clients to `endpoint`: those for nodes count if every ready endpoint has one and
/// one is for this node; else those for zones, if the same is true of them; else none does.
fn hinted(endpoints: &BTreeMap<SocketAddr, Endpoint>, endpoint: &Endpoint, zone: Option<&str>) -> bool {
    let ready: Vec<&Endpoint> = endpoints.values().filter(|endpoint| endpoint.ready).collect();
    let count = |hints: &dyn Fn(&Endpoint) -> &BTreeSet<String>, own: &str| {
        ready.iter().all(|endpoint| !hints(endpoint).is_empty())
            && ready.iter().any(|endpoint| hints(endpoint).contains(own))
    };
    if count(&|endpoint| &endpoint.for_nodes, world::NODE) {
        return endpoint.for_nodes.contains(world::NODE);
    }
    match zone {
        Some(zone) if count(&|endpoint| &endpoint.for_zones, zone) => endpoint.for_zones.contains(zone),
        _ => true,
    }
}

/// Whether the Service port has that endpoint, and it is ready or serves.
pub(super) fn serves(cluster: &Cluster, service: &Service, port: &Port, address: SocketAddr) -> bool {
    listed(cluster, service, port).get(&address).is_some_and(|endpoint| endpoint.ready || endpoint.serving)
}

/// Every endpoint of the Service port that a slice lists, by where it listens.
fn listed(cluster: &Cluster, service: &Service, port: &Port) -> BTreeMap<SocketAddr, Endpoint> {
    let mut found: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for slice in cluster.slices.values().filter(|slice| is_of(slice, service)) {
        for number in target_ports(slice, port) {
            for object in slice.endpoints.iter().flatten() {
                let Some(ip) = object.addresses.first().and_then(|text| unicast(text)) else { continue };
                if (slice.address_type == "IPv4") != ip.is_ipv4() {
                    continue;
                }
                let endpoint = Endpoint::read(object);
                let merged = match found.remove(&(ip, number).into()) {
                    Some(known) => known.or(endpoint),
                    None => endpoint,
                };
                found.insert((ip, number).into(), merged);
            }
        }
    }
    found
}

/// Whether the slice is one of the Service's.
fn is_of(slice: &EndpointSlice, service: &Service) -> bool {
    let labels = slice.metadata.labels.clone().unwrap_or_default();
    slice.metadata.namespace.as_ref() == Some(&service.name.0)
        && labels.get("kubernetes.io/service-name") == Some(&service.name.1)
        && !LEFT_TO_OTHERS.iter().any(|label| labels.contains_key(*label))
        && ["IPv4", "IPv6"].contains(&slice.address_type.as_str())
}

/// The numbers that the slice has for a port of that name and protocol.
fn target_ports(slice: &EndpointSlice, port: &Port) -> BTreeSet<u16> {
    let named = slice.ports.iter().flatten().filter(|listed| {
        listed.name.as_deref().unwrap_or_default() == port.name
            && listed.protocol.as_deref().unwrap_or("TCP") == port.protocol
    });
    named.filter_map(|listed| port_number(listed.port?)).collect()
}
