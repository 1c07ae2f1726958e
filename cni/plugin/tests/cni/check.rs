//! CHECK: whatever somebody changes is told by name.

use fairlead_net::agent::Request;
use serde_json::{Value, json};

use crate::agent::Mood;
use crate::host::{BINARY, Host, Pod};
use crate::runtime::output;

const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// The configuration with the result of ADD, as runtimes pass it.
fn with_result(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_as_add_has_made_it_passes_in_every_version() {
    let host = Host::new(&BOTH);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new();
        let mut conf = host.conf_without_agent();
        conf["cniVersion"] = version.into();
        let result = host.cni("ADD", &pod, &conf).result();
        let answer = host.cni("CHECK", &pod, &with_result(&conf, &result));
        assert!(answer.success && answer.json.is_null(), "{:#}", answer.json);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn every_change_to_a_pods_interface_is_told_by_name() {
    let host = Host::new(&BOTH);
    // In the pod or on the host ({} is the host's interface), what is changed, and what CHECK says.
    let cases: [(bool, &[&str], &str); 16] = [
        (
            true,
            &["ip", "link", "set", "eth0", "mtu", "1500"],
            "eth0 in the pod: its MTU is 1500, more than 1450",
        ),
        (
            true,
            &["ip", "link", "set", "eth0", "address", "02:00:00:00:00:09"],
            "eth0 in the pod: its Ethernet address is 02:00:00:00:00:09",
        ),
        (
            true,
            &["ip", "address", "del", "10.244.1.1/32", "dev", "eth0"],
            "eth0 in the pod: address 10.244.1.1 is missing",
        ),
        (
            true,
            &["ip", "address", "del", "fd00:10:244:1::1/128", "dev", "eth0"],
            "eth0 in the pod: address fd00:10:244:1::1 is missing",
        ),
        (
            true,
            &["ip", "route", "del", "default"],
            "eth0 in the pod: route 0.0.0.0/0 via 169.254.1.1 is missing",
        ),
        (
            true,
            &["ip", "-6", "route", "del", "default"],
            "eth0 in the pod: route ::/0 via fe80::1 is missing",
        ),
        (
            true,
            &["ip", "neighbour", "del", "169.254.1.1", "dev", "eth0"],
            "eth0 in the pod: neighbour 169.254.1.1 is missing",
        ),
        (true, &["ip", "link", "set", "eth0", "down"], "eth0 in the pod: it is down"),
        (true, &["ip", "link", "del", "eth0"], "is not on the host"),
        (true, &["ip", "link", "set", "eth0", "name", "eth9"], "eth0 is not in the pod"),
        (false, &["ip", "link", "set", "{}", "down"], " on the host: it is down"),
        (false, &["ip", "route", "del", "10.244.1.1/32"], " on the host: route 10.244.1.1/32 is missing"),
        (
            false,
            &["ip", "neighbour", "change", "10.244.1.1", "lladdr", "02:00:00:00:00:09", "dev", "{}"],
            " on the host: neighbour 10.244.1.1 is at 02:00:00:00:00:09",
        ),
        (false, &["ip", "link", "set", "{}", "alias", "mine"], " on the host: its alias is \"mine\""),
        (
            false,
            &["sysctl", "-w", "net.ipv4.conf.{}.forwarding=0"],
            " on the host: ipv4 forwarding is 0, not 1",
        ),
        (false, &["ip", "link", "set", "{}", "mtu", "9000"], " on the host: its MTU is 9000, more than 1450"),
    ];
    for (in_pod, command, expected) in cases {
        let pod = Pod::new();
        let conf = host.conf_without_agent();
        // Each pod asks for the same addresses, so that the sentences are known.
        let mut asking = conf.clone();
        asking["runtimeConfig"] = json!({"ips": ["10.244.1.1", "fd00:10:244:1::1"]});
        let result = host.cni("ADD", &pod, &asking).result();
        let conf = with_result(&conf, &result);
        let check = || host.cni("CHECK", &pod, &conf);
        assert!(check().success, "before {command:?}");
        let name = result["interfaces"][0]["name"].as_str().expect("a name");
        let command: Vec<String> = command.iter().map(|word| word.replace("{}", name)).collect();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        output(if in_pod { &pod.netns } else { &host.netns }, &command);
        let answer = check();
        let details = answer.json["details"].as_str().unwrap_or_default().to_owned();
        let (code, message) = answer.error();
        assert_eq!(code, 102, "{command:?}: {message}");
        assert!(format!("{message}\n{details}").contains(expected), "{command:?}: {message}\n{details}");
        host.delete(&pod);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_result_that_is_not_the_recorded_one_is_told() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let conf = host.conf_without_agent();
    let result = host.add(&pod);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut result = result.clone();
        change(&mut result);
        host.cni("CHECK", &pod, &with_result(&conf, &result)).error()
    };
    let (code, message) = changed(&|result| result["ips"][0]["address"] = "10.244.1.9/32".into());
    assert_eq!(code, 102);
    assert!(message.starts_with("prevResult.ips: 10.244.1.1 is missing"), "{message}");
    let (_, message) = changed(&|result| result["interfaces"][1]["name"] = "eth1".into());
    assert_eq!(message, "prevResult.interfaces: eth0 in the pod is missing");
    let (_, message) = changed(&|result| result["interfaces"][0]["mac"] = "02:00:00:00:00:01".into());
    assert!(message.starts_with("prevResult.interfaces[0].mac: "), "{message}");
    let (code, message) = host.cni("CHECK", &pod, &conf).error();
    assert_eq!((code, message.as_str()), (7, "prevResult: is missing: CHECK needs it"));

    let stranger = Pod::new();
    let (code, message) = host.cni("CHECK", &stranger, &with_result(&conf, &result)).error();
    assert_eq!((code, message), (102, format!("{}/eth0 has no addresses on record", stranger.id)));
}

#[test]
#[ignore = "needs root: run make test"]
fn the_agent_compares_what_add_told_it_and_its_word_counts() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let (conf, result) = {
        let agent = host.agent(Mood::Willing);
        let mut conf = host.conf();
        conf["runtimeConfig"] = json!({
            "portMappings": [{"hostPort": 8080, "containerPort": 80}],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000},
        });
        let result = host.cni("ADD", &pod, &conf).result();
        let conf = with_result(&conf, &result);
        assert!(host.cni("CHECK", &pod, &conf).success);
        let requests = agent.requests();
        let [Request::AddEndpoint(added), Request::CheckEndpoint(checked)] = requests.as_slice() else {
            panic!("{requests:?}")
        };
        assert_eq!(added, checked);
        assert!(added.is_shaped);
        assert_eq!(added.port_mappings.len(), 1);
        (conf, result)
    };
    let (code, message) = host.cni("CHECK", &pod, &conf).error();
    assert_eq!(code, 11, "nobody listens: {message}");
    let _agent = host.agent(Mood::Differing);
    let (code, message) = host.cni("CHECK", &pod, &conf).error();
    assert_eq!((code, message.as_str()), (102, "the agent: its program is not attached"));

    // A namespace that is gone is no attachment that differs.
    let mut command = host.command(BINARY, "CHECK", &pod);
    command.env("CNI_NETNS", "/run/netns/no-such");
    let answer = host.run(&mut command, with_result(&host.conf(), &result).to_string().as_bytes());
    assert_eq!(answer.error().0, 3);
}
