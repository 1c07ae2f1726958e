//! The binary: options to library calls.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use fairlead_net::agent::{Request, ask};
use fairlead_proxy::cli::{Ask, Cli, Command, Output};
use fairlead_proxy::dataplane::links;
use fairlead_proxy::errors::chain;
use fairlead_proxy::run;
use fairlead_proxy::status::{Services, Status};
use tracing_subscriber::EnvFilter;

/// How long the running agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // The watches report their failures themselves, each once.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=off"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
    match perform(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("fairlead-proxy: {}", chain(e.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> Result<()> {
    match command {
        Command::Run(options) => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("start the runtime")?;
            runtime.block_on(run::run(*options))
        }
        Command::Status(options) => {
            let status = answer(&options, &Request::Status)?;
            show(&options, &status, || Ok(serde_json::from_value::<Status>(status.clone())?.to_string()))
        }
        Command::Services(options) => {
            let services = answer(&options, &Request::Services)?;
            show(&options, &services, || Ok(Services(&services).to_string()))
        }
        Command::Cleanup(options) => Ok(links::cleanup(&options.bpffs)?),
    }
}

fn answer(options: &Ask, request: &Request) -> Result<serde_json::Value> {
    Ok(ask(&options.socket, request, PATIENCE)?)
}

fn show(options: &Ask, value: &serde_json::Value, text: impl FnOnce() -> Result<String>) -> Result<()> {
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Output::Text => print!("{}", text()?),
    }
    Ok(())
}
