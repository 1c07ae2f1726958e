//! `fairlead-proxy check`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use super::ask::Output;
use super::{DEFAULT_BPFFS, text};
use crate::kernel::check;
use crate::node::PortRange;

/// Options of `check`: what `run` would be told, as far as the kernel is concerned.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// Where maps and links would be pinned.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// The cgroup whose sockets would be translated; by default the root of the cgroup2 hierarchy.
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Where the kernel's settings would be written; by default /proc/sys.
    #[arg(long, value_name = "DIR")]
    pub proc_sys: Option<PathBuf>,
    /// Ports that masqueraded flows would leave with.
    #[arg(long, value_name = "FIRST-LAST", default_value = "49152-65535")]
    pub snat_ports: PortRange,
    /// Take a feature for missing, to see what becomes of it.
    #[arg(long, value_name = "FEATURE", hide = true)]
    pub without_kernel_feature: Vec<String>,
    /// How the findings are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

impl Check {
    pub(super) fn perform(self) -> Result<()> {
        let findings = check::check(&self);
        match self.output {
            Output::Json => text::print(&(serde_json::to_string_pretty(&findings)? + "\n"))?,
            Output::Text => text::print(&findings.to_string())?,
        }
        ensure!(findings.problems.is_empty(), "{}", findings.problems.join("; "));
        Ok(())
    }
}
