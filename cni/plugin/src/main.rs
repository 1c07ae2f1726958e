//! Fairlead's CNI plugin and its node daemon, in one binary.
//!
//! Without arguments it is the plugin: one verb per process, from the environment and stdin, as the CNI
//! specification has it ([`verbs`]). `fairlead-cni node` is the daemon that prepares the node ([`daemon`]).
//! The plugin's way is short on purpose: it parses no command line and starts no threads but the one that
//! enters the pod.

mod add;
mod check;
mod cleanup;
mod condition;
mod daemon;
mod delete;
mod environment;
mod failure;
mod garbage;
mod gc;
mod metrics;
mod nodes;
mod pass;
mod register;
mod status;
mod success;
mod verbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fairlead_daemon::log;

#[derive(Parser)]
#[command(name = "fairlead-cni", version, about = "Fairlead's CNI plugin and its node daemon")]
#[command(
    after_help = "Without a command it is the CNI plugin: CNI_COMMAND and the other CNI_ variables in the \
                        environment, the network configuration on stdin."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prepare this node for the plugin and keep the routes to the other nodes' pods.
    Node(daemon::Options),
    /// Take away what the plugin and the daemon have made on this node, and say what it was.
    Cleanup(cleanup::Options),
}

fn main() -> ExitCode {
    if std::env::args_os().len() <= 1 {
        // Stdout is the plugin's answer.
        log::start_for_command("warn");
        return verbs::run();
    }
    let command = Arguments::parse().command;
    match &command {
        Command::Node(options) => log::start(&options.log),
        Command::Cleanup(_) => log::start_for_command("info"),
    }
    let done = match command {
        Command::Node(options) => daemon::run(options),
        Command::Cleanup(options) => cleanup::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
