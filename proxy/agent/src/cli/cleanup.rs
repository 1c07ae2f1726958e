//! `fairlead-proxy cleanup`, and what `run --cleanup` does.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use super::ask::Output;
use super::{DEFAULT_BPFFS, Run, text};
use crate::cleanup;

/// Options of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct Cleanup {
    /// Where maps and links are pinned.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Where the agent keeps what it must know after a restart.
    #[arg(long, value_name = "DIR", default_value = "/run/fairlead")]
    pub state_dir: PathBuf,
    /// Where the agent listens.
    #[arg(long, value_name = "PATH", default_value = fairlead_net::agent::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Where the agent remembers the API servers' addresses.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/fairlead/api-servers.json")]
    pub api_servers_file: PathBuf,
    /// Where the kernel's settings are written.
    #[arg(long, value_name = "DIR", default_value = fairlead_net::sysctl::PROC_SYS)]
    pub proc_sys: PathBuf,
    /// Say what there is, and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although an agent runs, which will miss what is taken away.
    #[arg(long)]
    pub force: bool,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

impl Cleanup {
    /// Takes away what agents have left, and prints what that was.
    pub(super) fn perform(self) -> Result<()> {
        let report = cleanup::cleanup(&self)?;
        match self.output {
            Output::Json => text::print(&(serde_json::to_string_pretty(&report)? + "\n"))?,
            Output::Text => text::print(&report.to_string())?,
        }
        let failures: Vec<String> = report.failures().collect();
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }
}

impl From<&Run> for Cleanup {
    /// What `run --cleanup` with these options asks for.
    fn from(run: &Run) -> Self {
        Self {
            bpffs: run.bpffs.clone(),
            state_dir: run.state_dir.clone(),
            socket: run.socket(),
            api_servers_file: run.api_servers(),
            proc_sys: run.proc_sys.clone(),
            dry_run: false,
            force: false,
            output: Output::Text,
        }
    }
}
