//! Random Nodes, Services, EndpointSlices and ServiceCIDRs.

use std::net::IpAddr;

use fairlead_prog_tests::random::Random;
use fairlead_prog_tests::{FAMILIES, Family, Pod};
use serde_json::{Map, Value, from_value, json};

use super::chance;
use crate::case::Object;
use crate::cluster::{Name, name_of};
use crate::world::{self, NODE, OTHER_NODE, ZONES, pick};

const NAMESPACES: [&str; 2] = ["default", "shop"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "metrics"];
const PORTS: [u16; 6] = [53, 80, 443, 8080, 1, 65_535];
const TARGETS: [u16; 4] = [8080, 53, 80, 9090];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
/// How many Services there may be.
const SERVICES: usize = 6;

/// The objects of a cluster.
pub fn cluster(random: &mut Random) -> Vec<Object> {
    let mut objects = vec![node(random, NODE), node(random, OTHER_NODE)];
    if chance(random, 3, 4) {
        objects.push(service_cidr(random, "kubernetes"));
    }
    if chance(random, 1, 6) {
        objects.push(service_cidr(random, "more"));
    }
    for number in 0..1 + random.below(SERVICES) {
        let namespace = *random.one_of(&NAMESPACES);
        let name = (namespace.to_owned(), format!("web-{number}"));
        let service = service(random, &name);
        let ports = ports_of(&service);
        objects.push(service);
        let hints = random.below(4);
        for slice in 0..*random.one_of(&[0, 1, 2, 2, 3, 4]) {
            let slice_name = (name.0.clone(), format!("{}-{slice}", name.1));
            objects.push(slice_of(random, &slice_name, &name.1, &ports, hints));
        }
    }
    objects
}

/// Another object of the same kind and name.
pub fn object_like(random: &mut Random, object: &Object) -> Object {
    let (namespace, own) = name(object);
    match object {
        Object::Node(_) => node(random, &own),
        Object::Service(_) => service(random, &(namespace, own)),
        Object::EndpointSlice(_) => {
            let of = *random.one_of(&["web-0", "web-1", "web-2"]);
            let ports = [("http".to_owned(), "TCP"), (String::new(), "TCP")];
            slice_of(random, &(namespace, own), of, &ports, 0)
        }
        Object::ServiceCIDR(_) => service_cidr(random, &own),
    }
}

/// The object with something else in it: of a slice, the conditions of its endpoints, and one endpoint less.
pub(super) fn changed(random: &mut Random, object: &Object) -> Object {
    let Object::EndpointSlice(slice) = object else { return object_like(random, object) };
    let mut slice = slice.clone();
    for endpoint in slice.endpoints.iter_mut().flatten() {
        if chance(random, 1, 2) {
            endpoint.conditions = from_value(conditions(random)).expect("conditions");
        }
    }
    if let Some(endpoints) = &mut slice.endpoints
        && chance(random, 1, 3)
    {
        endpoints.pop();
    }
    Object::EndpointSlice(slice)
}

/// The namespace and the name of an object.
pub(super) fn name(object: &Object) -> Name {
    name_of(object.metadata())
}

fn node(random: &mut Random, name: &str) -> Object {
    let mut labels = Map::new();
    if chance(random, 4, 5) {
        labels.insert("topology.kubernetes.io/zone".to_owned(), json!(random.one_of(&ZONES)));
    }
    let mut addresses = vec![json!({ "type": "Hostname", "address": name })];
    // A node of one family is rare, and one whose address nobody knows yet rarer.
    let families: &[Family] = match random.below(16) {
        0 => &[Family::V4],
        1 => &[Family::V6],
        2 => &[Family::V6, Family::V4],
        _ => &FAMILIES,
    };
    for family in families {
        let address = if name == NODE { family.node() } else { world::other_node(*family) };
        addresses.push(json!({ "type": "InternalIP", "address": address }));
        if chance(random, 1, 4) {
            addresses.push(json!({ "type": "InternalIP", "address": world::second_address(*family) }));
        }
    }
    let object = json!({
        "metadata": { "name": name, "labels": labels },
        "status": { "addresses": addresses },
    });
    Object::Node(from_value(object).expect("a Node"))
}

fn service_cidr(random: &mut Random, name: &str) -> Object {
    let (v4, v6) =
        if name == "more" { ("10.97.0.0/28", "fd00:97::/120") } else { ("10.96.0.0/16", "fd00:96::/108") };
    let cidrs: &[&str] = match random.below(4) {
        0 => &[v4],
        1 => &[v6],
        _ => &[v4, v6],
    };
    let object = json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } });
    Object::ServiceCIDR(from_value(object).expect("a ServiceCIDR"))
}

fn service(random: &mut Random, (namespace, name): &Name) -> Object {
    let kind = *random.one_of(&[
        "ClusterIP",
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "LoadBalancer",
        "ExternalName",
    ]);
    let mut labels = Map::new();
    if chance(random, 1, 16) {
        let label = *random.one_of(&["service-proxy-name", "headless"]);
        labels.insert(format!("service.kubernetes.io/{label}"), json!("other"));
    }
    let families: &[Family] = match random.below(6) {
        0 => &[Family::V4],
        1 => &[Family::V6],
        2 => &[Family::V6, Family::V4],
        _ => &FAMILIES,
    };
    let mut spec = json!({ "type": kind, "ports": service_ports(random, kind) });
    let mut cluster_ips: Vec<Value> =
        families.iter().map(|family| json!(cluster_ip(random, *family, name))).collect();
    match random.below(24) {
        0 => cluster_ips = vec![json!("None")],
        1 => cluster_ips.clear(),
        2 => cluster_ips[0] = json!("nonsense"),
        3 => cluster_ips[0] = json!("127.0.0.1"),
        _ => {}
    }
    if kind != "ExternalName" {
        spec["clusterIP"] = cluster_ips.first().cloned().unwrap_or_default();
        spec["clusterIPs"] = Value::Array(cluster_ips);
        spec["ipFamilies"] =
            families.iter().map(|family| if *family == Family::V4 { "IPv4" } else { "IPv6" }).collect();
    } else {
        spec["externalName"] = json!("example.org");
    }
    spec["internalTrafficPolicy"] = policy(random);
    if ["NodePort", "LoadBalancer"].contains(&kind) {
        spec["externalTrafficPolicy"] = policy(random);
    }
    if chance(random, 1, 3) {
        spec["externalIPs"] = external_ips(random);
        spec["externalTrafficPolicy"] = policy(random);
    }
    if chance(random, 1, 3) {
        spec["sessionAffinity"] = json!("ClientIP");
        if chance(random, 1, 2) {
            let seconds = *random.one_of(&[60, 10_800, 86_400]);
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
        }
    }
    let mut status = json!({});
    if kind == "LoadBalancer" {
        if chance(random, 1, 2) {
            spec["loadBalancerSourceRanges"] = source_ranges(random);
        }
        status["loadBalancer"] = json!({ "ingress": ingress(random) });
    }
    let mut metadata = json!({ "namespace": namespace, "name": name, "labels": labels });
    if chance(random, 7, 8) {
        metadata["creationTimestamp"] = json!(format!("2026-01-0{}T00:00:00Z", 1 + random.below(3)));
    }
    let object = json!({ "metadata": metadata, "spec": spec, "status": status });
    Object::Service(from_value(object).expect("a Service"))
}

/// Mostly one of its own; sometimes one that another Service may have, or one outside of every ServiceCIDR.
fn cluster_ip(random: &mut Random, family: Family, name: &str) -> IpAddr {
    let own = name.bytes().last().map_or(0, |digit| digit - b'0');
    let (v4, v6) = match random.below(16) {
        0 => ("10.96.0.1".to_owned(), "fd00:96::1".to_owned()),
        1 => (format!("10.99.0.{own}"), format!("fd00:99::{own}")),
        2 => (format!("10.97.0.{own}"), format!("fd00:97::{own}")),
        _ => (format!("10.96.0.{}", 10 + own), format!("fd00:96::1{own}")),
    };
    pick(family, &v4, &v6)
}

fn policy(random: &mut Random) -> Value {
    match random.below(5) {
        0 | 1 => json!("Local"),
        2 => Value::Null,
        _ => json!("Cluster"),
    }
}

fn service_ports(random: &mut Random, kind: &str) -> Value {
    let count = *random.one_of(&[0, 1, 1, 1, 2, 2, 3]);
    let mut ports = Vec::new();
    for name in PORT_NAMES.iter().take(count) {
        let mut port = json!({ "port": random.one_of(&PORTS), "targetPort": *name });
        if count > 1 || chance(random, 1, 2) {
            port["name"] = json!(name);
        }
        if chance(random, 3, 4) {
            port["protocol"] = json!(random.one_of(&PROTOCOLS));
        }
        if chance(random, 1, 24) {
            port["port"] = json!(random.one_of(&[0, 65_536, -1]));
        }
        if ["NodePort", "LoadBalancer"].contains(&kind) && chance(random, 7, 8) {
            port["nodePort"] = json!(30_000 + random.below(12));
        }
        ports.push(port);
    }
    Value::Array(ports)
}

/// Now and then the node's own address, which is what many use, or another Service's.
fn external_ips(random: &mut Random) -> Value {
    let mut listed = Vec::new();
    for _ in 0..=random.below(3) {
        let family = *random.one_of(&FAMILIES);
        listed.push(match random.below(10) {
            0 => json!(family.node()),
            1 => json!(world::other_node(family)),
            2 => json!(pick(family, "203.0.113.50", "2001:db8:50::1")),
            3 => json!(pick(family, "10.96.0.10", "fd00:96::10")),
            5 if chance(random, 1, 3) => json!(random.one_of(&Pod::ALL).ip(family)),
            4 => json!(random.one_of(&["nonsense", "127.0.0.1", "224.0.0.1", "::ffff:198.51.100.100"])),
            _ => json!(pick(family, "198.51.100.100", "2001:db8:100::1")),
        });
    }
    Value::Array(listed)
}

fn ingress(random: &mut Random) -> Value {
    let mut listed = Vec::new();
    for _ in 0..random.below(4) {
        let family = *random.one_of(&FAMILIES);
        let number = random.below(3);
        let (v4, v6) = (format!("203.0.113.5{number}"), format!("2001:db8:50::{number}"));
        let mut entry = match random.below(12) {
            0 => json!({ "hostname": "lb.example.org" }),
            1 => json!({ "ip": "nonsense" }),
            2 => json!({ "ip": family.node() }),
            _ => json!({ "ip": pick(family, &v4, &v6) }),
        };
        if entry.get("ip").is_some() && chance(random, 1, 2) {
            entry["ipMode"] = json!(random.one_of(&["VIP", "VIP", "Proxy"]));
        }
        listed.push(entry);
    }
    Value::Array(listed)
}

fn source_ranges(random: &mut Random) -> Value {
    let ranges = [
        "198.51.100.7/32",
        "198.51.100.0/24",
        " 10.1.0.0/24 ",
        "10.1.0.2/32",
        "192.0.2.0/24",
        "192.0.2.9/24",
        "2001:db8:ffff::/48",
        "fd00:1::2/128",
        "2001:db8::/32",
        "::/1",
        "0.0.0.0/0",
        "::/0",
        "nonsense",
        "198.51.100.7",
        "",
    ];
    (0..=random.below(3)).map(|_| json!(random.one_of(&ranges))).collect()
}

/// The names and protocols of a Service's ports.
fn ports_of(object: &Object) -> Vec<(String, &'static str)> {
    let Object::Service(service) = object else { return Vec::new() };
    let ports = service.spec.iter().filter_map(|spec| spec.ports.as_ref()).flatten();
    let protocol = |text: &Option<String>| {
        PROTOCOLS.into_iter().find(|known| text.as_deref() == Some(known)).unwrap_or("TCP")
    };
    ports.map(|port| (port.name.clone().unwrap_or_default(), protocol(&port.protocol))).collect()
}

/// `hints` says what the endpoints of the Service have: 1: those for zones, 2: for nodes, 3: for both.
fn slice_of(
    random: &mut Random,
    name: &Name,
    service: &str,
    ports: &[(String, &str)],
    hints: usize,
) -> Object {
    let family = *random.one_of(&FAMILIES);
    let mut labels = json!({ "kubernetes.io/service-name": service });
    match random.below(32) {
        0 => labels = json!({}),
        1 => labels["kubernetes.io/service-name"] = json!(""),
        2 => labels["service.kubernetes.io/headless"] = json!(""),
        _ => {}
    }
    let mut listed = Vec::new();
    for (port_name, protocol) in ports {
        let mut port = json!({ "port": random.one_of(&TARGETS) });
        if !port_name.is_empty() || chance(random, 1, 2) {
            port["name"] = json!(port_name);
        }
        if *protocol != "TCP" || chance(random, 1, 2) {
            port["protocol"] = json!(protocol);
        }
        match random.below(32) {
            0 => port["port"] = Value::Null,
            1 => port["name"] = json!("unknown"),
            2 => port["port"] = json!(0),
            3 => port["protocol"] = json!(random.one_of(&PROTOCOLS)),
            4 => continue,
            _ => {}
        }
        listed.push(port);
    }
    let endpoints: Vec<Value> =
        (0..*random.one_of(&[0, 1, 2, 3, 4])).map(|_| endpoint(random, family, service, hints)).collect();
    let address_type = match random.below(24) {
        0 => "FQDN",
        1 => {
            if family == Family::V4 {
                "IPv6"
            } else {
                "IPv4"
            }
        }
        _ if family == Family::V4 => "IPv4",
        _ => "IPv6",
    };
    let object = json!({
        "metadata": { "namespace": name.0, "name": name.1, "labels": labels },
        "addressType": address_type,
        "ports": if listed.is_empty() && chance(random, 1, 2) { Value::Null } else { Value::Array(listed) },
        "endpoints": endpoints,
    });
    Object::EndpointSlice(from_value(object).expect("an EndpointSlice"))
}

fn endpoint(random: &mut Random, family: Family, service: &str, hints: usize) -> Value {
    let remote = world::remote_pods(family);
    let (address, home) = match random.below(10) {
        0 | 1 => (Pod::A.ip(family), Some(NODE)),
        2 | 3 => (Pod::B.ip(family), Some(NODE)),
        4 => (family.node(), Some(NODE)),
        5 => (world::other_node(family), Some(OTHER_NODE)),
        6 => (world::outsider(family), None),
        _ => (*random.one_of(&remote), Some(OTHER_NODE)),
    };
    // Now and then what is said of where it is, is wrong.
    let node =
        if chance(random, 1, 12) { *random.one_of(&[None, Some(NODE), Some(OTHER_NODE)]) } else { home };
    let addresses = match random.below(32) {
        0 => vec![],
        1 => vec![json!("nonsense")],
        2 => vec![json!(address), json!(remote[0])],
        3 => vec![json!("127.0.0.1")],
        _ => vec![json!(address)],
    };
    let mut endpoint = json!({ "addresses": addresses, "conditions": conditions(random) });
    if let Some(node) = node {
        endpoint["nodeName"] = json!(node);
    }
    // The same endpoint of a Service has the same hints in every slice: which would count is nowhere said.
    let mark = address.to_string().bytes().chain(service.bytes()).map(usize::from).sum::<usize>();
    let mut given = Map::new();
    if hints & 1 != 0 && !mark.is_multiple_of(7) {
        let zone = ZONES[mark % ZONES.len()];
        given.insert("forZones".into(), json!([{ "name": zone }]));
    }
    if hints & 2 != 0 && !mark.is_multiple_of(5) {
        let node = if mark.is_multiple_of(2) { NODE } else { OTHER_NODE };
        given.insert("forNodes".into(), json!([{ "name": node }]));
    }
    if !given.is_empty() {
        endpoint["hints"] = Value::Object(given);
    }
    endpoint
}

fn conditions(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!({ "ready": false, "serving": true, "terminating": true }),
        2 => json!({ "ready": false, "serving": false, "terminating": true }),
        3 => json!({ "ready": false }),
        4 => {
            let mut conditions = Map::new();
            for name in ["ready", "serving", "terminating"] {
                match random.below(3) {
                    0 => {}
                    value => drop(conditions.insert(name.to_owned(), json!(value == 1))),
                }
            }
            Value::Object(conditions)
        }
        5 => json!({ "ready": false, "serving": true }),
        _ => json!({ "ready": true }),
    }
}
