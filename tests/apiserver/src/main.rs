//! A stand-in for the Kubernetes API server, for Fairlead's demo and tests: the command line.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use fairlead_apiserver::{Options, Server, kubeconfig};
use tracing_subscriber::EnvFilter;

/// Serves a Kubernetes API for demo and tests, from memory and over plain HTTP. Not a Kubernetes.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Address and port to listen on; port 0 takes a free one. May be repeated.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: Vec<SocketAddr>,
    /// Serve on the listening socket that standard input is, too: one of another network namespace, say.
    #[arg(long)]
    listen_stdin: bool,
    /// Where to write a kubeconfig for this server.
    #[arg(long)]
    kubeconfig_out: Option<PathBuf>,
    /// The URL to write into the kubeconfig, if not that of the first address.
    #[arg(long)]
    url: Option<String>,
    /// Ranges of ClusterIPs; the first one's family is the default.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16,fd00:10:96::/112")]
    service_cidr: Vec<ipnet::IpNet>,
    /// Ranges that Nodes get their pod ranges from.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16,fd00:10:244::/48")]
    cluster_cidr: Vec<ipnet::IpNet>,
    /// Changes remembered per kind.
    #[arg(long, default_value_t = Options::default().history)]
    history: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let inherited = if arguments.listen_stdin {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().context("take standard input")?;
        vec![TcpListener::from(socket)]
    } else {
        Vec::new()
    };
    let options = Options {
        listen: arguments.listen,
        inherited,
        service_cidrs: arguments.service_cidr,
        cluster_cidrs: arguments.cluster_cidr,
        history: arguments.history,
    };
    let mut server = Server::start(options).await?;
    if let Some(path) = arguments.kubeconfig_out {
        let url = arguments.url.unwrap_or_else(|| server.url());
        // Written aside and renamed, so that whoever waits for the file never reads half of it.
        let partial = path.with_extension("partial");
        std::fs::write(&partial, kubeconfig(&url)).with_context(|| format!("write {}", partial.display()))?;
        std::fs::rename(&partial, &path).with_context(|| format!("write {}", path.display()))?;
    }
    for url in server.urls() {
        println!("listening on {url}");
    }
    std::io::stdout().flush().context("write to stdout")?;
    server.wait().await;
    Ok(())
}
