//! Options of `takeover`, and of the way back.

use std::time::Duration;

use clap::Args;

use super::Ask;

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

/// Options of `cleanup` for the way back to kube-proxy.
#[derive(Clone, Debug, Args)]
pub struct HandOver {
    /// Give connections to the kernel's connection tracking first, where kube-proxy's rules go on with them.
    #[arg(long)]
    pub hand_over: bool,
    /// Wait so many seconds for kube-proxy's rules, with programs and connections as they are.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds, requires = "hand_over")]
    pub wait: Duration,
    /// Hand over though no rules of kube-proxy's are there.
    #[arg(long, requires = "hand_over")]
    pub force: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| format!("{text:?} is not a number of seconds"))
}
