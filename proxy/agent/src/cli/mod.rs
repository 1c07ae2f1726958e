//! The command line of `fairlead-proxy`: a file for each command, which holds its options, what it asks of the running
//! agent ([`ask`]) and how the answer is shown ([`text`]).

pub mod ask;
mod backends;
mod bench_self;
pub mod check;
pub mod cleanup;
mod completion;
mod endpoints;
mod flow_table;
mod flows;
mod follow;
mod policies;
mod run;
mod services;
mod status;
pub mod takeover;
pub mod text;
mod values;
mod wait;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

pub use fairlead_daemon::page::Listen;
pub use run::{BackendChoice, Established, Masquerade, Run, SocketLb, Tell};
pub use values::NodePortAddress;

/// Where maps and links are pinned unless told otherwise.
pub(crate) const DEFAULT_BPFFS: &str = "/sys/fs/bpf/fairlead";

/// An eBPF service proxy: what clients send to a Kubernetes Service reaches one of its endpoints.
#[derive(Debug, Parser)]
#[command(name = "fairlead-proxy", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `fairlead-proxy` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: watch the API and keep the node's maps programmed.
    Run(Box<Run>),
    /// Show the state of the running agent, what is wrong first. Ends with 0 if nothing is, with 1 if something is, and
    /// with 2 if no agent answers.
    Status(status::Status),
    /// Show the Services that the running agent has programmed, or all about one.
    Services(services::Services),
    /// Show the backends that Services lead to, and how many connections each has.
    Backends(backends::Backends),
    /// Show the pods of this node.
    Endpoints(endpoints::Endpoints),
    /// Show the policies, and which pods of this node each selects.
    Policies(policies::Policies),
    /// Show the connections that the flow table holds, or packets that were dropped.
    Flows(flows::Flows),
    /// Show how full the flow table is, and with what.
    FlowTable(flow_table::FlowTable),
    /// Say what becomes of a packet, and by which objects and rules.
    Why(why::Why),
    /// Measure what a packet, a look-up and a connect() cost on this node. No traffic is touched.
    BenchSelf(bench_self::BenchSelf),
    /// Wait until an object is in effect on this node. Ends with 0 when it is, with 1 when the time is over, and with 2 if
    /// no agent answers.
    Wait(wait::Wait),
    /// Print a script that completes these commands in a shell.
    Completion(completion::Completion),
    /// Say whether Fairlead can run on this kernel, and what it would lack; changes nothing and needs no agent.
    Check(check::Check),
    /// Remove the rules that kube-proxy has left on this node; connections that they have translated go on.
    Takeover(takeover::Takeover),
    /// Take away all that agents have left on this node, and say what it was; connections through Services end.
    Cleanup(cleanup::Cleanup),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// When it can't be done. That the agent does not answer is an [`AgentError`](fairlead_net::agent::AgentError).
    pub fn perform(self) -> Result<ExitCode> {
        match self {
            Self::Run(options) => options.perform(),
            Self::Status(options) => return options.perform(),
            Self::Wait(options) => return options.perform(),
            Self::Services(options) => options.perform(),
            Self::Backends(options) => options.perform(),
            Self::Endpoints(options) => options.perform(),
            Self::Policies(options) => options.perform(),
            Self::Flows(options) => options.perform(),
            Self::FlowTable(options) => options.perform(),
            Self::Why(options) => options.perform(),
            Self::BenchSelf(options) => options.perform(),
            Self::Completion(options) => options.perform(),
            Self::Check(options) => options.perform(),
            Self::Takeover(options) => options.perform(),
            Self::Cleanup(options) => options.perform(),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
