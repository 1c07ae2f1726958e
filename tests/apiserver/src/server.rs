//! The server as a whole: its options, its listeners, and the objects a new cluster begins with.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use axum::serve::ListenerExt;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::http::{Api, Control, Rights, router};
use crate::service::Ranges;
use crate::status::ApiError;
use crate::{ENDPOINT_SLICES, NAMESPACES, SERVICE_CIDRS, SERVICES, controllers};

/// What a server is started with.
#[derive(Debug)]
pub struct Options {
    /// Addresses to serve on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Sockets that listen already, to serve on as well.
    pub inherited: Vec<StdListener>,
    /// Ranges of ClusterIPs, at most one per family; the first one's family is the default of Services.
    pub service_cidrs: Vec<IpNet>,
    /// Ranges that Nodes get their pod ranges from, a /24 (IPv4) or /64 (IPv6) each; at most one per family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Changes remembered per kind: a watch that starts further back gets 410 Gone.
    pub history: usize,
}

impl Default for Options {
    fn default() -> Self {
        let range = |text: &str| text.parse::<IpNet>().expect("a constant range");
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            inherited: Vec::new(),
            service_cidrs: vec![range("10.96.0.0/16"), range("fd00:10:96::/112")],
            cluster_cidrs: vec![range("10.244.0.0/16"), range("fd00:10:244::/48")],
            history: 20_000,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A socket that was handed over could not be listened on.
    #[error("listen on an inherited socket: {0}")]
    Inherited(io::Error),
    /// The options contradict each other.
    #[error("{0}")]
    Options(&'static str),
    /// The objects of a new cluster could not be created.
    #[error("create the first objects: {0}")]
    Bootstrap(#[from] ApiError),
}

/// A running server. It ends when this is dropped, watches included.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    cluster: Arc<Cluster>,
    control: watch::Sender<Control>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Binds every address, creates the objects of a new cluster and serves, on the current Tokio runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: Options) -> Result<Self, StartError> {
        for ranges in [&options.service_cidrs, &options.cluster_cidrs] {
            let one_per_family = ranges.len() < 2
                || (ranges.len() == 2 && ranges[0].max_prefix_len() != ranges[1].max_prefix_len());
            if ranges.is_empty() || !one_per_family {
                return Err(StartError::Options("give one range, or one per address family"));
            }
        }
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in options.listen {
            let failed = |source| StartError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        for listener in options.inherited {
            let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
            listeners.push(listener.map_err(StartError::Inherited)?);
        }
        let ranges = Ranges { cluster_ips: options.service_cidrs.clone(), node_ports: 30_000..=32_767 };
        let cluster = Arc::new(Cluster::new(ranges, options.cluster_cidrs, options.history));
        bootstrap(&cluster, &addresses, &options.service_cidrs)?;

        let control = watch::Sender::new(Control::default());
        let rights = Arc::new(Rights::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(controllers::endpoint_slices::run(Arc::clone(&cluster)));
        tasks.spawn(controllers::namespaces::run(Arc::clone(&cluster)));
        for listener in listeners {
            let (cluster, rights) = (Arc::clone(&cluster), Arc::clone(&rights));
            let api = Api { cluster, control: control.clone(), rights };
            let mut stopping = control.subscribe();
            let listener = listener.tap_io(|connection| {
                // A watch event must not wait for the acknowledgement of the one before.
                let _ = connection.set_nodelay(true);
            });
            let server = axum::serve(listener, router(api)).with_graceful_shutdown(async move {
                let _ = stopping.wait_for(|control| control.stopping).await;
            });
            tasks.spawn(async move {
                if let Err(error) = server.await {
                    tracing::error!(%error, "serve");
                }
            });
        }
        Ok(Self { addresses, cluster, control, tasks })
    }

    /// The URLs it serves on, in the order of the addresses asked for.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.addresses.iter().map(|address| format!("http://{}", reachable(*address))).collect()
    }

    /// The first of [`Self::urls`]; empty if there is none.
    #[must_use]
    pub fn url(&self) -> String {
        self.urls().into_iter().next().unwrap_or_default()
    }

    /// The objects, to be read and written without HTTP.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Begins or ends an outage: watches end, and requests are refused with 503.
    pub fn set_outage(&self, outage: bool) {
        self.control.send_modify(|control| control.outage = outage);
    }

    /// Waits until a listener or a controller ends, which none does by itself.
    pub async fn wait(&mut self) {
        self.tasks.join_next().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.send_modify(|control| control.stopping = true);
        // Listeners end by themselves once told; the controllers are ended with the set of tasks.
        self.tasks.abort_all();
    }
}

/// A kubeconfig file for the server at `url`, in which everyone is `fairlead`.
#[must_use]
pub fn kubeconfig(url: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fairlead", "cluster": {"server": url}}],
        "users": [{"name": "fairlead", "user": {}}],
        "contexts": [{"name": "fairlead", "context": {"cluster": "fairlead", "user": "fairlead"}}],
        "current-context": "fairlead",
    });
    // JSON is YAML, and is what both kubectl and the client libraries read.
    format!("{config:#}\n")
}

/// An address that a client on this machine can dial.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

/// Creates what every cluster has from its start: namespaces, the ServiceCIDR, and the API server's own Service.
fn bootstrap(cluster: &Cluster, addresses: &[SocketAddr], service_cidrs: &[IpNet]) -> Result<(), ApiError> {
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        cluster.create(&NAMESPACES, "", json!({"metadata": {"name": name}}), false)?;
    }
    let cidrs: Vec<String> = service_cidrs.iter().map(ToString::to_string).collect();
    let service_cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
    cluster.create(&SERVICE_CIDRS, "", service_cidr, false)?;

    let Some(port) = addresses.first().map(SocketAddr::port) else { return Ok(()) };
    let first = service_cidrs[0].hosts().find(|ip| *ip != service_cidrs[0].network());
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({"metadata": {"name": "kubernetes", "labels": labels}, "spec": {
        "clusterIP": first, "ports": [{"name": "http", "port": 80, "targetPort": port}]}});
    cluster.create(&SERVICES, "default", service, false)?;
    let is_v6 = matches!(service_cidrs[0], IpNet::V6(_));
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| ip.is_ipv6() == is_v6 && !ip.is_loopback() && !ip.is_unspecified())
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
        .collect();
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": endpoints,
    });
    cluster.create(&ENDPOINT_SLICES, "default", slice, false)?;
    Ok(())
}
