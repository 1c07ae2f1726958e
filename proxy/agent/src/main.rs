//! The binary: options to library calls, and their outcome to an exit code.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use fairlead_net::agent::AgentError;
use fairlead_proxy::cli::{Cli, ask};
use fairlead_proxy::errors::chain;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // The watches report their failures themselves, each once.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=off"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
    match Cli::parse().command.perform() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("fairlead-proxy: {}", chain(e.as_ref()));
            let is_silent =
                matches!(e.downcast_ref(), Some(AgentError::Connect { .. } | AgentError::Talk { .. }));
            if is_silent { ExitCode::from(ask::NO_AGENT) } else { ExitCode::FAILURE }
        }
    }
}
