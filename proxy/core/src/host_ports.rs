//! Ports of the node that lead to single pods: hostPort, as the CNI plugin registers pods with the agent.
//!
//! Pure. What a pod asks for is a Service of its own with one backend, the pod, so that claims, ids and writes are those
//! of Services. Clients keep their address. Every Service comes before: its port is the cluster's, and the same on every
//! node.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_abi::frontend_flags;

use crate::endpoints::BackendAddress;
use crate::frontends::{Desired, DesiredFrontend, FrontendKind};
use crate::index::Index;
use crate::model::{ObjectName, Problem, Protocol, ServicePortName, frontend_key, frontend_label};
use crate::settings::EVERY_ADDRESS;

/// The namespace of [`owner`]s: no namespace of the API has such a name.
const NAMESPACE: &str = "hostPort";

/// The name under which an attachment's ports are kept beside those of Services.
pub fn owner(container_id: &str, ifname: &str) -> ObjectName {
    ObjectName::new(NAMESPACE, format!("{container_id}/{ifname}"))
}

/// Whether the name is an [`owner`]'s, and not a Service's.
pub fn is_owner(name: &ObjectName) -> bool {
    *name.namespace == *NAMESPACE
}

/// The ports of the node that lead to one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// The pod.
    pub pod: ObjectName,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Which ports.
    pub ports: Vec<HostPort>,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Its place in portMappings, for problems to name.
    pub index: usize,
    /// The node's address that has it; none: all those that NodePorts are on.
    pub host_ip: Option<IpAddr>,
    /// The node's port, 1–65535.
    pub host_port: u16,
    /// The pod's port, 1–65535.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
}

impl HostPort {
    /// Whether no node can have both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let shares_address = match (self.host_ip, other.host_ip) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        };
        shares_address && (self.host_port, self.protocol) == (other.host_port, other.protocol)
    }

    /// The node's addresses that have it; none if it asks for one that is not the node's.
    fn addresses(&self, index: &Index) -> Option<Vec<IpAddr>> {
        match self.host_ip {
            None => Some(index.nodeport_addresses().to_vec()),
            Some(one) => index.is_own_address(one).then(|| vec![one]),
        }
    }
}

/// Reads as `8080/tcp`, `192.0.2.1:8080/tcp`.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(address) => {
                f.write_str(&frontend_label(&frontend_key(address, self.host_port, self.protocol)))
            }
            None => write!(f, "{}/{}", self.host_port, self.protocol),
        }
    }
}

impl Desired {
    /// Adds what `owner`, a pod, asks for.
    pub(crate) fn add_host_ports(&mut self, index: &Index, owner: &ObjectName, wanted: &HostPorts) {
        self.created = i64::MAX;
        for port in &wanted.ports {
            let Some(addresses) = port.addresses(index) else {
                self.problems.push(Problem {
                    object: index.label(owner),
                    field: format!("portMappings[{}].hostIP", port.index),
                    message: format!("{port}: the node has no such address now"),
                });
                continue;
            };
            for address in addresses {
                self.add_host_port(owner, wanted, port, address);
            }
        }
    }

    /// A pod has nothing at the node's addresses of a family in which it has none.
    fn add_host_port(&mut self, owner: &ObjectName, wanted: &HostPorts, port: &HostPort, address: IpAddr) {
        let own = wanted.addresses.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
        let backends: Arc<[BackendAddress]> =
            own.map(|ip| BackendAddress { ip: *ip, port: port.container_port }).collect();
        if backends.is_empty() && address != EVERY_ADDRESS {
            return;
        }
        // Who comes over an uplink has no business at the node's loopback.
        let external = if address.is_loopback() { Arc::default() } else { Arc::clone(&backends) };
        let name = port.host_port.to_string().into();
        let frontend = DesiredFrontend {
            port: ServicePortName { service: owner.clone(), port: name, protocol: port.protocol },
            kind: FrontendKind::HostPort,
            index: port.index,
            flags: frontend_flags::KEEP_SOURCE | frontend_flags::HAS_ENDPOINTS | frontend_flags::NODE_PORT,
            affinity: 0,
            internal: backends,
            external,
            maglev: None,
        };
        self.frontends.insert(frontend_key(address, port.host_port, port.protocol), frontend);
    }
}
