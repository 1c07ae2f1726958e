//! The binary: options to library calls, and their outcome to an exit code.

use std::process::ExitCode;

use clap::Parser;
use fairlead_daemon::log;
use fairlead_net::agent::AgentError;
use fairlead_proxy::cli::{Cli, Command, ask};
use fairlead_proxy::errors::chain;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match &command {
        Command::Run(options) => log::start(&options.log),
        _ => log::start_for_command("info"),
    }
    match command.perform() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("fairlead-proxy: {}", chain(e.as_ref()));
            let is_silent =
                matches!(e.downcast_ref(), Some(AgentError::Connect { .. } | AgentError::Talk { .. }));
            if is_silent { ExitCode::from(ask::NO_AGENT) } else { ExitCode::FAILURE }
        }
    }
}
