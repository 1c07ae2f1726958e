//! Servers that are dialled by addresses which were learned have to be who the kubeconfig names.
//!
//! The certificate is for `api.example`, signed by an authority of these tests alone; its key is no secret.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::Api;
use http::Request;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Answers every connection's first request with "well".
async fn serve() -> SocketAddr {
    let certificate =
        CertificateDer::from_pem_slice(include_bytes!("tls/server.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key.pem")).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not like the certificate ends it.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell").await;
        }
    });
    address
}

/// A kubeconfig for that URL, and a file that remembers these servers.
fn files(url: &str, servers: &[SocketAddr]) -> (TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().expect("directory");
    let (kubeconfig, remembered) =
        (directory.path().join("kubeconfig"), directory.path().join("api-servers.json"));
    fs::write(directory.path().join("authority.pem"), include_bytes!("tls/authority.pem")).expect("write");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}], \
         users: [{{name: a, user: {{}}}}], \
         clusters: [{{name: a, cluster: {{server: \"{url}\", certificate-authority: authority.pem}}}}]}}"
    );
    fs::write(&kubeconfig, text).expect("write");
    fs::write(&remembered, serde_json::to_vec(servers).expect("JSON")).expect("write");
    (directory, kubeconfig, remembered)
}

async fn ask(api: &Api) -> Result<String, kube::Error> {
    api.client.request_text(Request::get("/version").body(Vec::new()).expect("a request")).await
}

#[tokio::test]
async fn a_learned_server_proves_to_be_the_one_that_the_kubeconfig_names() {
    let server = serve().await;
    // That name leads nowhere.
    let (_directory, kubeconfig, remembered) = files("https://api.example:6443", &[server]);
    let api = Api::connect(Some(&kubeconfig), &remembered).await.expect("connected");
    assert_eq!(ask(&api).await.expect("an answer"), "well");
}

#[tokio::test]
async fn one_that_is_somebody_else_is_not_believed_and_the_next_is_asked() {
    let server = serve().await;
    let (_directory, kubeconfig, remembered) = files("https://localhost:1", &[server]);
    let api = Api::connect(Some(&kubeconfig), &remembered).await.expect("connected");
    let error = format!("{:?}", ask(&api).await.expect_err("not believed"));
    assert!(error.contains("NotValidForName"), "{error}");
    // What the kubeconfig names comes next.
    let error = format!("{:?}", ask(&api).await.expect_err("not found"));
    assert!(!error.contains("NotValidForName"), "{error}");
}
