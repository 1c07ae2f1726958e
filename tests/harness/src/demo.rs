//! The demo: a two-node cluster, the example manifests, and a table of what reached what, and how fast.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fairlead_harness::{
    Cluster, DEMO_DIR, Failure, FailureKind, Load, Options, Place, Protocol, Report, RunningPod, binary, down,
};

/// The manifests of this source tree.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/examples");
const PREFIX: &str = "fairlead-demo";
/// The port that the example pods serve, and the port of the example Services.
const POD_PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;
/// How many requests a cell of the table stands for.
const REQUESTS: u32 = 20;
/// A refusal is an answer, not a patience that ran out.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What the demo may be told.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave the cluster up, to be explored.
    #[arg(long)]
    keep: bool,
    /// The manifests to apply.
    #[arg(long, default_value = MANIFESTS)]
    manifests: PathBuf,
}

/// Runs the demo; the exit code tells whether everything passed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    take_down_when_interrupted()?;
    let dir = Path::new(DEMO_DIR);
    if down(dir)? {
        step("an earlier demo was still there: taken down");
    }
    let place = Some((dir.to_owned(), PREFIX.to_owned()));
    let mut cluster = Cluster::start(Options { place, progress: step, ..Options::default() })?;
    cluster.serve_outside("outside", POD_PORT)?;
    let stage = Stage::prepare(&cluster, &arguments.manifests)?;
    let table = stage.play()?;
    if arguments.keep {
        explore(&cluster)?;
        cluster.keep()?;
    } else {
        step("taking the cluster down");
        cluster.down()?;
    }
    println!("\n{} passed, {} failed", table.passed, table.failed);
    Ok(if table.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn step(text: &str) {
    println!("· {text}");
}

/// A cluster that is interrupted would otherwise stay until `down`.
fn take_down_when_interrupted() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            eprintln!("\ninterrupted: taking the cluster down");
            if let Err(error) = down(Path::new(DEMO_DIR)) {
                eprintln!("{error:#}");
            }
            std::process::exit(130);
        }
    });
    Ok(())
}

/// The four columns of the table.
const COLUMNS: [(Family, Protocol); 4] = [
    (Family::V4, Protocol::Tcp),
    (Family::V4, Protocol::Udp),
    (Family::V6, Protocol::Tcp),
    (Family::V6, Protocol::Udp),
];

#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(self, addresses: &[IpAddr]) -> Result<IpAddr> {
        let found = addresses.iter().find(|address| address.is_ipv4() == (self == Self::V4));
        found.copied().context("not an address of each family")
    }
}

/// Everyone on stage: the cluster with the example manifests applied and running.
struct Stage<'a> {
    cluster: &'a Cluster,
    client: Place,
    /// Where most requests come from.
    pod: RunningPod,
    same_node: RunningPod,
    other_node: RunningPod,
    solo: RunningPod,
    echo: Vec<IpAddr>,
    solo_service: Vec<IpAddr>,
    nobody: Vec<IpAddr>,
}

impl<'a> Stage<'a> {
    fn prepare(cluster: &'a Cluster, manifests: &Path) -> Result<Self> {
        step(&format!("kubectl apply -f {}", short(manifests).display()));
        cluster.kubectl(&["apply", "-f", &manifests.to_string_lossy()])?;
        step("waiting for the pods");
        let [pod, b, c] = [cluster.pod("echo-a")?, cluster.pod("echo-b")?, cluster.pod("echo-c")?];
        let (same, other) = if b.node == pod.node { (b, c) } else { (c, b) };
        ensure!(
            same.node == pod.node && other.node != pod.node,
            "the echo pods are not spread over both nodes"
        );
        Ok(Self {
            client: cluster.client()?,
            echo: cluster.cluster_ips("echo")?,
            solo_service: cluster.cluster_ips("solo")?,
            nobody: cluster.cluster_ips("nobody")?,
            solo: cluster.pod("solo")?,
            same_node: same,
            other_node: other,
            pod,
            cluster,
        })
    }

    fn play(&self) -> Result<Table> {
        let mut table = Table::begin();
        let host = self.cluster.node(&self.pod.node)?.place();
        table.row("pod → pod on the same node", |family, protocol| {
            self.pod_to_pod(&self.same_node, family, protocol)
        });
        table.row("pod → pod on the other node", |family, protocol| {
            self.pod_to_pod(&self.other_node, family, protocol)
        });
        table.row("pod → outside, seen as its node", |family, protocol| self.outside(family, protocol));
        table.row("pod → ClusterIP", |family, protocol| {
            spread(&self.pod.place, protocol, (family.of(&self.echo)?, SERVICE_PORT).into())
        });
        table.row("host → ClusterIP", |family, protocol| {
            spread(host, protocol, (family.of(&self.echo)?, SERVICE_PORT).into())
        });
        table.row("outside → NodePort, backend on that node", |family, protocol| {
            self.node_port(true, family, protocol)
        });
        table.row("outside → NodePort, backend elsewhere", |family, protocol| {
            self.node_port(false, family, protocol)
        });
        table.row("pod → Service without endpoint: refused", |family, protocol| {
            refused(&self.pod.place, protocol, (family.of(&self.nobody)?, SERVICE_PORT).into())
        });
        table.row("host → Service without endpoint: refused", |family, protocol| {
            refused(host, protocol, (family.of(&self.nobody)?, SERVICE_PORT).into())
        });
        self.isolate(&mut table)?;
        self.replace(&mut table)?;
        Ok(table)
    }

    /// A pod that a policy isolates: who is named by a rule reaches it, and nobody else.
    fn isolate(&self, table: &mut Table) -> Result<()> {
        self.cluster.apply(&isolated())?;
        let vault = self.cluster.pod("vault")?;
        table.row("pod → isolated pod whose policy admits it", |family, protocol| {
            self.pod_to_pod(&vault, family, protocol)
        });
        table.row("pod → isolated pod, not admitted: dropped", |family, protocol| {
            dropped(&self.solo.place, protocol, (family.of(&vault.ips)?, POD_PORT).into())
        });
        Ok(())
    }

    fn pod_to_pod(&self, server: &RunningPod, family: Family, protocol: Protocol) -> Result<Duration> {
        let report = answered(&self.pod.place, protocol, (family.of(&server.ips)?, POD_PORT).into())?;
        let own = family.of(&self.pod.ips)?;
        ensure!(report.sources().iter().eq([&own]), "the server saw {:?} instead of {own}", report.sources());
        latency(&report)
    }

    fn outside(&self, family: Family, protocol: Protocol) -> Result<Duration> {
        let like = family.of(&self.pod.ips)?;
        let address = *self.cluster.client_addresses(like).first().context("an address outside")?;
        let report = answered(&self.pod.place, protocol, (address, POD_PORT).into())?;
        let node = self.cluster.node(&self.pod.node)?.address(like);
        ensure!(report.sources().iter().eq([&node]), "it saw {:?} instead of {node}", report.sources());
        latency(&report)
    }

    fn node_port(&self, local: bool, family: Family, protocol: Protocol) -> Result<Duration> {
        let nodes = self.cluster.nodes();
        let node = nodes.iter().find(|node| (node.name() == self.solo.node) == local).context("a node")?;
        let address = family.of(&[node.layout().ipv4, node.layout().ipv6])?;
        let port = self.cluster.node_port("solo", &protocol.to_string())?;
        latency(&answered(&self.client, protocol, (address, port).into())?)
    }

    /// Replaces the only backend of a Service while requests to it go on: new connections by TCP, one flow by UDP.
    fn replace(&self, table: &mut Table) -> Result<()> {
        let mut traffic = Vec::new();
        for (family, protocol) in COLUMNS {
            let load = Load::new(protocol, (family.of(&self.solo_service)?, SERVICE_PORT).into());
            let load = if protocol == Protocol::Udp { load.over_one_flow() } else { load };
            traffic.push(self.pod.place.traffic(&load)?);
        }
        thread::sleep(Duration::from_millis(500));
        self.cluster.apply(&replacement())?;
        self.cluster.pod("solo-next")?;
        self.cluster.kubectl(&["delete", "pod", "solo"])?;
        thread::sleep(Duration::from_millis(500));
        let reports = traffic.into_iter().map(|traffic| traffic.stop()).collect::<Result<Vec<_>>>()?;
        let mut reports = COLUMNS.into_iter().zip(reports).collect::<Vec<_>>();
        table.row("a backend replaced while traffic runs", |family, protocol| {
            let at =
                reports.iter().position(|(column, _)| *column == (family, protocol)).context("a column")?;
            let (_, report) = reports.swap_remove(at);
            all_answered(&report)?;
            let pods: Vec<&str> = report.pods().into_keys().collect();
            ensure!(pods == ["solo", "solo-next"], "answered by {pods:?}");
            let last = report.replies().last().map(|reply| reply.answer.pod.as_str());
            ensure!(last == Some("solo-next"), "still answered by {last:?} at the end");
            latency(&report)
        });
        Ok(())
    }
}

/// Requests that must all be answered, once the first one has been.
fn answered(place: &Place, protocol: Protocol, target: SocketAddr) -> Result<Report> {
    place.request_until_answered(protocol, target)?;
    let report = place.requests(&Load::new(protocol, target).times(REQUESTS))?;
    all_answered(&report)?;
    Ok(report)
}

fn all_answered(report: &Report) -> Result<()> {
    let failures = report.failures();
    match failures.first() {
        None => Ok(()),
        Some(first) => bail!("{} of {} requests failed: {first}", failures.len(), report.outcomes.len()),
    }
}

/// Requests to a Service of several backends, of which more than one must answer.
fn spread(place: &Place, protocol: Protocol, target: SocketAddr) -> Result<Duration> {
    let report = answered(place, protocol, target)?;
    ensure!(report.pods().len() > 1, "all answers come from {:?}", report.pods().keys());
    latency(&report)
}

/// A request that must be refused at once; the latency is that of the refusal.
fn refused(place: &Place, protocol: Protocol, target: SocketAddr) -> Result<Duration> {
    let is_refusal = |failure: &Failure| failure.kind == FailureKind::Refused && failure.after < AT_ONCE;
    let load = Load::new(protocol, target).times(3);
    let report = place.requests(&load)?;
    let failures = report.failures();
    if let Some(reply) = report.replies().next() {
        bail!("answered by {}", reply.answer.pod);
    }
    if let Some(other) = failures.iter().find(|failure| !is_refusal(failure)) {
        bail!("{other}");
    }
    let mut latencies: Vec<Duration> = failures.iter().map(|failure| failure.after).collect();
    latencies.sort_unstable();
    latencies.get(latencies.len() / 2).copied().context("no request was made")
}

/// A request that nobody must hear of.
fn dropped(place: &Place, protocol: Protocol, target: SocketAddr) -> Result<Cell> {
    let report = place.requests(&Load::new(protocol, target).giving_up_after(AT_ONCE).times(1))?;
    if let Some(reply) = report.replies().next() {
        bail!("answered by {}", reply.answer.pod);
    }
    match report.failures().first() {
        Some(failure) if failure.kind == FailureKind::TimedOut => Ok(Cell::Dropped),
        Some(failure) => bail!("{failure}"),
        None => bail!("no request was made"),
    }
}

fn latency(report: &Report) -> Result<Duration> {
    report.median().context("no request was answered")
}

/// What a check found.
enum Cell {
    /// The median time to an answer.
    After(Duration),
    /// No answer, as it should be.
    Dropped,
}

impl From<Duration> for Cell {
    fn from(latency: Duration) -> Self {
        Self::After(latency)
    }
}

/// The table, printed row by row as it comes about.
struct Table {
    passed: usize,
    failed: usize,
}

impl Table {
    fn begin() -> Self {
        println!("\n{:42}{:>12}{:>12}{:>12}{:>12}", "", "IPv4 TCP", "IPv4 UDP", "IPv6 TCP", "IPv6 UDP");
        Self { passed: 0, failed: 0 }
    }

    /// One row; `check` returns what a cell shows, or why it failed.
    fn row<C: Into<Cell>>(&mut self, title: &str, mut check: impl FnMut(Family, Protocol) -> Result<C>) {
        let mut line = format!("{title:42}");
        let mut causes = Vec::new();
        for (family, protocol) in COLUMNS {
            match check(family, protocol) {
                Ok(found) => {
                    self.passed += 1;
                    line += &match found.into() {
                        Cell::After(latency) => format!("{:>9.2} ms", latency.as_secs_f64() * 1000.0),
                        Cell::Dropped => format!("{:>12}", "dropped"),
                    };
                }
                Err(error) => {
                    self.failed += 1;
                    line += &format!("{:>12}", "FAILED");
                    causes.push(error);
                }
            }
        }
        println!("{line}");
        for cause in causes {
            println!("    failed: {cause:#}");
        }
    }
}

fn replacement() -> String {
    pod("solo-next", "solo")
}

/// A pod, and the policy that lets it be reached by the echo pods alone.
fn isolated() -> String {
    pod("vault", "vault")
        + "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: vault }\nspec:\n  \
           podSelector: { matchLabels: { app: vault } }\n  ingress:\n    \
           - from: [{ podSelector: { matchLabels: { app: echo } } }]\n"
}

fn pod(name: &str, app: &str) -> String {
    let port = |protocol: &str| {
        format!("{{ name: {}, containerPort: {POD_PORT}, protocol: {protocol} }}", protocol.to_lowercase())
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, labels: {{ app: {app} }} }}\nspec:\n  containers:\n  \
         - {{ name: echo, image: \"fairlead/echo:dev\", ports: [{}, {}] }}\n",
        port("TCP"),
        port("UDP")
    )
}

fn explore(cluster: &Cluster) -> Result<()> {
    let layout = cluster.layout();
    let (harness, proxy) = (binary("fairlead-harness")?, binary("fairlead-proxy")?);
    let node = cluster.nodes().first().context("a node")?.layout();
    let port = cluster.node_port("solo", "tcp")?;
    println!(
        "\nThe cluster is up, on {}. To explore it:\n\n\
         export KUBECONFIG={}\n\
         kubectl get nodes,pods,services,endpointslices -o wide\n\
         {proxy} status --socket {socket}\n\
         {proxy} services --socket {socket}\n\
         {proxy} why --from default/solo-next --to default/vault --port tcp/{POD_PORT} --socket {socket}\n\
         {proxy} flows --drops --socket {socket}\n\
         ip -n {netns} route; ip -n {netns} -6 route\n\
         nsenter --net=/run/netns/{client} {harness} probe --protocol tcp --target {address}:{port} --count 1\n\
         ls {logs}\n\n\
         make demo-down removes it.",
        cluster.control_plane(),
        layout.kubeconfig().display(),
        proxy = short(&proxy).display(),
        harness = short(&harness).display(),
        socket = node.socket().display(),
        netns = node.netns,
        client = layout.client_netns(),
        address = node.ipv4,
        logs = layout.dir.join("logs").display(),
    );
    Ok(())
}

/// The path as seen from the current directory, where that is shorter.
fn short(path: &Path) -> PathBuf {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let here = std::env::current_dir().unwrap_or_default();
    full.strip_prefix(&here).map(Path::to_owned).unwrap_or(full)
}
