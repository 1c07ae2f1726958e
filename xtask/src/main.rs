//! Sets up the eBPF toolchain, builds, tests, demonstrates and measures Fairlead.
//!
//! The Makefile's targets are thin names over these commands.

mod build;
mod check;
mod command;
mod image;
mod kernels;
mod kind;
mod setup;
mod test;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Sets up, builds, tests, demonstrates and measures Fairlead")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building needs: rust-src, bpf-linker and a few Debian packages
    Setup,
    /// Build everything, eBPF programs included
    Build {
        /// Optimised, as it is shipped and measured
        #[arg(long)]
        release: bool,
    },
    /// Make the container image, as a root directory and as an OCI archive
    Image {
        /// Of the debug binaries, as they were built
        #[arg(long)]
        debug: bool,
        /// Where [default: target/image]
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
    },
    /// Make a cluster of kind, install Fairlead on it and show that it works
    Kind {
        /// Leave the cluster up
        #[arg(long)]
        keep: bool,
    },
    /// Run the Kubernetes end-to-end tests of the network on the kind cluster that was kept
    EndToEnd {
        /// The e2e.test of the cluster's Kubernetes release
        binary: PathBuf,
    },
    /// Check formatting and lints, the eBPF programs' included
    Lint,
    /// Run every test and close with the count
    Test,
    /// Start a two-node cluster on this machine and show that it works
    Demo {
        /// Leave the cluster up
        #[arg(long)]
        keep: bool,
    },
    /// Remove everything that a demo left, also after a crash
    DemoDown,
    /// Mixed traffic while agents restart, are killed, upgraded and downgraded at random; by default for ten minutes
    Soak {
        /// Passed on: --minutes, --seed, --nodes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Boot Debian's kernels in an emulator, and see what Fairlead does on each; takes long
    Kernels {
        /// Only kernels whose release begins with this, such as 6.1
        #[arg(long, value_name = "RELEASE")]
        only: Vec<String>,
        /// Leave out the demo, which takes longest
        #[arg(long)]
        no_demo: bool,
    },
    /// Measure against plain kernel routing; further arguments go to the benchmark
    Bench {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Setup => setup::install(),
        Task::Build { release } => build::all(release),
        Task::Image { debug, into } => image::make(debug, &into.unwrap_or_else(image::directory)),
        Task::Kind { keep } => kind::up(keep),
        Task::EndToEnd { binary } => kind::end_to_end(&binary),
        Task::Lint => check::lint(),
        Task::Test => test::run(),
        Task::Demo { keep } => build::demo(keep),
        Task::DemoDown => build::demo_down(),
        Task::Soak { arguments } => build::soak(&arguments),
        Task::Kernels { only, no_demo } => kernels::run(&only, !no_demo),
        Task::Bench { arguments } => build::bench(&arguments),
    }
}
