//! ADD, DEL and VERSION.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, UdpSocket};

use fairlead_net::agent::{PodRef, Request};
use fairlead_net::attachment::Attachment;
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

use crate::agent::Mood;
use crate::host::{BINARY, Host, Pod, kernel_state};
use crate::traffic::{addresses, exchange};

const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

#[test]
#[ignore = "needs root: run make test"]
fn two_pods_reach_each_other_over_tcp_and_udp_in_both_families() {
    let host = Host::new(&BOTH);
    let (a, b) = (Pod::new(), Pod::new());
    let (to_a, to_b) = (addresses(&host.add(&a)), addresses(&host.add(&b)));
    assert_eq!((to_a.len(), to_b.len()), (2, 2));
    for family in 0..2 {
        exchange(&a.netns, &b.netns, to_b[family]);
        exchange(&b.netns, &a.netns, to_a[family]);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_reaches_itself_by_its_own_address() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    for address in addresses(&host.add(&pod)) {
        exchange(&pod.netns, &pod.netns, address);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_single_family_node_gives_its_pods_that_family_only() {
    for (range, expected) in [("10.244.1.0/24", "10.244.1.1"), ("fd00::/64", "fd00::1")] {
        let host = Host::new(&[range]);
        let (a, b) = (Pod::new(), Pod::new());
        assert_eq!(addresses(&host.add(&a)), [expected.parse::<IpAddr>().expect("address")]);
        for address in addresses(&host.add(&b)) {
            exchange(&a.netns, &b.netns, address);
        }
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn add_answers_only_after_the_agent_was_told_everything() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    let pod = Pod::new();
    let result = host.cni("ADD", &pod, &host.conf()).result();
    let requests = agent.requests();
    let [Request::AddEndpoint(told)] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!(told.container_id, pod.id);
    assert_eq!(told.ifname, "eth0");
    assert_eq!(told.pod, PodRef { namespace: "shop".into(), name: "web".into(), uid: "u1".into() });
    assert_eq!(told.addresses, addresses(&result));
    assert_eq!(result["interfaces"][0]["name"], told.host_ifname);
    let index = host.netns.run(|| if_nametoindex(told.host_ifname.as_str())).expect("enter");
    assert_eq!(index.expect("the host side"), told.host_ifindex);
    let inside = pod.netns.run(|| {
        let address = nix::ifaddrs::getifaddrs().expect("interfaces").find_map(|interface| {
            let address = interface.address?;
            (interface.interface_name == "eth0").then_some(address.as_link_addr()?.addr()?)
        });
        address.expect("eth0's Ethernet address")
    });
    assert_eq!(inside.expect("enter"), told.pod_mac);
    assert_eq!(result["interfaces"][1]["sandbox"], json!(pod.netns.path()));
    assert_eq!(result["interfaces"][1]["mtu"], 1450);
}

#[test]
#[ignore = "needs root: run make test"]
fn each_version_gets_its_own_result_format() {
    let host = Host::new(&BOTH);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let mut conf = host.conf_without_agent();
        conf["cniVersion"] = version.into();
        let result = host.cni("ADD", &Pod::new(), &conf).result();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0].get("version").is_some(), version == "0.4.0");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn del_removes_every_trace_and_succeeds_again_and_again() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let before = host.traces(&pod);
    host.add(&pod);
    assert_ne!(host.traces(&pod), before);
    for _ in 0..3 {
        host.delete(&pod);
        assert_eq!(host.traces(&pod), before);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn del_works_without_namespace_agent_or_node_file() {
    let host = Host::new(&BOTH);
    let Pod { id, netns } = Pod::new();
    let gone = netns.path();
    let pod = Pod { id, netns };
    host.add(&pod);
    fs::remove_file(host.node_file()).expect("remove the node file");
    let id = pod.id.clone();
    drop(pod);
    assert!(!gone.exists());
    let other = Pod::new();
    let mut command = host.command(BINARY, "DEL", &other);
    command.env("CNI_CONTAINERID", &id).env_remove("CNI_NETNS");
    // The configuration names an agent's socket on which nobody listens.
    assert!(host.run(&mut command, host.conf().to_string().as_bytes()).success);
    assert!(host.addresses_in_use().is_empty());
    command.env("CNI_NETNS", gone);
    assert!(host.run(&mut command, host.conf().to_string().as_bytes()).success);
}

#[test]
#[ignore = "needs root: run make test"]
fn nothing_can_pass_before_the_agent_has_answered_nor_after_it_was_told_to_forget() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    let pod = Pod::new();
    let result = host.cni("ADD", &pod, &host.conf()).result();
    let name = result["interfaces"][0]["name"].as_str().expect("a name").to_owned();
    let of_pod = |state: &BTreeSet<String>| -> BTreeSet<String> {
        state.iter().filter(|line| line.contains(&name)).cloned().collect()
    };
    let asked = agent.heard().pop().expect("a request");
    assert!(matches!(asked.request, Request::AddEndpoint(_)));
    // It is there, to have programs attached to it, and that is all: not up, no route.
    assert_eq!(of_pod(&asked.host), BTreeSet::from([format!("dev {name}:")]));
    let open = of_pod(&kernel_state(&host.netns));
    assert!(open.contains(&format!("up {name}")), "{open:?}");
    assert!(open.iter().any(|line| line.starts_with("route ")), "{open:?}");
    assert!(open.iter().any(|line| line.starts_with("ipv6_route ")), "{open:?}");

    assert!(host.cni("DEL", &pod, &host.conf()).success);
    let told = agent.heard().pop().expect("a request");
    assert!(matches!(told.request, Request::DeleteEndpoint { .. }));
    assert_eq!(of_pod(&told.host), BTreeSet::new());
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_can_send_at_once_when_add_has_answered() {
    let host = Host::new(&BOTH);
    for _ in 0..10 {
        let pod = Pod::new();
        host.add(&pod);
        let sent = pod.netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
            socket.send_to(b"x", "192.0.2.1:9").expect("send");
            let text = fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces");
            let line = text.lines().find(|line| line.contains("eth0")).expect("eth0").to_owned();
            line.split_whitespace().nth(10).expect("packets sent").parse::<u64>().expect("a number")
        });
        assert!(sent.expect("enter") >= 1, "the first packet was dropped");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn del_tells_the_agent() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    let pod = Pod::new();
    host.cni("ADD", &pod, &host.conf()).result();
    assert!(host.cni("DEL", &pod, &host.conf()).success);
    let expected = Request::DeleteEndpoint { container_id: pod.id, ifname: "eth0".into() };
    assert_eq!(agent.requests().last(), Some(&expected));
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_that_the_agent_does_not_answer_leaves_no_trace() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let before = host.traces(&pod);

    let (code, message) = host.cni("ADD", &pod, &host.conf()).error();
    assert_eq!(code, 11);
    assert!(message.starts_with("agentSocket: ") && message.contains("fairlead-proxy"), "{message}");
    assert_eq!(host.traces(&pod), before);

    for (mood, expected) in
        [(Mood::Refusing, "the policies of shop/web are not known yet"), (Mood::Breaking, "agentSocket: ")]
    {
        let agent = host.agent(mood);
        let (code, message) = host.cni("ADD", &pod, &host.conf()).error();
        assert_eq!(code, 11, "{mood:?}");
        assert!(message.contains(expected), "{mood:?}: {message}");
        assert_eq!(host.traces(&pod), before, "{mood:?}");
        let last = agent.requests().pop();
        assert!(matches!(last, Some(Request::DeleteEndpoint { .. })), "{mood:?}: {last:?}");
    }

    let _agent = host.agent(Mood::Willing);
    host.cni("ADD", &pod, &host.conf()).result();
}

#[test]
#[ignore = "needs root: run make test"]
fn a_second_add_of_an_attachment_fails_and_leaves_the_first_alone() {
    let host = Host::new(&BOTH);
    let (pod, client) = (Pod::new(), Pod::new());
    host.add(&client);
    let given = addresses(&host.add(&pod));
    let before = host.traces(&pod);
    let (code, message) = host.cni("ADD", &pod, &host.conf_without_agent()).error();
    assert_eq!(code, 100);
    assert!(message.contains("attached already"), "{message}");
    assert_eq!(host.traces(&pod), before);
    exchange(&client.netns, &pod.netns, given[0]);
}

#[test]
#[ignore = "needs root: run make test"]
fn add_fails_when_the_pod_has_an_interface_of_that_name() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let mut command = host.command(BINARY, "ADD", &pod);
    let before = host.traces(&pod);
    command.env("CNI_IFNAME", "lo");
    let (code, message) = host.run(&mut command, host.conf_without_agent().to_string().as_bytes()).error();
    assert_eq!((code, message.as_str()), (100, "interface lo exists already in the pod"));
    assert_eq!(host.traces(&pod), before);
}

#[test]
#[ignore = "needs root: run make test"]
fn exhaustion_is_a_clear_error_without_a_trace_and_a_freed_address_helps() {
    let host = Host::new(&["10.244.1.0/30"]);
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    host.add(&pods[0]);
    host.add(&pods[1]);
    let before = host.traces(&pods[2]);
    let (code, message) = host.cni("ADD", &pods[2], &host.conf_without_agent()).error();
    assert_eq!((code, message.as_str()), (101, "no free address in 10.244.1.0/30: 2 in use"));
    assert_eq!(host.traces(&pods[2]), before);
    host.delete(&pods[0]);
    host.add(&pods[2]);
}

#[test]
#[ignore = "needs root: run make test"]
fn bad_input_gets_the_specifications_error_object_and_leaves_no_trace() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let before = host.traces(&pod);
    let conf = host.conf_without_agent();
    let with = |field: &str, value: Value| {
        let mut conf = conf.clone();
        conf[field] = value;
        conf.to_string()
    };
    let good = conf.to_string();
    let set = |name: &'static str, value: &'static str| Some((name, value));
    let cases = [
        ("ADD", None, "{\"cniVersion\"".into(), 6, "decode the network configuration"),
        ("ADD", None, with("cniVersion", "0.2.0".into()), 1, "cniVersion \"0.2.0\""),
        ("ADD", None, with("name", Value::Null), 7, "name: "),
        ("ADD", None, with("mtu", "big".into()), 7, "mtu: "),
        ("ADD", None, with("nodeFile", "/nonexistent/node.json".into()), 11, "nodeFile /nonexistent/"),
        ("ADD", set("CNI_CONTAINERID", ""), good.clone(), 4, "CNI_CONTAINERID"),
        ("ADD", set("CNI_CONTAINERID", "../x"), good.clone(), 4, "CNI_CONTAINERID"),
        ("ADD", set("CNI_IFNAME", ""), good.clone(), 4, "CNI_IFNAME"),
        ("ADD", set("CNI_NETNS", ""), good.clone(), 4, "CNI_NETNS"),
        ("ADD", set("CNI_NETNS", "/run/netns/no-such"), good.clone(), 3, "CNI_NETNS"),
        ("ADD", set("CNI_NETNS", "/proc/self/ns/net"), good.clone(), 4, "CNI_NETNS"),
        ("ADD", set("CNI_ARGS", "K8S_POD_NAME"), good.clone(), 4, "CNI_ARGS"),
        ("DEL", None, "{".into(), 6, "decode the network configuration"),
        ("JUMP", None, good.clone(), 4, "CNI_COMMAND"),
    ];
    for (verb, variable, input, code, message) in cases {
        let mut command = host.command(BINARY, verb, &pod);
        command.envs(variable);
        let answer = host.run(&mut command, input.as_bytes());
        assert!(answer.json["cniVersion"].is_string(), "{:#}", answer.json);
        let (got, said) = answer.error();
        assert_eq!(got, code, "{verb} {variable:?} {input}: {said}");
        assert!(said.starts_with(message), "{verb} {variable:?} {input}: {said}");
        assert_eq!(host.traces(&pod), before, "{verb} {variable:?} {input}");
    }
    let mut command = host.command(BINARY, "ADD", &pod);
    command.env_remove("CNI_COMMAND");
    assert_eq!(host.run(&mut command, good.as_bytes()).error(), (4, "CNI_COMMAND is not set".into()));
}

#[test]
#[ignore = "needs root: run make test"]
fn verbs_of_1_1_0_are_refused_under_older_versions() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    for (verb, version) in [("GC", "0.4.0"), ("GC", "1.0.0"), ("STATUS", "0.4.0"), ("STATUS", "1.0.0")] {
        let mut conf = host.conf_without_agent();
        conf["cniVersion"] = version.into();
        conf["cni.dev/valid-attachments"] = json!([]);
        let (code, message) = host.cni(verb, &pod, &conf).error();
        assert_eq!(code, 1);
        assert_eq!(message, format!("cniVersion \"{version}\" has no {verb}: it came with 1.1.0"));
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn version_lists_what_is_spoken() {
    let host = Host::new(&BOTH);
    let answer = host.cni("VERSION", &Pod::new(), &json!({"cniVersion": "1.0.0"})).result();
    assert_eq!(answer, json!({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}));
}

#[test]
#[ignore = "needs root: run make test"]
fn the_hosts_own_interfaces_and_routes_are_never_touched() {
    let host = Host::new(&BOTH);
    let before = kernel_state(&host.netns);
    let pod = Pod::new();
    host.add(&pod);
    let name = Attachment::new(&pod.id, "eth0").expect("valid").host_ifname();
    let after = kernel_state(&host.netns);
    assert!(before.is_subset(&after));
    for line in after.difference(&before) {
        assert!(line.contains(&name) || line.ends_with(" lo"), "{line}");
    }
}
