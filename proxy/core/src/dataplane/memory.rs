//! The maps in memory, for tests, and how they are printed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use fairlead_abi::{Backend, Frontend, FrontendKey, Region, frontend_flags};

use super::{MapAction, MapCause, MapError, ServiceMaps};
use crate::model::{frontend_label, socket_label};

/// The maps in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryMaps {
    /// Frontends.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Slots that were ever written.
    pub slots: BTreeMap<u32, u32>,
    /// Backends that were ever written, vacated ones included.
    pub backends: BTreeMap<u32, Backend>,
    /// How many frontends fit; `None`: any number.
    pub max_frontends: Option<u32>,
    /// How many writes there have been.
    pub writes: usize,
}

impl ServiceMaps for MemoryMaps {
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        self.writes += 1;
        self.backends.insert(id, *backend);
        Ok(())
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError> {
        self.writes += 1;
        self.slots.extend((base..).zip(ids.iter().copied()));
        Ok(())
    }

    fn write_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), MapError> {
        if let Some(max) = self.max_frontends
            && self.frontends.len() >= max as usize
            && !self.frontends.contains_key(key)
        {
            return Err(MapError::frontend(MapAction::Program, key, MapCause::Full(max)));
        }
        self.writes += 1;
        self.frontends.insert(*key, *frontend);
        Ok(())
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        self.writes += 1;
        self.frontends.remove(key);
        Ok(())
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, MapError> {
        let tenants = self.backends.iter().filter(|(_, backend)| backend.generation != 0);
        Ok(tenants.map(|(id, backend)| (*id, *backend)).collect())
    }

    fn slots(&self, region: Region) -> Result<Vec<u32>, MapError> {
        let slots = region.base..region.base + region.len;
        Ok(slots.map(|slot| self.slots.get(&slot).copied().unwrap_or(0)).collect())
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapError> {
        Ok(self.frontends.iter().map(|(key, frontend)| (*key, *frontend)).collect())
    }
}

impl MemoryMaps {
    /// The frontends with their backends, in order of address, with Service ids numbered from 1 in order
    /// of appearance, so that two dumps are equal if the programs would do the same:
    ///
    /// ```text
    /// 10.96.0.1:80/tcp #1 has_endpoints
    ///   internal 10.244.0.2:8080 10.244.1.2:8080
    ///   external 10.244.0.2:8080
    /// ```
    ///
    /// A frontend with the same backends for all clients has one line for both. A slot that refers to no
    /// backend is printed as `?`.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let mut numbers: HashMap<u32, usize> = HashMap::new();
        let mut frontends: Vec<_> = self.frontends.iter().collect();
        frontends
            .sort_by_key(|(key, _)| (std::net::IpAddr::from(key.address), key.port.number(), key.protocol));
        for (key, frontend) in frontends {
            let next = numbers.len() + 1;
            let number = *numbers.entry(frontend.service).or_insert(next);
            let mut line = format!("{} #{number}", frontend_label(key));
            for (flag, word) in [
                (frontend_flags::HAS_ENDPOINTS, "has_endpoints"),
                (frontend_flags::KEEP_SOURCE, "keep_source"),
            ] {
                if frontend.flags & flag != 0 {
                    line = format!("{line} {word}");
                }
            }
            // Writing to a String can't fail.
            let _ = writeln!(text, "{line}");
            let (internal, external) =
                (self.backend_labels(frontend.internal), self.backend_labels(frontend.external));
            if internal == external {
                let _ = writeln!(text, "  {}", internal.join(" "));
            } else {
                let _ = writeln!(text, "  internal {}", internal.join(" "));
                let _ = writeln!(text, "  external {}", external.join(" "));
            }
        }
        text.lines().map(|line| format!("{}\n", line.trim_end())).filter(|line| line != "\n").collect()
    }

    /// Backends that are in no frontend's region, in order: established flows may still go to them.
    pub fn lingering(&self) -> Vec<String> {
        let regions = self.frontends.values().flat_map(|frontend| [frontend.internal, frontend.external]);
        let slots = regions.flat_map(|region| region.base..region.base + region.len);
        let referred: BTreeSet<u32> = slots.filter_map(|slot| self.slots.get(&slot).copied()).collect();
        let alone =
            self.backends.iter().filter(|(id, backend)| backend.generation != 0 && !referred.contains(id));
        let mut labels: Vec<String> = alone.map(|(_, backend)| backend_label(backend)).collect();
        labels.sort();
        labels
    }

    fn backend_labels(&self, region: Region) -> Vec<String> {
        let slots = region.base..region.base + region.len;
        let backends = slots.map(|slot| self.slots.get(&slot).and_then(|id| self.backends.get(id)));
        backends
            .map(|backend| match backend {
                Some(backend) if backend.generation != 0 => backend_label(backend),
                _ => "?".to_owned(),
            })
            .collect()
    }
}

fn backend_label(backend: &Backend) -> String {
    socket_label(backend.address.into(), backend.port.number())
}
