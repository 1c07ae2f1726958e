//! Host ports: what the CNI plugin registers of them, and having it in the maps before it is answered.
//!
//! The maps are those of Services, and [`Sync`](crate::sync::Sync)'s loop alone writes them: it is told, and tells when
//! it has.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_abi::FrontendKey;
use fairlead_core::endpoints::BackendAddress;
use fairlead_core::host_ports::{HostPort, HostPorts, owner};
use fairlead_core::model::{ObjectName, Protocol, frontend_label};
use fairlead_core::reconcile::Reconciler;
use fairlead_net::agent::{PortMapping, Registration};

use crate::agent::lock;
use crate::dataplane::endpoints::EndpointId;
use crate::dataplane::{DataplaneError, Pins, services};
use crate::watch::Update;

/// How long the loop may take: the CNI plugin waits a little longer when a pod goes.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The ports of the node that lead to the pod of `owner` from now on; none do any more. Who asks is told when that is in
/// the maps, or why it is not.
#[derive(Clone, Debug)]
pub struct Change {
    /// The [owner].
    pub owner: ObjectName,
    /// What it asks for.
    pub wanted: Option<HostPorts>,
    /// Whom to tell.
    pub done: mpsc::Sender<Result<(), String>>,
}

/// Which part of a port mapping makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("portMappings[{index}].{field}: {message}")]
pub struct MappingError {
    /// Its place in the list.
    pub index: usize,
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// The ports of the node that the registration asks for. An unspecified hostIP stands for all addresses, as none does.
///
/// # Errors
/// When a mapping makes no sense, or two ask for one port.
pub fn of(registration: &Registration) -> Result<Vec<HostPort>, MappingError> {
    let mut ports: Vec<HostPort> = Vec::new();
    for (index, mapping) in registration.port_mappings.iter().enumerate() {
        let port = port_of(index, mapping)?;
        match ports.iter().find(|other| other.overlaps(&port)) {
            // Said twice.
            Some(other) if HostPort { index, ..other.clone() } == port => {}
            Some(other) => {
                let message = format!("{port} is already that of portMappings[{}]", other.index);
                return Err(MappingError { index, field: "hostPort", message });
            }
            None => ports.push(port),
        }
    }
    Ok(ports)
}

/// What a registration that was accepted asks for, and the name to keep it under; none if it asks for no port.
pub(crate) fn asked_by(registration: &Registration) -> Option<(ObjectName, HostPorts)> {
    let ports = of(registration).ok().filter(|ports| !ports.is_empty())?;
    let (pod, addresses) = (pod_of(registration), registration.addresses.clone());
    Some((owner_of(registration), HostPorts { pod, addresses, ports }))
}

fn owner_of(registration: &Registration) -> ObjectName {
    owner(&registration.container_id, &registration.ifname)
}

fn port_of(index: usize, mapping: &PortMapping) -> Result<HostPort, MappingError> {
    let PortMapping { host_port, container_port, protocol, host_ip } = mapping;
    for (field, number) in [("hostPort", host_port), ("containerPort", container_port)] {
        if *number == 0 {
            return Err(MappingError { index, field, message: "it is 0".to_owned() });
        }
    }
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            let message = format!("{other:?} is none of tcp, udp, sctp");
            return Err(MappingError { index, field: "protocol", message });
        }
    };
    let host_ip = host_ip.filter(|address| !address.is_unspecified());
    Ok(HostPort { index, host_ip, host_port: *host_port, container_port: *container_port, protocol })
}

/// Who asks the loop of Services for host ports.
#[derive(Clone)]
pub struct Asker {
    updates: mpsc::Sender<Update>,
    reconciler: Arc<Mutex<Reconciler>>,
    pins: Pins,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

impl Asker {
    /// Asks the loop that takes these updates.
    pub fn new(updates: mpsc::Sender<Update>, reconciler: Arc<Mutex<Reconciler>>, pins: Pins) -> Self {
        Self { updates, reconciler, pins }
    }

    /// Has the ports that a registered pod asks for in the maps when it returns, and no others of it.
    ///
    /// # Errors
    /// When that can't be done now. It may still come to be done.
    pub fn open(&self, registration: &Registration) -> Result<(), DataplaneError> {
        match asked_by(registration) {
            Some((owner, wanted)) => self.set(owner, Some(wanted)),
            None => self.set(owner_of(registration), None),
        }
    }

    /// Has nothing of a pod in the maps when it returns.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn close(&self, (container_id, ifname): &EndpointId) -> Result<(), DataplaneError> {
        self.set(owner(container_id, ifname), None)
    }

    /// Compares what a registered pod asks for with the maps.
    ///
    /// # Errors
    /// When something is missing or leads elsewhere, naming it.
    pub fn check(&self, registration: &Registration) -> Result<(), DataplaneError> {
        let owner = owner_of(registration);
        let failed =
            |why: String| DataplaneError::new("check host ports of", pod_of(registration).to_string(), why);
        let frontends = {
            let reconciler = lock(&self.reconciler);
            reconciler.has_host_ports(&owner).map_err(failed)?;
            reconciler.host_ports(&owner)
        };
        for (key, wanted) in frontends {
            if self.backends(&key)? != wanted[..] {
                return Err(failed(format!("{} is missing or leads elsewhere", frontend_label(&key))));
            }
        }
        Ok(())
    }

    fn backends(&self, key: &FrontendKey) -> Result<Vec<BackendAddress>, DataplaneError> {
        let found = services::look_up(&self.pins, key)?;
        let backends = found.into_iter().flat_map(|found| found.internal);
        let address = |backend: fairlead_abi::Backend| BackendAddress {
            ip: backend.address.into(),
            port: backend.port.number(),
        };
        Ok(backends.map(address).collect())
    }

    fn set(&self, owner: ObjectName, wanted: Option<HostPorts>) -> Result<(), DataplaneError> {
        if wanted.is_none() && !lock(&self.reconciler).knows_host_ports(&owner) {
            return Ok(());
        }
        let pod = wanted.as_ref().map_or_else(|| owner.to_string(), |wanted| wanted.pod.to_string());
        let failed = |why: String| DataplaneError::new("program host ports of", pod, why);
        let (done, answer) = mpsc::channel();
        let change = Change { owner, wanted, done };
        let ended = || "the loop that keeps the maps has ended".to_owned();
        if self.updates.send(Update::HostPorts(change)).is_err() {
            return Err(failed(ended()));
        }
        match answer.recv_timeout(PATIENCE) {
            Ok(result) => result.map_err(failed),
            Err(RecvTimeoutError::Timeout) => Err(failed("the maps are not written yet".to_owned())),
            Err(RecvTimeoutError::Disconnected) => Err(failed(ended())),
        }
    }
}

/// The pod; where the runtime did not name it, the container.
pub(crate) fn pod_of(registration: &Registration) -> ObjectName {
    let Registration { container_id, pod, .. } = registration;
    match pod.name.is_empty() {
        true => ObjectName::new("container", container_id.as_str()),
        false => ObjectName::new(pod.namespace.as_str(), pod.name.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use fairlead_net::agent::PodRef;

    use super::*;

    fn mapping(host_port: u16, protocol: &str, host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|text| text.parse().expect("an address"));
        PortMapping { host_port, container_port: 80, protocol: protocol.into(), host_ip }
    }

    fn registration(port_mappings: Vec<PortMapping>) -> Registration {
        Registration {
            container_id: "c0ffee".into(),
            ifname: "eth0".into(),
            pod: PodRef::default(),
            host_ifname: "fl0".into(),
            host_ifindex: 7,
            pod_mac: [2, 0, 0, 0, 0, 1],
            host_mac: [2, 0, 0, 0, 0, 2],
            addresses: vec!["10.0.0.1".parse().expect("an address")],
            netns_cookie: None,
            port_mappings,
            is_shaped: false,
        }
    }

    #[test]
    fn a_mapping_that_makes_no_sense_is_named() {
        let good = mapping(8080, "tcp", None);
        let zero = PortMapping { container_port: 0, ..good.clone() };
        for (bad, named) in [
            (mapping(0, "tcp", None), "portMappings[1].hostPort: it is 0"),
            (zero, "portMappings[1].containerPort: it is 0"),
            (mapping(80, "icmp", None), "portMappings[1].protocol: \"icmp\" is none of tcp, udp, sctp"),
            (
                PortMapping { container_port: 81, ..mapping(8080, "TCP", Some("192.0.2.1")) },
                "portMappings[1].hostPort: 192.0.2.1:8080/tcp is already that of portMappings[0]",
            ),
        ] {
            let error = of(&registration(vec![good.clone(), bad])).expect_err("refused");
            assert_eq!(error.to_string(), named);
        }
    }

    #[test]
    fn an_unspecified_host_ip_is_none_and_what_is_said_twice_counts_once() {
        let said =
            vec![mapping(53, "UDP", Some("0.0.0.0")), mapping(53, "udp", None), mapping(53, "tcp", None)];
        let ports = of(&registration(said)).expect("accepted");
        let shown: Vec<String> = ports.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["53/udp", "53/tcp"]);
    }

    #[test]
    fn a_pod_that_the_runtime_did_not_name_goes_by_its_container() {
        assert_eq!(pod_of(&registration(Vec::new())).to_string(), "container/c0ffee");
    }
}
