//! Which endpoints a Service's clients get, as `data/endpoints.txt` says: objects in, frontends out.

use fairlead_abi::frontend_flags;
use fairlead_core::endpoints::BackendAddress;
use fairlead_core::frontends::{self, DesiredFrontend, FrontendKind};
use fairlead_core::index::Index;
use fairlead_core::model::ObjectName;
use fairlead_core::settings::Settings;
use serde_json::{Value, from_value, json};

/// A line of the table.
struct Case<'a> {
    name: &'a str,
    node: &'a str,
    zone: Option<&'a str>,
    service: Vec<&'a str>,
    endpoints: Vec<&'a str>,
    /// None where the Service uses no such endpoints.
    cluster: Option<Vec<BackendAddress>>,
    local: Option<Vec<BackendAddress>>,
    any: bool,
}

impl<'a> Case<'a> {
    fn read(line: &'a str) -> Self {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [name, node, zone, service, endpoints, cluster, local, any] = columns[..] else {
            panic!("{line:?} has not eight columns")
        };
        let addresses = |text: &str| {
            let numbers = text.split_whitespace();
            let address = |number| BackendAddress { ip: ip(number).parse().expect("an address"), port: 8080 };
            (text != "-").then(|| numbers.map(address).collect())
        };
        Self {
            name,
            node,
            zone: (!zone.is_empty()).then(|| zone.trim_matches('"')),
            service: service.split_whitespace().collect(),
            endpoints: endpoints.split_whitespace().collect(),
            cluster: addresses(cluster),
            local: addresses(local),
            any: any == "yes",
        }
    }

    fn is(&self, word: &str) -> bool {
        self.service.contains(&word)
    }

    fn index(&self) -> Index {
        let mut index = Index::new(self.node, Settings::default());
        let labels = self.zone.map(|zone| json!({ "topology.kubernetes.io/zone": zone }));
        let node = json!({
            "metadata": { "name": self.node, "labels": labels },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        });
        let policy = |word| if self.is(word) { "Local" } else { "Cluster" };
        let service = json!({
            "metadata": { "namespace": "default", "name": "web" },
            "spec": {
                "clusterIPs": ["10.96.0.1"],
                "type": if self.is("port") { "NodePort" } else { "ClusterIP" },
                "internalTrafficPolicy": policy("iTP"),
                "externalTrafficPolicy": policy("eTP"),
                "ports": [{ "port": 80, "nodePort": if self.is("port") { 30080 } else { 0 } }],
            },
        });
        let endpoints: Vec<Value> = self.endpoints.iter().map(|text| endpoint(text, self.node)).collect();
        let slice = json!({
            "metadata": { "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "ports": [{ "port": 8080 }],
            "endpoints": endpoints,
        });
        index.apply_node(&from_value(node).expect("a Node"));
        index.apply_service(&from_value(service).expect("a Service"));
        index.apply_slice(&from_value(slice).expect("an EndpointSlice"));
        index
    }
}

fn ip(number: &str) -> String {
    format!("10.244.0.{}", number.parse::<u8>().expect("a number") + 1)
}

/// An endpoint from a text such as `0:ready:local@z1,z2+n1`.
fn endpoint(text: &str, own_node: &str) -> Value {
    let (text, nodes) = text.split_once('+').unwrap_or((text, ""));
    let (text, zones) = text.split_once('@').unwrap_or((text, ""));
    let [number, state, place] = text.split(':').collect::<Vec<_>>()[..] else { panic!("{text:?}") };
    let (ready, serving, terminating) = match state {
        "ready" => (true, true, false),
        "unready" => (false, false, false),
        "draining" => (false, true, true),
        "gone" => (false, false, true),
        "unserving-ready" => (true, false, false),
        "ready-terminating" => (true, true, true),
        _ => panic!("{text:?}"),
    };
    let named = |list: &str| -> Vec<Value> {
        list.split(',').filter(|name| !name.is_empty()).map(|name| json!({ "name": name })).collect()
    };
    json!({
        "addresses": [ip(number)],
        "nodeName": if place == "local" { own_node } else { "elsewhere" },
        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
        "hints": { "forZones": named(zones), "forNodes": named(nodes) },
    })
}

#[test]
fn each_kind_of_client_gets_the_endpoints_that_the_table_says() {
    let table = include_str!("data/endpoints.txt");
    let lines: Vec<&str> = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert!(lines.len() > 40);
    for case in lines.iter().map(|line| Case::read(line)) {
        let name = case.name;
        let (inside, outside, has_port) = (case.is("iTP"), case.is("eTP"), case.is("port"));
        assert_eq!(case.cluster.is_some(), !inside || has_port, "{name}: uses the cluster's");
        assert_eq!(case.local.is_some(), inside || outside && has_port, "{name}: uses local ones");

        let desired = frontends::desired(&case.index(), &ObjectName::new("default", "web"));
        let of = |kind| desired.frontends.values().find(|frontend: &&DesiredFrontend| frontend.kind == kind);
        let expected = |is_local| if is_local { case.local.as_deref() } else { case.cluster.as_deref() };
        let cluster_ip = of(FrontendKind::ClusterIp).expect("a frontend");
        assert_eq!(Some(&cluster_ip.internal[..]), expected(inside), "{name}: inside");
        assert_eq!(cluster_ip.flags & frontend_flags::HAS_ENDPOINTS != 0, case.any, "{name}: any");
        assert_eq!(of(FrontendKind::NodePort).is_some(), has_port, "{name}");
        if let Some(node_port) = of(FrontendKind::NodePort) {
            assert_eq!(Some(&node_port.internal[..]), expected(false), "{name}: NodePort from inside");
            assert_eq!(Some(&node_port.external[..]), expected(outside), "{name}: NodePort from outside");
        }
    }
}
