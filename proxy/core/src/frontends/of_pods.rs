//! What a pod's host ports ask of the maps.
//!
//! Pure. Clients keep their address. Every Service comes before: its port is the cluster's, and the same on every node.

use std::net::IpAddr;
use std::sync::Arc;

use fairlead_abi::frontend_flags;

use super::{Desired, DesiredFrontend, FrontendKind};
use crate::endpoints::BackendAddress;
use crate::host_ports::{HostPort, HostPorts};
use crate::index::Index;
use crate::model::{ObjectName, Problem, ServicePortName, frontend_key};
use crate::settings::EVERY_ADDRESS;

impl Desired {
    /// Adds what `owner`, a pod, asks for.
    pub(crate) fn add_host_ports(&mut self, index: &Index, owner: &ObjectName, wanted: &HostPorts) {
        self.created = i64::MAX;
        for port in &wanted.ports {
            let Some(addresses) = addresses_of(port, index) else {
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

/// The node's addresses that have the port; none if it asks for one that is not the node's.
fn addresses_of(port: &HostPort, index: &Index) -> Option<Vec<IpAddr>> {
    match port.host_ip {
        None => Some(index.nodeport_addresses().to_vec()),
        Some(one) => index.is_own_address(one).then(|| vec![one]),
    }
}
