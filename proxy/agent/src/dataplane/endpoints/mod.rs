//! Local pods: their entries in the maps, the programs at their veths, and the files by which a restarted
//! agent knows them.
//!
//! Where the agent is asked to translate pods' sockets too, [`Endpoints::translate_sockets`] says which, and their
//! network namespaces are [clients](super::clients). Without that, or where it fails, a pod's packets are translated.
//!
//! Fed by the CNI plugin over the agent's socket. The order of an addition is verdicts → programs → entries →
//! file → answer, so that whoever hears "done" has a working pod; an addition that fails is taken back.

mod files;
mod indices;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, HashMap, MapData, MapError};
use fairlead_abi::{Address, Endpoint, endpoint_flags};
use fairlead_net::agent::{PodRef, PortMapping, Registration};
use fairlead_net::link::{self, Link};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use super::clients::Clients;
use super::links::{Links, Place};
use super::{DataplaneError, is, removed};
use crate::errors::chain;
use crate::host_ports;
use indices::Indices;

/// CNI_CONTAINERID and CNI_IFNAME: what names an endpoint.
pub type EndpointId = (String, String);

/// An endpoint as `fairlead-proxy status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// Its interface on the host.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether packets of it are, or were, translated.
    pub translated: bool,
    /// Whether its sockets are translated.
    #[serde(default)]
    pub sockets: bool,
    /// CNI_CONTAINERID of its attachment.
    #[serde(default)]
    pub container_id: String,
    /// Index of its interface on the host.
    #[serde(default)]
    pub interface_index: u32,
    /// Its place in [`fairlead_abi::maps::MARKS`] and [`fairlead_abi::maps::ISOLATION`].
    #[serde(default)]
    pub index: u32,
    /// The kernel's cookie of its network namespace, where that is known.
    #[serde(default)]
    pub netns_cookie: Option<u64>,
    /// The node's ports that lead to it, as in `30080/tcp → 80`.
    #[serde(default)]
    pub host_ports: Vec<String>,
    /// Whether packets to it pass a queue that limits them.
    #[serde(default)]
    pub shaped: bool,
}

/// Who says what may pass to and from pods, and puts it into the maps before a pod's own entries.
pub trait Guard: Send {
    /// An endpoint that an earlier agent left: what the maps say of its index holds until more is known; one whose
    /// index is not its own from before is closed till then.
    fn restore(&mut self, index: u32, is_own: bool, pod: &PodRef, addresses: &[IpAddr]);

    /// Has the verdicts of a new endpoint in the maps when it returns.
    ///
    /// # Errors
    /// When that can't be done now: the endpoint must not be added.
    fn admit(&mut self, index: u32, pod: &PodRef, addresses: &[IpAddr]) -> Result<(), String>;

    /// The endpoint is gone: its index closes.
    fn release(&mut self, index: u32);
}

/// The pods of this node.
pub struct Endpoints {
    table: HashMap<MapData, Address, Endpoint>,
    marks: Array<MapData, u32>,
    clients: Arc<Mutex<Clients>>,
    links: Arc<Mutex<Links>>,
    guard: Box<dyn Guard>,
    directory: PathBuf,
    known: BTreeMap<EndpointId, Known>,
    indices: Indices,
}

struct Known {
    registration: Registration,
    index: u32,
}

impl Endpoints {
    /// Endpoints over these maps, with those that an earlier agent left, by their files in `directory`.
    ///
    /// One whose interface is there keeps its index, and with it what the programs know about it; the others
    /// are removed.
    ///
    /// # Errors
    /// When the directory or the map can't be read. A single endpoint that can't be restored is a warning.
    pub fn restore(
        table: HashMap<MapData, Address, Endpoint>,
        marks: Array<MapData, u32>,
        clients: Arc<Mutex<Clients>>,
        links: Arc<Mutex<Links>>,
        guard: Box<dyn Guard>,
        directory: PathBuf,
    ) -> Result<Self, DataplaneError> {
        let indices = Indices::new(marks.len());
        let known = BTreeMap::new();
        let mut endpoints = Self { table, marks, clients, links, guard, directory, known, indices };
        let entries = endpoints.entries()?;
        endpoints.read_files(&entries)?;
        endpoints.remove_strangers(&entries)?;
        Ok(endpoints)
    }

    /// Programs a pod's endpoint; the same registration again is no change.
    ///
    /// # Errors
    /// When the registration makes no sense, its interface is not there, or the kernel refuses. Nothing is
    /// left behind then.
    pub fn add(&mut self, registration: Registration) -> Result<(), DataplaneError> {
        files::validate(&registration)?;
        let id = id_of(&registration);
        if !is_interface(&registration) {
            let why = format!("there is no such interface with index {}", registration.host_ifindex);
            return Err(DataplaneError::new("add endpoint at", registration.host_ifname, why));
        }
        self.keep_ports_apart(&id, &registration)?;
        let index = match self.known.get(&id) {
            Some(known) if known.registration.host_ifindex == registration.host_ifindex => Some(known.index),
            Some(_) => {
                self.delete(&id)?;
                None
            }
            None => None,
        };
        self.program(registration.clone(), index, false)?;
        files::write(&self.path(&id), &registration).or_else(|e| {
            self.delete(&id)?;
            Err(DataplaneError::new("write", self.path(&id).display().to_string(), e))
        })
    }

    /// Removes an endpoint; no error if there is none.
    ///
    /// # Errors
    /// When the kernel refuses or the file can't be removed.
    pub fn delete(&mut self, id: &EndpointId) -> Result<(), DataplaneError> {
        files::remove(&self.path(id))?;
        let Some(known) = self.known.remove(id) else { return Ok(()) };
        for address in &known.registration.addresses {
            let address = Address::from(*address);
            // The address may have passed to another pod since.
            if self.table.get(&address, 0).is_ok_and(|entry| entry.index == known.index) {
                self.remove_entry(&address)?;
            }
        }
        lock(&self.links).detach(Place::Pod, known.registration.host_ifindex)?;
        self.guard.release(known.index);
        self.indices.free(known.index);
        match known.registration.netns_cookie {
            Some(cookie) if !self.cookies().contains(&cookie) => lock(&self.clients).remove(cookie),
            _ => Ok(()),
        }
    }

    /// Compares an endpoint with the maps and the attached programs.
    ///
    /// # Errors
    /// When something differs, naming it.
    pub fn check(&mut self, registration: &Registration) -> Result<(), DataplaneError> {
        let object = || format!("{} ({})", registration.container_id, registration.ifname);
        let Some(known) = self.known.get(&id_of(registration)) else {
            return Err(DataplaneError::new("check endpoint", object(), "it is not registered"));
        };
        if known.registration != *registration {
            let fields = known.registration.differences(registration).join(", ");
            let why = format!("it is registered with other values of {fields}");
            return Err(DataplaneError::new("check endpoint", object(), why));
        }
        let wanted = entry(registration, known.index, &look(registration));
        for address in &registration.addresses {
            let found = self.table.get(&Address::from(*address), 0).ok();
            // A queue may have been put there in this moment.
            let found = found.map(|entry| Endpoint { flags: wanted.flags, ..entry });
            if found != Some(wanted) {
                let why = format!("its entry for {address} is missing or differs");
                return Err(DataplaneError::new("check endpoint", object(), why));
            }
        }
        lock(&self.links).check(Place::Pod, registration.host_ifindex)
    }

    /// Removes endpoints and link pins whose interface is gone: pods that ended without a CNI DEL. Returns which
    /// endpoints.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn collect(&mut self) -> Result<Vec<EndpointId>, DataplaneError> {
        let gone: Vec<EndpointId> = self
            .known
            .iter()
            .filter(|(_, known)| !is_interface(&known.registration))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            self.delete(id)?;
        }
        lock(&self.links).collect()?;
        Ok(gone)
    }

    /// Has packets to a pod pass the queue of its interface where that does more than pass them on: somebody may have
    /// put one there, or taken it away, at any time.
    ///
    /// # Errors
    /// When the kernel does not say, or refuses a write.
    pub fn follow_queues(&mut self) -> Result<(), DataplaneError> {
        let links = link::look_at_all().map_err(|e| DataplaneError::new("read", "links", e))?;
        for Known { registration, index } in self.known.values() {
            let Some(link) = links.get(&registration.host_ifindex) else { continue };
            let wanted = entry(registration, *index, link);
            for address in &registration.addresses {
                let address = Address::from(*address);
                let found = self.table.get(&address, 0).ok();
                // An address may have passed to another pod.
                if found.is_some_and(|found| found.index == *index && found.flags != wanted.flags) {
                    let failed = |e| DataplaneError::new("program", format!("endpoint {address:?}"), e);
                    self.table.insert(address, wanted, 0).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// The pod whose interface has this index on the host's side.
    pub fn pod_at(&self, ifindex: u32) -> Option<String> {
        let mut known = self.known.values().map(|known| &known.registration);
        known.find(|registration| registration.host_ifindex == ifindex).map(|found| label(&found.pod))
    }

    /// What is known of every endpoint.
    pub fn registrations(&self) -> impl Iterator<Item = &Registration> {
        self.known.values().map(|known| &known.registration)
    }

    /// Has the sockets of pods translated, or left alone, as `wanted` says; a pod of which it does not know is left
    /// as it is. What fails leaves the pod to the programs at its interface, and is tried again at the next call.
    pub fn translate_sockets(&self, wanted: impl Fn(&PodRef) -> Option<bool>) {
        let mut clients = lock(&self.clients);
        for Known { registration, .. } in self.known.values() {
            let (Some(cookie), Some(wanted)) = (registration.netns_cookie, wanted(&registration.pod)) else {
                continue;
            };
            let done = match wanted {
                true => clients.set(cookie, &registration.addresses),
                false if clients.contains(cookie) => clients.remove(cookie),
                false => continue,
            };
            if let Err(e) = done {
                tracing::warn!(pod = registration.pod.name, "{}", chain(&e));
            }
        }
    }

    /// The cookies of the pods' network namespaces.
    pub fn cookies(&self) -> BTreeSet<u64> {
        self.known.values().filter_map(|known| known.registration.netns_cookie).collect()
    }

    /// How many entries the map of endpoints has.
    pub fn entry_count(&self) -> usize {
        self.known.values().map(|known| known.registration.addresses.len()).sum()
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Every endpoint, for people.
    pub fn views(&self) -> Vec<EndpointView> {
        let clients = lock(&self.clients);
        let view = |known: &Known| {
            let Registration { pod, host_ifname, addresses, netns_cookie, .. } = &known.registration;
            let Registration { container_id, host_ifindex, port_mappings, is_shaped, .. } =
                &known.registration;
            let port = |mapping: &PortMapping| {
                let PortMapping { host_port, container_port, protocol, host_ip } = mapping;
                let at = host_ip
                    .map_or_else(|| host_port.to_string(), |ip| SocketAddr::new(ip, *host_port).to_string());
                format!("{at}/{protocol} → {container_port}")
            };
            let marks = self.marks.get(&known.index, 0).unwrap_or(0);
            EndpointView {
                pod: label(pod),
                interface: host_ifname.clone(),
                addresses: addresses.clone(),
                translated: marks & fairlead_abi::marks::TRANSLATED != 0,
                sockets: netns_cookie.is_some_and(|cookie| clients.contains(cookie)),
                container_id: container_id.clone(),
                interface_index: *host_ifindex,
                index: known.index,
                netns_cookie: *netns_cookie,
                host_ports: port_mappings.iter().map(port).collect(),
                shaped: *is_shaped,
            }
        };
        self.known.values().map(view).collect()
    }

    /// Every endpoint, and what [`Self::check`] finds wrong with it.
    pub fn checked(&mut self) -> Vec<(EndpointView, Option<String>)> {
        let registrations: Vec<Registration> = self.registrations().cloned().collect();
        let faults: Vec<Option<String>> = registrations
            .iter()
            .map(|registration| self.check(registration).err().map(|e| chain(&e)))
            .collect();
        self.views().into_iter().zip(faults).collect()
    }

    /// Takes up every endpoint that has a file and an interface.
    fn read_files(&mut self, entries: &BTreeMap<Address, Endpoint>) -> Result<(), DataplaneError> {
        let unreadable = |path: &Path, e| DataplaneError::new("read", path.display().to_string(), e);
        fs::create_dir_all(&self.directory).map_err(|e| unreadable(&self.directory, e))?;
        for file in fs::read_dir(&self.directory).map_err(|e| unreadable(&self.directory, e))? {
            let path = file.map_err(|e| unreadable(&self.directory, e))?.path();
            let registration = match files::read(&path) {
                Ok(registration) => registration,
                Err(e) => {
                    tracing::warn!("endpoint file {} is left out: {e}", path.display());
                    continue;
                }
            };
            if !is_interface(&registration) {
                tracing::info!("{} is gone, its endpoint is removed", registration.host_ifname);
                files::remove(&path)?;
                continue;
            }
            let index = registration.addresses.iter().find_map(|address| {
                let entry = entries.get(&Address::from(*address))?;
                (entry.ifindex == registration.host_ifindex).then_some(entry.index)
            });
            let index = index.filter(|index| self.indices.claim(*index));
            if let Err(e) = self.program(registration, index, true) {
                tracing::warn!("restore endpoint of {}: {e}", path.display());
            }
        }
        Ok(())
    }

    /// Removes entries that belong to no endpoint. The programs at a pod's interface stay while it is there: without an
    /// entry nothing passes, as it should where nobody knows the pod's policies.
    fn remove_strangers(&mut self, entries: &BTreeMap<Address, Endpoint>) -> Result<(), DataplaneError> {
        let registrations = self.known.values().flat_map(|known| &known.registration.addresses);
        let addresses: BTreeSet<Address> = registrations.map(|address| Address::from(*address)).collect();
        for address in entries.keys().filter(|address| !addresses.contains(address)) {
            self.remove_entry(address)?;
        }
        lock(&self.links).collect().map(drop)
    }

    /// Writes the entries and attaches the programs; `index` is the endpoint's own if it had one before, and a
    /// `restored` one is not waited for.
    fn program(
        &mut self,
        registration: Registration,
        index: Option<u32>,
        restored: bool,
    ) -> Result<(), DataplaneError> {
        let (index, fresh) = match index {
            Some(index) => (index, false),
            None => (self.fresh_index(&registration)?, true),
        };
        let id = id_of(&registration);
        let value = entry(&registration, index, &look(&registration));
        let ifindex = registration.host_ifindex;
        let (pod, addresses) = (registration.pod.clone(), registration.addresses.clone());
        self.known.insert(id.clone(), Known { registration, index });
        let mut apply = || {
            match fresh && !restored {
                true => self.guard.admit(index, &pod, &addresses).map_err(|why| {
                    DataplaneError::new("put the pod under its policies:", label(&pod), why)
                })?,
                false => self.guard.restore(index, !fresh, &pod, &addresses),
            }
            for address in &addresses {
                self.table.insert(Address::from(*address), value, 0).map_err(|e| {
                    let what = format!("endpoint {address}");
                    DataplaneError::new("program", what, describe(e, "map full: see --max-endpoints"))
                })?;
            }
            lock(&self.links).attach(Place::Pod, ifindex)
        };
        apply().inspect_err(|_| {
            if fresh && let Err(e) = self.delete(&id) {
                tracing::warn!("take back endpoint {}: {e}", id.0);
            }
        })
    }

    /// Refuses ports of the node that another pod has. The scheduler keeps them apart; whoever comes second would take
    /// the first one's clients.
    fn keep_ports_apart(&self, id: &EndpointId, registration: &Registration) -> Result<(), DataplaneError> {
        // Every registration has been accepted once.
        let ports = |registration| host_ports::of(registration).unwrap_or_default();
        let wanted = ports(registration);
        let others = self.known.iter().filter(|(other, _)| *other != id && !wanted.is_empty());
        for other in others.map(|(_, known)| &known.registration) {
            let taken = ports(other);
            if let Some(port) = wanted.iter().find(|port| taken.iter().any(|taken| taken.overlaps(port))) {
                let (field, pod) =
                    (format!("portMappings[{}].hostPort", port.index), host_ports::pod_of(other));
                let why = format!("{port} is already that of Pod {pod}");
                return Err(DataplaneError::new("accept", format!("registration's {field}"), why));
            }
        }
        Ok(())
    }

    /// An index whose marks are clear.
    fn fresh_index(&mut self, registration: &Registration) -> Result<u32, DataplaneError> {
        let failed = |e: String| DataplaneError::new("add endpoint at", registration.host_ifname.clone(), e);
        let full = format!("there are {} endpoints already, see --max-endpoints", self.indices.capacity);
        let index = self.indices.allocate().ok_or_else(|| failed(full))?;
        self.marks.set(index, 0, 0).map_err(|e| failed(format!("clear its marks: {e}")))?;
        Ok(index)
    }

    fn entries(&self) -> Result<BTreeMap<Address, Endpoint>, DataplaneError> {
        let entries: Result<_, MapError> = self.table.iter().collect();
        entries.map_err(|e| DataplaneError::new("read", "endpoints", e))
    }

    fn remove_entry(&mut self, address: &Address) -> Result<(), DataplaneError> {
        let object = || format!("endpoint {address:?}");
        removed(self.table.remove(address)).map_err(|e| DataplaneError::new("remove", object(), e))
    }

    fn path(&self, (container_id, ifname): &EndpointId) -> PathBuf {
        self.directory.join(format!("{container_id}-{ifname}.json"))
    }
}

fn id_of(registration: &Registration) -> EndpointId {
    (registration.container_id.clone(), registration.ifname.clone())
}

/// The pod as people write it.
pub(crate) fn label(pod: &PodRef) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn entry(registration: &Registration, index: u32, link: &Link) -> Endpoint {
    let is_shaped = registration.is_shaped || link.is_shaped();
    Endpoint {
        ifindex: registration.host_ifindex,
        index,
        pod_mac: registration.pod_mac,
        host_mac: registration.host_mac,
        // Unknown, plain connections of the pod are not told from its flows to Services; that stops no pod.
        netns: link.peer_namespace.map_or(0, |id| id + 1),
        flags: if is_shaped { endpoint_flags::SHAPED } else { 0 },
    }
}

/// What the kernel says of the endpoint's interface, as far as it says anything.
fn look(registration: &Registration) -> Link {
    link::look(registration.host_ifindex).unwrap_or_default()
}

/// Whether the endpoint's interface is there: the same name and index.
fn is_interface(registration: &Registration) -> bool {
    if_nametoindex(registration.host_ifname.as_str()).is_ok_and(|index| index == registration.host_ifindex)
}

/// The error in words, with a hint where the kernel says that there is no room.
fn describe(error: MapError, full: &str) -> String {
    match error {
        full_map if is(&full_map, libc::E2BIG) => full.to_owned(),
        other => chain(&other),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
