//! What a runtime asks for besides: bandwidth, addresses, an Ethernet address, ports of the node.

use std::net::IpAddr;
use std::time::Duration;

use fairlead_net::agent::Request;
use serde_json::{Value, json};

use crate::agent::Mood;
use crate::host::{BINARY, Host, Pod};
use crate::runtime::output;
use crate::traffic::{addresses, exchange, transfer};

const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

fn asking(conf: &Value, capability: &str, value: Value) -> Value {
    let mut conf = conf.clone();
    conf["runtimeConfig"] = json!({capability: value});
    conf
}

#[test]
#[ignore = "needs root: run make test"]
fn bandwidth_limits_what_a_pod_is_sent_and_what_it_sends_and_nothing_else() {
    const BYTES: usize = 1_500_000;
    let host = Host::new(&BOTH);
    let (slow, peer) = (Pod::new(), Pod::new());
    host.add(&peer);
    // A megabyte a second.
    let limits = json!({
        "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000,
    });
    let conf = asking(&host.conf_without_agent(), "bandwidth", limits);
    let result = host.cni("ADD", &slow, &conf).result();
    let name = result["interfaces"][0]["name"].as_str().expect("a name");
    let address = addresses(&result)[0];

    // What a burst and the queue do not hold takes its time: 1.5 MB less 0.1 and 0.125.
    let limited = Duration::from_millis(1100)..Duration::from_secs(6);
    let sent = transfer(&peer.netns, &slow.netns, address, BYTES);
    assert!(limited.contains(&sent), "to the pod: {sent:?}");
    let received = transfer(&slow.netns, &peer.netns, "10.244.1.1".parse().expect("address"), BYTES);
    assert!(limited.contains(&received), "from the pod: {received:?}");
    let itself = transfer(&slow.netns, &slow.netns, address, BYTES);
    assert!(itself < limited.start, "within the pod: {itself:?}");

    for (netns, ifname) in [(&host.netns, name), (&slow.netns, "eth0")] {
        let queue = output(netns, &["tc", "-s", "qdisc", "show", "dev", ifname]);
        assert!(queue.contains("qdisc tbf 1: root") && queue.contains("rate 8Mbit burst 100000b"), "{queue}");
        assert!(!queue.contains("Sent 0 bytes"), "{queue}");
    }
    let mut checked = conf;
    checked["prevResult"] = result.clone();
    let answer = host.cni("CHECK", &slow, &checked);
    assert!(answer.success, "{:#}", answer.json);
    output(&host.netns, &["tc", "qdisc", "del", "dev", name, "root"]);
    let (code, message) = host.cni("CHECK", &slow, &checked).error();
    assert_eq!(code, 102);
    assert!(message.contains("nothing limits what it sends to 8000000 bit/s"), "{message}");
}

#[test]
#[ignore = "needs root: run make test"]
fn the_agent_is_told_whether_what_a_pod_is_sent_is_limited() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    for (limits, shaped) in [
        (json!({"ingressRate": 8_000_000, "ingressBurst": 800_000}), true),
        (json!({"egressRate": 8_000_000, "egressBurst": 800_000}), false),
        (json!({}), false),
    ] {
        host.cni("ADD", &Pod::new(), &asking(&host.conf(), "bandwidth", limits.clone())).result();
        let Some(Request::AddEndpoint(told)) = agent.requests().pop() else { panic!("no request") };
        assert_eq!(told.is_shaped, shaped, "{limits}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_gets_the_addresses_that_it_asks_for_by_each_way() {
    let host = Host::new(&BOTH);
    let expected: [IpAddr; 2] =
        ["10.244.1.77", "fd00:10:244:1::77"].map(|text| text.parse().expect("address"));
    let conf = host.conf_without_agent();
    let mut by_args = conf.clone();
    by_args["args"] = json!({"cni": {"ips": ["10.244.1.77", "fd00:10:244:1::77"]}});
    let by_runtime = asking(&conf, "ips", json!(["10.244.1.77/24", "fd00:10:244:1::77/64"]));
    for (conf, variable) in [
        (by_runtime, "IgnoreUnknown=1"),
        (by_args, "IgnoreUnknown=1"),
        (conf, "IP=10.244.1.77,fd00:10:244:1::77/64"),
    ] {
        let pod = Pod::new();
        let mut command = host.command(BINARY, "ADD", &pod);
        command.env("CNI_ARGS", variable);
        let result = host.run(&mut command, conf.to_string().as_bytes()).result();
        assert_eq!(addresses(&result), expected);
        host.delete(&pod);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn an_address_that_can_not_be_had_is_refused_without_a_trace() {
    let host = Host::new(&BOTH);
    let (owner, pod) = (Pod::new(), Pod::new());
    host.add(&owner);
    let before = host.traces(&pod);
    for (wanted, code, expected) in [
        ("10.244.1.1", 101, format!("10.244.1.1 can't be given: {}/eth0 has it", owner.id)),
        (
            "10.244.2.1",
            7,
            "10.244.2.1 can't be given: it is no pod's address in 10.244.1.0/24, fd00:10:244:1::/64".into(),
        ),
        (
            "10.244.1.255",
            7,
            "10.244.1.255 can't be given: it is no pod's address in 10.244.1.0/24, fd00:10:244:1::/64".into(),
        ),
        ("10.244.1.256", 7, "runtimeConfig.ips[0]: \"10.244.1.256\" is no IP address".into()),
    ] {
        let conf = asking(&host.conf_without_agent(), "ips", json!([wanted]));
        assert_eq!(host.cni("ADD", &pod, &conf).error(), (code, expected));
        assert_eq!(host.traces(&pod), before, "{wanted}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_has_the_ethernet_address_that_it_asks_for_and_is_reached() {
    let host = Host::new(&BOTH);
    let peer = Pod::new();
    host.add(&peer);
    let conf = host.conf_without_agent();
    for (n, conf, variable) in
        [(1, asking(&conf, "mac", json!("02:00:00:00:00:01")), ""), (2, conf, "MAC=02:00:00:00:00:02")]
    {
        let pod = Pod::new();
        let mut command = host.command(BINARY, "ADD", &pod);
        command.env("CNI_ARGS", variable);
        let result = host.run(&mut command, conf.to_string().as_bytes()).result();
        let mac = format!("02:00:00:00:00:0{n}");
        assert_eq!(result["interfaces"][1]["mac"], mac.as_str());
        assert!(output(&pod.netns, &["ip", "link", "show", "eth0"]).contains(&mac));
        for address in addresses(&result) {
            exchange(&peer.netns, &pod.netns, address);
        }
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn port_mappings_are_the_agents_and_an_error_where_there_is_none() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    let pod = Pod::new();
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
        {"hostPort": 0, "containerPort": 81},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
    ]);
    host.cni("ADD", &pod, &asking(&host.conf(), "portMappings", mappings.clone())).result();
    let Some(Request::AddEndpoint(told)) = agent.requests().pop() else { panic!("no request") };
    assert_eq!(
        serde_json::to_value(&told.port_mappings).expect("JSON"),
        json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
        ])
    );
    let other = Pod::new();
    let before = host.traces(&other);
    let conf = host.conf_without_agent();
    let (code, message) = host.cni("ADD", &other, &asking(&conf, "portMappings", mappings)).error();
    assert_eq!(code, 7);
    assert!(message.starts_with("runtimeConfig.portMappings: only the agent maps ports"), "{message}");
    let bad = json!([{"hostPort": 8080, "containerPort": 80}, {"hostPort": 65_536, "containerPort": 80}]);
    let (code, message) = host.cni("ADD", &other, &asking(&host.conf(), "portMappings", bad)).error();
    assert_eq!((code, message.as_str()), (7, "runtimeConfig.portMappings[1].hostPort: 65536 is no port"));
    assert_eq!(host.traces(&other), before);
    // Those that are none need nobody.
    let none = json!([{"hostPort": 0, "containerPort": 80}]);
    host.cni("ADD", &other, &asking(&conf, "portMappings", none)).result();
}
