//! Whom a NetworkPolicy's rules mean: by labels of pods and namespaces, by blocks of addresses, by ports.

use fairlead_cluster_tests::POD_PORT;
use fairlead_cluster_tests::matrix::{Matrix, echoes, requests};
use fairlead_cluster_tests::policy::{
    Estate, OTHER_PORT, by_sockets, by_tcp, namespace, pod, web_egress, web_ingress,
};
use fairlead_cluster_tests::with_cluster;
use fairlead_harness::Protocol;
use serde_json::{Value, json};

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn peers_are_chosen_by_labels_of_pods_and_of_namespaces_and_of_both() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let matrix = estate.matrix(by_sockets);
        let column = |cells: [char; 5]| {
            let [near, far, guest, away, outside] = cells;
            format!("web\nnear {near}\nfar {far}\nguest {guest}\naway {away}\noutside {outside}")
        };
        let is = |key: &str, value: &str| json!({ "matchLabels": { key: value } });
        let expression = |key: &str, operator: &str, values: Option<Value>| {
            let mut requirement = json!({ "key": key, "operator": operator });
            if let Some(values) = values {
                requirement["values"] = values;
            }
            json!({ "matchExpressions": [requirement] })
        };
        let named = |name| is("kubernetes.io/metadata.name", name);
        let two = json!([
            { "namespaceSelector": named("bank"), "podSelector": is("app", "peer") },
            { "podSelector": is("app", "peer") },
        ]);
        for (peers, expected) in [
            (json!([{ "podSelector": is("app", "peer") }]), ['.', '.', 'X', 'X', 'X']),
            // Of the policy's own namespace.
            (json!([{ "podSelector": is("app", "guest") }]), ['X', 'X', 'X', 'X', 'X']),
            (json!([{ "podSelector": {} }]), ['.', '.', 'X', 'X', 'X']),
            (json!([{ "namespaceSelector": is("team", "blue") }]), ['X', 'X', '.', '.', 'X']),
            (json!([{ "namespaceSelector": {} }]), ['.', '.', '.', '.', 'X']),
            (
                json!([{ "namespaceSelector": is("team", "blue"), "podSelector": is("app", "guest") }]),
                ['X', 'X', '.', '.', 'X'],
            ),
            (two, ['.', '.', 'X', 'X', 'X']),
            (
                json!([{ "podSelector": expression("app", "NotIn", Some(json!(["web", "peer"]))),
                    "namespaceSelector": expression("team", "Exists", None) }]),
                ['X', 'X', '.', '.', 'X'],
            ),
            (
                json!([{ "podSelector": expression("absent", "DoesNotExist", None),
                    "namespaceSelector": expression("team", "In", Some(json!(["red", "green"]))) }]),
                ['.', '.', 'X', 'X', 'X'],
            ),
            (json!([]), ['.', '.', '.', '.', '.']),
        ] {
            cluster.api().apply(&web_ingress("peers", json!([{ "from": peers }])))?;
            matrix.shows(&column(expected)).map_err(|error| error.context(format!("from: {peers}")))?;
        }
        // Another policy adds to it.
        let guests = json!([{ "from": [{ "namespaceSelector": named("bank") }] }]);
        cluster.api().apply(&web_ingress("peers", json!([])))?;
        cluster.api().apply(&web_ingress("guests", guests))?;
        matrix.shows(&column(['X', 'X', '.', '.', 'X']))
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_change_of_labels_changes_who_is_meant() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let matrix = estate.matrix(by_sockets);
        let api = cluster.api();
        let blue = json!({ "namespaceSelector": { "matchLabels": { "team": "blue" } } });
        let trusted = json!({ "podSelector": { "matchLabels": { "trusted": "yes" } } });
        api.apply(&web_ingress("some", json!([{ "from": [blue, trusted] }])))?;
        matrix.shows("web\n near X\n far X\n guest .\n away .")?;

        for (name, node) in [("near", "node1"), ("far", "node2")] {
            api.apply(&pod("default", name, json!({ "app": "peer", "trusted": "yes" }), node))?;
        }
        matrix.shows("web\n near .\n far .\n guest .\n away .")?;
        api.apply(&pod("default", "far", json!({ "app": "peer" }), "node2"))?;
        matrix.shows("web\n near .\n far X\n guest .\n away .")?;
        api.apply(&namespace("bank", json!({ "team": "green" })))?;
        matrix.shows("web\n near .\n far X\n guest X\n away X")?;

        // The pod that is guarded gets another label, and is nobody's any more; and back.
        api.apply(&pod("default", "web", json!({ "app": "free" }), "node1"))?;
        matrix.shows("web\n near .\n far .\n guest .\n away .")?;
        api.apply(&pod("default", "web", json!({ "app": "web" }), "node1"))?;
        matrix.shows("web\n near .\n far X\n guest X\n away X")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn addresses_are_let_in_by_their_block_but_for_its_exceptions() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let web = estate.pod("web")?;
        let mut matrix = Matrix::default().target("web", by_sockets(&web.ips));
        let names = ["out0", "out1", "out2", "out3"];
        for (number, name) in names.iter().enumerate() {
            matrix = matrix.asker_from(name, estate.outside(), &estate.outside_ips(number));
        }
        let far = estate.pod("far")?;
        let matrix = matrix.asker("far", &far.place);
        let block = |cidr: &str, except: &[&str]| json!({ "ipBlock": { "cidr": cidr, "except": except } });
        let from = |peers: Value| web_ingress("blocks", json!([{ "from": peers }]));
        // The client outside has 10.90.0.100 to 103, and fd00:90::100 to 103.
        let but_one =
            [block("10.90.0.100/30", &["10.90.0.101/32"]), block("fd00:90::100/126", &["fd00:90::101/128"])];
        cluster.api().apply(&from(json!(but_one)))?;
        matrix.shows("web\n out0 .\n out1 X\n out2 .\n out3 .\n far X")?;
        // An exception takes nothing from what another block gives.
        let again = [&but_one[..], &[block("10.90.0.101/32", &[]), block("fd00:90::101/128", &[])]].concat();
        cluster.api().apply(&from(json!(again)))?;
        matrix.shows("web\n out0 .\n out1 .\n out2 .\n out3 .\n far X")?;
        // A block means pods as well.
        let pods = [block("10.244.2.0/24", &[]), block("fd00:10:244:2::/64", &[])];
        cluster.api().apply(&from(json!(pods)))?;
        matrix.shows("web\n out0 X\n out1 X\n out2 X\n out3 X\n far .")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_pod_may_ask_outside_is_a_block_too() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let web = estate.pod("web")?;
        let mut matrix = Matrix::default().asker("web", &web.place);
        for (number, name) in ["out0", "out1"].into_iter().enumerate() {
            matrix = matrix.target(name, echoes(&estate.outside_ips(number)));
        }
        let matrix = matrix.target("far", by_sockets(&estate.pod("far")?.ips));
        let block = |cidr: &str, except: &str| json!({ "ipBlock": { "cidr": cidr, "except": [except] } });
        let to = [block("0.0.0.0/0", "10.90.0.101/32"), block("::/0", "fd00:90::101/128")];
        cluster.api().apply(&web_egress("blocks", json!([{ "to": to }])))?;
        matrix.shows("out0 out1 far\n web . X .")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn ports_are_meant_by_number_range_name_and_protocol() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        let ips = estate.pod("web")?.ips.clone();
        let mut matrix = Matrix::default().target("echo", echoes(&ips));
        for (name, port, protocol) in [
            ("tcp", POD_PORT, Protocol::Tcp),
            ("udp", POD_PORT, Protocol::Udp),
            ("sctp", POD_PORT, Protocol::Sctp),
            ("other", OTHER_PORT, Protocol::Tcp),
        ] {
            matrix = matrix.target(name, requests(&ips, port, &[protocol]));
        }
        for name in ["near", "far"] {
            matrix = matrix.asker(name, &estate.pod(name)?.place);
        }
        for (ports, cells) in [
            (json!([{ "port": POD_PORT }]), ". X X X X"),
            (json!([{ "port": POD_PORT, "protocol": "UDP" }]), "X . X X X"),
            (json!([{ "port": POD_PORT, "protocol": "SCTP" }]), "X X . X X"),
            (json!([{ "protocol": "TCP" }]), ". X X . X"),
            (json!([{ "port": POD_PORT - 3, "endPort": POD_PORT }]), ". X X X X"),
            (json!([{ "port": POD_PORT, "endPort": OTHER_PORT }]), ". X X . X"),
            (json!([{ "port": OTHER_PORT, "endPort": 65_535 }]), "X X X . X"),
            (json!([{ "port": "web" }, { "port": "datagrams", "protocol": "UDP" }]), ". . X X X"),
            // A name means a port of the protocol; this one's is another, and that one is nobody's.
            (json!([{ "port": "datagrams" }, { "port": "nobody" }]), "X X X X X"),
            (json!([{ "port": "other" }, { "port": POD_PORT, "protocol": "UDP" }]), "X . X . X"),
            (json!([]), ". . . . ."),
        ] {
            cluster.api().apply(&web_ingress("ports", json!([{ "ports": ports }])))?;
            let table = format!("tcp udp sctp other echo\n near {cells}\n far {cells}");
            matrix.shows(&table).map_err(|error| error.context(format!("ports: {ports}")))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_name_of_a_port_is_the_destinations() {
    with_cluster(|cluster| {
        let estate = Estate::set(cluster)?;
        // Of the pod that asks, the name is of another port.
        let mut swapped = pod("default", "swapped", json!({ "app": "peer" }), "node2");
        swapped["spec"]["containers"][0]["ports"] = json!([
            { "name": "web", "containerPort": OTHER_PORT },
            { "name": "other", "containerPort": POD_PORT },
        ]);
        cluster.api().apply(&swapped)?;
        let swapped = cluster.pod("swapped")?;
        let far = &estate.pod("far")?.ips;
        let web = estate.pod("web")?;
        let matrix = Matrix::default()
            .asker("web", &web.place)
            .target("far-8080", by_tcp(POD_PORT)(far))
            .target("far-8081", by_tcp(OTHER_PORT)(far))
            .target("swapped-8080", by_tcp(POD_PORT)(&swapped.ips))
            .target("swapped-8081", by_tcp(OTHER_PORT)(&swapped.ips));
        cluster.api().apply(&web_egress("by-name", json!([{ "ports": [{ "port": "web" }] }])))?;
        matrix.shows("far-8080 far-8081 swapped-8080 swapped-8081\n web . X X .")
    });
}
