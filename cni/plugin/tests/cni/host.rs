//! A namespace that plays the host, with the plugin's files in a directory of its own, and pods beside it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use fairlead_net::netns::{NamedNetns, Netns};
use fairlead_net::node;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{FakeAgent, Mood};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_fairlead-cni");

/// A name that no other test and no other run uses.
fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("fl-cni-{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) json: Value,
}

impl Answer {
    /// The result of a success.
    pub(crate) fn result(self) -> Value {
        assert!(self.success, "{:#}", self.json);
        self.json
    }

    /// Code and message of the error object.
    pub(crate) fn error(self) -> (u64, String) {
        assert!(!self.success, "{:#}", self.json);
        let code = self.json["code"].as_u64().expect("a code");
        (code, self.json["msg"].as_str().expect("a message").into())
    }
}

/// The host.
pub(crate) struct Host {
    pub(crate) netns: NamedNetns,
    pub(crate) dir: TempDir,
}

impl Host {
    /// A host with these podCIDRs, whose kernel forwards.
    pub(crate) fn new(pod_cidrs: &[&str]) -> Self {
        let netns = NamedNetns::create(&unique("host")).expect("create the host");
        netns.run(node::enable_forwarding).expect("enter").expect("enable forwarding");
        let host = Self { netns, dir: tempfile::tempdir().expect("directory") };
        let file = json!({ "podCIDRs": pod_cidrs, "mtu": 1450 }).to_string();
        fs::write(host.node_file(), file).expect("write the node file");
        host
    }

    pub(crate) fn node_file(&self) -> PathBuf {
        self.dir.path().join("node.json")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(crate) fn agent(&self, mood: Mood) -> FakeAgent {
        FakeAgent::listen(&self.socket(), &self.netns, mood)
    }

    /// A configuration with the agent's socket.
    pub(crate) fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "fairlead-cni",
            "nodeFile": self.node_file(),
            "dataDir": self.dir.path().join("data"),
            "agentSocket": self.socket(),
        })
    }

    /// A configuration for kernel routing only.
    pub(crate) fn conf_without_agent(&self) -> Value {
        let mut conf = self.conf();
        conf["agentSocket"] = "".into();
        conf
    }

    /// Runs a verb for `pod`.
    pub(crate) fn cni(&self, verb: &str, pod: &Pod, conf: &Value) -> Answer {
        let mut command = self.command(BINARY, verb, pod);
        self.run(&mut command, conf.to_string().as_bytes())
    }

    /// ADD, which must succeed, without an agent.
    pub(crate) fn add(&self, pod: &Pod) -> Value {
        self.cni("ADD", pod, &self.conf_without_agent()).result()
    }

    /// DEL, which must succeed, without an agent.
    pub(crate) fn delete(&self, pod: &Pod) {
        let answer = self.cni("DEL", pod, &self.conf_without_agent());
        assert!(answer.success, "{:#}", answer.json);
        assert_eq!(answer.json, Value::Null);
    }

    /// `binary` with the environment that a runtime sets.
    pub(crate) fn command(&self, binary: impl AsRef<OsStr>, verb: &str, pod: &Pod) -> Command {
        let mut command = Command::new(binary);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", pod.netns.path())
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1");
        command
    }

    /// Runs the plugin on this host.
    pub(crate) fn run(&self, command: &mut Command, stdin: &[u8]) -> Answer {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = self.netns.enter(command).spawn().expect("start the plugin");
        child.stdin.take().expect("stdin").write_all(stdin).expect("write the configuration");
        let output = child.wait_with_output().expect("wait for the plugin");
        let json = match output.stdout.as_slice() {
            [] => Value::Null,
            text => serde_json::from_slice(text).expect("JSON on stdout"),
        };
        Answer { success: output.status.success(), json }
    }

    /// GC, which leaves the attachments of `valid`.
    pub(crate) fn collect(&self, conf: &Value, valid: &[&Pod]) -> Answer {
        let mut conf = conf.clone();
        let attachment = |pod: &&Pod| json!({"containerID": pod.id, "ifname": "eth0"});
        conf["cni.dev/valid-attachments"] = valid.iter().map(attachment).collect();
        let mut command = Command::new(BINARY);
        command.env_clear().env("CNI_COMMAND", "GC").env("CNI_PATH", "/opt/cni/bin");
        self.run(&mut command, conf.to_string().as_bytes())
    }

    /// Where the ledger is.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.dir.path().join("data/pods/ledger.json")
    }

    /// The addresses that the plugin has on record.
    pub(crate) fn addresses_in_use(&self) -> BTreeSet<String> {
        let Ok(text) = fs::read(self.ledger()) else {
            return BTreeSet::new();
        };
        let ledger: Value = serde_json::from_slice(&text).expect("the ledger");
        let leases = ledger["leases"].as_object().expect("leases");
        let addresses = leases.values().flat_map(|lease| lease["addresses"].as_array().expect("addresses"));
        addresses.map(|address| address.as_str().expect("text").into()).collect()
    }

    /// Everything that an ADD may leave on the host and in `pod`.
    pub(crate) fn traces(&self, pod: &Pod) -> [BTreeSet<String>; 3] {
        [self.addresses_in_use(), kernel_state(&self.netns), kernel_state(&pod.netns)]
    }
}

/// A pod's namespace and the id under which the runtime knows it.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) netns: NamedNetns,
}

impl Pod {
    pub(crate) fn new() -> Self {
        let id = unique("pod");
        let netns = NamedNetns::create(&id).expect("create the pod");
        Self { id, netns }
    }
}

/// The interfaces and whether they are up, the addresses, routes and neighbours of a namespace, one line each, without
/// counters; and without what the kernel gives an interface by itself, in its own time: what is link-local in IPv6.
pub(crate) fn kernel_state(netns: &Netns) -> BTreeSet<String> {
    let tables: [(&str, usize, &[usize]); 5] = [
        ("dev", 2, &[0]),
        ("route", 1, &[0, 1, 2, 7]),
        ("ipv6_route", 0, &[0, 1, 4, 9]),
        ("if_inet6", 0, &[0, 5]),
        ("arp", 1, &[0, 2, 3, 5]),
    ];
    let read = || {
        let mut state = BTreeSet::new();
        for (table, heading, columns) in tables {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).expect(table);
            let is_own =
                |line: &&str| table.contains("6") && (line.starts_with("fe80") || line.starts_with("ff00"));
            for line in text.lines().skip(heading).filter(|line| !is_own(line)) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let kept: Vec<&str> = columns.iter().filter_map(|n| fields.get(*n).copied()).collect();
                state.insert(format!("{table} {}", kept.join(" ")));
            }
        }
        for interface in getifaddrs().expect("interfaces") {
            if interface.flags.contains(InterfaceFlags::IFF_UP) {
                state.insert(format!("up {}", interface.interface_name));
            }
        }
        state
    };
    netns.run(read).expect("enter")
}
