//! `fairlead-cni node`: prepares the node for the plugin and keeps the routes to the other nodes' pods.
//!
//! ```text
//! watch Nodes ─> Nodes (pure) ─> reconcile: node file, binary, conflist, forwarding, routes (full diff)
//! ```
//!
//! A pass runs when a Node changed in a way that matters, every [`RESYNC`], and after [`RETRY`], doubling up
//! to that, while something fails. Nothing is removed before the first list is complete, and nothing on exit:
//! pods keep working while the daemon restarts.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use fairlead_net::agent::DEFAULT_SOCKET;
use fairlead_net::config::{DEFAULT_DATA_DIR, DEFAULT_NODE_FILE, NodeFile};
use fairlead_net::node::{self, Conflist};
use fairlead_net::routes::{NodeNetwork, RouteTable, desired, diff};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::garbage;
use crate::nodes::Nodes;

/// How often the kernel's table is compared although no Node changed.
const RESYNC: Duration = Duration::from_secs(30);

/// How soon a failed pass is repeated for the first time.
const RETRY: Duration = Duration::from_secs(2);

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
    cni_bin_dir: PathBuf,
    /// Where runtimes look for network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where to tell the plugin about this node
    #[arg(long, value_name = "FILE", default_value = DEFAULT_NODE_FILE)]
    node_file: PathBuf,
    /// Where the plugin records addresses in use
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// The agent's socket; empty where no fairlead-proxy runs
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SOCKET)]
    agent_socket: String,
    /// How often to look for what DEL and GC have left
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    sweep_seconds: NonZeroU16,
}

impl Options {
    /// The agent's socket, if there is an agent.
    fn agent(&self) -> Option<PathBuf> {
        (!self.agent_socket.is_empty()).then(|| self.agent_socket.clone().into())
    }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(options: Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: Options) -> Result<()> {
    let node = match options.hostname_override.clone() {
        Some(node) => node,
        // As the kubelet names its Node: the host name in lower case.
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase(),
    };
    let client = connect(&options).await?;
    tokio::spawn(garbage::sweep(
        options.data_dir.clone(),
        options.agent(),
        Duration::from_secs(options.sweep_seconds.get().into()),
    ));
    let mut reconciler = Reconciler { node, options, table: RouteTable::open().context("open rtnetlink")? };
    let mut stop = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut watch =
        std::pin::pin!(watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let mut nodes = Nodes::default();
    let mut due = Instant::now() + RESYNC;
    let mut retry = RETRY;
    tracing::info!(node = reconciler.node, "watching Nodes");
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
                Err(error) => tracing::warn!(%error, "watch Nodes"),
            },
            () = sleep_until(due) => {
                let failures = match nodes.synced() {
                    Some(nodes) => reconciler.pass(nodes).await,
                    None => Vec::new(),
                };
                failures.iter().for_each(|failure| tracing::error!("{failure:#}"));
                due = Instant::now() + if failures.is_empty() { RESYNC } else { retry };
                retry = if failures.is_empty() { RETRY } else { RESYNC.min(retry * 2) };
            }
            _ = stop.0.recv() => return Ok(()),
            _ = stop.1.recv() => return Ok(()),
        }
    }
}

async fn connect(options: &Options) -> Result<Client> {
    let mut config = match &options.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("use kubeconfig {}", path.display()))?
        }
        None => Config::incluster().context("find the service account; or give --kubeconfig")?,
    };
    // The watches back off by themselves; the client's own retries would hold a request for minutes.
    config.default_retry = false;
    Client::try_from(config).context("set up the API client")
}

struct Reconciler {
    node: String,
    options: Options,
    table: RouteTable,
}

impl Reconciler {
    /// Brings the node to what `nodes` ask for; each part on its own, so that one failing holds up no other.
    async fn pass(&mut self, nodes: &BTreeMap<String, NodeNetwork>) -> Vec<anyhow::Error> {
        let mut failures = self.routes(nodes).await;
        failures.extend(node::enable_forwarding().err().map(Into::into));
        failures.extend(self.install(nodes).await.err());
        failures
    }

    async fn routes(&self, nodes: &BTreeMap<String, NodeNetwork>) -> Vec<anyhow::Error> {
        let (desired, problems) = desired(&self.node, nodes);
        problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        let mut failures = Vec::new();
        match self.table.read().await {
            Ok(actual) => {
                for change in diff(&desired, &actual) {
                    match self.table.apply(&change).await {
                        Ok(()) => tracing::info!("{change}"),
                        Err(error) => failures.push(anyhow::Error::new(error).context(change.to_string())),
                    }
                }
            }
            Err(error) => failures.push(anyhow::Error::new(error).context("read the routes")),
        }
        failures
    }

    /// The conflist comes last: with it the runtime takes the node for ready.
    async fn install(&self, nodes: &BTreeMap<String, NodeNetwork>) -> Result<()> {
        let options = &self.options;
        let Some(own) = nodes.get(&self.node).filter(|network| !network.pod_cidrs.is_empty()) else {
            tracing::info!(node = self.node, "the Node has no podCIDRs yet");
            return Ok(());
        };
        let mtu = node::uplink_mtu(&own.addresses).await.context("find the uplink's MTU")?;
        let file = NodeFile { pod_cidrs: own.pod_cidrs.clone(), mtu };
        if node::write_node_file(&options.node_file, &file)? {
            tracing::info!(podCIDRs = ?file.pod_cidrs, mtu, "wrote the node file");
        }
        let binary = std::env::current_exe().context("find the own binary")?;
        if node::install_binary(&binary, &options.cni_bin_dir)? {
            tracing::info!(directory = %options.cni_bin_dir.display(), "installed the plugin");
        }
        let conflist = Conflist {
            node_file: options.node_file.clone(),
            data_dir: options.data_dir.clone(),
            agent_socket: options.agent(),
        };
        if conflist.install(&options.cni_conf_dir)? {
            tracing::info!(directory = %options.cni_conf_dir.display(), "installed the configuration");
        }
        Ok(())
    }
}
