//! What each address that clients dial should do: one Service, its endpoints and the node in, frontends out.
//!
//! Pure; called by [`crate::reconcile`] for each Service that changed.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use fairlead_abi::{FrontendKey, frontend_flags};

use crate::endpoints::{BackendAddress, Categories, Endpoint, categorize, merge};
use crate::index::Index;
use crate::model::{
    ObjectName, Problem, Protocol, Service, ServicePort, ServicePortName, TrafficPolicy, frontend_key,
    frontend_label,
};

/// How clients came to know a frontend's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FrontendKind {
    /// spec.clusterIPs.
    ClusterIp,
    /// spec.ports\[\].nodePort on the node's primary addresses.
    NodePort,
    /// status.loadBalancer.ingress.
    LoadBalancer,
    /// spec.externalIPs.
    ExternalIp,
}

/// What a frontend should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredFrontend {
    /// The Service port behind it.
    pub port: ServicePortName,
    /// Where its address comes from.
    pub kind: FrontendKind,
    /// The field of the Service that asks for it, for problems to name.
    pub field: String,
    /// [`frontend_flags`].
    pub flags: u32,
    /// Backends for clients inside the cluster, in order.
    pub internal: Vec<BackendAddress>,
    /// Backends for clients outside the cluster, in order.
    pub external: Vec<BackendAddress>,
}

/// Everything that one Service asks of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// When the Service was created, see [`Service::created`].
    pub created: i64,
    /// Its frontends.
    pub frontends: BTreeMap<FrontendKey, DesiredFrontend>,
    /// Backends that no new flow is given to by right, but whose established flows may go on.
    pub lingering: HashSet<Lingering>,
    /// Its ports that ask for a frontend that another of its ports has.
    pub problems: Vec<Problem>,
}

/// Whose established flows may go on.
///
/// A TCP connection goes on as long as its endpoint's address is listed at all, whatever becomes of the
/// Service's ports and of the endpoint's readiness, because nothing but the endpoint can end it properly.
/// A UDP flow goes on while its endpoint serves: datagrams can be sent elsewhere at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lingering {
    /// TCP and SCTP connections to any port of this address.
    Connections(IpAddr),
    /// UDP flows to this backend.
    Datagrams(BackendAddress),
}

impl Desired {
    /// Every backend that its frontends refer to; one may come several times.
    pub fn backends(&self) -> impl Iterator<Item = (Protocol, BackendAddress)> + '_ {
        self.frontends.values().flat_map(|frontend| {
            let lists = frontend.internal.iter().chain(&frontend.external);
            lists.map(|address| (frontend.port.protocol, *address))
        })
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
        self.lingering.contains(&match protocol {
            Protocol::Udp => Lingering::Datagrams(backend),
            Protocol::Tcp | Protocol::Sctp => Lingering::Connections(backend.ip),
        })
    }
}

/// What the Service of that name asks of the maps, by the state of `index`.
pub fn desired(index: &Index, name: &ObjectName) -> Desired {
    let mut desired = Desired::default();
    for endpoint in index.slices(name).flat_map(|slice| &slice.endpoints) {
        desired.lingering.insert(Lingering::Connections(endpoint.address));
    }
    let Some(service) = index.service(name) else { return desired };
    desired.created = service.created;
    let node_addresses: Vec<IpAddr> =
        index.node().map(|node| node.primary_addresses().collect()).unwrap_or_default();
    for port in &service.ports {
        let endpoints = merge(index.slices(name), port, index.node_name());
        if port.protocol == Protocol::Udp {
            let serving = endpoints.iter().filter(|endpoint| endpoint.serving);
            desired.lingering.extend(serving.map(|endpoint| Lingering::Datagrams(endpoint.address)));
        }
        let of_family = |v4: bool| -> Vec<Endpoint> {
            endpoints.iter().filter(|endpoint| endpoint.address.ip.is_ipv4() == v4).copied().collect()
        };
        let families = Families { v4: categorize(&of_family(true)), v6: categorize(&of_family(false)) };
        desired.add_port(service, port, &families, &node_addresses);
    }
    desired
}

/// A Service port's endpoints by family: an address has backends of its own family only.
struct Families {
    v4: Categories,
    v6: Categories,
}

impl Desired {
    fn add_port(&mut self, service: &Service, port: &ServicePort, families: &Families, node: &[IpAddr]) {
        for (index, ip) in service.cluster_ips.iter().enumerate() {
            let field = format!("spec.clusterIPs[{index}]");
            self.add(service, port, families, (*ip, port.port), FrontendKind::ClusterIp, field);
        }
        for (ip, number) in node.iter().zip(port.node_port.into_iter().cycle()) {
            let field = format!("spec.ports[{}].nodePort", port.index);
            self.add(service, port, families, (*ip, number), FrontendKind::NodePort, field);
        }
        for ip in &service.load_balancer_ips {
            let field = "status.loadBalancer.ingress".to_owned();
            self.add(service, port, families, (*ip, port.port), FrontendKind::LoadBalancer, field);
        }
        for ip in &service.external_ips {
            let field = "spec.externalIPs".to_owned();
            self.add(service, port, families, (*ip, port.port), FrontendKind::ExternalIp, field);
        }
    }

    /// A Service's address asked for twice by the same port is one frontend, of the kind that comes first.
    fn add(
        &mut self,
        service: &Service,
        port: &ServicePort,
        families: &Families,
        (ip, number): (IpAddr, u16),
        kind: FrontendKind,
        field: String,
    ) {
        let name = ServicePortName {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        };
        let key = frontend_key(ip, number, port.protocol);
        if let Some(other) = self.frontends.get(&key) {
            if other.port != name {
                let object = format!("Service {}", service.name);
                let message =
                    format!("{} is already that of port {:?}", frontend_label(&key), other.port.port);
                self.problems.push(Problem { object, field, message });
            }
            return;
        }
        let categories = if ip.is_ipv4() { &families.v4 } else { &families.v6 };
        let frontend = DesiredFrontend::new(service, name, categories, kind, field);
        self.frontends.insert(key, frontend);
    }
}

impl DesiredFrontend {
    /// internalTrafficPolicy governs ClusterIPs and nothing else; externalTrafficPolicy governs clients
    /// from outside at all other addresses, where clients inside may use every endpoint.
    fn new(
        service: &Service,
        port: ServicePortName,
        categories: &Categories,
        kind: FrontendKind,
        field: String,
    ) -> Self {
        let (internal_policy, external_policy) = match kind {
            FrontendKind::ClusterIp => (service.internal_policy, service.internal_policy),
            _ => (TrafficPolicy::Cluster, service.external_policy),
        };
        let backends = |policy| match policy {
            TrafficPolicy::Cluster => categories.cluster.clone(),
            TrafficPolicy::Local => categories.local.clone(),
        };
        let mut flags = 0;
        if kind != FrontendKind::ClusterIp && external_policy == TrafficPolicy::Local {
            flags |= frontend_flags::KEEP_SOURCE;
        }
        if categories.any {
            flags |= frontend_flags::HAS_ENDPOINTS;
        }
        Self {
            port,
            kind,
            field,
            flags,
            internal: backends(internal_policy),
            external: backends(external_policy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    /// A Service over TCP and UDP with an endpoint in each state.
    fn desired_of_mixed_states() -> Desired {
        let mut index = Index::new("a");
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
        assert_eq!(desired.backends().count(), 4, "each has one ready endpoint, inside and outside");
    }
}
