//! What the tests share: a server in this process, clients of the real client library, and patience.

use std::fmt::Debug;
use std::time::Duration;

use fairlead_apiserver::{Options, Server};
use futures::{Stream, StreamExt};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A fresh server, and a client of it.
pub(crate) async fn start() -> (Server, Client) {
    let server = Server::start(Options::default()).await.expect("start the server");
    let mut config = Config::new(server.url().parse().unwrap());
    // Tests want to see the refusals that the client would sit out for minutes.
    config.default_retry = false;
    (server, Client::try_from(config).unwrap())
}

/// The status and the body of an answer to what is asked of `/-/`, by hand: the client library knows no such requests.
pub(crate) async fn control(server: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    let address = server.url().trim_start_matches("http://").to_owned();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{method} /-/{path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// An object of a typed kind.
pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of its kind")
}

/// Waits for the next item of a stream.
pub(crate) async fn next<T: Debug>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    let item = tokio::time::timeout(PATIENCE, stream.next()).await;
    item.expect("an item in time").expect("the stream to go on")
}

/// Waits until `probe` has an answer.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The API's error of a request that must fail: code, reason and message.
pub(crate) fn refused<T: Debug>(result: kube::Result<T>) -> (u16, String, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone(), status.message.clone()),
        other => panic!("expected a refusal, got {other:?}"),
    }
}
