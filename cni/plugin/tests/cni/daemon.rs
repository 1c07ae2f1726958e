//! `fairlead-cni node`, from a watch of Nodes to the kernel's routes and the files on the node.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fairlead_net::attachment::Mac;
use fairlead_net::exec::{self, Wiring};
use fairlead_net::plan::{End, Plan, Step};
use fairlead_net::routes::{Route, RouteTable};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::api::{FakeApi, node};
use crate::host::{BINARY, Host, Pod};

/// The daemon under test, killed if the test fails.
pub(crate) struct Daemon(Child);

impl Daemon {
    fn start(host: &Host, api: &FakeApi) -> Self {
        Self::start_with(host, api, "", "60")
    }

    /// With the agent's socket, and so many seconds between its sweeps.
    pub(crate) fn start_with(host: &Host, api: &FakeApi, agent: &str, sweep_seconds: &str) -> Self {
        let dir = host.dir.path();
        let kubeconfig = dir.join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig()).expect("write the kubeconfig");
        let mut command = Command::new(BINARY);
        command.args(["node", "--hostname-override", "a", "--agent-socket", agent]);
        command.args(["--sweep-seconds", sweep_seconds, "--kubeconfig"]);
        command.arg(kubeconfig).arg("--cni-bin-dir").arg(dir.join("bin"));
        command.arg("--cni-conf-dir").arg(dir.join("conf")).arg("--data-dir").arg(dir.join("data"));
        command.arg("--node-file").arg(host.node_file()).stderr(Stdio::null());
        Self(host.netns.enter(&mut command).spawn().expect("start the daemon"))
    }

    pub(crate) fn stop(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).expect("SIGTERM");
        assert!(self.0.wait().expect("wait").success(), "the daemon ends well");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail after stop(), which has waited for the child.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives the host an uplink with 192.0.2.1 and 2001:db8::1, on whose subnets the other nodes are.
fn uplink(host: &Host, outside: &Pod) -> Wiring {
    let route =
        |text: &str| Step::Route(Route { destination: text.parse().expect("destination"), gateway: None });
    let address = |text: &str| Step::Address(text.parse().expect("address"));
    let opening = vec![
        Step::Up,
        address("192.0.2.1"),
        route("192.0.2.0/24"),
        address("2001:db8::1"),
        route("2001:db8::/64"),
    ];
    let plan = Plan {
        host: End { ifname: "up0".into(), mac: Mac([2, 0, 0, 0, 0, 1]), steps: Vec::new() },
        pod: End { ifname: "up1".into(), mac: Mac([2, 0, 0, 0, 0, 2]), steps: vec![Step::Up] },
        opening,
        mtu: Some(1400),
    };
    let wire = || exec::wire(&plan, &outside.netns)?.open(&plan, &outside.netns);
    host.netns.run(wire).expect("enter").expect("wire the uplink")
}

fn routes(host: &Host) -> BTreeSet<String> {
    let read = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async { RouteTable::open().expect("open").read().await.expect("read") })
    };
    host.netns.run(read).expect("enter").iter().map(ToString::to_string).collect()
}

pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        sleep(Duration::from_millis(20));
    }
}

fn eventually_routes(host: &Host, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
    eventually(&format!("{expected:?}"), || routes(host) == expected);
}

#[test]
#[ignore = "needs root: run make test"]
fn routes_follow_the_nodes_and_outlive_the_daemon() {
    let host = Host::new(&["10.0.0.0/8"]);
    let outside = Pod::new();
    let _uplink = uplink(&host, &outside);
    let own = node("a", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]);
    let b = node("b", &["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.2", "2001:db8::2"]);
    let api = FakeApi::serve(&host.netns, &[own.clone(), b]);
    let daemon = Daemon::start(&host, &api);
    let to_b = ["10.244.2.0/24 via 192.0.2.2", "fd00:2::/64 via 2001:db8::2"];
    eventually_routes(&host, &to_b);

    let c = node("c", &["10.244.3.0/24", "fd00:3::/64"], &["192.0.2.3", "2001:db8::3"]);
    api.send("ADDED", &c);
    eventually_routes(
        &host,
        &[to_b[0], to_b[1], "10.244.3.0/24 via 192.0.2.3", "fd00:3::/64 via 2001:db8::3"],
    );
    let moved = node("c", &["10.244.3.0/24", "fd00:3::/64"], &["192.0.2.33", "2001:db8::33"]);
    api.send("MODIFIED", &moved);
    eventually_routes(
        &host,
        &[to_b[0], to_b[1], "10.244.3.0/24 via 192.0.2.33", "fd00:3::/64 via 2001:db8::33"],
    );
    // A node whose route the kernel refuses (not on a connected subnet) holds up no other.
    api.send("ADDED", &node("far", &["10.244.9.0/24"], &["198.51.100.1"]));
    api.send("DELETED", &c);
    eventually_routes(&host, &to_b);

    daemon.stop();
    assert_eq!(routes(&host).len(), 2);
    let api = FakeApi::serve(&host.netns, &[own]);
    let daemon = Daemon::start(&host, &api);
    eventually_routes(&host, &[]);
    daemon.stop();
}

#[test]
#[ignore = "needs root: run make test"]
fn the_node_is_ready_for_pods_once_it_has_pod_cidrs() {
    let host = Host::new(&[]);
    fs::remove_file(host.node_file()).expect("as on a new node");
    let outside = Pod::new();
    let _uplink = uplink(&host, &outside);
    let api = FakeApi::serve(&host.netns, &[node("a", &[], &["192.0.2.1"])]);
    let daemon = Daemon::start(&host, &api);
    let conflist = host.dir.path().join("conf/10-fairlead.conflist");
    sleep(Duration::from_millis(300));
    assert!(!conflist.exists() && !host.node_file().exists());

    api.send("MODIFIED", &node("a", &["10.244.1.0/24"], &["192.0.2.1"]));
    eventually("the conflist", || conflist.exists());
    let file: Value = serde_json::from_slice(&fs::read(host.node_file()).expect("read")).expect("JSON");
    assert_eq!(file, serde_json::json!({"podCIDRs": ["10.244.1.0/24"], "mtu": 1400}));

    // As a runtime would: the installed binary with the installed configuration.
    let list: Value = serde_json::from_slice(&fs::read(&conflist).expect("read")).expect("JSON");
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    let pod = Pod::new();
    let installed = host.dir.path().join("bin/fairlead-cni");
    let result = host.run(&mut host.command(&installed, "ADD", &pod), conf.to_string().as_bytes()).result();
    assert_eq!(result["ips"][0]["address"], "10.244.1.1/32");
    daemon.stop();
}
