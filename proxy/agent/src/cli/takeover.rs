//! `fairlead-proxy takeover`, and the options of the way back.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use fairlead_net::agent::Request;

use super::ask::Ask;
use crate::takeover::Report;

/// How often the agent is asked how many connections are left.
const POLL: Duration = Duration::from_millis(200);

/// Options of `takeover`.
#[derive(Clone, Debug, Args)]
pub struct Takeover {
    /// Only say what is there, and what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Count down the connections of before until they have ended.
    #[arg(long, conflicts_with = "dry_run")]
    pub wait: bool,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Takeover {
    pub(super) fn perform(self) -> Result<()> {
        let mut report: Report = self.ask.learn(&Request::Takeover { dry_run: self.dry_run })?;
        self.ask.show(&report, Report::to_string)?;
        while self.wait && report.left > 0 {
            thread::sleep(POLL);
            let left = report.left;
            report = self.ask.learn(&Request::Takeover { dry_run: true })?;
            if report.left != left {
                eprintln!("{} connections left", report.left);
            }
        }
        Ok(())
    }
}

/// Options of `cleanup` for the way back to kube-proxy.
#[derive(Clone, Debug, Default, Args)]
pub struct HandOver {
    /// Give connections to the kernel's connection tracking first, where kube-proxy's rules go on with them.
    #[arg(long, conflicts_with = "dry_run")]
    pub hand_over: bool,
    /// Wait so many seconds for kube-proxy's rules, with programs and connections as they are.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds, requires = "hand_over")]
    pub wait: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| format!("{text:?} is not a number of seconds"))
}
