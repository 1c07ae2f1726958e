//! Options of `cleanup`.

use std::path::PathBuf;

use clap::Args;

use super::{DEFAULT_BPFFS, Output, Run};

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
