//! The agent's socket: how the CNI plugin, and the command line, talk to the running `fairlead-proxy`.
//!
//! One request and one reply per connection, each a line of JSON over a unix stream socket
//! ([`DEFAULT_SOCKET`]). The agent answers an [`Request::AddEndpoint`] only when the pod's entries are in
//! the maps and its program is attached, so that a successful CNI ADD means a working pod.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/fairlead/agent.sock";

/// A pod's name in the API; empty fields where the runtime did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID: an address reused by another pod is another endpoint.
    pub uid: String,
}

/// One attachment of a pod, as CNI ADD made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME: the interface's name inside the pod.
    pub ifname: String,
    /// The pod behind it.
    pub pod: PodRef,
    /// Name of the host side of the veth pair.
    pub host_ifname: String,
    /// Interface index of the host side.
    pub host_ifindex: u32,
    /// Ethernet address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Ethernet address of the host's end.
    pub host_mac: [u8; 6],
    /// The pod's addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The kernel's cookie of the pod's network namespace (SO_NETNS_COOKIE, kernel 5.14), by which the programs know
    /// the pod's sockets; none where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_cookie: Option<u64>,
    /// The node's ports that lead to the pod (capability `portMappings`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Whether the host's end limits what the pod is sent (capability `bandwidth`), so that nothing may go past its
    /// queue.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_shaped: bool,
}

impl Registration {
    /// The names of the fields in which `other` differs, as they are written in JSON.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let fields = |registration: &Self| match serde_json::to_value(registration) {
            Ok(Value::Object(fields)) => fields,
            // A registration is always an object.
            _ => Map::new(),
        };
        let (own, others) = (fields(self), fields(other));
        let names: BTreeSet<&String> = own.keys().chain(others.keys()).collect();
        names.into_iter().filter(|name| own.get(*name) != others.get(*name)).cloned().collect()
    }
}

/// A port of the node that leads to a pod: one entry of `runtimeConfig.portMappings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port.
    pub host_port: u16,
    /// The pod's.
    pub container_port: u16,
    /// "tcp", "udp" or "sctp".
    pub protocol: String,
    /// The node's address that has the port; all of them if none.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// What may be asked of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Program a pod's endpoint and attach its program; idempotent.
    AddEndpoint(Registration),
    /// Remove an endpoint; succeeds if there is none.
    DeleteEndpoint {
        /// CNI_CONTAINERID.
        container_id: String,
        /// CNI_IFNAME.
        ifname: String,
    },
    /// Compare an endpoint with the maps and the attached program; an error names what differs.
    CheckEndpoint(Registration),
    /// The agent's state, as `fairlead-proxy status -o json` prints it.
    Status,
    /// The programmed Services, as `fairlead-proxy services -o json` prints them.
    Services,
    /// One Service in detail; null if there is none.
    Service {
        /// metadata.namespace.
        namespace: String,
        /// metadata.name.
        name: String,
    },
    /// The backends in the maps, as `fairlead-proxy backends -o json` prints them.
    Backends {
        /// Those of one Service, as `namespace/name`.
        service: Option<String>,
    },
    /// The pods of the node, as `fairlead-proxy endpoints -o json` prints them.
    Endpoints,
    /// Connections in the flow table, as `fairlead-proxy flows -o json` prints them.
    Flows {
        /// Which.
        filter: FlowFilter,
        /// How many at most: those that were heard of last.
        limit: usize,
    },
    /// What the flow table holds, as `fairlead-proxy flow-table -o json` prints it.
    FlowTable {
        /// How many Services, clients and backends to name.
        top: usize,
    },
    /// How long the agent's own work takes.
    Times,
    /// The policies, as `fairlead-proxy policies -o json` prints them.
    Policies,
    /// What was dropped, as far as it is told and kept, as `fairlead-proxy flows --drops -o json` prints it.
    Drops {
        /// Only events with a greater number; 0 for all.
        after: u64,
    },
    /// Remove what kube-proxy has left on the node; its connections go on.
    Takeover {
        /// Only say what is there.
        dry_run: bool,
    },
    /// What becomes of a packet, and why, as `fairlead-proxy why -o json` prints it.
    Why(Question),
    /// Whether the maps hold what an object says: answered when they do, or when the time is over; as
    /// `fairlead-proxy wait -o json` prints it.
    Wait(Awaited),
}

/// A kind of object that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AwaitedKind {
    /// A Service, with its EndpointSlices.
    Service,
    /// A NetworkPolicy.
    NetworkPolicy,
    /// A ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// A Pod, with its endpoint.
    Pod,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Awaited {
    /// The object's kind.
    pub kind: AwaitedKind,
    /// Its namespace; empty where its kind has none.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The version that is to be in effect, or a newer one; any if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Wait until nothing of it is in effect instead.
    #[serde(default)]
    pub deleted: bool,
    /// How long to wait, in milliseconds; 0: answer at once.
    pub timeout_ms: u64,
}

/// Which flows somebody asks about: those that are all that it names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowFilter {
    /// A pod that is an end of it, as `namespace/name`.
    pub pod: Option<String>,
    /// The Service that was dialled, as `namespace/name`.
    pub service: Option<String>,
    /// Who began it: an address, a range, or a name.
    pub from: Option<String>,
    /// What was dialled, or who serves it: an address, a range, or a name.
    pub to: Option<String>,
    /// The port that was dialled, or that it is served at.
    pub port: Option<u16>,
    /// "tcp", "udp", "sctp" or a protocol's number.
    pub protocol: Option<String>,
    /// The connection's state.
    pub state: Option<String>,
}

/// The first packet of a flow, as `fairlead-proxy why` asks about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// `namespace/pod`, or an address.
    pub from: String,
    /// `namespace/pod`, `namespace/service`, or an address; `pod:` or `service:` before it where both have the name.
    pub to: String,
    /// "tcp", "udp", "sctp" or "icmp".
    pub protocol: String,
    /// The port that is dialled; 0 for ICMP.
    pub port: u16,
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// Done; the value is null where nothing was asked for.
    Ok(Value),
    /// Not done, and why.
    Error(String),
}

/// Why the agent could not be asked, or would not do it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens.
    #[error("connect to the agent at {path}: {source}")]
    Connect {
        /// The socket's path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection broke, or the agent took too long.
    #[error("talk to the agent at {path}: {source}")]
    Talk {
        /// The socket's path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The agent's answer was not one.
    #[error("understand the agent's answer: {0}")]
    Answer(#[from] serde_json::Error),
    /// The agent answered that it could not.
    #[error("the agent refused: {0}")]
    Refused(String),
}

/// Asks the agent at `socket` and waits for its answer at most `timeout`.
///
/// # Errors
/// When nobody listens, the connection breaks or times out, or the agent refuses.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> Result<Value, AgentError> {
    let path = || socket.display().to_string();
    let stream =
        UnixStream::connect(socket).map_err(|source| AgentError::Connect { path: path(), source })?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    let talk = || -> std::io::Result<String> {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        (&stream).write_all(line.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = talk().map_err(|source| AgentError::Talk { path: path(), source })?;
    match serde_json::from_str(&answer)? {
        Reply::Ok(value) => Ok(value),
        Reply::Error(why) => Err(AgentError::Refused(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registrations_differ_in_fields_that_have_a_name() {
        let one = Registration {
            container_id: "a".into(),
            ifname: "eth0".into(),
            pod: PodRef::default(),
            host_ifname: "fl0".into(),
            host_ifindex: 7,
            pod_mac: [2; 6],
            host_mac: [4; 6],
            addresses: Vec::new(),
            netns_cookie: None,
            port_mappings: Vec::new(),
            is_shaped: false,
        };
        assert_eq!(one.differences(&one.clone()), Vec::<String>::new());
        let other = Registration { host_ifindex: 8, is_shaped: true, ..one.clone() };
        assert_eq!(one.differences(&other), ["hostIfindex", "isShaped"]);
    }
}
