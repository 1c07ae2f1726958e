//! The binary: options to library calls.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use fairlead_net::agent::{Question, Request, ask};
use fairlead_net::names;
use fairlead_proxy::cli::{Ask, Cleanup, Cli, Command, Flows, Output, Takeover, Why};
use fairlead_proxy::dataplane::links;
use fairlead_proxy::errors::chain;
use fairlead_proxy::policy::drops::Drop;
use fairlead_proxy::policy::why::Answer;
use fairlead_proxy::run;
use fairlead_proxy::status::{Policies, Services, Status};
use fairlead_proxy::takeover::{Report, hand_over};
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
        Command::Takeover(options) => takeover(&options),
        Command::Cleanup(options) => cleanup(&options),
    }
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

/// Has kube-proxy's rules removed, and counts the connections that are left, if it is to wait for them.
fn takeover(options: &Takeover) -> Result<()> {
    let asked = Request::Takeover { dry_run: options.dry_run };
    let mut report = answer(&options.ask, &asked)?;
    let mut left = None;
    loop {
        let read: Report = serde_json::from_value(report.clone())?;
        if left.is_none() {
            show(&options.ask, &report, || Ok(read.to_string()))?;
        } else if left != Some(read.left) {
            eprintln!("{} connections left", read.left);
        }
        left = Some(read.left);
        if !options.wait || read.left == 0 {
            return Ok(());
        }
        std::thread::sleep(POLL);
        report = answer(&options.ask, &Request::Takeover { dry_run: true })?;
    }
}

/// Detaches everything, after what the kernel can go on with has been handed over, if that is asked for.
fn cleanup(options: &Cleanup) -> Result<()> {
    let Cleanup { bpffs, hand_over } = options;
    if !hand_over.hand_over {
        return Ok(links::cleanup(bpffs)?);
    }
    let handed = hand_over::perform(bpffs, hand_over.wait, hand_over.force)?;
    println!("handed over to connection tracking: {} flows, {} refused", handed.flows, handed.refused);
    Ok(())
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
