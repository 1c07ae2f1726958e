//! Host ports from outside: where they stand, who comes before whom, and what a restart finds.

use std::net::IpAddr;
use std::time::Instant;

use fairlead_core::dataplane::{MemoryMaps, ServiceMaps};
use fairlead_core::decide::{Client, Flow, decide};
use fairlead_core::host_ports::{HostPort, HostPorts, owner};
use fairlead_core::model::{ObjectName, Protocol};
use fairlead_core::reconcile::{Capacity, Reconciler};
use fairlead_core::settings::{NodePortAddresses, Settings};
use fairlead_core::view::ServiceView;
use serde_json::{from_value, json};

const CAPACITY: Capacity = Capacity { slots: 400, backends: 100 };
const NODE: &str = "192.0.2.1";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn port(host_port: u16, host_ip: Option<&str>) -> HostPort {
    let host_ip = host_ip.map(address);
    HostPort { index: 0, host_ip, host_port, container_port: 80, protocol: Protocol::Tcp }
}

fn pod(name: &str, addresses: &[&str], ports: &[HostPort]) -> HostPorts {
    HostPorts {
        pod: ObjectName::new("shop", name),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        ports: ports.to_vec(),
    }
}

fn web() -> ObjectName {
    owner("c0ffee", "eth0")
}

/// A node's reconciler and maps.
struct Bench {
    reconciler: Reconciler,
    maps: MemoryMaps,
}

impl Bench {
    /// The node and all lists are known.
    fn new(settings: Settings) -> Self {
        let mut bench = Self::unlisted(settings, MemoryMaps::default());
        bench.know_node();
        bench.reconciler.set_synced();
        bench
    }

    /// Nothing is known but what is in the maps.
    fn unlisted(settings: Settings, maps: MemoryMaps) -> Self {
        let mut reconciler = Reconciler::new("here", CAPACITY, settings);
        reconciler.adopt(&maps).expect("adopted");
        Self { reconciler, maps }
    }

    fn know_node(&mut self) {
        let addresses = [NODE, "fd00::1"].map(|ip| json!({"type": "InternalIP", "address": ip}));
        let node = json!({"metadata": {"name": "here"}, "status": {"addresses": addresses}});
        self.reconciler.index_mut().apply_node(&from_value(node).expect("a Node"));
    }

    fn know_node_port(&mut self, node_port: u16) {
        let service = json!({
            "metadata": {"namespace": "shop", "name": "front", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"clusterIPs": ["10.96.0.1"], "type": "NodePort",
                     "ports": [{"port": 80, "nodePort": node_port}]},
        });
        let slice = json!({
            "metadata": {"namespace": "shop", "name": "front-1", "labels": {"kubernetes.io/service-name": "front"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
            "endpoints": [{"addresses": ["10.244.0.9"]}],
        });
        self.reconciler.index_mut().apply_service(&from_value(service).expect("a Service"));
        self.reconciler.index_mut().apply_slice(&from_value(slice).expect("a slice"));
    }

    fn set(&mut self, owner: &ObjectName, wanted: Option<HostPorts>) -> Result<(), String> {
        self.reconciler.index_mut().set_host_ports(owner.clone(), wanted);
        self.reconcile();
        self.reconciler.has_host_ports(owner)
    }

    fn reconcile(&mut self) {
        self.reconciler.reconcile(Instant::now(), &mut self.maps);
    }

    /// What becomes of a connection.
    fn asks(&self, client: Client, source: &str, to: &str, port: u16) -> String {
        let (source, destination) = (address(source), address(to));
        let protocol = Protocol::Tcp.number();
        decide(&self.maps, &[address(NODE)], &Flow { client, source, destination, port, protocol })
            .to_string()
    }

    fn outside(&self, to: &str, port: u16) -> String {
        let client = if address(to).is_ipv4() { "198.51.100.7" } else { "2001:db8::7" };
        self.asks(Client::Outside, client, to, port)
    }

    fn frontends(&self) -> usize {
        self.maps.frontends().expect("read").len()
    }
}

#[test]
fn a_host_port_leads_to_its_pod_by_each_family_and_clients_keep_their_address() {
    let mut bench = Bench::new(Settings::default());
    bench.set(&web(), Some(pod("web", &["10.244.0.2", "fd00:1::2"], &[port(8080, None)]))).expect("done");
    assert_eq!(bench.outside(NODE, 8080), "10.244.0.2:80");
    assert_eq!(bench.outside("fd00::1", 8080), "[fd00:1::2]:80");
    assert_eq!(bench.asks(Client::Inside, "10.244.0.3", NODE, 8080), "10.244.0.2:80");
    assert_eq!(
        bench.asks(Client::Inside, "10.244.0.2", NODE, 8080),
        "masqueraded 10.244.0.2:80",
        "to itself"
    );
    assert_eq!(bench.outside(NODE, 80), "pass", "another port");
    bench.set(&web(), None).expect("gone");
    assert_eq!(bench.outside(NODE, 8080), "pass");
    assert_eq!((bench.frontends(), bench.maps.backends().expect("read").len()), (0, 0));
}

#[test]
fn a_pod_of_one_family_has_no_port_at_the_nodes_address_of_the_other() {
    let mut bench = Bench::new(Settings::default());
    bench.set(&web(), Some(pod("web", &["10.244.0.2"], &[port(8080, None)]))).expect("done");
    assert_eq!(bench.outside("fd00::1", 8080), "pass");
    assert_eq!(bench.frontends(), 1);
}

#[test]
fn a_host_ip_narrows_a_port_to_one_address() {
    let mut bench = Bench::new(Settings::default());
    let addresses = ["10.244.0.2", "fd00:1::2"];
    bench.reconciler.index_mut().set_local_addresses(vec![address(NODE), address("203.0.113.5")]);
    let ports = [port(81, Some("203.0.113.5")), port(83, Some("127.0.0.1"))];
    bench.set(&web(), Some(pod("web", &addresses, &ports))).expect("done");
    assert_eq!([bench.outside("203.0.113.5", 81), bench.outside(NODE, 81)], ["10.244.0.2:80", "pass"]);
    assert_eq!(bench.asks(Client::Inside, "127.0.0.1", "127.0.0.1", 83), "10.244.0.2:80");
    assert_eq!(bench.outside("127.0.0.1", 83), "drop (no_local_endpoint)", "nobody comes there from outside");
}

#[test]
fn an_address_that_the_node_comes_to_have_gets_its_port_then_and_is_a_problem_before() {
    let mut bench = Bench::new(Settings::default());
    bench
        .set(&web(), Some(pod("web", &["10.244.0.2"], &[port(81, Some("203.0.113.5"))])))
        .expect("not missed");
    assert_eq!(bench.outside("203.0.113.5", 81), "pass");
    let problems: Vec<String> = bench.reconciler.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        ["Pod shop/web: portMappings[0].hostIP: 203.0.113.5:81/tcp: the node has no such address now"]
    );
    bench.reconciler.index_mut().set_local_addresses(vec![address("203.0.113.5")]);
    bench.reconcile();
    assert_eq!(bench.outside("203.0.113.5", 81), "10.244.0.2:80");
    assert!(bench.reconciler.problems().is_empty());
}

#[test]
fn a_services_node_port_comes_before_a_pods_host_port_whoever_was_first() {
    for service_first in [true, false] {
        let mut bench = Bench::new(Settings::default());
        let wanted = pod("web", &["10.244.0.2"], &[port(30080, None)]);
        if service_first {
            bench.know_node_port(30080);
        }
        let answer = bench.set(&web(), Some(wanted));
        if service_first {
            let refusal = answer.expect_err("it is the Service's");
            assert_eq!(refusal, "192.0.2.1:30080/tcp is already that of Service shop/front");
        } else {
            answer.expect("free");
            bench.know_node_port(30080);
            bench.reconcile();
        }
        assert_eq!(bench.outside(NODE, 30080), "masqueraded 10.244.0.9:8080");
        let problems: Vec<String> = bench.reconciler.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "Pod shop/web: portMappings[0].hostPort: 192.0.2.1:30080/tcp is already that of Service shop/front"
            ]
        );
        bench.reconciler.index_mut().delete_service(&ObjectName::new("shop", "front"));
        bench.reconcile();
        assert_eq!(bench.outside(NODE, 30080), "10.244.0.2:80", "the Service is gone");
    }
}

#[test]
fn a_port_at_every_address_is_kept_from_processes_that_bind_every_address() {
    let within = NodePortAddresses::Within(vec!["192.0.2.0/24".parse().expect("a range")]);
    let mut bench = Bench::new(Settings { nodeport_addresses: within, ..Settings::default() });
    bench.reconciler.index_mut().set_local_addresses(vec![address(NODE)]);
    bench.set(&web(), Some(pod("web", &["10.244.0.2"], &[port(8080, None)]))).expect("done");
    let keys = bench.maps.frontends().expect("read");
    let addresses: Vec<IpAddr> = keys.iter().map(|(key, _)| key.address.into()).collect();
    assert_eq!(addresses, [address("::"), address(NODE)]);
}

#[test]
fn before_the_api_answers_a_pod_can_have_what_nobody_may_ask_for_yet_once_the_nodes_addresses_are_known() {
    let mut bench = Bench::unlisted(Settings::default(), MemoryMaps::default());
    let wanted = pod("web", &["10.244.0.2"], &[port(8080, None)]);
    let refusal = bench.set(&web(), Some(wanted.clone())).expect_err("where?");
    assert!(refusal.contains("addresses are not known yet"), "{refusal}");
    bench.reconciler.index_mut().set_former_addresses(vec![address(NODE)]);
    bench.set(&web(), Some(wanted)).expect("as the maps of the earlier run said");
    assert_eq!(bench.outside(NODE, 8080), "10.244.0.2:80");
    bench.set(&web(), None).expect("gone, without the API");
    assert_eq!(bench.frontends(), 0);
}

#[test]
fn a_restarted_agent_keeps_host_ports_and_leaves_what_may_be_a_services_until_the_api_answers() {
    let mut before = Bench::new(Settings::default());
    before.know_node_port(30080);
    let wanted = pod("web", &["10.244.0.2"], &[port(8080, None)]);
    before.set(&web(), Some(wanted.clone())).expect("done");
    let frontends = before.maps.frontends().expect("read");

    let mut after = Bench::unlisted(Settings::default(), before.maps);
    after.reconciler.index_mut().set_former_addresses(vec![address(NODE)]);
    after.set(&web(), Some(wanted)).expect("as it was");
    assert_eq!(after.maps.frontends().expect("read"), frontends, "not even written");
    let (other, contested) = (owner("beef", "eth0"), pod("other", &["10.244.0.3"], &[port(30080, None)]));
    let refusal = after.set(&other, Some(contested)).expect_err("it may be a Service's");
    assert!(refusal.contains("192.0.2.1:30080/tcp"), "{refusal}");
    assert_eq!(after.outside(NODE, 30080), "masqueraded 10.244.0.9:8080");

    after.know_node();
    after.reconciler.set_synced();
    after.reconcile();
    assert_eq!(after.outside(NODE, 30080), "10.244.0.3:80", "the Service is gone");
    after.reconciler.has_host_ports(&other).expect("done");
    assert_eq!(after.outside(NODE, 8080), "10.244.0.2:80");
}

#[test]
fn a_host_port_of_a_pod_that_went_while_there_was_no_agent_goes_with_the_first_lists() {
    let mut before = Bench::new(Settings::default());
    before.set(&web(), Some(pod("web", &["10.244.0.2"], &[port(8080, None)]))).expect("done");
    let mut after = Bench::unlisted(Settings::default(), before.maps);
    after.reconcile();
    assert_eq!(after.frontends(), 1, "it may be a Service's");
    after.know_node();
    after.reconciler.set_synced();
    after.reconcile();
    assert_eq!(after.frontends(), 0);
}

#[test]
fn host_ports_are_shown_beside_services_under_their_pods_name() {
    let mut bench = Bench::new(Settings::default());
    bench.know_node_port(30080);
    bench.set(&web(), Some(pod("web", &["10.244.0.2"], &[port(8080, None)]))).expect("done");
    let views = bench.reconciler.services();
    let names: Vec<String> = views
        .iter()
        .map(|ServiceView { namespace, name, port, .. }| format!("{namespace}/{name}:{port}"))
        .collect();
    assert_eq!(names, ["shop/front:", "shop/web:8080"]);
    let frontend = &views[1].frontends[0];
    assert_eq!(frontend.address, "192.0.2.1:8080");
    assert!(frontend.id.is_some() && frontend.keep_source);
    assert_eq!(frontend.internal, ["10.244.0.2:80"]);
}

#[test]
fn ports_overlap_where_one_address_has_both() {
    let overlaps = |one: &HostPort, other: &HostPort| {
        assert_eq!(one.overlaps(other), other.overlaps(one));
        one.overlaps(other)
    };
    let all = port(80, None);
    assert!(overlaps(&all, &all) && overlaps(&all, &port(80, Some("192.0.2.1"))));
    assert!(!overlaps(&port(80, Some("192.0.2.2")), &port(80, Some("192.0.2.1"))));
    assert!(!overlaps(&all, &port(81, None)));
    assert!(!overlaps(&all, &HostPort { protocol: Protocol::Udp, ..port(80, None) }));
}
