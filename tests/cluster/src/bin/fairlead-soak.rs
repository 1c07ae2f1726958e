//! The upgrade soak, for as long as one likes: `cargo xtask soak`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Parser;
use fairlead_cluster_tests::soak;
use fairlead_harness::{Cluster, Options};

/// Mixed traffic, while agents restart, are killed, upgraded and downgraded at random: no request may be lost, and
/// nothing be left behind.
#[derive(Parser)]
struct Arguments {
    /// For how long.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// What the events follow from; by default the time.
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes, at least 2.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,
    /// How many more clients of each NodePort ask by datagrams, each over a new flow: what a change of hands loses first.
    /// Their masqueraded ports are scarce with more than some six.
    #[arg(long, default_value_t = 0)]
    crowd: usize,
}

fn main() -> Result<()> {
    let Arguments { minutes, seed, nodes, crowd } = Arguments::parse();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = seed.unwrap_or(now);
    println!("soak: {minutes} minutes on {nodes} nodes, seed {seed}");
    let mut cluster = Cluster::start(Options::default().with_nodes(nodes))?;
    let account = soak::run(&mut cluster, seed, Duration::from_secs(60 * minutes), crowd)?;
    cluster.down()?;
    print!("{account}");
    Ok(())
}
