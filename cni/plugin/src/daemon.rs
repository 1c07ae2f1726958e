//! `fairlead-cni node`: prepares the node for the plugin and keeps the routes to the other nodes' pods.
//!
//! ```text
//! watch Nodes ─> Nodes (pure) ─> a pass: routes and the overlay (full diff), settings, node file, binary, conflist
//!                                 └─> the Node's condition
//! ```
//!
//! A pass runs when a Node changed in a way that matters, when somebody changed the interfaces or what was installed,
//! every [`RESYNC`], and after [`RETRY`], doubling up to that, while something fails. Nothing is removed before the first list is complete, and nothing on exit:
//! pods keep working while the daemon restarts.

use std::future::pending;
use std::io;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use fairlead_daemon::log;
use fairlead_daemon::page::{self, Listen};
use fairlead_daemon::repeated::Repeated;
use fairlead_net::agent::DEFAULT_SOCKET;
use fairlead_net::changes::{FileChanges, InterfaceChanges};
use fairlead_net::config::{DEFAULT_DATA_DIR, DEFAULT_NODE_FILE};
use fairlead_net::names;
use fairlead_net::routing::{Mode, Settings};
use fairlead_net::sysctl::PROC_SYS;
use fairlead_net::vxlan::{DEFAULT_PORT, DEFAULT_VNI};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::condition;
use crate::garbage;
use crate::metrics::Counts;
use crate::nodes::Nodes;
use crate::pass::Reconciler;

/// How often the kernel's table is compared although no Node changed.
const RESYNC: Duration = Duration::from_secs(30);

/// How long to wait for what comes together with a change on the node.
const PAUSE: Duration = Duration::from_millis(200);

/// How soon a failed pass is repeated for the first time.
const RETRY: Duration = Duration::from_secs(2);

/// Where metrics are served unless told otherwise: beside the ports of the kubelet (10248, 10250, 10255) and of the proxy
/// (10249, 10256).
const DEFAULT_METRICS: &str = "127.0.0.1:10247";

/// The daemon's command line.
#[derive(Args)]
pub(crate) struct Options {
    /// How to reach the API server [default: the Pod's service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The name of this machine's Node [default: the host name]
    #[arg(long, value_name = "NODE")]
    hostname_override: Option<String>,
    /// Where runtimes look for CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(crate) cni_bin_dir: PathBuf,
    /// Where runtimes look for network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
    /// Where to tell the plugin about this node
    #[arg(long, value_name = "FILE", default_value = DEFAULT_NODE_FILE)]
    pub(crate) node_file: PathBuf,
    /// Where the plugin records addresses in use
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    pub(crate) data_dir: PathBuf,
    /// Where the kernel's settings are written: the node's own, mounted, where a container may not write /proc/sys
    #[arg(long, value_name = "DIR", default_value = PROC_SYS)]
    pub(crate) proc_sys: PathBuf,
    /// The agent's socket; empty where no fairlead-proxy runs
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SOCKET)]
    agent_socket: String,
    /// How other nodes' pods are reached: auto is native to nodes on a connected subnet and vxlan to others; in native,
    /// the network routes what goes to others
    #[arg(long, value_name = "auto|native|vxlan", default_value = "auto")]
    routing: Mode,
    /// The VXLAN network identifier, the same on all nodes
    #[arg(long, value_name = "ID", default_value_t = DEFAULT_VNI, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    vxlan_id: u32,
    /// VXLAN's UDP port, the same on all nodes
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: u16,
    /// The pods' MTU in bytes [default: the uplink's, less the overlay's header where some node is reached by VXLAN]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65535))]
    pub(crate) mtu: Option<u32>,
    /// How often to look for what DEL and GC have left
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    sweep_seconds: NonZeroU16,
    /// Where /metrics is served; nowhere if empty
    #[arg(long, value_name = "ADDRESS:PORT", default_value = DEFAULT_METRICS)]
    metrics_bind_address: Listen,
    #[command(flatten)]
    pub(crate) log: log::Options,
}

impl Options {
    /// The agent's socket, if there is an agent.
    pub(crate) fn agent(&self) -> Option<PathBuf> {
        (!self.agent_socket.is_empty()).then(|| self.agent_socket.clone().into())
    }

    pub(crate) fn routing(&self) -> Settings {
        Settings { mode: self.routing, vni: self.vxlan_id, port: self.vxlan_port }
    }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(options: Options) -> Result<()> {
    names::use_files_and_dns().context("set up the look-up of names")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: Options) -> Result<()> {
    let node = match options.hostname_override.clone() {
        Some(node) => node,
        // As the kubelet names its Node: the host name in lower case.
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase(),
    };
    let remembered = options.data_dir.join("api-servers.json");
    let servers = fairlead_api::Api::connect(options.kubeconfig.as_deref(), &remembered).await?;
    let client = servers.client.clone();
    let (counts, repeated) = (Arc::new(Counts::default()), Repeated::default());
    if let Some(listener) = options.metrics_bind_address.bind().await? {
        let (counts, data_dir, servers) = (Arc::clone(&counts), options.data_dir.clone(), servers.view());
        let pages = page::router(move || counts.page(&data_dir, &servers));
        tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, pages).await {
                tracing::error!("serve metrics: {e}");
            }
        });
    }
    tokio::spawn(servers.follow());
    let mut nodes = Nodes::new(&node);
    let mut changes = Changes::follow(&options);
    let every = Duration::from_secs(options.sweep_seconds.get().into());
    tokio::spawn(garbage::sweep(options.data_dir.clone(), options.agent(), every, Arc::clone(&counts)));
    let mut reconciler = Reconciler::new(node, options, Arc::clone(&counts))?;
    let mut stop = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut watch = std::pin::pin!(
        watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff()
    );
    let mut due = Instant::now() + RESYNC;
    let mut retry = RETRY;
    tracing::info!(node = reconciler.node(), "watching Nodes");
    loop {
        tokio::select! {
            event = watch.next() => match event.context("the Node watch has ended")? {
                Ok(event) => {
                    let mut problems = Vec::new();
                    if nodes.take(event, &mut problems) {
                        due = Instant::now();
                    }
                    problems.iter().for_each(|problem| tracing::warn!("{problem}"));
                }
                Err(error) => repeated.warn(&format!("watch Nodes: {error}")),
            },
            () = changes.next() => due = due.min(Instant::now() + PAUSE),
            () = sleep_until(due) => {
                let mut failures = Vec::new();
                if let Some(known) = nodes.synced() {
                    let started = Instant::now();
                    let outcome = reconciler.pass(known).await;
                    failures = outcome.failures;
                    if let Some(readiness) = &outcome.readiness {
                        let noted = condition::note(&client, reconciler.node(), readiness, nodes.condition());
                        failures.extend(noted.await.err());
                    }
                    let readiness = outcome.readiness.as_ref();
                    counts.pass(failures.len(), started.elapsed(), readiness, known.len());
                }
                failures.iter().for_each(|failure| repeated.error(&format!("{failure:#}")));
                due = Instant::now() + if failures.is_empty() { RESYNC } else { retry };
                retry = if failures.is_empty() { RETRY } else { RESYNC.min(retry * 2) };
            }
            _ = stop.0.recv() => return Ok(()),
            _ = stop.1.recv() => return Ok(()),
        }
    }
}

/// What others change on the node; what can't be followed is looked at every [`RESYNC`] all the same.
struct Changes {
    interfaces: Option<InterfaceChanges>,
    files: Option<FileChanges>,
}

impl Changes {
    fn follow(options: &Options) -> Self {
        let warn = |what| move |error: &io::Error| tracing::warn!("follow {what}: {error}");
        let interfaces = InterfaceChanges::follow().inspect_err(warn("the interfaces"));
        let files = FileChanges::follow(&[&options.cni_bin_dir, &options.cni_conf_dir])
            .inspect_err(warn("what is installed"));
        Self { interfaces: interfaces.ok(), files: files.ok() }
    }

    /// Waits for a change.
    async fn next(&mut self) {
        let interfaces = async {
            match &mut self.interfaces {
                Some(changes) => changes.next().await,
                None => pending().await,
            }
        };
        let files = async {
            match &self.files {
                Some(changes) => changes.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = interfaces => {}
            () = files => {}
        }
    }
}
