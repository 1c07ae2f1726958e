//! Ports of the node that lead to single pods: hostPort, as the CNI plugin registers pods with the agent.
//!
//! What a pod asks for is a Service of its own with one backend, the pod, so that claims, ids and writes are those of
//! Services: see [`crate::frontends`].

use std::fmt;
use std::net::IpAddr;

use crate::model::{ObjectName, Protocol, frontend_key, frontend_label};

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
