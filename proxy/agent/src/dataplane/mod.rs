//! The kernel's half: maps, programs and links, all pinned under one directory.
//!
//! ```text
//! <bpffs>/v<layout>/<MAP>           maps, created at first start and adopted ever after
//! <bpffs>/v<layout>/LAYOUT           what the maps look like, for an agent of another layout
//! <bpffs>/v<layout>/links/<name>    tcx and cgroup links, whose program a restarted agent swaps in place
//! <bpffs>/v<layout>/handover/<name> the same before another layout's, while flows are taken over from it
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`load`] | the bpf filesystem, the maps, the programs through the verifier |
//! | [`sizes`] | how much the maps hold |
//! | [`links`] | where programs are attached |
//! | [`generations`] | what is there of other layouts, and taking over from it |
//! | `raw` | maps of any layout, as bytes |
//! | `haste` | shorter waits for the kernel meanwhile |
//! | [`services`] | frontends, slots, backends, source ranges and the ranges of ClusterIPs |
//! | [`endpoints`] | local pods |
//! | [`clients`] | network namespaces whose sockets are translated |
//! | [`policies`] | what policies say, and what they dropped |
//! | [`events`] | what the programs tell of drops |
//! | [`egress`] | with whose address pods' packets leave |
//! | [`flows`] | the sweep of the flow table |
//! | [`tracked`] | flows that connection tracking has |
//! | [`counters`] | what the programs counted |
//! | `trial` | small loads that ask the kernel what it can do |
//!
//! Nothing here is undone when the agent ends: packets keep flowing by what is pinned.

pub mod clients;
pub mod counters;
pub mod egress;
pub mod endpoints;
pub mod events;
pub mod flows;
pub mod generations;
pub(crate) mod haste;
pub mod links;
pub mod load;
pub mod policies;
pub mod program_log;
mod raw;
pub mod services;
pub mod sizes;
pub(crate) mod sys;
pub mod tracked;
pub(crate) mod trial;

use std::path::{Path, PathBuf};

use aya::maps::MapError;

/// What could not be done with which object of the kernel.
#[derive(Debug, thiserror::Error)]
#[error("{step} {object}: {source}")]
pub struct DataplaneError {
    /// What was attempted: "load program", "attach", "pin".
    pub step: &'static str,
    /// What it was attempted on: a map, program, interface or path.
    pub object: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl DataplaneError {
    pub(crate) fn new(
        step: &'static str,
        object: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { step, object: object.into(), source: source.into() }
    }
}

/// The directories that a layout's maps and links are pinned in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    layout: PathBuf,
}

impl Pins {
    /// Those of this executable's layout below `bpffs`.
    pub fn new(bpffs: &Path) -> Self {
        Self::of(bpffs, fairlead_abi::LAYOUT_VERSION)
    }

    /// Those of that layout below `bpffs`.
    pub fn of(bpffs: &Path, version: u32) -> Self {
        Self { layout: bpffs.join(format!("v{version}")) }
    }

    /// Those in that directory, if its name is a layout's.
    pub fn at(directory: &Path) -> Option<Self> {
        let version = directory.file_name()?.to_str()?.strip_prefix('v')?;
        version.parse::<u32>().is_ok().then(|| Self { layout: directory.to_owned() })
    }

    /// Where maps are pinned.
    pub fn maps(&self) -> &Path {
        &self.layout
    }

    /// Where the map of that name is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.layout.join(name)
    }

    /// Where links are pinned.
    pub fn links(&self) -> PathBuf {
        self.layout.join("links")
    }

    /// Where links are pinned that stand before those of another layout.
    pub fn fronts(&self) -> PathBuf {
        self.layout.join("handover")
    }
}

/// Passes over that there was nothing to remove.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(e) if is(&e, libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Whether the kernel's answer was `errno`.
fn is(error: &MapError, errno: i32) -> bool {
    matches!(error, MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(errno))
}

/// Gives memory that was freed back to the system, where the allocator can be asked to.
pub fn trim_memory() {
    sys::trim_memory();
}
