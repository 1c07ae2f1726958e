//! A small cluster as node `a` sees it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use fairlead_abi::Reason;
use fairlead_core::dataplane::{FlowSide, MemoryPolicyMaps};
use fairlead_core::model::{ObjectName, Protocol};
use fairlead_core::policy::{Capacity, Engine, Explanation, Party, PodId, Report};
use serde_json::{Value, from_value, json};

/// Room enough.
pub(crate) const CAPACITY: Capacity =
    Capacity { policies: 4096, cells: 1 << 16, rows: 1 << 16, peers: 1 << 16 };

/// Engine, maps and pods.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) maps: MemoryPolicyMaps,
    pub(crate) now: Instant,
    pub(crate) pods: BTreeMap<String, FlowSide>,
    next_index: u32,
}

impl World {
    /// Nodes `a` (192.0.2.1, here) and `b` (192.0.2.2), namespaces `shop` (team=a) and `bank` (team=b).
    pub(crate) fn new() -> Self {
        Self::with(Engine::new("a", CAPACITY, false))
    }

    pub(crate) fn with(engine: Engine) -> Self {
        let mut world = Self {
            engine,
            maps: MemoryPolicyMaps::default(),
            now: Instant::now(),
            pods: BTreeMap::new(),
            next_index: 1,
        };
        world.node("a", "192.0.2.1", json!({ "zone": "x" }));
        world.node("b", "192.0.2.2", json!({ "zone": "y" }));
        world.namespace("shop", json!({ "team": "a" }));
        world.namespace("bank", json!({ "team": "b" }));
        world.engine.set_synced();
        world
    }

    pub(crate) fn node(&mut self, name: &str, address: &str, labels: Value) {
        self.apply(json!({
            "kind": "Node", "metadata": { "name": name, "labels": labels },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
        }));
    }

    pub(crate) fn namespace(&mut self, name: &str, labels: Value) {
        self.apply(json!({ "kind": "Namespace", "metadata": { "name": name, "labels": labels } }));
    }

    /// A pod with a container port `http` (tcp/8080); it has an endpoint if its node is `a`.
    pub(crate) fn pod(&mut self, name: &str, node: &str, address: &str, labels: Value) {
        let object = pod(name, node, address, labels);
        let uid = object["metadata"]["uid"].as_str().expect("a uid").to_owned();
        self.apply(object);
        let address: IpAddr = address.parse().expect("an address");
        let endpoint = (node == "a").then(|| self.endpoint(name, &uid, address));
        self.pods.insert(name.to_owned(), FlowSide { address, endpoint });
    }

    pub(crate) fn endpoint(&mut self, name: &str, uid: &str, address: IpAddr) -> u32 {
        let index = self.next_index;
        self.next_index += 1;
        let (namespace, name) = name.split_once('/').expect("a namespace");
        let pod = PodId { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() };
        self.engine.add_endpoint(index, pod, vec![address]);
        index
    }

    /// An object of any kind.
    pub(crate) fn apply(&mut self, object: Value) {
        feed(&mut self.engine, object);
    }

    /// A NetworkPolicy of that name.
    pub(crate) fn policy(&mut self, name: &str, spec: Value) {
        let (namespace, name) = name.split_once('/').expect("a namespace");
        self.apply(json!({
            "kind": "NetworkPolicy", "metadata": { "namespace": namespace, "name": name }, "spec": spec,
        }));
    }

    /// A ClusterNetworkPolicy of that name.
    pub(crate) fn cluster_policy(&mut self, name: &str, spec: Value) {
        self.apply(json!({ "kind": "ClusterNetworkPolicy", "metadata": { "name": name }, "spec": spec }));
    }

    /// Reconciles without failures.
    pub(crate) fn settle(&mut self) -> Report {
        self.now += Duration::from_secs(2);
        let report = self.engine.reconcile(self.now, &mut self.maps);
        assert_eq!((report.failed.len(), report.pending), (0, 0), "{:?}", report.failed);
        report
    }

    /// What becomes of a flow, by the maps; the engine's own explanation must agree.
    pub(crate) fn ask(&self, client: &str, server: &str, port: &str) -> Result<(), Reason> {
        let (protocol, number) = packet(port);
        let judged = self.maps.judge(self.side(client), self.side(server), protocol.number(), number);
        let why = self.why(client, server, port);
        let here =
            |side: &fairlead_core::policy::Side, of: &str| side.allowed || self.side(of).endpoint.is_none();
        let explained = here(&why.egress, client) && here(&why.ingress, server);
        assert_eq!(judged.is_ok(), explained, "the maps say {judged:?}, but\n{why}");
        judged
    }

    pub(crate) fn allows(&self, client: &str, server: &str, port: &str) -> bool {
        self.ask(client, server, port).is_ok()
    }

    /// Whether a packet of a protocol without ports passes.
    pub(crate) fn allows_other(&self, client: &str, server: &str) -> bool {
        const ICMP: u8 = 1;
        self.maps.judge(self.side(client), self.side(server), ICMP, 0).is_ok()
    }

    pub(crate) fn why(&self, client: &str, server: &str, port: &str) -> Explanation {
        let (protocol, number) = packet(port);
        self.engine.why(&party(client), &party(server), Some(protocol), number)
    }

    fn side(&self, text: &str) -> FlowSide {
        self.pods.get(text).copied().unwrap_or_else(|| FlowSide {
            address: text.parse().expect("a pod or an address"),
            endpoint: None,
        })
    }
}

/// Feeds an object of any kind.
pub(crate) fn feed(engine: &mut Engine, object: Value) {
    let kind = object["kind"].as_str().expect("a kind").to_owned();
    match kind.as_str() {
        "Pod" => engine.apply_pod(&from_value(object).expect("a Pod")),
        "Namespace" => engine.apply_namespace(&from_value(object).expect("a Namespace")),
        "Node" => engine.apply_node(&from_value(object).expect("a Node")),
        "NetworkPolicy" => engine.apply_network_policy(&from_value(object).expect("a NetworkPolicy")),
        "ClusterNetworkPolicy" => {
            engine.apply_cluster_policy(&from_value(object).expect("a ClusterNetworkPolicy"));
        }
        other => panic!("{other}"),
    }
}

pub(crate) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').expect("a namespace");
    ObjectName::new(namespace, name)
}

pub(crate) fn pod(full: &str, node: &str, address: &str, labels: Value) -> Value {
    let (namespace, name) = full.split_once('/').expect("a namespace");
    json!({
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "uid": format!("uid of {full}"), "labels": labels },
        "spec": {
            "nodeName": node,
            "containers": [{ "name": "main", "ports": [{ "name": "http", "containerPort": 8080 }] }],
        },
        "status": { "phase": "Running", "podIPs": [{ "ip": address }] },
    })
}

fn party(text: &str) -> Party {
    match text.parse() {
        Ok(address) => Party::Address(address),
        Err(_) => Party::Pod(name(text)),
    }
}

fn packet(text: &str) -> (Protocol, u16) {
    let (protocol, port) = text.split_once('/').expect("a protocol");
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => Protocol::Sctp,
    };
    (protocol, port.parse().expect("a port"))
}
