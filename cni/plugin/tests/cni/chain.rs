//! Beside other plugins: before and after the reference ones, through ADD, CHECK and DEL.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::host::{Host, Pod};
use crate::runtime::{Runtime, has_command, ours, output, reference};

const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// The versions that the reference plugins of Debian 12 speak too.
const VERSIONS: [&str; 2] = ["0.4.0", "1.0.0"];

#[test]
#[ignore = "needs root: run make test"]
fn every_verb_passes_through_a_chain_with_tuning_after_us() {
    let Some(plugins) = reference(&["tuning"]) else { return };
    for version in VERSIONS {
        let host = Host::new(&BOTH);
        let pod = Pod::new();
        let before = host.traces(&pod);
        let tuning = json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "77"}, "mtu": 1400});
        let list = vec![ours(&host.conf_without_agent(), &[]), tuning];
        let runtime = Runtime::new(&host, version, list, &plugins);
        let result = runtime.add(&pod, &json!({})).expect("ADD");
        assert_eq!(result["ips"].as_array().expect("ips").len(), 2, "{result:#}");
        let somaxconn = || std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("somaxconn");
        assert_eq!(pod.netns.run(somaxconn).expect("enter").trim(), "77");
        runtime.check(&pod, "").expect("CHECK, with the smaller MTU too");
        runtime.delete(&pod);
        runtime.delete(&pod);
        assert_eq!(host.traces(&pod), before, "{version}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn the_reference_portmap_after_us_maps_ports_where_no_agent_does() {
    let Some(plugins) = reference(&["portmap"]) else { return };
    if !has_command("iptables") {
        return;
    }
    for version in VERSIONS {
        let host = Host::new(&BOTH);
        output(&host.netns, &["ip", "address", "add", "192.0.2.1/32", "dev", "lo"]);
        let pod = Pod::new();
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let list = vec![ours(&host.conf_without_agent(), &["bandwidth", "ips", "mac"]), portmap];
        let runtime = Runtime::new(&host, version, list, &plugins);
        let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let result = runtime.add(&pod, &mapping).expect("ADD");
        let address: IpAddr = "10.244.1.1".parse().expect("address");
        assert_eq!(result["ips"][0]["address"], "10.244.1.1/32");
        // portmap's own CHECK (1.1.1) looks for its IPv4 rules among those of IPv6.
        runtime.check(&pod, "portmap").expect("CHECK");

        let server = pod.netns.run(|| TcpListener::bind((address, 80)).expect("listen")).expect("enter");
        let serving = std::thread::spawn(move || server.accept().map(drop));
        let dial = || {
            TcpStream::connect_timeout(&"192.0.2.1:8080".parse().expect("address"), Duration::from_secs(5))
        };
        host.netns.run(dial).expect("enter").expect("the host port leads to the pod");
        serving.join().expect("the server").expect("accepted");

        runtime.delete(&pod);
        assert!(host.addresses_in_use().is_empty());
        let rules = output(&host.netns, &["iptables", "-t", "nat", "-S"]);
        assert!(!rules.contains("10.244.1.1"), "{rules}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn the_reference_bandwidth_after_us_limits_our_interface() {
    let Some(plugins) = reference(&["bandwidth"]) else { return };
    for version in VERSIONS {
        let host = Host::new(&BOTH);
        let pod = Pod::new();
        let before = host.traces(&pod);
        let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
        let list = vec![ours(&host.conf_without_agent(), &[]), bandwidth];
        let runtime = Runtime::new(&host, version, list, &plugins);
        let limits = json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}});
        let result = runtime.add(&pod, &limits).expect("ADD");
        let name = result["interfaces"][0]["name"].as_str().expect("a name").to_owned();
        let queues = output(&host.netns, &["tc", "qdisc", "show", "dev", &name]);
        assert!(queues.contains("qdisc tbf"), "{queues}");
        runtime.check(&pod, "").expect("CHECK");
        runtime.delete(&pod);
        assert_eq!(host.traces(&pod), before, "{version}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn what_a_plugin_before_us_has_answered_is_passed_on_with_ours_behind_it() {
    let Some(plugins) = reference(&["ptp", "host-local"]) else { return };
    for version in VERSIONS {
        let host = Host::new(&BOTH);
        let pod = Pod::new();
        let before = host.traces(&pod);
        let ipam = json!({
            "type": "host-local", "dataDir": host.dir.path().join("host-local"),
            "ranges": [[{"subnet": "192.0.2.0/24"}]],
        });
        let ptp = json!({"type": "ptp", "ifname": "net0", "ipam": ipam});
        let list = vec![ptp, ours(&host.conf_without_agent(), &[])];
        let runtime = Runtime::new(&host, version, list, &plugins);
        let result = runtime.add(&pod, &json!({})).expect("ADD");
        let names: Vec<&str> = result["interfaces"]
            .as_array()
            .expect("interfaces")
            .iter()
            .map(|interface| interface["name"].as_str().expect("a name"))
            .collect();
        assert_eq!((names.len(), names[1], names[3]), (4, "net0", "eth0"), "{result:#}");
        for ip in result["ips"].as_array().expect("ips") {
            let theirs = ip["address"].as_str().expect("address").starts_with("192.0.2.");
            assert_eq!(ip["interface"], if theirs { 1 } else { 3 }, "{result:#}");
            assert_eq!(ip.get("version").is_some(), version == "0.4.0", "{result:#}");
        }
        // ptp's own CHECK looks for every address of the result on its interface.
        runtime.check(&pod, "ptp").expect("CHECK");
        runtime.delete(&pod);
        assert_eq!(host.traces(&pod), before, "{version}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_previous_result_that_makes_no_sense_is_refused_by_add_and_check_and_does_not_keep_del() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let before = host.traces(&pod);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let mut conf = host.conf_without_agent();
        conf["cniVersion"] = version.into();
        conf["prevResult"] = json!({"cniVersion": version, "ips": [{"address": "10.0.0.1"}]});
        for verb in ["ADD", "CHECK"] {
            let (code, message) = host.cni(verb, &pod, &conf).error();
            assert_eq!(code, 7, "{verb}: {message}");
            assert!(message.starts_with("prevResult.ips[0].address: "), "{verb}: {message}");
            assert_eq!(host.traces(&pod), before);
        }
        host.add(&pod);
        assert!(host.cni("DEL", &pod, &conf).success);
        assert_eq!(host.traces(&pod), before);
    }
}

/// `cnitool` is in no package of Debian: where somebody has put it on the path, it must work with us.
#[test]
#[ignore = "needs root: run make test"]
fn cnitool_adds_checks_and_deletes() {
    if !has_command("cnitool") {
        return;
    }
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let before = host.traces(&pod);
    let conf_dir = host.dir.path().join("conf");
    std::fs::create_dir(&conf_dir).expect("directory");
    let versions = ["0.4.0", "1.0.0", "1.1.0"];
    let entry = ours(&host.conf_without_agent(), &["ips"]);
    let list = json!({"cniVersion": "1.0.0", "cniVersions": versions, "name": "pods", "plugins": [entry]});
    std::fs::write(conf_dir.join("10-pods.conflist"), list.to_string()).expect("write the list");
    let path = Path::new(crate::host::BINARY).parent().expect("a directory");
    let run = |verb: &str| -> Value {
        let mut command = Command::new("cnitool");
        command.args([verb, "pods"]).arg(pod.netns.path()).env("NETCONFPATH", &conf_dir);
        command.env("CNI_PATH", path).env("CAP_ARGS", r#"{"ips": ["10.244.1.77"]}"#);
        let output = host.netns.enter(&mut command).output().expect("run cnitool");
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    assert_eq!(run("add")["ips"][0]["address"], "10.244.1.77/32");
    run("check");
    run("del");
    assert_eq!(host.traces(&pod), before);
}
