//! A stand-in for the API server: it serves one list of Nodes, then watch events as the test sends them.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use fairlead_net::netns::Netns;
use serde_json::{Value, json};

/// The stand-in; its connections end with the client, its watch when it is dropped.
pub(crate) struct FakeApi {
    address: SocketAddr,
    events: Sender<String>,
}

impl FakeApi {
    /// Serves `nodes` on the loopback of `netns`.
    pub(crate) fn serve(netns: &Netns, nodes: &[Value]) -> Self {
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0")).expect("enter").expect("bind");
        let address = listener.local_addr().expect("address");
        let (events, receiver) = channel();
        let list = json!({
            "apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": nodes,
        });
        let (list, receiver) = (Arc::new(list.to_string()), Arc::new(Mutex::new(receiver)));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (list, receiver) = (Arc::clone(&list), Arc::clone(&receiver));
                thread::spawn(move || answer(&stream, &list, &receiver));
            }
        });
        Self { address, events }
    }

    /// Sends a watch event: ADDED, MODIFIED or DELETED.
    pub(crate) fn send(&self, kind: &str, node: &Value) {
        self.events.send(json!({"type": kind, "object": node}).to_string()).expect("a watch");
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
        .to_string()
    }
}

/// A Node with its podCIDRs and InternalIPs.
pub(crate) fn node(name: &str, cidrs: &[&str], addresses: &[&str]) -> Value {
    let addresses: Vec<_> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": name, "resourceVersion": "2"},
        "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        "status": {"addresses": addresses},
    })
}

/// Answers the requests of one connection until either side has had enough.
fn answer(stream: &TcpStream, list: &str, events: &Mutex<Receiver<String>>) {
    let mut reader = BufReader::new(stream);
    let send = |text: String| { stream }.write_all(text.as_bytes()).is_ok();
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        assert!(head.starts_with("GET /api/v1/nodes?"), "{head}");
        let ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        if head.contains("watch=true") {
            let mut open = send(format!("{ok}Transfer-Encoding: chunked\r\n\r\n"));
            let events = events.lock().expect("events");
            while open && let Ok(event) = events.recv() {
                open = send(format!("{:x}\r\n{event}\n\r\n", event.len() + 1));
            }
            return;
        }
        send(format!("{ok}Content-Length: {}\r\n\r\n{list}", list.len()));
    }
}
