//! Opening connections to the servers, the first that takes one.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tower::Service;

use crate::servers::Servers;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// After how many seconds of silence the other end is asked whether it is there, and how long it may leave what was sent
/// to it without a word. A watch may be silent for minutes: only so it is seen that the server was cut off.
const SILENCE: u32 = 4;
/// How many seconds apart it is asked, and how often.
const PROBES: [u32; 2] = [1, 4];

/// Opens connections: to a server that was learned, or if none takes one, to what the URI says.
#[derive(Clone)]
pub(crate) struct Dialer {
    servers: Arc<Servers>,
}

impl Dialer {
    pub(crate) fn new(servers: Arc<Servers>) -> Self {
        Self { servers }
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let servers = Arc::clone(&self.servers);
        Box::pin(async move { dial(&servers, &uri).await.map(TokioIo::new) })
    }
}

async fn dial(servers: &Servers, uri: &Uri) -> io::Result<TcpStream> {
    for server in servers.in_order() {
        match open(server).await {
            Ok(stream) => {
                servers.prefer(server);
                return Ok(stream);
            }
            Err(e) => tracing::debug!("connect to the API server {server}: {e}"),
        }
    }
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let default = if uri.scheme_str() == Some("http") { 80 } else { 443 };
    let mut last = io::Error::new(ErrorKind::NotFound, "no such host");
    for server in lookup_host((host, uri.port_u16().unwrap_or(default))).await? {
        match open(server).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = io::Error::new(e.kind(), format!("connect to the API at {server}: {e}")),
        }
    }
    Err(last)
}

async fn open(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT, TcpStream::connect(server)).await??;
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    setsockopt(&stream, sockopt::TcpKeepIdle, &SILENCE)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &PROBES[0])?;
    setsockopt(&stream, sockopt::TcpKeepCount, &PROBES[1])?;
    setsockopt(&stream, sockopt::TcpUserTimeout, &(SILENCE * 2000))?;
    Ok(stream)
}
