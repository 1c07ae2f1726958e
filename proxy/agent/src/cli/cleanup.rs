//! `fairlead-proxy cleanup`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::DEFAULT_BPFFS;
use crate::dataplane::links;

/// Options of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct Cleanup {
    /// Where maps and links are pinned.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}

impl Cleanup {
    pub(super) fn perform(self) -> Result<()> {
        Ok(links::cleanup(&self.bpffs)?)
    }
}
