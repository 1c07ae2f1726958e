//! STATUS: every cause by its code and name.

use std::fs;

use serde_json::{Value, json};

use crate::agent::Mood;
use crate::host::{Answer, BINARY, Host, Pod};
use crate::runtime::output;

const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// STATUS gets no attachment.
fn status(host: &Host, conf: &Value) -> Answer {
    let mut command = host.command(BINARY, "STATUS", &Pod::new());
    for variable in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
        command.env_remove(variable);
    }
    host.run(&mut command, conf.to_string().as_bytes())
}

fn refused(host: &Host, conf: &Value, code: u64, message: &str, details: &str) {
    let answer = status(host, conf);
    let said = answer.json["details"].as_str().unwrap_or_default().to_owned();
    let (got, msg) = answer.error();
    assert_eq!(got, code, "{msg}: {said}");
    assert!(msg.starts_with(message), "{msg}");
    assert!(said.contains(details), "{said}");
}

#[test]
#[ignore = "needs root: run make test"]
fn a_node_that_can_take_pods_says_nothing() {
    let host = Host::new(&BOTH);
    for conf in [host.conf_without_agent(), host.conf()] {
        let _agent = host.agent(Mood::Willing);
        let answer = status(&host, &conf);
        assert!(answer.success && answer.json.is_null(), "{:#}", answer.json);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_node_without_addresses_for_pods_is_not_available() {
    let host = Host::new(&BOTH);
    let conf = host.conf_without_agent();
    let cause = "the node has no addresses for pods";
    for (content, details) in [
        (r#"{"podCIDRs":[]}"#, "podCIDRs is empty"),
        (r#"{"podCIDRs":["10.0.0.0/24","10.0.0.0/25"]}"#, "podCIDRs: 10.0.0.0/25 overlaps 10.0.0.0/24"),
        ("{", "decode nodeFile"),
    ] {
        fs::write(host.node_file(), content).expect("write");
        refused(&host, &conf, 50, cause, details);
    }
    fs::remove_file(host.node_file()).expect("remove");
    refused(&host, &conf, 50, cause, "is not there yet");
}

#[test]
#[ignore = "needs root: run make test"]
fn a_node_that_can_not_record_addresses_is_not_available() {
    let host = Host::new(&BOTH);
    let mut conf = host.conf_without_agent();
    conf["dataDir"] = json!(host.node_file());
    refused(&host, &conf, 50, "addresses can't be recorded in dataDir", "node.json");
}

#[test]
#[ignore = "needs root: run make test"]
fn a_node_whose_agent_does_not_answer_is_not_available() {
    let host = Host::new(&BOTH);
    let cause = "the agent at agentSocket does not answer";
    refused(&host, &host.conf(), 50, cause, "agent.sock");
    // It listens, but hangs: as one that is stopped.
    let _hanging = std::os::unix::net::UnixListener::bind(host.socket()).expect("bind");
    refused(&host, &host.conf(), 50, cause, "agent.sock");
}

#[test]
#[ignore = "needs root: run make test"]
fn a_node_that_does_not_forward_limits_the_pods_that_are_there() {
    let cause = "the kernel does not forward";
    let host = Host::new(&BOTH);
    let conf = host.conf_without_agent();
    output(&host.netns, &["sysctl", "-w", "net.ipv6.conf.all.forwarding=0"]);
    refused(&host, &conf, 51, cause, "net.ipv6.conf.all.forwarding is 0, and pods have addresses of fd00:");
    output(&host.netns, &["sysctl", "-w", "net.ipv4.ip_forward=0"]);
    refused(&host, &conf, 51, cause, "net.ipv4.ip_forward is 0");
    fs::write(host.node_file(), r#"{"podCIDRs":["fd00::/64"]}"#).expect("write");
    output(&host.netns, &["sysctl", "-w", "net.ipv6.conf.all.forwarding=1"]);
    assert!(status(&host, &conf).success, "no pod has IPv4");
}
