//! The kernel's half: maps, programs and links, all pinned under one directory.
//!
//! ```text
//! <bpffs>/v<layout>/<MAP>           maps, created at first start and adopted ever after
//! <bpffs>/v<layout>/links/<name>    tcx and cgroup links, whose program a restarted agent swaps in place
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`load`] | the bpf filesystem, maps and their sizes, the programs through the verifier |
//! | [`links`] | where programs are attached |
//! | [`services`] | frontends, slots and backends |
//! | [`endpoints`] | local pods |
//! | [`counters`] | what the programs counted |
//!
//! Nothing here is undone when the agent ends: packets keep flowing by what is pinned.

pub mod counters;
pub mod endpoints;
pub mod links;
pub mod load;
pub mod services;
mod sys;

use std::io;
use std::path::{Path, PathBuf};

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

/// The directories that this layout's maps and links are pinned in.
#[derive(Clone, Debug)]
pub struct Pins {
    layout: PathBuf,
}

impl Pins {
    /// Those below `bpffs`.
    pub fn new(bpffs: &Path) -> Self {
        Self { layout: bpffs.join(format!("v{}", fairlead_abi::LAYOUT_VERSION)) }
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
}

/// The cookie of the network namespace that the agent runs in: that of the node.
///
/// # Errors
/// On a kernel older than 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    sys::netns_cookie()
}
