//! Every way between two ends of the flat network: who is reached, by what, and whom the receiver sees.
//!
//! ```text
//!   pod, near      host1        pod2   host2     …         outside
//!   (pods of node1, and itself) (a pod of node2, itself)   (knows no pods)
//! ```
//!
//! Each end serves [`POD_PORT`] by every protocol and answers echoes. All ways are tried, and what went otherwise than
//! it shall is told together, one line a way.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fairlead_harness::{Cluster, EchoId, Load, Place, Protocol, Report};

use crate::ask::{reports, within};
use crate::scene::{node_addresses, outside_address};
use crate::{IPV4, IPV6, POD_PORT, pod};

/// How long nodes may take to know the ways to each other's pods.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a way may take to answer.
const SLOW: Duration = Duration::from_secs(1);
/// After how long a silence no answer is expected any more.
const SILENCE: Duration = Duration::from_millis(300);
/// How many ways that went otherwise are told.
const TOLD: usize = 24;
/// More than any link here takes at once, of one datagram and of one echo.
const LARGE: usize = 8000;
/// How much goes over a connection, each way.
const MUCH: usize = 1 << 20;
/// Datagrams of one socket that may be lost until every part of the way has said what fits.
const TO_LEARN: u32 = 12;

/// An end of a way.
#[derive(Debug)]
pub struct End {
    /// Its name, by which its server answers.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// Its addresses, IPv4 and IPv6.
    pub ips: [IpAddr; 2],
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// A pod, by the name of its node.
    Pod(String),
    /// A node, by name.
    Node(String),
    Outside,
}

impl End {
    /// Its address of the family of `like`.
    pub fn address(&self, like: IpAddr) -> IpAddr {
        self.ips[usize::from(like.is_ipv6())]
    }

    fn node(&self) -> Option<&str> {
        match &self.kind {
            Kind::Pod(node) | Kind::Node(node) => Some(node),
            Kind::Outside => None,
        }
    }
}

/// What a way is tried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Protocol(Protocol),
    Echo,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => protocol.fmt(f),
            Self::Echo => f.write_str("echo"),
        }
    }
}

/// What is tried of the family of `like`, from one end to another.
#[derive(Clone, Copy)]
struct Way<'a> {
    from: &'a End,
    to: &'a End,
    like: IpAddr,
    by: By,
}

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, like, by } = self;
        write!(f, "{by} from {} to {} ({})", from.name, to.name, to.address(*like))
    }
}

/// The ends in a cluster.
pub struct Paths {
    ends: Vec<End>,
    /// Whether pods are seen outside by their node's address, and so can be answered.
    masquerades: bool,
}

impl Paths {
    /// Two pods on node1 and one on each other node, a server on each node itself, and one outside.
    ///
    /// # Errors
    /// When they don't run.
    pub fn set(cluster: &mut Cluster) -> Result<Self> {
        let nodes: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
        let mut pods = vec![("near".to_owned(), "node1".to_owned())];
        pods.extend(nodes.iter().map(|node| (node.replace("node", "pod"), node.clone())));
        let mut manifests: String = pods.iter().map(|(name, node)| pod(name, "end", node)).collect();
        for node in &nodes {
            let own = pod(&host_of(node), "host", node);
            manifests += &own.replace("spec:\n", "spec:\n  hostNetwork: true\n");
        }
        cluster.apply(&manifests)?;
        cluster.serve_outside("outside", POD_PORT)?;
        let mut ends = Vec::new();
        for (name, node) in pods {
            let running = cluster.pod(&name)?;
            let ips = [running.address(IPV4)?, running.address(IPV6)?];
            ends.push(End { name, place: running.place, ips, kind: Kind::Pod(node) });
        }
        for node in nodes {
            cluster.pod(&host_of(&node))?;
            let (place, ips) = (cluster.node(&node)?.place().clone(), node_addresses(cluster, &node)?);
            ends.push(End { name: host_of(&node), place, ips, kind: Kind::Node(node) });
        }
        let ips = [outside_address(cluster, IPV4)?, outside_address(cluster, IPV6)?];
        ends.push(End { name: "outside".to_owned(), place: cluster.client()?, ips, kind: Kind::Outside });
        Ok(Self { ends, masquerades: true })
    }

    /// The same where nobody masquerades: what is outside can't answer pods.
    #[must_use]
    pub fn without_masquerade(self) -> Self {
        Self { masquerades: false, ..self }
    }

    /// The end of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn end(&self, name: &str) -> Result<&End> {
        self.ends.iter().find(|end| end.name == name).with_context(|| format!("no end {name}"))
    }

    /// By every protocol and by echoes, over both families, every end reaches every other, and is seen by the address
    /// that it shall have there.
    ///
    /// # Errors
    /// When it is otherwise for too long: each way that differs, with `routing` as the reason to try it.
    pub fn hold(&self, routing: &str) -> Result<()> {
        self.all_fit(routing, |from, told| {
            let ways = self.ways(from, &Protocol::ALL);
            let load = |way: &Way<'_>| {
                let seen = self.seen(way)?;
                let patience = if seen.is_some() { SLOW } else { SILENCE };
                Ok(way.load()?.times(1).giving_up_after(patience))
            };
            let loads = ways.iter().map(load).collect::<Result<Vec<_>>>()?;
            for (way, report) in ways.iter().zip(reports(&from.place, loads)?) {
                told.extend(differs(way, self.seen(way)?, &report));
            }
            for way in self.ways(from, &[]) {
                told.extend(self.echo_differs(&way, 0)?);
            }
            Ok(())
        })
    }

    /// Between ends of different nodes, over both families, much passes over a connection in both directions, and
    /// datagrams and echoes that need fragments arrive whole; where links on the way are smaller than the ends', from
    /// when these have been told.
    ///
    /// # Errors
    /// As [`hold`](Self::hold).
    pub fn carry_much(&self, routing: &str) -> Result<()> {
        self.all_fit(routing, |from, told| {
            let mut ways = self.ways(from, &Protocol::SOCKETS);
            ways.retain(|way| way.from.node() != way.to.node());
            let mut answered = Vec::new();
            for way in ways {
                if self.seen(&way)?.is_some() {
                    answered.push(way);
                }
            }
            let load = |way: &Way<'_>| {
                let load = way.load()?;
                Ok(match way.by {
                    By::Protocol(Protocol::Tcp) => load.times(1).sized(MUCH).answers_of(MUCH),
                    _ => load
                        .times(TO_LEARN)
                        .over_one_flow()
                        .sized(LARGE)
                        .answers_of(LARGE)
                        .giving_up_after(SILENCE),
                })
            };
            let loads = answered.iter().map(load).collect::<Result<Vec<_>>>()?;
            for (way, report) in answered.iter().zip(reports(&from.place, loads)?) {
                match report.outcomes.last() {
                    Some(Ok(_)) => {}
                    Some(Err(failure)) => told.push(format!("much by {way}: {failure}")),
                    None => bail!("much by {way}: no request was made"),
                }
            }
            for way in self.ways(from, &[]).into_iter().filter(|way| way.from.node() != way.to.node()) {
                told.extend(self.echo_differs(&way, LARGE)?);
            }
            Ok(())
        })
    }

    /// Tries from every end until nothing is told.
    fn all_fit(
        &self,
        routing: &str,
        mut from: impl FnMut(&End, &mut Vec<String>) -> Result<()>,
    ) -> Result<()> {
        within(PATIENCE, || {
            let mut told = Vec::new();
            self.ends.iter().try_for_each(|end| from(end, &mut told))?;
            let more = told.len().saturating_sub(TOLD);
            told.truncate(TOLD);
            if more > 0 {
                told.push(format!("and {more} more"));
            }
            ensure!(told.is_empty(), "{routing}:\n{}", told.join("\n"));
            Ok(())
        })
    }

    /// The ways from one end to all others by these protocols, or by echoes if none is named. The client outside has no
    /// route to a pod.
    fn ways<'a>(&'a self, from: &'a End, protocols: &[Protocol]) -> Vec<Way<'a>> {
        let tried: Vec<By> = match protocols {
            [] => vec![By::Echo],
            protocols => protocols.iter().copied().map(By::Protocol).collect(),
        };
        let is_tried = |to: &&End| {
            to.name != from.name && !(from.kind == Kind::Outside && matches!(to.kind, Kind::Pod(_)))
        };
        let mut ways = Vec::new();
        for to in self.ends.iter().filter(is_tried) {
            for like in [IPV4, IPV6] {
                ways.extend(tried.iter().map(|&by| Way { from, to, like, by }));
            }
        }
        ways
    }

    /// Which address the receiver of a way sees; none if it is not answered.
    fn seen(&self, way: &Way<'_>) -> Result<Option<IpAddr>> {
        let own = way.from.address(way.like);
        let is_remote = way.to.kind == Kind::Outside;
        Ok(match &way.from.kind {
            Kind::Pod(node) if is_remote && self.masquerades => {
                Some(self.end(&host_of(node))?.address(way.like))
            }
            Kind::Pod(_) if is_remote => None,
            _ => Some(own),
        })
    }

    /// Tries a way by an echo with that many bytes; says how it went otherwise than it shall.
    fn echo_differs(&self, way: &Way<'_>, size: usize) -> Result<Option<String>> {
        let Some(expected) = self.seen(way)? else { return Ok(None) };
        let watch = way.to.place.watch_echoes(way.like)?;
        let target = way.to.address(way.like);
        // What does not fit is lost until the sender has been told.
        let mut outcome = Ok(());
        let mut id = EchoId::random();
        for _ in 0..if size > 0 { TO_LEARN } else { 1 } {
            id = EchoId::random();
            outcome = way.from.place.echo(id, target, size, SILENCE)?;
            if outcome.is_ok() {
                break;
            }
        }
        let what = if size > 0 { "large " } else { "" };
        if let Err(error) = outcome {
            let arrived = watch.source_of(id, Duration::from_millis(1));
            let arrived =
                arrived.map_or_else(|_| "it did not arrive".to_owned(), |ip| format!("{ip} arrived"));
            return Ok(Some(format!("{what}{way}: {error}; {arrived}")));
        }
        let seen = watch.source_of(id, SILENCE).context("an echo was answered that did not arrive")?;
        Ok((seen != expected).then(|| format!("{what}{way}: seen as {seen}, not {expected}")))
    }
}

impl Way<'_> {
    fn load(&self) -> Result<Load> {
        match self.by {
            By::Protocol(protocol) => Ok(Load::new(protocol, (self.to.address(self.like), POD_PORT).into())),
            By::Echo => bail!("an echo is no load"),
        }
    }
}

/// How what came of one request is otherwise than it shall be.
fn differs(way: &Way<'_>, expected: Option<IpAddr>, report: &Report) -> Option<String> {
    match (report.outcomes.first(), expected) {
        (Some(Ok(reply)), _) if reply.answer.pod != way.to.name => {
            Some(format!("{way}: {} answered", reply.answer.pod))
        }
        (Some(Ok(reply)), Some(expected)) => {
            let seen = reply.answer.client.ip();
            (seen != expected).then(|| format!("{way}: seen as {seen}, not {expected}"))
        }
        (Some(Ok(reply)), None) => Some(format!("{way}: answered, and seen as {}", reply.answer.client.ip())),
        (Some(Err(failure)), Some(_)) => Some(format!("{way}: {failure}")),
        (Some(Err(_)), None) => None,
        (None, _) => Some(format!("{way}: no request was made")),
    }
}

fn host_of(node: &str) -> String {
    node.replace("node", "host")
}
