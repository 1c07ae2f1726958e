//! Giving up on a server that takes connections and does not answer, or is not who it should be.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;
use tower::{BoxError, Layer, Service};

use crate::servers::Servers;

/// How long a server may take to begin its answer; watches too begin theirs at once.
const ANSWER: Duration = Duration::from_secs(20);

/// Puts a limit to the wait for answers.
#[derive(Clone)]
pub(crate) struct PatienceLayer(pub(crate) Arc<Servers>);

impl<S> Layer<S> for PatienceLayer {
    type Service = Patience<S>;

    fn layer(&self, inner: S) -> Patience<S> {
        Patience { inner, servers: Arc::clone(&self.0) }
    }
}

/// A service whose answers are waited for so long and no longer.
#[derive(Clone)]
pub(crate) struct Patience<S> {
    inner: S,
    servers: Arc<Servers>,
}

impl<S, R> Service<R> for Patience<S>
where
    S: Service<R>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let asked = self.servers.in_order().first().copied();
        let servers = Arc::clone(&self.servers);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match timeout(ANSWER, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(elapsed) => Err(elapsed.into()),
            };
            match &answer {
                Ok(_) => servers.keep(),
                Err(error) => {
                    let server =
                        asked.map_or_else(|| "as configured".to_owned(), |server| server.to_string());
                    tracing::debug!("no answer of the API server {server}: {error}");
                    servers.leave(asked);
                }
            }
            answer
        })
    }
}
