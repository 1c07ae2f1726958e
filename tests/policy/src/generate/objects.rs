//! Random Nodes, Namespaces, Pods and endpoints.

use std::net::IpAddr;

use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{FAMILIES, Family};
use serde_json::{Map, Value, from_value, json};

use super::{Thing, chance, policies};
use crate::case::{Endpoint, Object};
use crate::world::{self, NODE, OTHER_NODE};

/// The namespaces' names.
pub(super) const NAMESPACES: [&str; 3] = ["x", "y", "z"];
/// Labels of Pods, Namespaces and Nodes: each has or lacks any of these.
pub(super) const LABELS: [(&str, [&str; 2]); 3] =
    [("app", ["web", "db"]), ("tier", ["front", "back"]), ("team", ["red", "blue"])];
/// Names of container ports.
pub(super) const PORT_NAMES: [&str; 4] = ["http", "dns", "metrics", "admin"];
/// Container ports.
pub(super) const PORTS: [u16; 6] = [80, 8080, 53, 9090, 1, 65_535];
/// The protocols that policies name.
pub(super) const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
/// How many local pods there may be, and as many of the other node.
const PODS: u32 = 4;

/// The parts of a cluster.
pub fn cluster(random: &mut Random) -> Vec<Thing> {
    let mut things: Vec<Thing> = vec![Thing::Addresses];
    let mut add = |object: Object| things.push(Thing::Object(object));
    add(node(random, NODE));
    add(node(random, OTHER_NODE));
    for name in NAMESPACES {
        add(namespace(random, name));
    }
    let mut endpoints = Vec::new();
    for number in 0..PODS {
        if chance(random, 5, 6) {
            let place = Place { name: format!("local-{number}"), number, is_local: true };
            let namespace = *random.one_of(&NAMESPACES);
            let pod = pod(random, namespace, &place);
            endpoints.extend(endpoint(random, namespace, &place, &pod));
            add(pod);
        }
        if chance(random, 3, 4) {
            let place = Place { name: format!("remote-{number}"), number, is_local: false };
            let namespace = *random.one_of(&NAMESPACES);
            add(pod(random, namespace, &place));
        }
    }
    for number in 0..random.below(2) {
        let place = Place { name: format!("host-{number}"), number: 0, is_local: number == 0 };
        let namespace = *random.one_of(&NAMESPACES);
        add(host_pod(random, namespace, &place));
    }
    for policy in policies::policies(random) {
        add(policy);
    }
    things.extend(endpoints.into_iter().map(Thing::Endpoint));
    things
}

/// Another object of the same kind and name.
pub fn object_like(random: &mut Random, object: &Object) -> Object {
    let (namespace_of, name) = object.name();
    match object {
        Object::Node(_) => node(random, &name),
        Object::Namespace(_) => namespace(random, &name),
        Object::Pod(_) => match Place::of(&name) {
            Some(place) => pod(random, &namespace_of, &place),
            None => host_pod(random, &namespace_of, &Place { name, number: 0, is_local: true }),
        },
        Object::NetworkPolicy(_) => policies::network_policy(random, &namespace_of, &name),
        Object::ClusterNetworkPolicy(_) => policies::cluster_policy(random, &name),
    }
}

/// The same object with other labels; a policy that says something else.
pub(super) fn relabelled(random: &mut Random, object: &Object) -> Object {
    match object {
        Object::Pod(pod) => {
            let mut pod = pod.clone();
            pod.metadata.labels = from_value(labels(random)).expect("labels");
            Object::Pod(pod)
        }
        other => object_like(random, other),
    }
}

/// Another pod's interface at the same place.
pub(super) fn endpoint_like(random: &mut Random, endpoint: &Endpoint) -> Endpoint {
    let (namespace, name) = if chance(random, 1, 2) {
        (endpoint.namespace.clone(), endpoint.name.clone())
    } else {
        ((*random.one_of(&NAMESPACES)).to_owned(), "gone".to_owned())
    };
    Endpoint { namespace, name, uid: "an-earlier-one".to_owned(), ..endpoint.clone() }
}

/// Where a Pod is.
#[derive(Clone)]
struct Place {
    name: String,
    number: u32,
    is_local: bool,
}

impl Place {
    /// The place that the name of a Pod says.
    fn of(name: &str) -> Option<Self> {
        let (node, number) = name.split_once('-')?;
        let number = number.parse().ok()?;
        let is_local = node == "local";
        (node != "host").then(|| Self { name: name.to_owned(), number, is_local })
    }

    fn address(&self, family: Family) -> IpAddr {
        // The first are those of the pods that the programs' own tests have.
        let number = self.number + 2;
        if self.is_local { world::local_pod(family, number) } else { world::remote_pod(family, number) }
    }
}

/// Each label with one of its values, or without.
pub(super) fn labels(random: &mut Random) -> Value {
    let mut labels = Map::new();
    for (key, values) in LABELS {
        if chance(random, 3, 4) {
            labels.insert(key.to_owned(), json!(random.one_of(&values)));
        }
    }
    Value::Object(labels)
}

fn node(random: &mut Random, name: &str) -> Object {
    let mut addresses = vec![json!({ "type": "Hostname", "address": name })];
    for family in FAMILIES {
        let address = if name == NODE { family.node() } else { world::other_node(family) };
        addresses.push(json!({ "type": "InternalIP", "address": address }));
    }
    let object = json!({
        "metadata": { "name": name, "labels": labels(random) },
        "status": { "addresses": addresses },
    });
    Object::Node(from_value(object).expect("a Node"))
}

fn namespace(random: &mut Random, name: &str) -> Object {
    let mut labels = labels(random);
    labels["kubernetes.io/metadata.name"] = json!(name);
    let object = json!({ "metadata": { "name": name, "labels": labels } });
    Object::Namespace(from_value(object).expect("a Namespace"))
}

fn pod(random: &mut Random, namespace: &str, place: &Place) -> Object {
    // A Pod of one family, or one whose addresses nobody knows yet, is rare.
    let families: &[Family] = match random.below(16) {
        0 => &[Family::V4],
        1 => &[Family::V6],
        2 => &[],
        3 => &[Family::V6, Family::V4],
        _ => &FAMILIES,
    };
    // Of the other node's, two may have had one address, one after the other.
    let shared = Place { number: 0, ..place.clone() };
    let place = if !place.is_local && chance(random, 1, 6) { &shared } else { place };
    let ips: Vec<Value> = families.iter().map(|family| json!({ "ip": place.address(*family) })).collect();
    let phase = match random.below(16) {
        0 => "Succeeded",
        1 => "Failed",
        2 => "Pending",
        _ => "Running",
    };
    let mut status = json!({ "phase": phase, "podIPs": ips });
    if let Some(first) = families.first() {
        status["podIP"] = json!(place.address(*first));
    }
    let mut metadata = json!({
        "namespace": namespace,
        "name": place.name,
        "uid": uid(random, place),
        "labels": labels(random),
    });
    if chance(random, 7, 8) {
        let second = random.below(60);
        metadata["creationTimestamp"] = json!(format!("2026-01-01T00:00:{second:02}Z"));
    }
    if chance(random, 1, 12) {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    let node = if place.is_local { NODE } else { OTHER_NODE };
    let object = json!({
        "metadata": metadata,
        "spec": { "nodeName": node, "containers": containers(random) },
        "status": status,
    });
    Object::Pod(from_value(object).expect("a Pod"))
}

/// Mostly the place's own; a Pod that was made anew under the name of another has a new one.
fn uid(random: &mut Random, place: &Place) -> String {
    if chance(random, 1, 12) { format!("{}-anew", place.name) } else { place.name.clone() }
}

/// A Pod of the host's network, with the node's addresses.
fn host_pod(random: &mut Random, namespace: &str, place: &Place) -> Object {
    let address = |family: Family| if place.is_local { family.node() } else { world::other_node(family) };
    let ips: Vec<Value> = FAMILIES.iter().map(|family| json!({ "ip": address(*family) })).collect();
    let object = json!({
        "metadata": {
            "namespace": namespace,
            "name": place.name,
            "uid": place.name,
            "labels": labels(random),
        },
        "spec": {
            "nodeName": if place.is_local { NODE } else { OTHER_NODE },
            "hostNetwork": true,
            "containers": containers(random),
        },
        "status": { "phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips },
    });
    Object::Pod(from_value(object).expect("a Pod"))
}

fn containers(random: &mut Random) -> Value {
    let mut containers = Vec::new();
    for number in 0..1 + random.below(2) {
        let mut ports = Vec::new();
        for name in PORT_NAMES {
            if chance(random, 1, 2) {
                let mut port = json!({ "containerPort": random.one_of(&PORTS) });
                if chance(random, 7, 8) {
                    port["name"] = json!(name);
                }
                if chance(random, 2, 3) {
                    port["protocol"] = json!(random.one_of(&PROTOCOLS));
                }
                ports.push(port);
            }
        }
        containers.push(json!({ "name": format!("c{number}"), "ports": ports }));
    }
    Value::Array(containers)
}

/// The interface of a local Pod; some have none yet, or not any more.
fn endpoint(random: &mut Random, namespace: &str, place: &Place, pod: &Object) -> Option<Endpoint> {
    if chance(random, 1, 16) {
        return None;
    }
    let Object::Pod(pod) = pod else { return None };
    let families: &[Family] = if chance(random, 1, 8) { &[Family::V4] } else { &FAMILIES };
    let (name, uid) = match random.below(24) {
        0 => (String::new(), String::new()),
        1 => (place.name.clone(), "an-earlier-one".to_owned()),
        2 | 3 => (place.name.clone(), String::new()),
        _ => (place.name.clone(), pod.metadata.uid.clone().unwrap_or_default()),
    };
    Some(Endpoint {
        index: place.number,
        namespace: namespace.to_owned(),
        name,
        uid,
        addresses: families.iter().map(|family| place.address(*family)).collect(),
    })
}
