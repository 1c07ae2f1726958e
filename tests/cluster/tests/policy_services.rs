//! Policies and Services: a rule means the pod behind the Service, and the port on which it listens.

use anyhow::Result;
use fairlead_cluster_tests::matrix::{Matrix, requests};
use fairlead_cluster_tests::policy::{Estate, closed, web_egress, web_ingress};
use fairlead_cluster_tests::scene::{at_node_ports, node_addresses};
use fairlead_cluster_tests::{POD_PORT, SERVICE_PORT, service, with_cluster, with_cluster_of};
use fairlead_harness::{Cluster, Options, Protocol, Way};
use serde_json::json;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_rule_means_the_port_of_the_pod_and_not_that_of_its_service() {
    with_cluster(a_rule_means_the_pods_port);
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn it_does_so_where_sockets_are_translated_too() {
    with_cluster_of(Options::default().with_arguments(&["--socket-lb=all"]), a_rule_means_the_pods_port);
}

fn a_rule_means_the_pods_port(cluster: &mut Cluster) -> Result<()> {
    let estate = Estate::set(cluster)?;
    cluster.apply(&(service("web", "web", "NodePort") + &service("peers", "peer", "ClusterIP")))?;
    let matrix = by_clusterips(cluster, &estate)?;
    let everyone = "
              web  peers
    web        .     .
    near       .     .
    far        .     .
    guest      .     .
    away       .     .
    ";
    matrix.shows(everyone)?;
    let api = cluster.api();
    let peers = json!([{ "podSelector": { "matchLabels": { "app": "peer" } } }]);
    let on = |port: u16| {
        let ports = Protocol::ALL.map(|p| json!({ "port": port, "protocol": p.to_string().to_uppercase() }));
        web_ingress("web", json!([{ "from": peers, "ports": ports }]))
    };
    api.apply(&on(SERVICE_PORT))?;
    // A pod reaches itself, whatever the rules are.
    matrix.shows(
        "
              web  peers
    web        .     .
    near       X     .
    far        X     .
    guest      X     .
    away       X     .
    ",
    )?;
    api.apply(&on(POD_PORT))?;
    matrix.shows(
        "
              web  peers
    web        .     .
    near       .     .
    far        .     .
    guest      X     .
    away       X     .
    ",
    )?;
    // The client's side knows who is behind the Service as well.
    api.apply(&closed("web-asks-nobody", "web", &["Egress"]))?;
    matrix.shows("web peers\n web . X\n near . .\n guest X .")?;
    api.apply(&web_egress(
        "web-asks-peers",
        json!([{ "to": peers, "ports": [
        { "port": POD_PORT, "protocol": "TCP" }, { "port": POD_PORT, "protocol": "UDP" },
        { "port": POD_PORT, "protocol": "SCTP" }] }]),
    ))?;
    matrix.shows("web peers\n web . .\n near . .\n guest X .")
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_outside_is_judged_by_its_own_address_at_the_node_port_of_the_pods_node() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        cluster.apply(&service("web", "web", "NodePort"))?;
        let at = |node: &str| -> Result<Vec<Way>> {
            let targets = at_node_ports(cluster, "web", &node_addresses(cluster, node)?)?;
            Ok(targets.into_iter().map(|(protocol, target)| Way::Request(protocol, target)).collect())
        };
        let matrix = Matrix::default().target("node1-port", at("node1")?).target("node2-port", at("node2")?);
        let matrix = matrix.asker_from("out0", estate.outside(), &estate.outside_ips(0)).asker_from(
            "out1",
            estate.outside(),
            &estate.outside_ips(1),
        );
        matrix.shows("node1-port node2-port\n out0 . .\n out1 . .")?;
        let block = |cidr: &str| json!({ "ipBlock": { "cidr": cidr } });
        let out0 = [block("10.90.0.100/32"), block("fd00:90::100/128")];
        cluster.api().apply(&web_ingress("out0", json!([{ "from": out0 }])))?;
        // By way of the other node it comes from that node's address, which is neither the client's nor the own node's.
        matrix.shows("node1-port node2-port\n out0 . X\n out1 X X")?;
        let node2 = [block("10.90.0.12/32"), block("fd00:90::12/128")];
        cluster.api().apply(&web_ingress("node2", json!([{ "from": node2 }])))?;
        matrix.shows("node1-port node2-port\n out0 . .\n out1 X .")
    });
}

/// Everyone asks both Services at their ClusterIPs.
fn by_clusterips<'a>(cluster: &Cluster, estate: &'a Estate) -> Result<Matrix<'a>> {
    let mut matrix = Matrix::default();
    for name in ["web", "near", "far", "guest", "away"] {
        matrix = matrix.asker(name, &estate.pod(name)?.place);
    }
    for name in ["web", "peers"] {
        let ips = cluster.cluster_ips(name)?;
        matrix = matrix.target(name, requests(&ips, SERVICE_PORT, &Protocol::ALL));
    }
    Ok(matrix)
}
