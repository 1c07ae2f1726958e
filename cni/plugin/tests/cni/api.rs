//! A stand-in for the API server: it lists, watches and patches the objects that the test gives it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use fairlead_net::netns::Netns;
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// The objects, shared by stand-ins that play servers of one cluster.
#[derive(Clone, Default)]
pub(crate) struct Objects(Arc<(Mutex<Log>, Condvar)>);

/// What there is, and how it came to be.
#[derive(Default)]
struct Log {
    objects: BTreeMap<(&'static str, String), Value>,
    /// The path of the kind, the kind of event, and the object: the version is their number.
    events: Vec<(&'static str, String, Value)>,
    patches: Vec<Value>,
}

impl Objects {
    /// These Nodes.
    pub(crate) fn new(nodes: &[Value]) -> Self {
        let objects = Self::default();
        nodes.iter().for_each(|node| objects.send("ADDED", node));
        objects
    }

    /// Adds, modifies or deletes an object: ADDED, MODIFIED or DELETED.
    pub(crate) fn send(&self, kind: &str, object: &Value) {
        let path = if object["kind"] == "Node" { NODES } else { SLICES };
        let (log, grown) = &*self.0;
        let mut log = log.lock().expect("log");
        let key = (path, name(object));
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!((log.events.len() + 1).to_string());
        if kind == "DELETED" {
            log.objects.remove(&key);
        } else {
            log.objects.insert(key, object.clone());
        }
        log.events.push((path, kind.to_owned(), object));
        grown.notify_all();
    }

    /// The Node of that name, as it is now.
    pub(crate) fn node(&self, name: &str) -> Value {
        self.0.0.lock().expect("log").objects[&(NODES, name.to_owned())].clone()
    }

    /// The patches of Nodes' statuses so far.
    pub(crate) fn patches(&self) -> Vec<Value> {
        self.0.0.lock().expect("log").patches.clone()
    }

    /// Merges a patch into a Node's status, conditions by their type.
    fn patch(&self, name: &str, patch: &Value) -> Option<Value> {
        let mut node = self.0.0.lock().expect("log").objects.get(&(NODES, name.to_owned()))?.clone();
        if !node["status"]["conditions"].is_array() {
            node["status"]["conditions"] = json!([]);
        }
        let conditions = node["status"]["conditions"].as_array_mut().expect("conditions");
        for condition in patch["status"]["conditions"].as_array().expect("conditions") {
            conditions.retain(|old| old["type"] != condition["type"]);
            conditions.push(condition.clone());
        }
        self.0.0.lock().expect("log").patches.push(patch.clone());
        self.send("MODIFIED", &node);
        Some(self.node(name))
    }

    fn list(&self, path: &str) -> Value {
        let log = self.0.0.lock().expect("log");
        let items: Vec<_> =
            log.objects.iter().filter(|((at, _), _)| *at == path).map(|(_, object)| object).collect();
        let kind = if path == NODES { "NodeList" } else { "EndpointSliceList" };
        let api = if path == NODES { "v1" } else { "discovery.k8s.io/v1" };
        json!({"apiVersion": api, "kind": kind,
            "metadata": {"resourceVersion": log.events.len().to_string()}, "items": items})
    }

    /// The next event of a kind after so many, and how many there are then; none for a while.
    fn next(&self, path: &str, seen: usize) -> (usize, Option<Value>) {
        let (log, grown) = &*self.0;
        let log = log.lock().expect("log");
        let patience = Duration::from_millis(50);
        let (log, _) = grown.wait_timeout_while(log, patience, |log| log.events.len() <= seen).expect("log");
        let fresh = log.events.iter().enumerate().skip(seen).find(|(_, (at, ..))| *at == path);
        match fresh {
            Some((index, (_, kind, object))) => (index + 1, Some(json!({"type": kind, "object": object}))),
            None => (log.events.len(), None),
        }
    }
}

/// The stand-in; when it is dropped it closes its connections and its port.
pub(crate) struct FakeApi {
    /// Where it serves.
    pub(crate) address: SocketAddr,
    pub(crate) objects: Objects,
    ended: Arc<AtomicBool>,
}

impl FakeApi {
    /// Serves `nodes` on the loopback of `netns`.
    pub(crate) fn serve(netns: &Netns, nodes: &[Value]) -> Self {
        Self::serve_at(netns, "127.0.0.1:0", Objects::new(nodes))
    }

    /// Serves these objects at an address inside `netns`.
    pub(crate) fn serve_at(netns: &Netns, address: &str, objects: Objects) -> Self {
        let listener = netns.run(|| TcpListener::bind(address)).expect("enter").expect("bind");
        let address = listener.local_addr().expect("address");
        listener.set_nonblocking(true).expect("non-blocking");
        let ended = Arc::new(AtomicBool::new(false));
        let serving = (objects.clone(), Arc::clone(&ended));
        thread::spawn(move || {
            let (objects, ended) = serving;
            while !ended.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).expect("blocking");
                    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
                    let (objects, ended) = (objects.clone(), Arc::clone(&ended));
                    thread::spawn(move || answer(&stream, &objects, &ended));
                } else {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self { address, objects, ended }
    }

    /// Sends a watch event: ADDED, MODIFIED or DELETED.
    pub(crate) fn send(&self, kind: &str, object: &Value) {
        self.objects.send(kind, object);
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

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// A Node with its podCIDRs and InternalIPs.
pub(crate) fn node(name: &str, cidrs: &[&str], addresses: &[&str]) -> Value {
    let addresses: Vec<_> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": name},
        "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        "status": {"addresses": addresses},
    })
}

/// The EndpointSlice of the API servers at these addresses, all at one port.
pub(crate) fn servers(addresses: &[&str], port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": addresses, "conditions": {"ready": true}}],
    })
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// Answers the requests of one connection until either side has had enough.
fn answer(stream: &TcpStream, objects: &Objects, ended: &AtomicBool) {
    let mut reader = BufReader::new(stream);
    let send = |text: String| { stream }.write_all(text.as_bytes()).is_ok();
    let ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    while let Some((head, body)) = request(&mut reader, ended) {
        let target = head.split(' ').nth(1).expect("a target").to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if head.starts_with("PATCH ") {
            let name = path.strip_prefix(NODES).and_then(|rest| rest[1..].strip_suffix("/status"));
            let patch = serde_json::from_slice(&body).expect("a patch");
            let node = objects.patch(name.expect("a Node's status"), &patch);
            send(match node.map(|node| node.to_string()) {
                Some(node) => format!("{ok}Content-Length: {}\r\n\r\n{node}", node.len()),
                None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(),
            });
            continue;
        }
        assert!(head.starts_with("GET ") && [NODES, SLICES].contains(&path), "{head}");
        if !query.contains("watch=true") {
            let list = objects.list(path).to_string();
            send(format!("{ok}Content-Length: {}\r\n\r\n{list}", list.len()));
            continue;
        }
        let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let mut seen: usize = version.expect("a version").parse().expect("a number");
        let mut open = send(format!("{ok}Transfer-Encoding: chunked\r\n\r\n"));
        while open && !ended.load(Ordering::Relaxed) {
            let (now, event) = objects.next(path, seen);
            seen = now;
            if let Some(event) = event.map(|event| event.to_string()) {
                open = send(format!("{:x}\r\n{event}\n\r\n", event.len() + 1));
            }
        }
        return;
    }
}

/// The head of the next request, and its body.
fn request(reader: &mut BufReader<&TcpStream>, ended: &AtomicBool) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        match reader.read_line(&mut head) {
            Ok(0) => return None,
            Err(_) if ended.load(Ordering::Relaxed) => return None,
            Ok(_) | Err(_) => {}
        }
    }
    let length = head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().expect("a length"))
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}
