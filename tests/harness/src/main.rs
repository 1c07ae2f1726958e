//! `fairlead-harness`: the demo, and the processes that a cluster of namespaces is made of.

mod demo;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use fairlead_harness::layout::Layout;
use fairlead_harness::{DEMO_DIR, Load, Port, Try, down, kubelet, reach, relay, run_load, serve, sweep};

/// A Kubernetes cluster of network namespaces on this machine, networked by Fairlead.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start a two-node cluster, send traffic every way it can go, and show what came of it.
    Demo(demo::Arguments),
    /// Take the demo's cluster down, also after a crash; and what crashed tests left.
    Down {
        /// The cluster's directory.
        #[arg(long, default_value = DEMO_DIR)]
        dir: PathBuf,
    },
    /// Run the pods of a cluster.
    #[command(hide = true)]
    Kubelet {
        /// The cluster's directory.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Carry connections to a loopback port into a namespace.
    #[command(hide = true)]
    Relay {
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// The file that names the namespace.
        #[arg(long)]
        netns: PathBuf,
        /// Where to connect inside.
        #[arg(long)]
        target: SocketAddr,
    },
    /// Serve as a pod's container.
    #[command(hide = true)]
    Serve {
        /// The pod's name.
        #[arg(long)]
        pod: String,
        /// What to serve, as in 8080/tcp.
        #[arg(long = "port")]
        ports: Vec<Port>,
        /// Milliseconds to go on accepting when told to stop.
        #[arg(long, default_value_t = millis(serve::LINGER))]
        linger_ms: u64,
    },
    /// Send requests and report on them as JSON.
    #[command(hide = true)]
    Probe(Load),
    /// Try whether somebody is reached: tries and outcomes are JSON.
    #[command(hide = true)]
    Reach {
        /// Milliseconds until a try counts as unanswered.
        #[arg(long)]
        patience_ms: u64,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    act(Arguments::parse().command).unwrap_or_else(|error| {
        eprintln!("fairlead-harness: {error:#}");
        ExitCode::FAILURE
    })
}

fn act(action: Action) -> Result<ExitCode> {
    match action {
        Action::Demo(arguments) => return demo::run(&arguments),
        Action::Down { dir } => {
            let found = down(&dir)?;
            let swept = sweep()?;
            println!("{}", if found { "the cluster is gone" } else { "no cluster is up" });
            if swept > 0 {
                println!("{swept} left by tests: gone as well");
            }
        }
        Action::Kubelet { dir } => {
            let layout = Layout::read(&dir)?.with_context(|| format!("no cluster in {}", dir.display()))?;
            tokio::runtime::Runtime::new()?.block_on(kubelet::run(layout))?;
        }
        Action::Relay { listen, netns, target } => relay::run(listen, &netns, target)?,
        Action::Serve { pod, ports, linger_ms } => {
            serve::run(&pod, &ports, Duration::from_millis(linger_ms))?;
        }
        Action::Reach { patience_ms } => {
            let tries: Vec<Try> = serde_json::from_reader(std::io::stdin()).context("read the tries")?;
            let outcomes = reach::run(&tries, Duration::from_millis(patience_ms));
            println!("{}", serde_json::to_string(&outcomes)?);
        }
        Action::Probe(load) => println!("{}", serde_json::to_string(&run_load(&load))?),
    }
    Ok(ExitCode::SUCCESS)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
