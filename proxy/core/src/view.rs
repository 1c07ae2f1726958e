//! What the command line and the status page show of a Service.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_abi::{Frontend, FrontendKey, frontend_flags};
use serde::Serialize;

use crate::dataplane::MapError;
use crate::endpoints::BackendAddress;
use crate::frontends::{self, DesiredFrontend, FrontendKind};
use crate::host_ports::HostPorts;
use crate::index::Index;
use crate::model::{ObjectName, Protocol, socket_label};

/// A Service port, or the port of the node that leads to a pod, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// metadata.namespace, of the Service or the pod.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// The port's name, possibly empty; of a pod's, its number.
    pub port: String,
    /// The port's protocol.
    pub protocol: Protocol,
    /// What clients dial.
    pub frontends: Vec<FrontendView>,
    /// The first thing that failed, if the Service is not as its object asks.
    pub pending: Option<String>,
}

/// A frontend as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendView {
    /// Address and port, as in `10.96.0.1:80`.
    pub address: String,
    /// Where the address comes from.
    pub kind: FrontendKind,
    /// Id of the Service port; none while the frontend is not in the map.
    pub id: Option<u32>,
    /// Whether flows from outside keep their source address.
    pub keep_source: bool,
    /// Whether only clients in the Service's source ranges may use it.
    pub guarded: bool,
    /// For how many seconds a client keeps its backend; 0: not at all.
    pub affinity: u32,
    /// What becomes of flows for which there is no backend.
    pub without_backend: WithoutBackend,
    /// Backends of clients inside the cluster.
    pub internal: Vec<String>,
    /// Backends of clients outside the cluster.
    pub external: Vec<String>,
}

/// What becomes of flows for which there is no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutBackend {
    /// Answered with port unreachable: there is no endpoint at all.
    Reject,
    /// Dropped: there are endpoints, but none that these clients may use here.
    Drop,
}

/// The ports of the Service `name`; `programmed` tells which of its frontends are in the map.
pub(crate) fn service(
    index: &Index,
    name: &ObjectName,
    programmed: impl Fn(&FrontendKey) -> Option<Frontend>,
    pending: Option<&MapError>,
) -> Vec<ServiceView> {
    let Some(service) = index.service(name) else { return Vec::new() };
    let by_port = by_port(index, name, programmed);
    let view = |port: &crate::model::ServicePort| ServiceView {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        port: port.name.to_string(),
        protocol: port.protocol,
        frontends: by_port.get(&(port.name.clone(), port.protocol)).cloned().unwrap_or_default(),
        pending: pending.map(MapError::to_string),
    };
    service.ports.iter().map(view).collect()
}

/// The ports of the node that lead to the pod of `owner`, as [`service`].
pub(crate) fn host_ports(
    index: &Index,
    owner: &ObjectName,
    programmed: impl Fn(&FrontendKey) -> Option<Frontend>,
    pending: Option<&MapError>,
) -> Vec<ServiceView> {
    let Some(HostPorts { pod, .. }) = index.host_ports(owner) else { return Vec::new() };
    let view = |((port, protocol), frontends): ((Arc<str>, Protocol), Vec<FrontendView>)| ServiceView {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        port: port.to_string(),
        protocol,
        frontends,
        pending: pending.map(MapError::to_string),
    };
    by_port(index, owner, programmed).into_iter().map(view).collect()
}

fn by_port(
    index: &Index,
    name: &ObjectName,
    programmed: impl Fn(&FrontendKey) -> Option<Frontend>,
) -> BTreeMap<(Arc<str>, Protocol), Vec<FrontendView>> {
    let mut by_port: BTreeMap<_, Vec<FrontendView>> = BTreeMap::new();
    for (key, frontend) in frontends::desired(index, name).frontends.iter() {
        let id = programmed(key).map(|programmed| programmed.service);
        let port = (frontend.port.port.clone(), frontend.port.protocol);
        by_port.entry(port).or_default().push(frontend_view(key, frontend, id));
    }
    by_port
}

fn frontend_view(key: &FrontendKey, frontend: &DesiredFrontend, id: Option<u32>) -> FrontendView {
    let labels = |list: &[BackendAddress]| list.iter().map(BackendAddress::to_string).collect();
    FrontendView {
        address: socket_label(key.address.into(), key.port.number()),
        kind: frontend.kind,
        id,
        keep_source: frontend.flags & frontend_flags::KEEP_SOURCE != 0,
        guarded: frontend.flags & frontend_flags::GUARDED != 0,
        affinity: frontend.affinity,
        without_backend: match frontend.flags & frontend_flags::HAS_ENDPOINTS {
            0 => WithoutBackend::Reject,
            _ => WithoutBackend::Drop,
        },
        internal: labels(&frontend.internal),
        external: labels(&frontend.external),
    }
}
