//! The binary: options to library calls.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fairlead_net::agent::{Question, Request, ask};
use fairlead_net::names;
use fairlead_proxy::cleanup;
use fairlead_proxy::cli::cleanup::Cleanup;
use fairlead_proxy::cli::{Ask, Cli, Command, Flows, Output, Why};
use fairlead_proxy::errors::chain;
use fairlead_proxy::kernel::check;
use fairlead_proxy::policy::drops::Drop;
use fairlead_proxy::policy::why::Answer;
use fairlead_proxy::run;
use fairlead_proxy::status::{Policies, Services, Status};
use tracing_subscriber::EnvFilter;

/// How long the running agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked for what is new.
const POLL: Duration = Duration::from_millis(200);

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
        Command::Run(options) if options.cleanup => cleanup(&options.as_ref().into()),
        Command::Run(options) => {
            names::use_files_and_dns().context("set up the look-up of names")?;
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
        Command::Policies(options) => {
            let policies = answer(&options, &Request::Policies)?;
            show(&options, &policies, || Ok(Policies(&policies).to_string()))
        }
        Command::Why(Why { from, to, port: (protocol, port), ask }) => {
            let question = Question { from, to, protocol, port };
            let why = answer(&ask, &Request::Why(question))?;
            show(&ask, &why, || Ok(serde_json::from_value::<Answer>(why.clone())?.to_string()))
        }
        Command::Flows(options) => flows(&options),
        Command::Check(options) => {
            let findings = check::check(&options);
            match options.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
                Output::Text => print!("{findings}"),
            }
            ensure!(findings.problems.is_empty(), "{}", findings.problems.join("; "));
            Ok(())
        }
        Command::Cleanup(options) => cleanup(&options),
    }
}

/// Takes away what agents have left, and prints what that was.
fn cleanup(options: &Cleanup) -> Result<()> {
    let report = cleanup::cleanup(options)?;
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print!("{report}"),
    }
    let failures: Vec<String> = report.failures().collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Prints drops: those that are kept, and then those to come.
fn flows(options: &Flows) -> Result<()> {
    let mut after = 0;
    loop {
        let new = answer(&options.ask, &Request::Drops { after })?;
        let drops: Vec<Drop> = serde_json::from_value(new)?;
        for drop in &drops {
            match options.ask.output {
                Output::Json => println!("{}", serde_json::to_string(drop)?),
                Output::Text => println!("{drop}"),
            }
            after = drop.number;
        }
        if !options.follow {
            return Ok(());
        }
        std::thread::sleep(POLL);
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
