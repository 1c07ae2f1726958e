use std::net::SocketAddr;

use fairlead_abi::Reason;
use fairlead_prog_tests::{Family, Pod};
use serde_json::{Value, from_value, json};

use super::{Balanced, Expected, Leaves, Oracle};
use crate::case::{At, Kind, Object, Probe, Settings, Step};
use crate::cluster::Cluster;
use crate::world;

/// A cluster of this node in the zone `east`, a Service with these fields beside the usual ones, and a slice of these
/// endpoints.
fn cluster(spec: Value, endpoints: Value) -> Cluster {
    let node = json!({
        "metadata": { "name": "this", "labels": { "topology.kubernetes.io/zone": "east" } },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "192.0.2.1" }, { "type": "InternalIP", "address": "2001:db8::1" },
        ] },
    });
    let mut whole = json!({ "type": "ClusterIP", "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 80 }] });
    whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    let ingress = whole.as_object_mut().expect("an object").remove("ingress").unwrap_or_default();
    let service = json!({
        "metadata": { "namespace": "default", "name": "web" },
        "spec": whole,
        "status": { "loadBalancer": { "ingress": ingress } },
    });
    let slice = json!({
        "metadata": { "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4", "ports": [{ "port": 8080 }], "endpoints": endpoints,
    });
    let cidr = json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.96.0.0/16"] } });
    let objects = [
        Object::Node(from_value(node).expect("a Node")),
        Object::Service(from_value(service).expect("a Service")),
        Object::EndpointSlice(from_value(slice).expect("an EndpointSlice")),
        Object::ServiceCIDR(from_value(cidr).expect("a ServiceCIDR")),
    ];
    Cluster::after(&objects.map(Step::Apply))
}

/// What becomes of a SYN from there.
fn dialled(cluster: &Cluster, at: At, to: &str) -> Expected {
    dialled_with(cluster, at, Kind::Syn, to)
}

fn dialled_with(cluster: &Cluster, at: At, kind: Kind, to: &str) -> Expected {
    let to: SocketAddr = to.parse().expect("an address");
    let family = world::family(to.ip());
    let from = (at.address(family).unwrap_or(family.client()), 40_000).into();
    let probe = Probe { at, kind, from, to, often: false };
    Oracle::new(cluster, &Settings::default(), &[]).expect(&probe)
}

/// The backends, without their port, and how packets leave for them.
fn backends(expected: Expected) -> Vec<(String, Leaves)> {
    let Expected::Balanced(Balanced { choices, .. }) = expected else { panic!("{expected:?}") };
    choices.into_iter().map(|(backend, leaves)| (backend.ip().to_string(), leaves)).collect()
}

fn keeping(addresses: &[&str]) -> Vec<(String, Leaves)> {
    addresses.iter().map(|address| ((*address).to_owned(), Leaves::KeepingSource)).collect()
}

fn masqueraded(addresses: &[&str]) -> Vec<(String, Leaves)> {
    let leaves = Leaves::Masqueraded(Family::V4.node());
    addresses.iter().map(|address| ((*address).to_owned(), leaves)).collect()
}

fn here(address: &str) -> Value {
    json!({ "addresses": [address], "nodeName": "this" })
}

fn there(address: &str) -> Value {
    json!({ "addresses": [address], "nodeName": "other" })
}

fn with(mut endpoint: Value, fields: Value) -> Value {
    endpoint.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    endpoint
}

#[test]
fn only_clients_from_outside_lose_their_address_and_whoever_reaches_itself() {
    let cluster = cluster(json!({}), json!([here("10.1.0.2"), there("10.2.0.9")]));
    let to = "10.96.0.10:80";
    assert_eq!(backends(dialled(&cluster, At::PodB, to)), keeping(&["10.1.0.2", "10.2.0.9"]));
    assert_eq!(backends(dialled(&cluster, At::Host, to)), keeping(&["10.1.0.2", "10.2.0.9"]));
    assert_eq!(backends(dialled(&cluster, At::Wire, to)), masqueraded(&["10.1.0.2", "10.2.0.9"]));
    let own = [masqueraded(&[&Pod::A.ip(Family::V4).to_string()]), keeping(&["10.2.0.9"])].concat();
    assert_eq!(backends(dialled(&cluster, At::PodA, to)), own);
}

#[test]
fn an_external_policy_of_local_counts_for_clients_outside_at_all_but_the_cluster_ip() {
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.100"],
        "ports": [{ "port": 80, "nodePort": 30080 }], "ingress": [{ "ip": "203.0.113.50" }],
    });
    let cluster = cluster(spec, json!([here("10.1.0.2"), there("10.2.0.9")]));
    for to in ["192.0.2.1:30080", "203.0.113.50:80", "198.51.100.100:80"] {
        assert_eq!(backends(dialled(&cluster, At::Wire, to)), keeping(&["10.1.0.2"]), "{to}");
        assert_eq!(backends(dialled(&cluster, At::PodB, to)), keeping(&["10.1.0.2", "10.2.0.9"]), "{to}");
    }
    assert_eq!(
        backends(dialled(&cluster, At::Wire, "10.96.0.10:80")),
        masqueraded(&["10.1.0.2", "10.2.0.9"])
    );
}

#[test]
fn an_internal_policy_of_local_counts_at_the_cluster_ip_alone() {
    let spec = json!({ "internalTrafficPolicy": "Local", "externalIPs": ["198.51.100.100"] });
    let remote = cluster(spec.clone(), json!([there("10.2.0.9")]));
    let drops = Expected::Dropped(Reason::NoLocalEndpoint);
    assert_eq!(dialled(&remote, At::PodA, "10.96.0.10:80"), drops);
    assert_eq!(backends(dialled(&remote, At::PodA, "198.51.100.100:80")), keeping(&["10.2.0.9"]));
    let none = cluster(spec, json!([]));
    assert_eq!(dialled(&none, At::PodA, "10.96.0.10:80"), Expected::Refused(Reason::NoEndpoint));
}

#[test]
fn what_terminates_serves_only_where_nothing_is_ready_here_and_everywhere_by_itself() {
    let drains = json!({ "conditions": { "ready": false, "serving": true, "terminating": true } });
    let spec = json!({ "externalIPs": ["198.51.100.100"], "externalTrafficPolicy": "Local" });
    let endpoints = json!([with(here("10.1.0.2"), drains), there("10.2.0.9")]);
    let cluster = cluster(spec, endpoints);
    assert_eq!(backends(dialled(&cluster, At::Wire, "198.51.100.100:80")), keeping(&["10.1.0.2"]));
    assert_eq!(backends(dialled(&cluster, At::PodA, "198.51.100.100:80")), keeping(&["10.2.0.9"]));
}

#[test]
fn a_condition_that_nobody_states_is_the_good_one() {
    for (conditions, serves) in [
        (json!({}), true),
        (json!({ "ready": false }), false),
        (json!({ "ready": false, "terminating": true }), true),
        (json!({ "ready": false, "serving": false, "terminating": true }), false),
        (json!({ "terminating": true }), true),
    ] {
        let endpoint = with(there("10.2.0.9"), json!({ "conditions": conditions }));
        let cluster = cluster(json!({}), json!([endpoint]));
        let refused = dialled(&cluster, At::PodA, "10.96.0.10:80") == Expected::Refused(Reason::NoEndpoint);
        assert_eq!(!refused, serves, "{conditions}");
    }
}

#[test]
fn hints_count_if_every_ready_endpoint_has_one_and_one_is_for_here() {
    let zone = |name: &str| json!({ "hints": { "forZones": [{ "name": name }] } });
    let node = |name: &str| json!({ "hints": { "forNodes": [{ "name": name }] } });
    let of = |first: Value, second: Value| {
        let endpoints = json!([with(there("10.2.0.9"), first), with(there("10.2.0.10"), second)]);
        let cluster = cluster(json!({}), endpoints);
        let chosen = backends(dialled(&cluster, At::PodA, "10.96.0.10:80"));
        chosen.into_iter().map(|(address, _)| address).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of(zone("east"), zone("west")), "10.2.0.9");
    assert_eq!(of(zone("north"), zone("west")), "10.2.0.9 10.2.0.10");
    assert_eq!(of(zone("east"), json!({})), "10.2.0.9 10.2.0.10");
    assert_eq!(of(node("other"), node("this")), "10.2.0.10");
    let both = with(
        node("other"),
        json!({ "hints": { "forZones": [{ "name": "east" }], "forNodes": [{ "name": "other" }] } }),
    );
    assert_eq!(of(both, zone("west")), "10.2.0.9");
    let unready = with(node("this"), json!({ "conditions": { "ready": false } }));
    assert_eq!(of(unready, zone("east")), "10.2.0.10");
}

#[test]
fn source_ranges_guard_the_load_balancers_address_in_their_own_family() {
    let of = |ranges: Value| {
        let spec = json!({
            "type": "LoadBalancer", "ingress": [{ "ip": "203.0.113.50" }], "externalIPs": ["198.51.100.100"],
            "loadBalancerSourceRanges": ranges,
        });
        cluster(spec, json!([here("10.1.0.3")]))
    };
    let refused = Expected::Dropped(Reason::SourceNotAllowed);
    let guarded = of(json!(["198.51.100.0/24", "2001:db8::/32"]));
    assert_eq!(dialled(&guarded, At::PodA, "203.0.113.50:80"), refused);
    assert_eq!(backends(dialled(&guarded, At::Wire, "203.0.113.50:80")), masqueraded(&["10.1.0.3"]));
    assert_eq!(backends(dialled(&guarded, At::PodA, "198.51.100.100:80")), keeping(&["10.1.0.3"]));
    for open in [json!(["2001:db8::/32"]), json!(["10.9.0.0/16", "0.0.0.0/0"]), json!(["nonsense"])] {
        assert_eq!(backends(dialled(&of(open), At::PodA, "203.0.113.50:80")), keeping(&["10.1.0.3"]));
    }
}

#[test]
fn what_no_service_has_is_refused_at_a_cluster_ip_dropped_beside_it_and_left_alone_elsewhere() {
    let cluster = cluster(json!({}), json!([here("10.1.0.2")]));
    let unknown = Expected::Refused(Reason::UnknownPort);
    assert_eq!(dialled(&cluster, At::PodB, "10.96.0.10:81"), unknown);
    assert_eq!(dialled_with(&cluster, At::Wire, Kind::Udp, "10.96.0.10:80"), unknown);
    assert_eq!(dialled_with(&cluster, At::PodB, Kind::Echo, "10.96.0.10:0"), unknown);
    assert_eq!(dialled(&cluster, At::PodB, "10.96.0.11:80"), Expected::Dropped(Reason::NoService));
    assert_eq!(dialled(&cluster, At::PodB, "10.97.0.11:80"), Expected::Untouched);
    assert_eq!(dialled(&cluster, At::PodB, "10.2.0.9:80"), Expected::Untouched);
}

#[test]
fn a_service_of_one_family_has_no_business_in_the_other() {
    let spec = json!({
        "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }], "externalIPs": ["2001:db8:100::1"],
    });
    let cluster = cluster(spec, json!([here("10.1.0.2")]));
    assert_eq!(dialled(&cluster, At::Wire, "[2001:db8::1]:30080"), Expected::Untouched);
    assert_eq!(dialled(&cluster, At::Wire, "[2001:db8:100::1]:80"), Expected::Untouched);
    assert_eq!(backends(dialled(&cluster, At::Wire, "192.0.2.1:30080")), masqueraded(&["10.1.0.2"]));
}
