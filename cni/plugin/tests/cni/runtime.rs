//! A runtime, as far as plugins can tell: it takes a list of them, hands each the result so far, and calls them
//! backwards for DEL. It does what libcni does, and keeps what libcni keeps: the result and the runtime's
//! configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fairlead_net::netns::NamedNetns;
use serde_json::{Value, json};

use crate::host::{Answer, BINARY, Host, Pod};

/// Where Debian's package and the project's own archive put the reference plugins.
const REFERENCE_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The directory of the reference plugins; None, with a word about it, where one of `needed` is missing.
pub(crate) fn reference(needed: &[&str]) -> Option<PathBuf> {
    let has_all = |dir: &PathBuf| needed.iter().all(|plugin| dir.join(plugin).is_file());
    let found = REFERENCE_DIRS.iter().map(PathBuf::from).find(has_all);
    if found.is_none() {
        eprintln!("left out: the reference plugins {needed:?} are in none of {REFERENCE_DIRS:?}");
    }
    found
}

/// Whether a command can be run; says so where it can't.
pub(crate) fn has_command(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|dir| dir.join(name).is_file());
    if !found {
        eprintln!("left out: there is no command {name}");
    }
    found
}

/// What a runtime keeps of an attachment.
#[derive(Clone)]
struct Kept {
    result: Value,
    runtime_config: Value,
}

/// One list of plugins on one host.
pub(crate) struct Runtime<'a> {
    host: &'a Host,
    version: &'static str,
    plugins: Vec<Value>,
    reference: PathBuf,
    kept: Mutex<BTreeMap<String, Kept>>,
}

impl<'a> Runtime<'a> {
    /// `plugins` are entries of a list; those of type fairlead-cni are the binary under test, the others in
    /// `reference`.
    pub(crate) fn new(host: &'a Host, version: &'static str, plugins: Vec<Value>, reference: &Path) -> Self {
        Self { host, version, plugins, reference: reference.into(), kept: Mutex::default() }
    }

    /// ADD through the list; on a failure DEL through the list, as runtimes do.
    pub(crate) fn add(&self, pod: &Pod, runtime_config: &Value) -> Result<Value, (u64, String)> {
        let mut kept = Kept { result: Value::Null, runtime_config: runtime_config.clone() };
        for plugin in &self.plugins {
            let answer = self.run("ADD", plugin, pod, &kept);
            if !answer.success {
                self.keep(pod, kept);
                self.delete(pod);
                return Err(answer.error());
            }
            kept.result = answer.json;
        }
        let result = kept.result.clone();
        self.keep(pod, kept);
        Ok(result)
    }

    /// CHECK through the list, but for plugins of type `except`: the first failure.
    pub(crate) fn check(&self, pod: &Pod, except: &str) -> Result<(), (u64, String)> {
        let kept = self.kept(pod);
        for plugin in self.plugins.iter().filter(|plugin| plugin["type"] != except) {
            let answer = self.run("CHECK", plugin, pod, &kept);
            if !answer.success {
                return Err(answer.error());
            }
        }
        Ok(())
    }

    /// DEL through the list, backwards; each must succeed.
    pub(crate) fn delete(&self, pod: &Pod) {
        let kept = self.kept(pod);
        for plugin in self.plugins.iter().rev() {
            let answer = self.run("DEL", plugin, pod, &kept);
            assert!(answer.success, "DEL of {}: {:#}", plugin["type"], answer.json);
        }
    }

    fn keep(&self, pod: &Pod, kept: Kept) {
        self.kept.lock().expect("results").insert(pod.id.clone(), kept);
    }

    fn kept(&self, pod: &Pod) -> Kept {
        self.kept.lock().expect("results")[&pod.id].clone()
    }

    fn run(&self, verb: &str, plugin: &Value, pod: &Pod, kept: &Kept) -> Answer {
        let kind = plugin["type"].as_str().expect("a type");
        let mut conf = plugin.clone();
        let fields = conf.as_object_mut().expect("an object");
        fields.insert("name".into(), "pods".into());
        fields.insert("cniVersion".into(), self.version.into());
        if !kept.result.is_null() {
            fields.insert("prevResult".into(), kept.result.clone());
        }
        let declared = fields.remove("capabilities").unwrap_or_default();
        let mut granted = serde_json::Map::new();
        for (name, value) in kept.runtime_config.as_object().into_iter().flatten() {
            if declared[name] == true {
                granted.insert(name.clone(), value.clone());
            }
        }
        if !granted.is_empty() {
            fields.insert("runtimeConfig".into(), granted.into());
        }
        // Not a runtime's: so that a test can put another plugin's interface beside ours.
        let ifname = fields.remove("ifname").unwrap_or_else(|| "eth0".into());
        let binary = if kind == "fairlead-cni" { PathBuf::from(BINARY) } else { self.reference.join(kind) };
        let mut command = self.host.command(binary, verb, pod);
        command.env("CNI_IFNAME", ifname.as_str().expect("a name"));
        command.env("CNI_PATH", &self.reference).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        self.host.run(&mut command, conf.to_string().as_bytes())
    }
}

/// The entry of a list for the plugin under test, with what it has on `host`.
pub(crate) fn ours(conf: &Value, capabilities: &[&str]) -> Value {
    let mut entry = conf.clone();
    for capability in capabilities {
        entry["capabilities"][*capability] = json!(true);
    }
    entry
}

/// What a command prints inside a namespace.
pub(crate) fn output(netns: &NamedNetns, command: &[&str]) -> String {
    let mut process = std::process::Command::new(command[0]);
    process.args(&command[1..]);
    let output = netns.enter(&mut process).output().expect("run a command");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
