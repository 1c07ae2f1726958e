//! Local pods: their entries in the maps, the programs at their veths, and the files by which a restarted
//! agent knows them.
//!
//! Fed by the CNI plugin over the agent's socket. The order of an addition is entries → programs → file →
//! answer, so that whoever hears "done" has a working pod; an addition that fails is taken back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, HashMap, MapData, MapError};
use fairlead_abi::{Address, Endpoint};
use fairlead_net::agent::Registration;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use super::DataplaneError;
use super::links::{Links, Place};
use crate::errors::chain;

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
    pub addresses: Vec<std::net::IpAddr>,
    /// Whether packets of it are, or were, translated.
    pub translated: bool,
}

/// The pods of this node.
pub struct Endpoints {
    table: HashMap<MapData, Address, Endpoint>,
    marks: Array<MapData, u32>,
    links: Arc<Mutex<Links>>,
    files: PathBuf,
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
        links: Arc<Mutex<Links>>,
        directory: PathBuf,
    ) -> Result<Self, DataplaneError> {
        let indices = Indices::new(marks.len());
        let mut endpoints = Self { table, marks, links, files: directory, known: BTreeMap::new(), indices };
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
        validate(&registration)?;
        let id = id_of(&registration);
        if !is_interface(&registration) {
            let why = format!("there is no such interface with index {}", registration.host_ifindex);
            return Err(DataplaneError::new("add endpoint at", registration.host_ifname, why));
        }
        let index = match self.known.get(&id) {
            Some(known) if known.registration.host_ifindex == registration.host_ifindex => Some(known.index),
            Some(_) => {
                self.delete(&id)?;
                None
            }
            None => None,
        };
        self.program(registration.clone(), index)?;
        write_registration(&self.path(&id), &registration).or_else(|e| {
            self.delete(&id)?;
            Err(DataplaneError::new("write", self.path(&id).display().to_string(), e))
        })
    }

    /// Removes an endpoint; no error if there is none.
    ///
    /// # Errors
    /// When the kernel refuses or the file can't be removed.
    pub fn delete(&mut self, id: &EndpointId) -> Result<(), DataplaneError> {
        remove_file(&self.path(id))?;
        let Some(known) = self.known.remove(id) else { return Ok(()) };
        for address in &known.registration.addresses {
            let address = Address::from(*address);
            // The address may have passed to another pod since.
            if self.table.get(&address, 0).is_ok_and(|entry| entry.index == known.index) {
                self.remove_entry(&address)?;
            }
        }
        lock(&self.links).detach(Place::Pod, known.registration.host_ifindex)?;
        self.indices.free(known.index);
        Ok(())
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
            return Err(DataplaneError::new("check endpoint", object(), "it is registered otherwise"));
        }
        let wanted = entry(registration, known.index);
        for address in &registration.addresses {
            if self.table.get(&Address::from(*address), 0).ok() != Some(wanted) {
                let why = format!("its entry for {address} is missing or differs");
                return Err(DataplaneError::new("check endpoint", object(), why));
            }
        }
        lock(&self.links).check(Place::Pod, registration.host_ifindex)
    }

    /// Removes endpoints and link pins whose interface is gone: pods that ended without a CNI DEL. Returns how
    /// many endpoints.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn collect(&mut self) -> Result<usize, DataplaneError> {
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
        Ok(gone.len())
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
        let view = |known: &Known| {
            let Registration { pod, host_ifname, addresses, .. } = &known.registration;
            let marks = self.marks.get(&known.index, 0).unwrap_or(0);
            EndpointView {
                pod: format!("{}/{}", pod.namespace, pod.name),
                interface: host_ifname.clone(),
                addresses: addresses.clone(),
                translated: marks & fairlead_abi::marks::TRANSLATED != 0,
            }
        };
        self.known.values().map(view).collect()
    }

    /// Takes up every endpoint that has a file and an interface.
    fn read_files(&mut self, entries: &BTreeMap<Address, Endpoint>) -> Result<(), DataplaneError> {
        let unreadable = |path: &Path, e| DataplaneError::new("read", path.display().to_string(), e);
        fs::create_dir_all(&self.files).map_err(|e| unreadable(&self.files, e))?;
        for file in fs::read_dir(&self.files).map_err(|e| unreadable(&self.files, e))? {
            let path = file.map_err(|e| unreadable(&self.files, e))?.path();
            let registration = match read_registration(&path) {
                Ok(registration) => registration,
                Err(e) => {
                    tracing::warn!("endpoint file {} is left out: {e}", path.display());
                    continue;
                }
            };
            if !is_interface(&registration) {
                tracing::info!("{} is gone, its endpoint is removed", registration.host_ifname);
                remove_file(&path)?;
                continue;
            }
            let index = registration.addresses.iter().find_map(|address| {
                let entry = entries.get(&Address::from(*address))?;
                (entry.ifindex == registration.host_ifindex).then_some(entry.index)
            });
            let index = index.filter(|index| self.indices.claim(*index));
            if let Err(e) = self.program(registration, index) {
                tracing::warn!("restore endpoint of {}: {e}", path.display());
            }
        }
        Ok(())
    }

    /// Removes entries and links that belong to no endpoint.
    fn remove_strangers(&mut self, entries: &BTreeMap<Address, Endpoint>) -> Result<(), DataplaneError> {
        let (mut addresses, mut interfaces) = (BTreeSet::new(), BTreeSet::new());
        for Known { registration, .. } in self.known.values() {
            addresses.extend(registration.addresses.iter().map(|address| Address::from(*address)));
            interfaces.insert(registration.host_ifindex);
        }
        for address in entries.keys().filter(|address| !addresses.contains(address)) {
            self.remove_entry(address)?;
        }
        let mut links = lock(&self.links);
        for ifindex in links.attached(Place::Pod)? {
            if !interfaces.contains(&ifindex) {
                links.detach(Place::Pod, ifindex)?;
            }
        }
        Ok(())
    }

    /// Writes the entries and attaches the programs; `index` is the endpoint's own if it had one before.
    fn program(&mut self, registration: Registration, index: Option<u32>) -> Result<(), DataplaneError> {
        let (index, fresh) = match index {
            Some(index) => (index, false),
            None => (self.fresh_index(&registration)?, true),
        };
        let id = id_of(&registration);
        let value = entry(&registration, index);
        let ifindex = registration.host_ifindex;
        let addresses = registration.addresses.clone();
        self.known.insert(id.clone(), Known { registration, index });
        let mut apply = || {
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
        match self.table.remove(address) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(e) => Err(DataplaneError::new("remove", format!("endpoint {address:?}"), e)),
        }
    }

    fn path(&self, (container_id, ifname): &EndpointId) -> PathBuf {
        self.files.join(format!("{container_id}-{ifname}.json"))
    }
}

/// Which places in the marks are taken. A freed one is reused last, so that a program that still holds the
/// entry of the pod before marks nobody else.
struct Indices {
    capacity: u32,
    untouched: u32,
    freed: VecDeque<u32>,
    taken: BTreeSet<u32>,
}

impl Indices {
    fn new(capacity: u32) -> Self {
        Self { capacity, untouched: 0, freed: VecDeque::new(), taken: BTreeSet::new() }
    }

    /// Takes this one; false if it is taken, or beyond the map.
    fn claim(&mut self, index: u32) -> bool {
        index < self.capacity && self.taken.insert(index)
    }

    fn allocate(&mut self) -> Option<u32> {
        while self.untouched < self.capacity {
            let index = self.untouched;
            self.untouched += 1;
            if self.taken.insert(index) {
                return Some(index);
            }
        }
        while let Some(index) = self.freed.pop_front() {
            if self.taken.insert(index) {
                return Some(index);
            }
        }
        None
    }

    fn free(&mut self, index: u32) {
        if self.taken.remove(&index) && index < self.untouched {
            self.freed.push_back(index);
        }
    }
}

fn id_of(registration: &Registration) -> EndpointId {
    (registration.container_id.clone(), registration.ifname.clone())
}

fn entry(registration: &Registration, index: u32) -> Endpoint {
    Endpoint {
        ifindex: registration.host_ifindex,
        index,
        pod_mac: registration.pod_mac,
        host_mac: registration.host_mac,
        reserved: 0,
    }
}

/// Whether the registration can name a file and has what an endpoint needs.
fn validate(registration: &Registration) -> Result<(), DataplaneError> {
    let refuse = |field: &str, why: &str| {
        Err(DataplaneError::new("accept", format!("registration's {field}"), why.to_owned()))
    };
    let plain = |text: &str| {
        !text.is_empty()
            && text.len() <= 128
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    if !plain(&registration.container_id) {
        return refuse("containerId", "it is not letters, digits, '_', '.' and '-'");
    }
    if !plain(&registration.ifname) {
        return refuse("ifname", "it is not letters, digits, '_', '.' and '-'");
    }
    if registration.addresses.is_empty() {
        return refuse("addresses", "there is none");
    }
    if registration.host_ifindex == 0 {
        return refuse("hostIfindex", "it is 0");
    }
    Ok(())
}

/// Whether the endpoint's interface is there: the same name and index.
fn is_interface(registration: &Registration) -> bool {
    if_nametoindex(registration.host_ifname.as_str()).is_ok_and(|index| index == registration.host_ifindex)
}

fn read_registration(path: &Path) -> io::Result<Registration> {
    let registration: Registration = serde_json::from_slice(&fs::read(path)?)?;
    validate(&registration).map_err(io::Error::other)?;
    Ok(registration)
}

/// Writes the file in one step, so that a crash leaves the old one or the new one.
fn write_registration(path: &Path, registration: &Registration) -> io::Result<()> {
    let fresh = path.with_extension("tmp");
    let mut file = fs::File::create(&fresh)?;
    serde_json::to_writer(&mut file, registration)?;
    file.flush()?;
    fs::rename(&fresh, path)
}

fn remove_file(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(DataplaneError::new("remove", path.display().to_string(), e))
        }
        _ => Ok(()),
    }
}

/// The error in words, with a hint where the kernel says that there is no room.
fn describe(error: MapError, full: &str) -> String {
    match error {
        MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::E2BIG) => full.to_owned(),
        other => chain(&other),
    }
}

fn lock(links: &Mutex<Links>) -> std::sync::MutexGuard<'_, Links> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use fairlead_net::agent::PodRef;

    use super::*;

    fn registration() -> Registration {
        Registration {
            container_id: "c0ffee".into(),
            ifname: "eth0".into(),
            pod: PodRef { namespace: "default".into(), name: "web".into(), uid: "1".into() },
            host_ifname: "fl0".into(),
            host_ifindex: 7,
            pod_mac: [2, 0, 0, 0, 0, 1],
            host_mac: [2, 0, 0, 0, 0, 2],
            addresses: vec!["10.0.0.1".parse().expect("an address")],
        }
    }

    #[test]
    fn a_freed_index_is_reused_last() {
        let mut indices = Indices::new(3);
        assert_eq!(indices.allocate(), Some(0));
        indices.free(0);
        assert_eq!([indices.allocate(), indices.allocate(), indices.allocate()], [Some(1), Some(2), Some(0)]);
        assert_eq!(indices.allocate(), None);
    }

    #[test]
    fn an_index_that_was_claimed_at_restart_is_given_to_nobody_else() {
        let mut indices = Indices::new(3);
        assert!(indices.claim(1));
        assert!(!indices.claim(1), "taken twice");
        assert!(!indices.claim(3), "beyond the map");
        assert_eq!([indices.allocate(), indices.allocate(), indices.allocate()], [Some(0), Some(2), None]);
        indices.free(1);
        assert_eq!(indices.allocate(), Some(1));
    }

    #[test]
    fn a_claimed_index_freed_before_its_turn_is_given_once() {
        let mut indices = Indices::new(2);
        assert!(indices.claim(1));
        indices.free(1);
        assert_eq!([indices.allocate(), indices.allocate(), indices.allocate()], [Some(0), Some(1), None]);
    }

    #[test]
    fn a_registration_that_would_leave_its_directory_is_refused() {
        validate(&registration()).expect("a good one passes");
        for id in ["../../etc/passwd", "", ".hidden", "a/b"] {
            let bad = Registration { container_id: id.into(), ..registration() };
            let error = validate(&bad).expect_err("a path is refused").to_string();
            assert!(error.contains("containerId"), "{error}");
        }
        let bad = Registration { addresses: Vec::new(), ..registration() };
        assert!(validate(&bad).expect_err("no address is refused").to_string().contains("addresses"));
    }

    #[test]
    fn a_registration_survives_in_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("c0ffee-eth0.json");
        write_registration(&path, &registration()).expect("written");
        assert_eq!(read_registration(&path).expect("read"), registration());
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1, "nothing else is left");
    }
}
