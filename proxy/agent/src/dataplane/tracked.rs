//! Flows of connection tracking's in the flow table, and what must be known to enter them: by the pinned maps alone, so
//! that a command can do it without the agent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use fairlead_abi::{
    Address, Backend, Config, Endpoint, Flow, FlowKey, Frontend, FrontendKey, flow_flags, maps, marks,
};

use super::{DataplaneError, Pins, is, removed, sys};

/// How many entries are read in one call.
const CHUNK: usize = 1024;

/// The maps that matter to connections of before.
pub struct TrackedFlows {
    flows: HashMap<MapData, FlowKey, Flow>,
    descriptor: OwnedFd,
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend>,
    endpoints: HashMap<MapData, Address, Endpoint>,
    marks: Array<MapData, u32>,
    config: Array<MapData, Config>,
}

impl TrackedFlows {
    /// Opens the pins.
    ///
    /// # Errors
    /// When one is missing, or the kernel refuses.
    pub fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        let flows = pinned(pins, maps::FLOWS)?;
        let descriptor = flows.fd().as_fd().try_clone_to_owned();
        Ok(Self {
            descriptor: descriptor.map_err(|e| DataplaneError::new("use map", maps::FLOWS, e))?,
            flows: typed(Map::HashMap(flows), maps::FLOWS)?,
            frontends: typed(Map::HashMap(pinned(pins, maps::FRONTENDS)?), maps::FRONTENDS)?,
            slots: typed(Map::Array(pinned(pins, maps::SLOTS)?), maps::SLOTS)?,
            backends: typed(Map::Array(pinned(pins, maps::BACKENDS)?), maps::BACKENDS)?,
            endpoints: typed(Map::HashMap(pinned(pins, maps::ENDPOINTS)?), maps::ENDPOINTS)?,
            marks: typed(Map::Array(pinned(pins, maps::MARKS)?), maps::MARKS)?,
            config: typed(Map::Array(pinned(pins, maps::CONFIG)?), maps::CONFIG)?,
        })
    }

    /// The entry at that key.
    pub fn get(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key, 0).ok()
    }

    /// Enters a flow where none is, and has a local pod that takes part in it ask the table from now on. False if another
    /// has the key, or there is no room.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&mut self, key: &FlowKey, flow: &Flow) -> Result<bool, DataplaneError> {
        match self.flows.insert(key, flow, u64::from(aya_obj::generated::BPF_NOEXIST)) {
            Ok(()) => {}
            Err(e) if is(&e, libc::EEXIST) || is(&e, libc::E2BIG) => return Ok(false),
            Err(e) => return Err(DataplaneError::new("enter", "flow", e)),
        }
        self.mark(&key.source)?;
        self.mark(&key.destination)?;
        Ok(true)
    }

    /// Replaces an entry that is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn replace(&mut self, key: &FlowKey, flow: &Flow) -> Result<(), DataplaneError> {
        match self.flows.insert(key, flow, u64::from(aya_obj::generated::BPF_EXIST)) {
            Err(e) if !is(&e, libc::ENOENT) => Err(DataplaneError::new("change", "flow", e)),
            _ => Ok(()),
        }
    }

    /// Removes the entry at that key, if connection tracking has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, key: &FlowKey) -> Result<(), DataplaneError> {
        if self.get(key).is_none_or(|flow| flow.flags & flow_flags::TRACKED == 0) {
            return Ok(());
        }
        removed(self.flows.remove(key)).map_err(|e| DataplaneError::new("remove", "flow", e))
    }

    /// All entries.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn all(&self) -> Result<Vec<(FlowKey, Flow)>, DataplaneError> {
        let mut all = Vec::new();
        sys::read_chunks(self.descriptor.as_fd(), CHUNK, |keys: &[FlowKey], flows: &[Flow]| {
            all.extend(keys.iter().copied().zip(flows.iter().copied()));
        })
        .map_err(|e: io::Error| DataplaneError::new("read", "flows", e))?;
        Ok(all)
    }

    /// The ids of the backends that the frontend at that key has for any client, with what they are; none if there is no
    /// frontend.
    pub fn backends_of(&self, key: &FrontendKey) -> Option<Vec<(u32, Backend)>> {
        let frontend = self.frontends.get(key, 0).ok().filter(|frontend| frontend.check == key.check())?;
        let slots = |base: u32, len: u32| base..base.saturating_add(len);
        let internal = slots(frontend.internal.base, frontend.internal.len);
        let external = slots(frontend.external.base, frontend.external.len);
        let id = |slot| self.slots.get(&slot, 0).ok();
        let backend = |id| self.backends.get(&id, 0).ok().map(|backend| (id, backend));
        Some(internal.chain(external).filter_map(id).filter_map(backend).collect())
    }

    /// Whether the address is one that a Service has for its own, at whatever port.
    pub fn is_cluster_ip(&self, address: Address) -> bool {
        self.frontends.get(&FrontendKey::whole(address), 0).is_ok()
    }

    /// The node's own address of the family; unspecified while it is not known.
    pub fn node_address(&self, like: Address) -> Address {
        let config = self.config.get(&0, 0).unwrap_or_default();
        if like.is_v4() { config.node_v4 } else { config.node_v6 }
    }

    /// The present generation of a backend.
    pub fn generation(&self, id: u32) -> u32 {
        self.backends.get(&id, 0).map_or(0, |backend| backend.generation)
    }

    /// Sets or clears a bit of [`fairlead_abi::config_flags`] where no agent runs that has the configuration.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_flag(&mut self, flag: u32, on: bool) -> Result<(), DataplaneError> {
        let failed = |e: MapError| DataplaneError::new("write", "the node's configuration", e);
        let mut config = self.config.get(&0, 0).map_err(failed)?;
        config.flags = if on { config.flags | flag } else { config.flags & !flag };
        self.config.set(0, config, 0).map_err(failed)
    }

    /// Nanoseconds of the programs' clock.
    pub fn now(&self) -> u64 {
        sys::coarse_clock()
    }

    fn mark(&mut self, address: &Address) -> Result<(), DataplaneError> {
        let Ok(endpoint) = self.endpoints.get(address, 0) else { return Ok(()) };
        let failed = |e: MapError| DataplaneError::new("mark", "endpoint", e);
        let marked = self.marks.get(&endpoint.index, 0).map_err(failed)?;
        if marked & marks::TRANSLATED != 0 {
            return Ok(());
        }
        self.marks.set(endpoint.index, marked | marks::TRANSLATED, 0).map_err(failed)
    }
}

fn pinned(pins: &Pins, name: &'static str) -> Result<MapData, DataplaneError> {
    MapData::from_pin(pins.map(name)).map_err(|e| DataplaneError::new("open pinned map", name, e))
}

fn typed<T: TryFrom<Map, Error = MapError>>(map: Map, name: &'static str) -> Result<T, DataplaneError> {
    map.try_into().map_err(|e| DataplaneError::new("use map", name, e))
}
