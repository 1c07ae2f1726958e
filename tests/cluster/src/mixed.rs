//! Mixed traffic: every way to a Service, to a pod under a policy and to the outside, by each protocol, each request over
//! a new flow or all over one; and a client that nobody may let through.
//!
//! ```text
//!   node1    client, near (echo), stranger, guest (hostPort)    node2    far (echo), guarded (admits client alone)
//!   outside  a client of NodePorts and the hostPort, and a server for the pod client
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use fairlead_harness::{Cluster, Failure, FailureKind, Load, Place, Protocol, Report, Traffic};
use serde_json::json;

use crate::ask::{Asker, within};
use crate::objects::spec;
use crate::policy::network_policy;
use crate::scene::{Scene, node_addresses, outside_address};
use crate::{IPV4, IPV6, POD_PORT, SERVICE_PORT, pod, service};

/// The port of the node that leads to the pod `guest`.
const HOST_PORT: u16 = 9090;
/// The port of the server outside.
const OUTSIDE_PORT: u16 = 9000;
/// The pause between two requests of a client.
const PAUSE: Duration = Duration::from_millis(40);
/// A request that is not answered for so long is lost. A TCP segment that is lost is sent again after less; a datagram
/// is not.
const LOST: Duration = Duration::from_secs(5);
/// After how long a silence what is denied is over.
const SILENCE: Duration = Duration::from_millis(150);

/// What a client shall see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// An answer to each request, whoever gives it.
    Answers,
    /// An answer to each request by the same pod.
    OnePod,
    /// No answer at all.
    Silence,
}

/// A client, yet to begin.
struct Client {
    who: String,
    place: Place,
    load: Load,
    wanted: Wanted,
}

/// The pods, Services and places of the traffic.
pub struct Mixed {
    clients: Vec<Client>,
}

impl Mixed {
    /// Applies the objects, and waits until everything answers that shall.
    ///
    /// # Errors
    /// When it does not.
    pub fn set(cluster: &mut Cluster) -> Result<Self> {
        Self::with_crowd(cluster, 0)
    }

    /// The same with so many more clients of each NodePort that ask by datagrams, each over a new flow: nobody sends such a
    /// request again if it is lost, and their ports come again while flows of before are known.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn with_crowd(cluster: &mut Cluster, crowd: usize) -> Result<Self> {
        cluster.serve_outside("outside", OUTSIDE_PORT)?;
        let scene = Scene::set(cluster, &objects())?;
        let stranger = cluster.pod("stranger")?.place;
        let guarded = cluster.pod("guarded")?.ips;
        cluster.pod("guest")?;
        let mut mixed = Self { clients: Vec::new() };
        mixed.of_services(cluster, &scene)?;
        mixed.of_node_ports(cluster, &scene, crowd)?;
        mixed.of_policies(&scene, &stranger, &guarded);
        let outside = [outside_address(cluster, IPV4)?, outside_address(cluster, IPV6)?];
        mixed.anew_and_lasting(("a pod", &scene.client.place), outside, |_| OUTSIDE_PORT, "outside");
        for Client { who, place, load, .. } in mixed.clients.iter().filter(|c| c.wanted != Wanted::Silence) {
            place.request_until_answered(load.protocol, load.target).with_context(|| who.clone())?;
        }
        Ok(mixed)
    }

    /// Starts the clients.
    ///
    /// # Errors
    /// When one can't be started.
    pub fn begin(&self) -> Result<Under> {
        let begin = |client: &Client| {
            let traffic = client.place.traffic(&client.load).with_context(|| client.who.clone())?;
            Ok((client.who.clone(), client.wanted, traffic))
        };
        self.clients.iter().map(begin).collect::<Result<_>>().map(Under)
    }

    fn of_services(&mut self, cluster: &Cluster, scene: &Scene) -> Result<()> {
        let ips = |service: &str| -> Result<[IpAddr; 2]> {
            let ips = cluster.cluster_ips(service)?;
            ips[..].try_into().with_context(|| format!("Service {service} has the addresses {ips:?}"))
        };
        let ([a, b], sticky) = (ips("echo")?, ips("sticky")?);
        let pod = ("a pod", &scene.client.place);
        let node = ("a node", &scene.node1);
        self.anew_and_lasting(pod, [a, b], |_| SERVICE_PORT, "a ClusterIP");
        self.anew_and_lasting(node, [b, a], |_| SERVICE_PORT, "a ClusterIP");
        for address in [a, b] {
            let load = Load::new(Protocol::Udp, (address, SERVICE_PORT).into());
            self.add(node, load.over_one_flow().unconnected(), Wanted::OnePod, "a ClusterIP");
        }
        for address in sticky {
            let load = Load::new(Protocol::Tcp, (address, SERVICE_PORT).into());
            self.add(pod, load, Wanted::OnePod, "a ClusterIP with affinity");
        }
        Ok(())
    }

    fn of_node_ports(&mut self, cluster: &Cluster, scene: &Scene, crowd: usize) -> Result<()> {
        let outside = ("outside", &scene.outside);
        let addresses = [node_addresses(cluster, "node1")?, node_addresses(cluster, "node2")?];
        let [[a, _], [_, b]] = addresses;
        for (service, what) in [("echo", "a NodePort"), ("local", "a NodePort of the policy Local")] {
            let ports = Protocol::ALL.map(|protocol| cluster.node_port(service, &protocol.to_string()));
            let [tcp, udp, sctp] = ports;
            let (tcp, udp, sctp) = (tcp?, udp?, sctp?);
            let port = |protocol| match protocol {
                Protocol::Tcp => tcp,
                Protocol::Udp => udp,
                Protocol::Sctp => sctp,
            };
            self.anew_and_lasting(outside, [a, b], port, what);
            for _ in 0..crowd {
                self.add(outside, Load::new(Protocol::Udp, (b, udp).into()), Wanted::Answers, what);
            }
        }
        let load = |protocol| Load::new(protocol, (addresses[0][0], HOST_PORT).into());
        self.add(outside, load(Protocol::Tcp), Wanted::OnePod, "a hostPort");
        self.add(outside, load(Protocol::Udp).over_one_flow(), Wanted::OnePod, "a hostPort");
        Ok(())
    }

    fn of_policies(&mut self, scene: &Scene, stranger: &Place, guarded: &[IpAddr]) {
        for (at, &address) in guarded.iter().enumerate() {
            for protocol in Protocol::SOCKETS {
                let target = SocketAddr::new(address, POD_PORT);
                let load = Load::new(protocol, target);
                let load = if at == 0 { load } else { load.over_one_flow() };
                self.add(("a pod", &scene.client.place), load, Wanted::OnePod, "a pod that admits it");
                let denied = Load::new(protocol, target).giving_up_after(SILENCE);
                self.add(("another pod", stranger), denied, Wanted::Silence, "a pod that does not admit it");
            }
        }
    }

    /// New flows to one of the addresses and a lasting one to the other, by each protocol.
    fn anew_and_lasting(
        &mut self,
        asker: Asker<'_>,
        [a, b]: [IpAddr; 2],
        port: impl Fn(Protocol) -> u16,
        what: &str,
    ) {
        for protocol in Protocol::ALL {
            // Raw sockets of the node see no answer by way of a ClusterIP's hook, and one client by SCTP is enough.
            if protocol == Protocol::Sctp && asker.0 == "a node" {
                continue;
            }
            let load = |address| Load::new(protocol, (address, port(protocol)).into());
            let (anew, lasting) = if protocol == Protocol::Tcp { (a, b) } else { (b, a) };
            self.add(asker, load(anew), Wanted::Answers, what);
            self.add(asker, load(lasting).over_one_flow(), Wanted::OnePod, what);
        }
    }

    fn add(&mut self, (who, place): Asker<'_>, load: Load, wanted: Wanted, what: &str) {
        let kind = if load.one_flow { "over one flow" } else { "each time anew" };
        let how = if load.unconnected { ", unconnected" } else { "" };
        let who = format!("{who} to {what}, {} to {} {kind}{how}", load.protocol, load.target);
        let patience = if wanted == Wanted::Silence { SILENCE } else { LOST };
        let load = load.every(PAUSE).giving_up_after(patience);
        self.clients.push(Client { who, place: place.clone(), load, wanted });
    }
}

/// The traffic, under way; dropped, it ends.
pub struct Under(Vec<(String, Wanted, Traffic)>);

/// What the traffic was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many requests were made that were to be answered, and were.
    pub answered: usize,
    /// How many were made that were to be denied, and were.
    pub denied: usize,
}

impl Under {
    /// Ends it: everybody saw what he shall.
    ///
    /// # Errors
    /// When somebody did not: who, and what, and how long after that moment.
    pub fn end(self, begun: SystemTime) -> Result<Sum> {
        let (mut sum, mut wrong) = (Sum::default(), Vec::new());
        for (who, wanted, traffic) in self.0 {
            let report = traffic.stop().with_context(|| who.clone())?;
            match check(wanted, &report) {
                Ok(()) if wanted == Wanted::Silence => sum.denied += report.outcomes.len(),
                Ok(()) => sum.answered += report.outcomes.len(),
                Err(error) => {
                    let after = |failure: &Failure| failure.at.duration_since(begun).unwrap_or_default();
                    let failures = report.failures();
                    let all: Vec<_> =
                        failures.iter().map(|failure| format!("{:.1?}: {failure}", after(failure))).collect();
                    wrong.push(format!("{who}: {error}; after {}", all.join("; ")));
                }
            }
        }
        ensure!(wrong.is_empty(), "{} clients: {}", wrong.len(), wrong.join("\n"));
        Ok(sum)
    }
}

fn check(wanted: Wanted, report: &Report) -> Result<()> {
    if wanted == Wanted::Silence {
        let passed = report.replies().count();
        ensure!(passed == 0, "{passed} of {} requests were answered", report.outcomes.len());
        let others: Vec<_> =
            report.failures().into_iter().filter(|failure| failure.kind != FailureKind::TimedOut).collect();
        ensure!(others.is_empty(), "not only without an answer: {others:?}");
        return Ok(());
    }
    report.all_answered()?;
    let pods = report.pods();
    ensure!(wanted != Wanted::OnePod || pods.len() == 1, "answered by {pods:?}");
    Ok(())
}

fn objects() -> String {
    let ports: Vec<_> = Protocol::ALL
        .iter()
        .map(|protocol| {
            json!({ "name": protocol.to_string(), "containerPort": POD_PORT, "hostPort": HOST_PORT,
                "protocol": protocol.to_string().to_uppercase() })
        })
        .collect();
    let guest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "guest", "labels": { "app": "guest" } },
        "spec": { "nodeName": "node1",
                  "containers": [{ "name": "echo", "image": "fairlead/echo:dev", "ports": ports }] },
    });
    // Closed both ways: its answers pass by the entries of what it admits alone.
    let guard = network_policy(
        "default",
        "guard",
        json!({ "podSelector": { "matchLabels": { "app": "guarded" } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }] }),
    );
    pod("stranger", "stranger", "node1")
        + &pod("guarded", "guarded", "node2")
        + &service("echo", "echo", "NodePort")
        + &service("local", "echo", "NodePort")
        + &spec("externalTrafficPolicy: Local")
        + &service("sticky", "echo", "ClusterIP")
        + &spec("sessionAffinity: ClientIP")
        + &format!("---\n{guest}\n---\n{guard}\n")
}

/// Waits until the client that nobody may let through is kept out, as policies may take a moment.
///
/// # Errors
/// When it is not.
pub fn until_kept_out(cluster: &Cluster) -> Result<()> {
    let (stranger, guarded) = (cluster.pod("stranger")?, cluster.pod("guarded")?);
    within(Duration::from_secs(10), || {
        for &address in &guarded.ips {
            let load = Load::new(Protocol::Tcp, (address, POD_PORT).into()).times(1);
            let report = stranger.place.traffic(&load.giving_up_after(SILENCE))?.stop()?;
            ensure!(report.replies().count() == 0, "{address} answers");
        }
        Ok(())
    })
}
