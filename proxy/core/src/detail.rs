//! All that there is to say of one Service: what its object asks, its endpoints as this node sees them, and why a
//! frontend has no backend.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::endpoints::merge;
use crate::index::Index;
use crate::model::{ObjectName, Protocol, Service, ServicePort, TrafficPolicy};
use crate::view::ServiceView;

/// A Service, as `fairlead-proxy services NAMESPACE/NAME` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceDetail {
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// spec.internalTrafficPolicy.
    pub internal_traffic_policy: TrafficPolicy,
    /// spec.externalTrafficPolicy.
    pub external_traffic_policy: TrafficPolicy,
    /// For how many seconds a client keeps its backend (sessionAffinity: ClientIP), if it does.
    pub affinity_seconds: Option<u32>,
    /// spec.loadBalancerSourceRanges, without those of a family that a /0 opens.
    pub source_ranges: Vec<IpNet>,
    /// spec.healthCheckNodePort, where it is served.
    pub health_check_node_port: Option<u16>,
    /// How many EndpointSlices name the Service.
    pub slices: usize,
    /// Its ports.
    pub ports: Vec<PortDetail>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortDetail {
    /// As in the list of all Services.
    #[serde(flatten)]
    pub view: ServiceView,
    /// What its EndpointSlices list.
    pub endpoints: Vec<EndpointDetail>,
    /// Why clients find no backend, for each kind of them that does not.
    pub absences: Vec<String>,
}

/// An endpoint of a Service's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDetail {
    /// Address and port.
    pub address: String,
    /// The node that it is on.
    pub node: Option<String>,
    /// That node's zone.
    pub zone: Option<String>,
    /// Whether it is on this node.
    pub local: bool,
    /// Takes new connections.
    pub ready: bool,
    /// Answers.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
}

/// The Service of that name, whose ports are these; none if it is not the proxy's business.
pub(crate) fn detail(index: &Index, name: &ObjectName, ports: Vec<ServiceView>) -> Option<ServiceDetail> {
    let service = index.service(name)?;
    let ports = service.ports.iter().zip(ports);
    Some(ServiceDetail {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        internal_traffic_policy: service.internal_policy,
        external_traffic_policy: service.external_policy,
        affinity_seconds: service.affinity,
        source_ranges: service.source_ranges.clone(),
        health_check_node_port: service.health_check_port,
        slices: index.slices(name).count(),
        ports: ports.map(|(port, view)| port_detail(index, service, port, view)).collect(),
    })
}

fn port_detail(index: &Index, service: &Service, port: &ServicePort, view: ServiceView) -> PortDetail {
    let slices = index.slices(&service.name);
    let node_of = |address: IpAddr| {
        let mut listed = slices.clone().flat_map(|slice| &slice.endpoints);
        listed.find(|endpoint| endpoint.address == address)?.node.clone()
    };
    let merged = merge(slices.clone(), port, index.viewer());
    let endpoints: Vec<EndpointDetail> = merged
        .iter()
        .map(|endpoint| {
            let node = node_of(endpoint.address.ip).map(|node| node.to_string());
            let zone =
                node.as_ref().and_then(|node| index.nodes().find(|known| known.name == *node)?.zone.clone());
            EndpointDetail {
                address: endpoint.address.to_string(),
                node,
                zone,
                local: endpoint.local,
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
            }
        })
        .collect();
    let mut absences = Vec::new();
    for v4 in [true, false] {
        let mut of_family =
            view.frontends.iter().filter(|frontend| frontend.address.starts_with('[') != v4).peekable();
        if of_family.peek().is_none() {
            continue;
        }
        let (inside, outside) = of_family.fold((true, true), |(inside, outside), frontend| {
            (inside && !frontend.internal.is_empty(), outside && !frontend.external.is_empty())
        });
        let found: Vec<&crate::endpoints::Endpoint> =
            merged.iter().filter(|endpoint| endpoint.address.ip.is_ipv4() == v4).collect();
        let states = States {
            slices: slices.clone().count(),
            listed: found.len(),
            ready: found.iter().filter(|endpoint| endpoint.ready).count(),
            here: found.iter().filter(|endpoint| endpoint.local).count(),
            other_family: merged.len() - found.len(),
        };
        let family = if v4 { "IPv4" } else { "IPv6" };
        let label = port_label(port);
        for (clients, has, policy) in
            [("inside", inside, service.internal_policy), ("outside", outside, service.external_policy)]
        {
            if !has && (clients == "inside" || service.is_external()) {
                let why = states.why(policy, &label);
                absences.push(format!("{family} clients {clients} the cluster find no backend: {why}"));
            }
        }
    }
    PortDetail { view, endpoints, absences }
}

/// What is known of a port's endpoints of one family.
#[derive(Clone, Copy, Debug)]
struct States {
    slices: usize,
    listed: usize,
    ready: usize,
    here: usize,
    other_family: usize,
}

impl States {
    /// Why clients under this traffic policy find no backend.
    fn why(self, policy: TrafficPolicy, port: &str) -> String {
        let Self { slices, listed, ready, here, other_family } = self;
        match (slices, listed) {
            (0, _) => {
                "no EndpointSlice names the Service: nobody matches its selector, or it has none".to_owned()
            }
            (_, 0) if other_family > 0 => format!("its endpoints ({other_family}) are of the other family"),
            (_, 0) => format!("no EndpointSlice lists an endpoint for {port}: see the names of the ports"),
            _ if ready == 0 => format!("none of its endpoints ({listed}) is ready"),
            _ if policy == TrafficPolicy::Local && here == 0 => {
                format!("none of its endpoints ({listed}) is on this node, and the traffic policy is Local")
            }
            _ if policy == TrafficPolicy::Local => {
                format!(
                    "none of its endpoints on this node ({here}) is ready, and the traffic policy is Local"
                )
            }
            _ => "it is not programmed yet".to_owned(),
        }
    }
}

fn port_label(port: &ServicePort) -> String {
    let protocol: Protocol = port.protocol;
    if port.name.is_empty() { format!("{}/{protocol}", port.port) } else { format!("port {:?}", &*port.name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_there_is_no_backend_is_said_by_what_is_nearest_to_one() {
        let none = States { slices: 0, listed: 0, ready: 0, here: 0, other_family: 0 };
        let why = |states: States, policy| states.why(policy, "port \"http\"");
        assert!(why(none, TrafficPolicy::Cluster).contains("no EndpointSlice names"));
        let unnamed = States { slices: 1, ..none };
        assert!(why(unnamed, TrafficPolicy::Cluster).contains("port \"http\""));
        assert!(why(States { other_family: 2, ..unnamed }, TrafficPolicy::Cluster).contains("other family"));
        let unready = States { listed: 3, ..unnamed };
        assert!(why(unready, TrafficPolicy::Local).contains("(3) is ready"));
        let elsewhere = States { ready: 3, ..unready };
        assert!(
            why(elsewhere, TrafficPolicy::Local).contains("on this node, and the traffic policy is Local")
        );
        assert!(why(elsewhere, TrafficPolicy::Cluster).contains("not programmed"));
    }
}
