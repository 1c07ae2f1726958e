//! What the maps hold of Services that changed since they were last written: the versions before the change.
//!
//! Owned by the [`Index`](crate::index::Index). Of all other objects the maps hold what the index does, so nothing is kept;
//! nor before the first write, when all objects are new and nobody is told of any.

use std::collections::BTreeMap;

use crate::model::ObjectName;
use crate::stamp::Version;

/// Services that changed, with what the maps hold of them.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// Whether anything has been written.
    is_begun: bool,
    services: BTreeMap<ObjectName, Before>,
}

/// What the maps hold of one Service.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// The Service's version, if it is the Service itself that changed; none in it: nothing of it.
    pub(crate) service: Option<Option<Version>>,
    /// The versions of those of its slices that changed; none: nothing of that one.
    pub(crate) slices: BTreeMap<ObjectName, Option<Version>>,
}

impl Behind {
    /// The Service changed; the index had that version before.
    pub(crate) fn note_service(&mut self, name: &ObjectName, before: Option<Version>) {
        if self.is_begun {
            self.services.entry(name.clone()).or_default().service.get_or_insert(before);
        }
    }

    /// A slice of the Service changed, came or went; the index had that version before.
    pub(crate) fn note_slice(&mut self, service: &ObjectName, slice: &ObjectName, before: Option<Version>) {
        if self.is_begun {
            let slices = &mut self.services.entry(service.clone()).or_default().slices;
            slices.entry(slice.clone()).or_insert(before);
        }
    }

    /// What the maps hold of the Service, if it changed.
    pub(crate) fn of(&self, service: &ObjectName) -> Option<&Before> {
        self.services.get(service)
    }

    /// All has been written but the Services that `is_behind` names.
    pub(crate) fn retain(&mut self, is_behind: impl Fn(&ObjectName) -> bool) {
        self.is_begun = true;
        self.services.retain(|name, _| is_behind(name));
    }
}
