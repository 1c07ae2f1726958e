//! What each address that clients dial should do: one Service, its endpoints and the node in, frontends out.
//!
//! Pure; called by [`crate::reconcile`] for each Service that changed.

mod of_pods;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_abi::{FrontendKey, frontend_flags};
use ipnet::IpNet;

use crate::endpoints::{BackendAddress, Categories, categorize, merge};
use crate::index::Index;
use crate::model::{
    Node, ObjectName, Problem, Protocol, Service, ServicePort, ServicePortName, TrafficPolicy, frontend_key,
    frontend_label,
};
use crate::small::SmallMap;

/// How clients came to know a frontend's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FrontendKind {
    /// spec.clusterIPs.
    ClusterIp,
    /// spec.ports\[\].nodePort on the node's addresses.
    NodePort,
    /// status.loadBalancer.ingress.
    LoadBalancer,
    /// spec.externalIPs.
    ExternalIp,
    /// A pod's spec.containers\[\].ports\[\].hostPort on the node's addresses.
    HostPort,
}

/// What a frontend should do. Frontends with the same backends share their lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredFrontend {
    /// The Service port behind it.
    pub port: ServicePortName,
    /// Where its address comes from.
    pub kind: FrontendKind,
    /// Which item of the field that it comes from asks for it.
    pub index: usize,
    /// [`frontend_flags`].
    pub flags: u32,
    /// For how many seconds a client keeps its backend; 0: not at all.
    pub affinity: u32,
    /// Backends for clients inside the cluster, in order.
    pub internal: Arc<[BackendAddress]>,
    /// Backends for clients outside the cluster, in order.
    pub external: Arc<[BackendAddress]>,
    /// The size of the Maglev table over the external backends; none: one is chosen at random.
    pub maglev: Option<u32>,
}

/// Everything that one Service asks of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// When the Service was created, see [`Service::created`].
    pub created: i64,
    /// Its frontends.
    pub frontends: SmallMap<FrontendKey, DesiredFrontend>,
    /// Its ClusterIPs that have any frontend: other ports of them refuse.
    pub whole: Vec<IpAddr>,
    /// Whom its guarded frontends admit.
    pub source_ranges: Vec<IpNet>,
    /// Where its load balancer asks for local endpoints, and how many there are.
    pub health: Option<HealthCheck>,
    /// How many of its ports have endpoints that their policy keeps from clients here.
    pub without_local: WithoutLocal,
    /// Backends that no new flow is given to by right, but whose established flows may go on; in order.
    pub lingering: Vec<Lingering>,
    /// Its ports that ask for a frontend that another of its ports has.
    pub problems: Vec<Problem>,
}

/// What a load balancer asks a node for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ObjectName,
    /// spec.healthCheckNodePort.
    pub port: u16,
    /// How many endpoints on this node serve it: addresses of the family that has more. Those that terminate do not
    /// count.
    pub local_endpoints: usize,
}

/// Service ports that have endpoints, but with a Local policy none on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// For clients inside the cluster.
    pub internal: usize,
    /// For clients outside.
    pub external: usize,
}

/// Whose established flows may go on.
///
/// A TCP connection goes on as long as its endpoint's address is listed at all, whatever becomes of the
/// Service's ports and of the endpoint's readiness, because nothing but the endpoint can end it properly.
/// A UDP flow goes on while its endpoint serves: datagrams can be sent elsewhere at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lingering {
    /// TCP and SCTP connections to any port of this address.
    Connections(IpAddr),
    /// UDP flows to this backend.
    Datagrams(BackendAddress),
}

impl Desired {
    /// Every frontend's key, those of whole addresses included.
    pub fn keys(&self) -> impl Iterator<Item = FrontendKey> + '_ {
        let whole = self.whole.iter().map(|ip| FrontendKey::whole((*ip).into()));
        self.frontends.keys().copied().chain(whole)
    }

    /// Whether it asks for this frontend.
    pub fn wants(&self, key: &FrontendKey) -> bool {
        match *key == FrontendKey::whole(key.address) {
            true => self.whole.contains(&key.address.into()),
            false => self.frontends.contains_key(key),
        }
    }

    /// Every backend that its frontends refer to, in order, once.
    pub fn backends(&self) -> Vec<(Protocol, BackendAddress)> {
        let mut lists: Vec<(Protocol, &Arc<[BackendAddress]>)> = Vec::new();
        for frontend in self.frontends.values() {
            for list in [&frontend.internal, &frontend.external] {
                let known = |(protocol, other): &(Protocol, &Arc<[BackendAddress]>)| {
                    *protocol == frontend.port.protocol && Arc::ptr_eq(other, list)
                };
                if !lists.iter().any(known) {
                    lists.push((frontend.port.protocol, list));
                }
            }
        }
        let mut backends = Vec::with_capacity(lists.iter().map(|(_, list)| list.len()).sum());
        for (protocol, list) in lists {
            backends.extend(list.iter().map(|address| (protocol, *address)));
        }
        backends.sort_unstable();
        backends.dedup();
        backends
    }

    /// Every address that its slices list.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.lingering.iter().filter_map(|lingering| match lingering {
            Lingering::Connections(address) => Some(*address),
            Lingering::Datagrams(_) => None,
        })
    }

    /// Whether established flows of `protocol` to `backend` may go on.
    pub fn lingers(&self, protocol: Protocol, backend: BackendAddress) -> bool {
        let lingering = match protocol {
            Protocol::Udp => Lingering::Datagrams(backend),
            Protocol::Tcp | Protocol::Sctp => Lingering::Connections(backend.ip),
        };
        self.lingering.binary_search(&lingering).is_ok()
    }
}

/// What the Service of that name, or the [owner](crate::host_ports::owner) of host ports, asks of the maps, by the state of `index`.
pub fn desired(index: &Index, name: &ObjectName) -> Desired {
    let mut desired = Desired::default();
    let listed = index.slices(name).flat_map(|slice| &slice.endpoints);
    desired.lingering.reserve_exact(listed.clone().count());
    desired.lingering.extend(listed.map(|endpoint| Lingering::Connections(endpoint.address)));
    if let Some(service) = index.service(name) {
        desired.add_service(index, service);
    }
    if let Some(ports) = index.host_ports(name) {
        desired.add_host_ports(index, name, ports);
    }
    desired.lingering.sort_unstable();
    desired.lingering.dedup();
    desired
}

/// A port's endpoints by kind of client, as lists that frontends share.
#[derive(Clone, Default)]
struct Choices {
    cluster: Arc<[BackendAddress]>,
    local: Arc<[BackendAddress]>,
    any: bool,
}

impl From<Categories> for Choices {
    fn from(Categories { cluster, local, any }: Categories) -> Self {
        let cluster: Arc<[BackendAddress]> = cluster.into();
        let local = if local[..] == cluster[..] { Arc::clone(&cluster) } else { local.into() };
        Self { cluster, local, any }
    }
}

impl Choices {
    fn of(&self, policy: TrafficPolicy) -> Arc<[BackendAddress]> {
        match policy {
            TrafficPolicy::Cluster => Arc::clone(&self.cluster),
            TrafficPolicy::Local => Arc::clone(&self.local),
        }
    }
}

/// A Service port while its frontends are gathered. An address has backends of its own family only.
struct Port<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    name: ServicePortName,
    v4: Choices,
    v6: Choices,
    maglev: Option<u32>,
}

impl Desired {
    fn add_service(&mut self, index: &Index, service: &Service) {
        self.created = service.created;
        self.source_ranges = source_ranges(service, index);
        if !service.ports.is_empty() {
            self.whole.clone_from(&service.cluster_ips);
        }
        let mut serving_here: BTreeSet<IpAddr> = BTreeSet::new();
        for port in &service.ports {
            let endpoints = merge(index.slices(&service.name), port, index.viewer());
            if port.protocol == Protocol::Udp {
                let serving = endpoints.iter().filter(|endpoint| endpoint.serving);
                self.lingering.extend(serving.map(|endpoint| Lingering::Datagrams(endpoint.address)));
            }
            let ready_here = endpoints.iter().filter(|endpoint| endpoint.ready && endpoint.local);
            serving_here.extend(ready_here.map(|endpoint| endpoint.address.ip));
            // In order of address, those of IPv4 come first.
            let (v4, v6) =
                endpoints.split_at(endpoints.partition_point(|endpoint| endpoint.address.ip.is_ipv4()));
            let port = Port {
                service,
                port,
                name: ServicePortName {
                    service: service.name.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                },
                v4: categorize(v4).into(),
                v6: categorize(v6).into(),
                maglev: index.settings().maglev,
            };
            self.add_port(&port, index.nodeport_addresses());
            self.count_without_local(&port);
        }
        self.health = service.health_check_port.map(|port| HealthCheck {
            service: service.name.clone(),
            port,
            local_endpoints: larger_family(&serving_here),
        });
    }

    fn add_port(&mut self, port: &Port<'_>, node: &[IpAddr]) {
        let Service { cluster_ips, load_balancer_ips, external_ips, .. } = port.service;
        let number = port.port.port;
        for (index, ip) in cluster_ips.iter().enumerate() {
            self.add(port, (*ip, number), FrontendKind::ClusterIp, index);
        }
        for (ip, number) in node.iter().zip(port.port.node_port.into_iter().cycle()) {
            self.add(port, (*ip, number), FrontendKind::NodePort, port.port.index);
        }
        for (index, ip) in load_balancer_ips.iter().enumerate() {
            self.add(port, (*ip, number), FrontendKind::LoadBalancer, index);
        }
        for (index, ip) in external_ips.iter().enumerate() {
            self.add(port, (*ip, number), FrontendKind::ExternalIp, index);
        }
    }

    /// A Service's address asked for twice by the same port is one frontend, of the kind that comes first. Like
    /// kube-proxy, a Service has no business in a family in which it has no ClusterIP.
    fn add(&mut self, port: &Port<'_>, (ip, number): (IpAddr, u16), kind: FrontendKind, index: usize) {
        if !port.service.cluster_ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4()) {
            return;
        }
        let key = frontend_key(ip, number, port.name.protocol);
        if let Some(other) = self.frontends.get(&key) {
            if other.port != port.name {
                let object = format!("Service {}", port.name.service);
                let message =
                    format!("{} is already that of port {:?}", frontend_label(&key), other.port.port);
                self.problems.push(Problem { object, field: field(kind, index), message });
            }
            return;
        }
        self.frontends.insert(key, port.frontend(ip, kind, index));
    }

    /// Like kube-proxy, a port counts for a family in which it has endpoints.
    fn count_without_local(&mut self, port: &Port<'_>) {
        let lacking =
            [&port.v4, &port.v6].into_iter().filter(|choices| choices.any && choices.local.is_empty());
        let (count, Service { internal_policy, external_policy, .. }) = (lacking.count(), port.service);
        self.without_local.internal += if *internal_policy == TrafficPolicy::Local { count } else { 0 };
        self.without_local.external += if *external_policy == TrafficPolicy::Local { count } else { 0 };
    }
}

impl Port<'_> {
    /// internalTrafficPolicy governs ClusterIPs and nothing else; externalTrafficPolicy governs clients
    /// from outside at all other addresses, where clients inside may use every endpoint.
    fn frontend(&self, ip: IpAddr, kind: FrontendKind, index: usize) -> DesiredFrontend {
        let Self { service, v4, v6, .. } = self;
        let (internal_policy, external_policy) = match kind {
            FrontendKind::ClusterIp => (service.internal_policy, service.internal_policy),
            _ => (TrafficPolicy::Cluster, service.external_policy),
        };
        let choices = if ip.is_ipv4() { v4 } else { v6 };
        let external = choices.of(external_policy);
        let is_guarded =
            kind == FrontendKind::LoadBalancer && service.ranges_of(ip.is_ipv4()).next().is_some();
        let mut flags = 0;
        for (flag, holds) in [
            (
                frontend_flags::KEEP_SOURCE,
                kind != FrontendKind::ClusterIp && external_policy == TrafficPolicy::Local,
            ),
            (frontend_flags::HAS_ENDPOINTS, choices.any),
            (frontend_flags::GUARDED, is_guarded),
            (frontend_flags::NODE_PORT, kind == FrontendKind::NodePort),
        ] {
            flags |= if holds { flag } else { 0 };
        }
        // A choice between one backend needs no table, and a table has a place for each.
        let has_table = |size: &u32| (2..=*size as usize).contains(&external.len());
        DesiredFrontend {
            port: self.name.clone(),
            kind,
            index,
            flags,
            affinity: service.affinity.unwrap_or(0),
            internal: choices.of(internal_policy),
            maglev: self.maglev.filter(|_| kind != FrontendKind::ClusterIp).filter(has_table),
            external,
        }
    }
}

/// How many endpoints the addresses are: one of both families has two, but is one, and a load balancer that shares by
/// the number is to count it so.
fn larger_family(addresses: &BTreeSet<IpAddr>) -> usize {
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    v4.max(addresses.len() - v4)
}

/// The ranges of the Service, and where they admit this node also its own addresses for load balancers.
///
/// Such an address may be a local one of the node, which then is its own client under that very address.
fn source_ranges(service: &Service, index: &Index) -> Vec<IpNet> {
    let mut ranges = service.source_ranges.clone();
    for node in index.node().into_iter().flat_map(Node::primary_addresses) {
        if ranges.iter().any(|range| range.contains(&node)) {
            let own = service.load_balancer_ips.iter().filter(|ip| ip.is_ipv4() == node.is_ipv4());
            ranges.extend(own.map(|ip| IpNet::from(*ip)));
        }
    }
    ranges.sort();
    ranges.dedup();
    ranges
}

/// The field that asks for a frontend of this kind.
pub(crate) fn field(kind: FrontendKind, index: usize) -> String {
    match kind {
        FrontendKind::ClusterIp => format!("spec.clusterIPs[{index}]"),
        FrontendKind::NodePort => format!("spec.ports[{index}].nodePort"),
        FrontendKind::LoadBalancer => "status.loadBalancer.ingress".to_owned(),
        FrontendKind::ExternalIp => "spec.externalIPs".to_owned(),
        FrontendKind::HostPort => format!("portMappings[{index}].hostPort"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    /// A Service over TCP and UDP with an endpoint in each state.
    fn desired_of_mixed_states() -> Desired {
        let mut index = Index::new("a", crate::settings::Settings::default());
        let service = json!({
            "metadata": { "namespace": "default", "name": "dns" },
            "spec": { "clusterIPs": ["10.96.0.10"], "ports": [
                { "name": "dns", "protocol": "UDP", "port": 53 },
                { "name": "dns-tcp", "protocol": "TCP", "port": 53 },
            ] },
        });
        let slice = json!({
            "metadata": { "namespace": "default", "name": "dns-1", "labels": { "kubernetes.io/service-name": "dns" } },
            "addressType": "IPv4",
            "ports": [{ "name": "dns", "protocol": "UDP", "port": 5353 }, { "name": "dns-tcp", "port": 5353 }],
            "endpoints": [
                { "addresses": ["10.244.0.1"] },
                { "addresses": ["10.244.0.2"], "conditions": { "ready": false, "serving": true, "terminating": true } },
                { "addresses": ["10.244.0.3"], "conditions": { "ready": false, "serving": false, "terminating": true } },
            ],
        });
        index.apply_service(&from_value(service).expect("a Service"));
        index.apply_slice(&from_value(slice).expect("an EndpointSlice"));
        desired(&index, &ObjectName::new("default", "dns"))
    }

    #[test]
    fn connections_go_on_while_their_endpoint_is_listed_and_datagrams_while_it_serves() {
        let desired = desired_of_mixed_states();
        let lingers = |protocol, host: &str, port| {
            desired.lingers(protocol, BackendAddress { ip: host.parse().expect("an address"), port })
        };
        assert!(lingers(Protocol::Tcp, "10.244.0.2", 5353) && lingers(Protocol::Udp, "10.244.0.2", 5353));
        assert!(lingers(Protocol::Tcp, "10.244.0.3", 5353) && !lingers(Protocol::Udp, "10.244.0.3", 5353));
        assert!(!lingers(Protocol::Tcp, "10.244.0.4", 5353), "it is not listed");
        assert!(lingers(Protocol::Tcp, "10.244.0.1", 80) && !lingers(Protocol::Udp, "10.244.0.1", 80));
    }

    #[test]
    fn both_protocols_of_one_port_are_frontends_of_their_own() {
        let desired = desired_of_mixed_states();
        let ports: Vec<String> =
            desired.frontends.values().map(|frontend| frontend.port.to_string()).collect();
        assert_eq!(ports, ["default/dns:dns-tcp/tcp", "default/dns:dns/udp"]);
        assert_eq!(desired.backends().len(), 2, "each has one ready endpoint");
    }
}
