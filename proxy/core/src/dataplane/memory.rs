//! The maps in memory, for tests, and how they are printed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use fairlead_abi::{Backend, Frontend, FrontendKey, Region, frontend_flags};

use super::{MapAction, MapCause, MapError, ServiceMaps};
use crate::model::{frontend_label, socket_label};

/// The maps in memory.
///
/// They watch the order of writes. Each write panics that would let a program see, even for a moment, a
/// frontend whose backends are not all there, or other ones than were meant.
#[derive(Clone, Debug, Default)]
pub struct MemoryMaps {
    /// How many writes there have been.
    pub writes: usize,
    /// How many frontends fit; `None`: any number.
    max_frontends: Option<u32>,
    frontends: BTreeMap<FrontendKey, Frontend>,
    slots: BTreeMap<u32, u32>,
    backends: BTreeMap<u32, Backend>,
    /// Regions that frontends refer to, by first slot: length, and how many references.
    regions: BTreeMap<u32, (u32, usize)>,
    /// How often each backend is in such a region.
    references: HashMap<u32, usize>,
}

impl ServiceMaps for MemoryMaps {
    fn write_backend(&mut self, id: u32, backend: &Backend) -> Result<(), MapError> {
        assert_ne!(id, 0, "backend 0 is never used");
        assert!(
            self.references.get(&id).is_none_or(|count| *count == 0),
            "backend {id} is in use and becomes {backend:?}"
        );
        self.writes += 1;
        self.backends.insert(id, *backend);
        Ok(())
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) -> Result<(), MapError> {
        let end = base + ids.len() as u32;
        if let Some((other, (len, _))) = self.regions.range(..end).next_back() {
            assert!(other + len <= base, "slots {base}..{end} overlap those in use from {other}, {len} long");
        }
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
        assert_ne!(frontend.service, 0, "frontend {} has no Service", frontend_label(key));
        for region in [frontend.internal, frontend.external] {
            for slot in region.base..region.base + region.len {
                let backend = self.slots.get(&slot).and_then(|id| self.backends.get(id));
                let live = backend.is_some_and(|backend| backend.generation != 0);
                assert!(live, "frontend {} refers to slot {slot}, which has no backend", frontend_label(key));
            }
        }
        self.writes += 1;
        let old = self.frontends.insert(*key, *frontend);
        self.refer(frontend);
        old.iter().for_each(|old| self.forget(old));
        Ok(())
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        self.writes += 1;
        let old = self.frontends.remove(key);
        old.iter().for_each(|old| self.forget(old));
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
    /// Empty maps in which so many frontends fit.
    pub fn with_room_for(frontends: u32) -> Self {
        Self { max_frontends: Some(frontends), ..Self::default() }
    }

    /// The backends in the region, each as it is in the map.
    pub fn backends_in(&self, region: Region) -> Vec<Backend> {
        let slots = region.base..region.base + region.len;
        slots.filter_map(|slot| self.backends.get(self.slots.get(&slot)?).copied()).collect()
    }

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
        let referred = |id| self.references.get(id).is_some_and(|count| *count > 0);
        let alone = self.backends.iter().filter(|(id, backend)| backend.generation != 0 && !referred(id));
        let mut labels: Vec<String> = alone.map(|(_, backend)| backend_label(backend)).collect();
        labels.sort();
        labels
    }

    fn refer(&mut self, frontend: &Frontend) {
        for region in [frontend.internal, frontend.external].into_iter().filter(|region| region.len > 0) {
            self.regions.entry(region.base).or_insert((region.len, 0)).1 += 1;
            for (_, id) in self.slots.range(region.base..region.base + region.len) {
                *self.references.entry(*id).or_insert(0) += 1;
            }
        }
    }

    fn forget(&mut self, frontend: &Frontend) {
        for region in [frontend.internal, frontend.external].into_iter().filter(|region| region.len > 0) {
            if let Entry::Occupied(mut entry) = self.regions.entry(region.base) {
                entry.get_mut().1 -= 1;
                if entry.get().1 == 0 {
                    entry.remove();
                }
            }
            for (_, id) in self.slots.range(region.base..region.base + region.len) {
                self.references.entry(*id).and_modify(|count| *count -= 1);
            }
        }
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
