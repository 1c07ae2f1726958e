//! A crowd of clients that goes on asking while something changes: from a pod, from a node and from outside, over
//! both families, each request over a new connection or all over one.
//!
//! ```text
//! gather ── every target answers ──▶ clients at work ── the change ──▶ disperse ──▶ what each of them saw
//! ```

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use fairlead_harness::{Cluster, Failure, Load, Place, Protocol, Reply, Report, Traffic};

use crate::SERVICE_PORT;
use crate::ask::{Asker, Target};
use crate::scene::Scene;

/// How often each client asks.
const INTERVAL: Duration = Duration::from_millis(15);

/// One client, yet to begin.
pub struct Client<'a> {
    who: String,
    place: &'a Place,
    load: Load,
}

impl<'a> Client<'a> {
    /// A client that asks by new connections or over one.
    pub fn new((who, place): Asker<'a>, load: Load) -> Self {
        let kind = match (load.one_flow, load.protocol) {
            (true, Protocol::Tcp) => "over one connection",
            (true, _) => "from one socket",
            (false, _) => "each time anew",
        };
        let who = format!("{who}, {} to {} {kind}", load.protocol, load.target);
        Self { who, place, load: load.every(INTERVAL) }
    }

    /// The same with another patience.
    #[must_use]
    pub fn giving_up_after(self, timeout: Duration) -> Self {
        Self { load: self.load.giving_up_after(timeout), ..self }
    }
}

/// Four clients at a place: TCP and UDP, new flows to one of the addresses and a lasting one to the other.
pub fn clients<'a>(asker: Asker<'a>, [a, b]: [IpAddr; 2], port: impl Fn(Protocol) -> u16) -> Vec<Client<'a>> {
    let load = |protocol, address| Load::new(protocol, (address, port(protocol)).into());
    let loads = [
        load(Protocol::Tcp, a),
        load(Protocol::Tcp, b).over_one_flow(),
        load(Protocol::Udp, b),
        load(Protocol::Udp, a).over_one_flow(),
    ];
    loads.map(|load| Client::new(asker, load)).into()
}

/// Those of the targets whose protocols the crowd speaks.
pub fn spoken(targets: Vec<Target>) -> Vec<Target> {
    targets.into_iter().filter(|(protocol, _)| Protocol::SOCKETS.contains(protocol)).collect()
}

/// Clients of a Service's ClusterIPs in a pod and on a node.
///
/// # Errors
/// When the Service has not an address of each family.
pub fn inside<'a>(cluster: &Cluster, scene: &'a Scene, service: &str) -> Result<Vec<Client<'a>>> {
    let ips = cluster.cluster_ips(service)?;
    let &[a, b] = &ips[..] else { anyhow::bail!("Service {service} has the addresses {ips:?}") };
    let mut all = clients(("a pod", &scene.client.place), [a, b], |_| SERVICE_PORT);
    all.extend(clients(("a node", &scene.node1), [b, a], |_| SERVICE_PORT));
    Ok(all)
}

/// Clients of a Service's NodePorts outside of the cluster: IPv4 by node1, IPv6 by node2.
///
/// # Errors
/// When it has none.
pub fn outside<'a>(cluster: &Cluster, scene: &'a Scene, service: &str) -> Result<Vec<Client<'a>>> {
    let addresses = [cluster.node("node1")?.layout().ipv4, cluster.node("node2")?.layout().ipv6];
    let (tcp, udp) = (cluster.node_port(service, "tcp")?, cluster.node_port(service, "udp")?);
    let port = |protocol| if protocol == Protocol::Tcp { tcp } else { udp };
    Ok(clients(("outside", &scene.outside), addresses, port))
}

/// [`inside`] and [`outside`].
///
/// # Errors
/// When the Service is no NodePort.
pub fn everywhere<'a>(cluster: &Cluster, scene: &'a Scene, service: &str) -> Result<Vec<Client<'a>>> {
    let mut all = inside(cluster, scene, service)?;
    all.extend(outside(cluster, scene, service)?);
    Ok(all)
}

/// Clients at work; dropped, they are killed.
pub struct Crowd(Vec<(String, Load, Traffic)>);

impl Crowd {
    /// Starts the clients, each once its target answers it.
    ///
    /// # Errors
    /// When a target does not answer, or a client can't be started.
    pub fn gather(clients: Vec<Client<'_>>) -> Result<Self> {
        for Client { who, place, load } in &clients {
            place.request_until_answered(load.protocol, load.target).with_context(|| who.clone())?;
        }
        let begin = |Client { who, place, load }: Client<'_>| {
            let traffic = place.traffic(&load).with_context(|| who.clone())?;
            Ok((who, load, traffic))
        };
        clients.into_iter().map(begin).collect::<Result<_>>().map(Self)
    }

    /// Ends them; returns what each saw.
    ///
    /// # Errors
    /// When one does not report.
    pub fn disperse(self) -> Result<Vec<Account>> {
        let end = |(who, load, traffic): (String, Load, Traffic)| {
            let report = traffic.stop().with_context(|| who.clone())?;
            Ok(Account { who, load, report })
        };
        self.0.into_iter().map(end).collect()
    }
}

/// What a client saw.
pub struct Account {
    /// Who it is and what it did.
    pub who: String,
    /// The same, as it was told.
    pub load: Load,
    /// The outcome of each request.
    pub report: Report,
}

impl Account {
    /// Whether it kept one connection open.
    pub fn is_one_connection(&self) -> bool {
        self.load.one_flow && self.load.protocol == Protocol::Tcp
    }

    /// The requests that were answered after that moment.
    pub fn answered_after(&self, moment: SystemTime) -> impl Iterator<Item = &Reply> {
        self.report.replies().filter(move |reply| reply.at > moment)
    }

    /// The requests that failed after that moment.
    pub fn failed_after(&self, moment: SystemTime) -> Vec<&Failure> {
        self.report.failures().into_iter().filter(|failure| failure.at > moment).collect()
    }

    /// No request failed, of at least `count`.
    ///
    /// # Errors
    /// When one did.
    pub fn lost_nothing(&self, count: usize) -> Result<()> {
        let (who, failures, asked) = (&self.who, self.report.failures(), self.report.outcomes.len());
        ensure!(failures.is_empty(), "{who}: of {asked} requests {} failed: {failures:?}", failures.len());
        ensure!(asked >= count, "{who}: only {asked} requests");
        Ok(())
    }

    /// From that moment on, all requests are answered, and by that pod.
    ///
    /// # Errors
    /// When another answers, or nobody does.
    pub fn served_by(&self, pod: &str, from: SystemTime) -> Result<()> {
        let (who, failures) = (&self.who, self.failed_after(from));
        ensure!(failures.is_empty(), "{who}: {} requests failed: {failures:?}", failures.len());
        let others = self.answered_after(from).filter(|reply| reply.answer.pod != pod);
        let others: Vec<&str> = others.map(|reply| reply.answer.pod.as_str()).collect();
        ensure!(others.is_empty(), "{who}: answered by {others:?}, not {pod}");
        ensure!(self.answered_after(from).next().is_some(), "{who}: no request was answered");
        Ok(())
    }
}

/// No request of the whole crowd failed; it was at work for some time.
///
/// # Errors
/// When one did.
pub fn lost_nothing(accounts: &[Account]) -> Result<()> {
    accounts.iter().try_for_each(|account| account.lost_nothing(20))
}
