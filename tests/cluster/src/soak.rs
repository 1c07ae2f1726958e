//! The upgrade soak: mixed traffic, while agents and node daemons restart, are killed, upgraded and downgraded, and pods
//! come and go, at random. No request may be lost, and at the end the nodes have in the kernel what they had before.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use fairlead_harness::{Cluster, binary};
use nix::sys::signal::Signal;

use crate::ask::within;
use crate::inventory::{Inventory, Numbers, until_it_takes_over};
use crate::mixed::{Mixed, Sum, until_kept_out};
use crate::pod;

/// The longest that an agent is left at work, or to its end, before the next event.
const LULL: u64 = 900;
/// An agent that is killed while it starts, or while it takes over, is killed within this many milliseconds from then.
const STARTING: u64 = 1500;
const TAKING_OVER: u64 = 250;
/// How many pods come and go at once.
const PODS: usize = 3;
/// How long the kernel may take to free what is not used any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Numbers that look drawn, by Marsaglia's xorshift of 64 bits.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Those that belong to the seed.
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// What happened, and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// How often what happened.
    pub events: BTreeMap<&'static str, usize>,
    /// The requests.
    pub requests: Sum,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sum { answered, denied } = self.requests;
        writeln!(
            f,
            "{answered} requests answered, none lost; {denied} denied, none let through; in {:?}",
            self.took
        )?;
        self.events.iter().try_for_each(|(event, count)| writeln!(f, "{count:>5} {event}"))
    }
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Restart(Signal),
    OtherLayout,
    OtherBuild,
    KilledAtStart,
    Daemon(Signal),
    PodComes,
    PodGoes,
}

const EVENTS: [Event; 12] = [
    Event::Restart(Signal::SIGTERM),
    Event::Restart(Signal::SIGKILL),
    Event::OtherLayout,
    Event::OtherLayout,
    Event::OtherLayout,
    Event::OtherBuild,
    Event::KilledAtStart,
    Event::KilledAtStart,
    Event::Daemon(Signal::SIGTERM),
    Event::Daemon(Signal::SIGKILL),
    Event::PodComes,
    Event::PodGoes,
];

/// Does it for so long, in a cluster of nodes that run the usual agent, with [so many more clients](Mixed::with_crowd), and
/// returns what happened.
///
/// # Errors
/// When a request was lost, one that is denied was let through, an agent does not come back, or something is left behind.
pub fn run(cluster: &mut Cluster, seed: u64, lasting: Duration, crowd: usize) -> Result<Account> {
    let usual = binary("fairlead-proxy")?;
    let next = binary("fairlead-proxy-next")?;
    let another = cluster.another_build()?;
    let mixed = Mixed::with_crowd(cluster, crowd)?;
    until_kept_out(cluster)?;
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    let mut soak = Soak {
        dice: Dice::of(seed),
        before: cluster.nodes().iter().map(Inventory::of).collect::<Result<_>>()?,
        seen: vec![Numbers::default(); names.len()],
        runs: vec![usual.clone(); names.len()],
        pods: Vec::new(),
        count: 0,
        begun: Instant::now(),
        begun_at: SystemTime::now(),
        builds: [usual, another, next],
        names,
        account: Account::default(),
    };
    let traffic = mixed.begin()?;
    (soak.begun, soak.begun_at) = (Instant::now(), SystemTime::now());
    let begun = soak.begun;
    let happened = soak.until(cluster, begun + lasting);
    // A lost request says more than an agent that did not come back.
    let requests = traffic.end(soak.begun_at);
    soak.account.took = begun.elapsed();
    soak.account.requests = match (requests, happened) {
        (Ok(requests), Ok(())) => requests,
        (Err(lost), happened) => bail!("{lost:#}\nafter {:?}, {happened:?}", soak.account.events),
        (Ok(_), Err(error)) => return Err(error),
    };
    soak.nothing_is_left(cluster)?;
    Ok(soak.account)
}

struct Soak {
    dice: Dice,
    names: Vec<String>,
    before: Vec<Inventory>,
    /// All programs and maps that each node ever had.
    seen: Vec<Numbers>,
    /// What each node runs.
    runs: Vec<PathBuf>,
    /// The usual build, another of its layout, and one of the next layout.
    builds: [PathBuf; 3],
    pods: Vec<String>,
    count: usize,
    begun: Instant,
    begun_at: SystemTime,
    account: Account,
}

impl Soak {
    fn until(&mut self, cluster: &mut Cluster, end: Instant) -> Result<()> {
        while Instant::now() < end {
            let event = *self.dice.one_of(&EVENTS);
            let at = self.dice.below(self.names.len() as u64) as usize;
            let name = self
                .happen(cluster, event, at)
                .with_context(|| format!("{event:?} on {}", self.names[at]))?;
            let at_last = self.begun.elapsed();
            println!("{at_last:>12.1?}  {}: {name}", self.names[at]);
            *self.account.events.entry(name).or_default() += 1;
            self.seen[at].add(&Numbers::of(&cluster.nodes()[at])?);
            thread::sleep(Duration::from_millis(self.dice.below(LULL)));
        }
        Ok(())
    }

    fn happen(&mut self, cluster: &mut Cluster, event: Event, at: usize) -> Result<&'static str> {
        match event {
            Event::Restart(signal) => {
                let build = self.runs[at].clone();
                self.replace(cluster, at, signal, build)?;
                Ok(if signal == Signal::SIGTERM { "agents restarted" } else { "agents killed" })
            }
            Event::OtherBuild => {
                let build = self.builds[usize::from(self.runs[at] == self.builds[0])].clone();
                self.replace(cluster, at, Signal::SIGTERM, build)?;
                Ok("agents replaced by another build or back")
            }
            Event::OtherLayout => {
                let is_next = self.runs[at] == self.builds[2];
                let build = self.builds[if is_next { 0 } else { 2 }].clone();
                let signal = *self.dice.one_of(&[Signal::SIGTERM, Signal::SIGKILL]);
                self.replace(cluster, at, signal, build)?;
                Ok(if is_next { "downgrades to the layout before" } else { "upgrades to the next layout" })
            }
            Event::KilledAtStart => {
                let node = cluster.node_mut(&self.names[at])?;
                node.stop_proxy(Signal::SIGKILL)?;
                for _ in 0..=self.dice.below(3) {
                    let build = self.dice.one_of(&[0, 2]);
                    node.start_proxy_from(&self.builds[*build])?;
                    if self.dice.below(2) == 0 {
                        until_it_takes_over(node)?;
                        thread::sleep(Duration::from_millis(self.dice.below(TAKING_OVER)));
                    } else {
                        thread::sleep(Duration::from_millis(self.dice.below(STARTING)));
                    }
                    node.stop_proxy(Signal::SIGKILL)?;
                }
                let build = self.dice.one_of(&self.builds).clone();
                self.start(cluster, at, build)?;
                Ok("agents killed while they started, perhaps in the midst of a takeover")
            }
            Event::Daemon(signal) => {
                let node = cluster.node_mut(&self.names[at])?;
                node.stop_daemon(signal)?;
                node.start_daemon()?;
                Ok("node daemons restarted or killed")
            }
            Event::PodComes if self.pods.len() < PODS => {
                self.count += 1;
                let name = format!("extra-{}", self.count);
                cluster.apply(&pod(&name, "echo", &self.names[at]))?;
                cluster.pod(&name)?;
                self.pods.push(name);
                Ok("pods that came")
            }
            Event::PodComes | Event::PodGoes if self.pods.is_empty() => Ok("lulls"),
            Event::PodComes | Event::PodGoes => {
                let pod = self.pods.remove(0);
                cluster.kubectl(&["delete", "pod", &pod, "--wait=false"])?;
                cluster.wait_until_gone(&pod)?;
                Ok("pods that went")
            }
        }
    }

    fn replace(&mut self, cluster: &mut Cluster, at: usize, signal: Signal, build: PathBuf) -> Result<()> {
        cluster.node_mut(&self.names[at])?.stop_proxy(signal)?;
        self.start(cluster, at, build)
    }

    fn start(&mut self, cluster: &mut Cluster, at: usize, build: PathBuf) -> Result<()> {
        let node = cluster.node_mut(&self.names[at])?;
        node.start_proxy_from(&build)?;
        self.runs[at] = build;
        node.wait_for_proxy()
    }

    /// Every node has what it had: after the pods that came have gone, under the agent that it began with.
    fn nothing_is_left(&mut self, cluster: &mut Cluster) -> Result<()> {
        for pod in std::mem::take(&mut self.pods) {
            cluster.kubectl(&["delete", "pod", &pod, "--wait=false"])?;
            cluster.wait_until_gone(&pod)?;
        }
        for at in 0..self.names.len() {
            let usual = self.builds[0].clone();
            self.replace(cluster, at, Signal::SIGTERM, usual)?;
        }
        for (at, node) in cluster.nodes().iter().enumerate() {
            within(PATIENCE, || {
                Inventory::of(node)?.is_as(&self.before[at])?;
                self.seen[at].are_gone_but(&Numbers::of(node)?)
            })
            .with_context(|| format!("what {} has in the end", node.name()))?;
        }
        Ok(())
    }
}
