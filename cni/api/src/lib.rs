//! How the daemons reach the Kubernetes API: its servers directly, and another one when one does not answer.
//!
//! ```text
//!                    ┌─ follow: EndpointSlices of default/kubernetes ─┐
//!                    ▼                                                │
//!   file ◄───► Servers: which there are, and which one answers ──► dial ──► kube's client
//!                    ▲                                                │
//!                    └── patience: no answer in time ─────────────────┘
//! ```
//!
//! They can't rely on the Service of the API servers: one of them implements it, and the other makes the network that it
//! needs. The first way is what the kubeconfig or the service account says. Once there, they follow who the servers are,
//! and remember it in a file for the next start. Whichever server is dialled, it must prove by TLS to be the one that the
//! kubeconfig names.

mod dial;
mod follow;
mod patience;
mod servers;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairlead_daemon::exposition::Page;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use dial::Dialer;
use patience::PatienceLayer;
use servers::Servers;

/// Why there is no way to the API.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The kubeconfig is of no use.
    #[error("use kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// There is no service account.
    #[error("use the pod's service account; see --kubeconfig: {0}")]
    InCluster(#[source] Box<InClusterError>),
    /// TLS or authentication can't be set up.
    #[error("make a client of the API: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A way to the API.
#[derive(Clone)]
pub struct Api {
    /// A client whose requests go to a server that answers.
    pub client: Client,
    servers: Arc<Servers>,
}

impl Api {
    /// A way to the API as `kubeconfig` says, or the pod's service account without one. Servers that were learned before
    /// are in the file `remembered`, and those to be learned will be.
    ///
    /// # Errors
    /// When the configuration is of no use. No server is asked yet.
    pub async fn connect(kubeconfig: Option<&Path>, remembered: &Path) -> Result<Self, ApiError> {
        let config = config(kubeconfig).await?;
        let servers = Arc::new(Servers::remembered(remembered));
        let client = client(&config, &servers).map_err(|e| ApiError::Client(Box::new(e)))?;
        Ok(Self { client, servers })
    }

    /// Which servers there are and how they answer, for metrics.
    pub fn view(&self) -> View {
        View(Arc::clone(&self.servers))
    }

    /// Follows which servers there are, for ever.
    pub async fn follow(self) {
        follow::follow(self.client, &self.servers).await;
    }
}

/// Which servers there are, and how they answer.
#[derive(Clone, Debug)]
pub struct View(Arc<Servers>);

impl View {
    /// Writes it as metrics.
    pub fn write(&self, page: &mut Page) {
        let (servers, (answered, failed)) = self.0.counts();
        page.gauge("fairlead_api_servers", "API servers whose own addresses were learned.")
            .sample(&[], servers);
        page.counter("fairlead_api_requests_total", "Requests to the API, by whether a server answered.")
            .sample(&[("result", "answered")], answered)
            .sample(&[("result", "failed")], failed);
    }
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, ApiError> {
    let Some(path) = kubeconfig else {
        return Config::incluster().map_err(|e| ApiError::InCluster(Box::new(e)));
    };
    let failed = |source| ApiError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
}

/// Without retries: the watches back off by themselves, and a client's own would hold a request for minutes.
fn client(config: &Config, servers: &Arc<Servers>) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // Behind a proxy, the servers' own addresses may mean nothing here.
        let mut config = config.clone();
        config.default_retry = false;
        return Client::try_from(config);
    }
    let connector = config.rustls_https_connector_with_connector(Dialer::new(Arc::clone(servers)))?;
    let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .layer(PatienceLayer(Arc::clone(servers)))
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}
