//! Policies, as JSON, and the scene of the tests that are about them: pods of two namespaces on two nodes.
//!
//! ```text
//!                default (team: red)                 bank (team: blue)
//!   node1        web (app: web), near (app: peer)    guest (app: guest)
//!   node2        far (app: peer)                     away (app: guest)
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, Place, Protocol, RunningPod, Way};
use serde_json::{Value, json};

use crate::POD_PORT;
use crate::matrix::{Matrix, echoes, requests};

/// The other port of pods, TCP alone.
pub const OTHER_PORT: u16 = 8081;
/// Name, namespace, app and node of each pod of the scene.
const PODS: [(&str, &str, &str, &str); 5] = [
    ("web", "default", "web", "node1"),
    ("near", "default", "peer", "node1"),
    ("far", "default", "peer", "node2"),
    ("guest", "bank", "guest", "node1"),
    ("away", "bank", "guest", "node2"),
];

/// A Namespace with these labels.
pub fn namespace(name: &str, labels: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A Pod that serves [`POD_PORT`] as `web`, `datagrams` and `associations`, and [`OTHER_PORT`] as `other`.
pub fn pod(namespace: &str, name: &str, labels: Value, node: &str) -> Value {
    let port = |name: &str, number: u16, protocol: &str| -> Value {
        json!({ "name": name, "containerPort": number, "protocol": protocol })
    };
    let ports = [
        port("web", POD_PORT, "TCP"),
        port("datagrams", POD_PORT, "UDP"),
        port("associations", POD_PORT, "SCTP"),
        port("other", OTHER_PORT, "TCP"),
    ];
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": { "nodeName": node,
            "containers": [{ "name": "echo", "image": "fairlead/echo:dev", "ports": ports }] } })
}

/// A NetworkPolicy.
pub fn network_policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec })
}

/// A NetworkPolicy of the namespace `default` that isolates the pods of that app in these directions, by itself.
pub fn closed(name: &str, app: &str, directions: &[&str]) -> Value {
    let selector = json!({ "matchLabels": { "app": app } });
    network_policy("default", name, json!({ "podSelector": selector, "policyTypes": directions }))
}

/// A NetworkPolicy of the namespace `default` that lets the pods of the app `web` be reached by these rules alone.
pub fn web_ingress(name: &str, rules: Value) -> Value {
    let selector = json!({ "matchLabels": { "app": "web" } });
    let spec = json!({ "podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules });
    network_policy("default", name, spec)
}

/// The counterpart of [`web_ingress`]: whom the pods of the app `web` may reach.
pub fn web_egress(name: &str, rules: Value) -> Value {
    let selector = json!({ "matchLabels": { "app": "web" } });
    let spec = json!({ "podSelector": selector, "policyTypes": ["Egress"], "egress": rules });
    network_policy("default", name, spec)
}

/// A ClusterNetworkPolicy for the pods of the app `web` in the namespace `default`, or whichever `more` says.
pub fn cluster_policy(name: &str, tier: &str, priority: u32, more: Value) -> Value {
    let mut spec = json!({ "tier": tier, "priority": priority, "subject": { "pods": {
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "default" } },
        "podSelector": { "matchLabels": { "app": "web" } } } } });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({ "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": name }, "spec": spec })
}

/// The pods of the scene, running, and those who ask from elsewhere.
pub struct Estate {
    pods: BTreeMap<&'static str, RunningPod>,
    nodes: [(&'static str, Place, [IpAddr; 2]); 2],
    outside: Place,
    outside_ips: Vec<IpAddr>,
}

impl Estate {
    /// Applies the namespaces and pods, waits until they run, and gives the client outside a way to each.
    ///
    /// # Errors
    /// When they don't.
    pub fn set(cluster: &Cluster) -> Result<Self> {
        let api = cluster.api();
        api.apply(&namespace("default", json!({ "team": "red" })))?;
        api.apply(&namespace("bank", json!({ "team": "blue" })))?;
        for (name, namespace, app, node) in PODS {
            api.apply(&pod(namespace, name, json!({ "app": app }), node))?;
        }
        let mut pods = BTreeMap::new();
        for (name, namespace, _, _) in PODS {
            let running = cluster.pod_in(namespace, name)?;
            for &ip in &running.ips {
                cluster.route_via(ip, &running.node)?;
            }
            pods.insert(name, running);
        }
        let node = |name: &'static str| -> Result<_> {
            let node = cluster.node(name)?;
            Ok((name, node.place().clone(), [node.layout().ipv4, node.layout().ipv6]))
        };
        let outside_ips = [crate::IPV4, crate::IPV6].map(|like| cluster.client_addresses(like)).concat();
        Ok(Self { pods, nodes: [node("node1")?, node("node2")?], outside: cluster.client()?, outside_ips })
    }

    /// One of the pods.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn pod(&self, name: &str) -> Result<&RunningPod> {
        self.pods.get(name).with_context(|| format!("no pod {name} in the scene"))
    }

    /// The client outside.
    pub fn outside(&self) -> &Place {
        &self.outside
    }

    /// Addresses of the client outside, IPv4 and IPv6: those of that number, from 0 to 3.
    pub fn outside_ips(&self, number: usize) -> Vec<IpAddr> {
        self.outside_ips.iter().copied().skip(number).step_by(self.outside_ips.len() / 2).collect()
    }

    /// Everyone asks every pod in the ways that `ways` makes of its addresses; the nodes and the client outside are
    /// sent echoes.
    pub fn matrix(&self, ways: impl Fn(&[IpAddr]) -> Vec<Way>) -> Matrix<'_> {
        let mut matrix = Matrix::default();
        for (name, pod) in &self.pods {
            matrix = matrix.asker(name, &pod.place).target(name, ways(&pod.ips));
        }
        for (name, place, ips) in &self.nodes {
            matrix = matrix.asker(name, place).target(name, echoes(ips));
        }
        matrix.asker("outside", &self.outside).target("outside", echoes(&self.outside_ips(0)))
    }
}

/// By TCP and UDP to [`POD_PORT`].
pub fn by_sockets(ips: &[IpAddr]) -> Vec<Way> {
    requests(ips, POD_PORT, &Protocol::SOCKETS)
}

/// By TCP, UDP and SCTP to [`POD_PORT`], and by echoes.
pub fn by_all_means(ips: &[IpAddr]) -> Vec<Way> {
    [requests(ips, POD_PORT, &Protocol::ALL), echoes(ips)].concat()
}

/// By TCP to that port.
pub fn by_tcp(port: u16) -> impl Fn(&[IpAddr]) -> Vec<Way> {
    move |ips| requests(ips, port, &[Protocol::Tcp])
}
