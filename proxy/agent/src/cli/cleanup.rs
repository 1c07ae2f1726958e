//! `fairlead-proxy cleanup`, and what `run --cleanup` does.

use std::fmt::{self, Display};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::ask::Output;
use super::takeover::HandOver;
use super::{DEFAULT_BPFFS, Run, text};
use crate::cleanup::{self, Report};
use crate::run;
use crate::takeover::hand_over::{self, HandedOver};

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
    /// Go on although an agent runs, which will miss what is taken away, or hand over though no rules of kube-proxy's are
    /// there.
    #[arg(long)]
    pub force: bool,
    /// The way back to kube-proxy.
    #[command(flatten)]
    pub hand_over: HandOver,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

impl Cleanup {
    /// Takes away what agents have left, and prints what that was.
    pub(super) fn perform(self) -> Result<()> {
        let HandOver { hand_over, wait } = self.hand_over;
        let clean = || cleanup::cleanup(&self);
        let (handed_over, report) = if hand_over {
            if !self.force {
                drop(run::lock_if_there(&self.state_dir)?);
            }
            let (handed, report) = hand_over::perform(&self.bpffs, wait, self.force, clean)?;
            (Some(handed), report)
        } else {
            (None, clean()?)
        };
        let failures: Vec<String> = report.failures().collect();
        let done = Done { report, handed_over };
        match self.output {
            Output::Json => text::print(&(serde_json::to_string_pretty(&done)? + "\n"))?,
            Output::Text => text::print(&done.to_string())?,
        }
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }
}

/// What was done.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    #[serde(flatten)]
    report: Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    handed_over: Option<HandedOver>,
}

impl Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report.fmt(f)?;
        match self.handed_over {
            Some(HandedOver { flows, refused }) => {
                writeln!(f, "handed over to connection tracking: {flows} flows, {refused} refused")
            }
            None => Ok(()),
        }
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
            hand_over: HandOver::default(),
            output: Output::Text,
        }
    }
}
