//! Serving `/metrics`, and where.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::exposition::CONTENT_TYPE;

/// Serves `/metrics`: what `page` writes, which may block.
pub fn router(page: impl Fn() -> String + Send + Sync + 'static) -> Router {
    let page = Arc::new(page);
    Router::new().route("/metrics", get(move || answer(Arc::clone(&page))))
}

async fn answer(page: Arc<impl Fn() -> String + Send + Sync + 'static>) -> Response {
    match tokio::task::spawn_blocking(move || page()).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// Where something is served; nowhere if empty, as kube-proxy has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let address = text.parse().map(|address| Self(Some(address)));
        address.map_err(|_| match text.parse::<IpAddr>() {
            Ok(address) => format!("the port is missing, as in {}", SocketAddr::new(address, 10256)),
            Err(_) => format!("{text:?} is not an address and port such as 0.0.0.0:10256"),
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |address| address.fmt(f))
    }
}

impl Listen {
    /// Listens, unless nothing is to be served.
    ///
    /// # Errors
    /// When the address is taken, or not this node's.
    pub async fn bind(self) -> io::Result<Option<TcpListener>> {
        let Self(Some(address)) = self else { return Ok(None) };
        let listener = TcpListener::bind(address).await;
        listener.map(Some).map_err(|e| io::Error::new(e.kind(), format!("listen at {address}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_address_means_that_nothing_is_served() {
        assert_eq!("".parse(), Ok(Listen(None)));
        let error = "0.0.0.0".parse::<Listen>().expect_err("refused");
        assert!(error.contains("0.0.0.0:10256"), "{error}");
        assert_eq!("[::]:80".parse::<Listen>().expect("an address").to_string(), "[::]:80");
    }
}
