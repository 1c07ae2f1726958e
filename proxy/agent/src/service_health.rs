//! What load balancers ask a node about a Service (spec.healthCheckNodePort): whether it has endpoints there.
//!
//! An HTTP server for each such Service's port, as kube-proxy has it: 200 if the Service has ready endpoints on this
//! node and the proxy is healthy, else 503. [`crate::sync`] says which; [`serve`] starts and stops the servers. A port
//! that can't be listened at is tried again until it can.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fairlead_core::frontends::HealthCheck;
use fairlead_core::index::Index;
use fairlead_core::model::ObjectName;
use fairlead_core::settings::NodePortAddresses;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::health::is_alive;
use crate::progress::Progress;

/// How long to wait before a port that could not be listened at is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Everything that load balancers may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// The Services with their ports.
    pub all: Vec<HealthCheck>,
    /// The addresses to answer at; all of the node's if there is none.
    pub addresses: Vec<IpAddr>,
}

impl Checks {
    /// The addresses to answer at on this node.
    pub fn addresses_of(index: &Index) -> Vec<IpAddr> {
        match index.settings().nodeport_addresses {
            NodePortAddresses::Primary => Vec::new(),
            NodePortAddresses::Within(_) => index.nodeport_addresses().to_vec(),
        }
    }

    /// Where each Service is to be answered for.
    fn places(&self) -> BTreeMap<(ObjectName, Place), usize> {
        let mut places = BTreeMap::new();
        for HealthCheck { service, port, local_endpoints } in &self.all {
            let mut insert = |place| places.insert((service.clone(), place), *local_endpoints);
            if self.addresses.is_empty() {
                insert(Place::Everywhere(*port));
            }
            for address in &self.addresses {
                insert(Place::At(SocketAddr::new(*address, *port)));
            }
        }
        places
    }
}

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// At this port of all the node's addresses.
    Everywhere(u16),
    /// At this one.
    At(SocketAddr),
}

impl Place {
    async fn listen(self) -> io::Result<TcpListener> {
        match self {
            Self::At(address) => TcpListener::bind(address).await,
            // One socket for both families, where the kernel has IPv6.
            Self::Everywhere(port) => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
                Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
                }
                result => result,
            },
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Everywhere(port) => write!(f, "port {port}"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// The state of one server, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckView {
    /// The Service, as `namespace/name`.
    pub service: String,
    /// Where it is answered for.
    pub place: String,
    /// How many ready endpoints the node has of it.
    pub local_endpoints: usize,
    /// Why nobody listens there, if so.
    pub error: Option<String>,
}

/// Every server, for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct CheckViews(Arc<Mutex<Vec<CheckView>>>);

impl CheckViews {
    /// As they are now.
    pub fn get(&self) -> Vec<CheckView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, views: Vec<CheckView>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = views;
    }
}

/// Keeps a server at each port that `checks` names, until nobody sends any more.
pub async fn serve(mut checks: watch::Receiver<Checks>, progress: Arc<Mutex<Progress>>, views: CheckViews) {
    let mut servers: BTreeMap<(ObjectName, Place), Server> = BTreeMap::new();
    loop {
        let wanted = checks.borrow_and_update().places();
        // Those that are not wanted any more go first: their ports may be wanted by others.
        let gone: Vec<_> = servers.extract_if(.., |key, _| !wanted.contains_key(key)).collect();
        for (_, server) in gone {
            server.stop().await;
        }
        for (key, local_endpoints) in wanted {
            let (service, place) = key.clone();
            let server = servers.entry(key).or_insert_with(|| Server::new(service));
            server.answers.local_endpoints.store(local_endpoints, Ordering::Relaxed);
            server.start(place, &progress).await;
        }
        views.set(servers.iter().map(|((service, place), server)| server.view(service, *place)).collect());
        let failed = servers.values().any(|server| server.error.is_some());
        let changed = async {
            if failed {
                tokio::time::timeout(RETRY, checks.changed()).await.unwrap_or(Ok(()))
            } else {
                checks.changed().await
            }
        };
        if changed.await.is_err() {
            return;
        }
    }
}

/// One Service's server at one place.
struct Server {
    answers: Arc<Answers>,
    task: Option<JoinHandle<()>>,
    error: Option<String>,
}

struct Answers {
    service: ObjectName,
    local_endpoints: AtomicUsize,
}

impl Server {
    fn new(service: ObjectName) -> Self {
        let answers = Answers { service, local_endpoints: AtomicUsize::new(0) };
        Self { answers: Arc::new(answers), task: None, error: None }
    }

    /// Listens, unless it does so already.
    async fn start(&mut self, place: Place, progress: &Arc<Mutex<Progress>>) {
        if self.task.is_some() {
            return;
        }
        let service = &self.answers.service;
        match place.listen().await {
            Ok(listener) => {
                tracing::info!(%service, "health checks are answered at {place}");
                let (answers, progress) = (Arc::clone(&self.answers), Arc::clone(progress));
                let router = Router::new().fallback(async move || answers.respond(&progress));
                self.error = None;
                self.task = Some(tokio::spawn(async move {
                    if let Err(e) = axum::serve(listener, router).await {
                        tracing::error!("serve health checks: {e}");
                    }
                }));
            }
            Err(e) => {
                let error = format!("listen at {place} for health checks: {e}");
                if self.error.as_ref() != Some(&error) {
                    tracing::warn!(%service, "{error}; it will be tried again");
                }
                self.error = Some(error);
            }
        }
    }

    /// Ends it, and returns when its port is free.
    async fn stop(self) {
        if let Some(task) = self.task {
            task.abort();
            // The error is that it was aborted.
            let _ = task.await;
        }
    }

    fn view(&self, service: &ObjectName, place: Place) -> CheckView {
        CheckView {
            service: service.to_string(),
            place: place.to_string(),
            local_endpoints: self.answers.local_endpoints.load(Ordering::Relaxed),
            error: self.error.clone(),
        }
    }
}

/// The body of an answer, as kube-proxy's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Named<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Answers {
    fn respond(&self, progress: &Mutex<Progress>) -> Response {
        let local_endpoints = self.local_endpoints.load(Ordering::Relaxed);
        let healthy = is_alive(&progress.lock().unwrap_or_else(PoisonError::into_inner), SystemTime::now());
        let status =
            if local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let headers = [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
            (HeaderName::from_static("x-load-balancing-endpoint-weight"), local_endpoints.to_string()),
            // A server that is stopped has no connection left that would answer for it.
            (header::CONNECTION, "close".to_owned()),
        ];
        let service = Named { namespace: &self.service.namespace, name: &self.service.name };
        let body = Body { service, local_endpoints, service_proxy_healthy: healthy };
        (status, headers, axum::Json(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn check(name: &str, port: u16, local_endpoints: usize) -> HealthCheck {
        HealthCheck { service: ObjectName::new("shop", name), port, local_endpoints }
    }

    /// A port of the loopback interface that nobody has.
    async fn free_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        listener.local_addr().expect("an address").port()
    }

    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Asks until the answer holds `expected`, for a while.
    async fn await_answer(port: u16, expected: &str) -> String {
        let mut last = String::new();
        for _ in 0..100 {
            last = ask(port).await.unwrap_or_else(|e| e.to_string());
            if last.contains(expected) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{expected:?} is not in\n{last}");
    }

    struct Bench {
        checks: watch::Sender<Checks>,
        progress: Arc<Mutex<Progress>>,
        views: CheckViews,
    }

    impl Bench {
        fn new() -> Self {
            let (checks, received) = watch::channel(Checks::default());
            let healthy = Progress { first_programmed: Some(SystemTime::now()), ..Progress::default() };
            let (progress, views) = (Arc::new(Mutex::new(healthy)), CheckViews::default());
            tokio::spawn(serve(received, Arc::clone(&progress), views.clone()));
            Self { checks, progress, views }
        }

        fn send(&self, all: Vec<HealthCheck>) {
            let addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
            self.checks.send_replace(Checks { all, addresses });
        }
    }

    #[tokio::test]
    async fn a_service_with_local_endpoints_is_healthy_until_the_last_one_is_gone() {
        let (bench, port) = (Bench::new(), free_port().await);
        bench.send(vec![check("web", port, 2)]);
        let answer = await_answer(port, "HTTP/1.1 200 OK").await.to_lowercase();
        for expected in [
            "x-load-balancing-endpoint-weight: 2",
            "content-type: application/json",
            "x-content-type-options: nosniff",
            r#"{"service":{"namespace":"shop","name":"web"},"localendpoints":2,"serviceproxyhealthy":true}"#,
        ] {
            assert!(answer.contains(expected), "{expected:?} is not in\n{answer}");
        }
        bench.send(vec![check("web", port, 0)]);
        await_answer(port, "HTTP/1.1 503").await;
        bench.send(Vec::new());
        await_answer(port, "refused").await;
    }

    #[tokio::test]
    async fn a_proxy_that_is_stuck_says_so() {
        let (bench, port) = (Bench::new(), free_port().await);
        bench.progress.lock().expect("not poisoned").queued_since = Some(SystemTime::UNIX_EPOCH);
        bench.send(vec![check("web", port, 2)]);
        let answer = await_answer(port, "HTTP/1.1 503").await;
        assert!(answer.contains(r#""serviceProxyHealthy":false"#), "{answer}");
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_shown_and_passes_from_one_service_to_another() {
        let (bench, port) = (Bench::new(), free_port().await);
        bench.send(vec![check("web", port, 1)]);
        await_answer(port, r#""name":"web""#).await;
        bench.send(vec![check("api", port, 1), check("web", port, 1)]);
        for _ in 0..100 {
            if bench.views.get().iter().any(|view| view.error.is_some()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let views = bench.views.get();
        assert!(
            views[0].error.as_ref().is_some_and(|error| error.contains("listen at 127.0.0.1")),
            "{views:?}"
        );
        bench.send(vec![check("api", port, 1)]);
        await_answer(port, r#""name":"api""#).await;
    }
}
