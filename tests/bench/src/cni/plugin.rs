//! A configured plugin, called as a container runtime calls it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_harness::cni::IFNAME;
use fairlead_net::netns::{NamedNetns, Netns};
use serde_json::Value;

/// A pod's sandbox.
pub(super) struct Pod {
    netns: NamedNetns,
    /// Which of the plugin's pods it is.
    number: usize,
    /// What the last ADD answered.
    result: Value,
}

impl Pod {
    /// A new namespace, whose name begins with `prefix`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new(prefix: &str, number: usize) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let netns = NamedNetns::create(&format!("{prefix}-cni-{}", NEXT.fetch_add(1, Ordering::Relaxed)))?;
        Ok(Self { netns, number, result: Value::Null })
    }
}

/// A plugin and its configuration.
pub(super) struct Plugin {
    /// The executable.
    pub(super) binary: PathBuf,
    /// Where the plugins are that it calls itself.
    pub(super) path: PathBuf,
    /// The configuration as a runtime passes it on, with the list's name and version in it.
    pub(super) config: Value,
    /// The node's namespace. Its control group stays out: the kernel takes its time to move a process there.
    pub(super) node: Netns,
    /// Name and UID of each pod.
    pub(super) names: Vec<(String, String)>,
}

impl Plugin {
    /// Adds the pod.
    ///
    /// # Errors
    /// When the plugin fails.
    pub(super) fn add(&self, pod: &mut Pod) -> Result<Duration> {
        let (took, answer) = self.call("ADD", pod, &self.config)?;
        pod.result = serde_json::from_slice(&answer).context("understand the plugin's answer")?;
        Ok(took)
    }

    /// Removes the pod, which was added.
    ///
    /// # Errors
    /// When the plugin fails.
    pub(super) fn delete(&self, pod: &Pod) -> Result<Duration> {
        let mut config = self.config.clone();
        config["prevResult"] = pod.result.clone();
        Ok(self.call("DEL", pod, &config)?.0)
    }

    fn call(&self, verb: &str, pod: &Pod, config: &Value) -> Result<(Duration, Vec<u8>)> {
        let (name, uid) = &self.names[pod.number];
        let id = pod.netns.name();
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
        );
        let mut command = Command::new(&self.binary);
        self.node.enter(&mut command);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", IFNAME);
        command.env("CNI_NETNS", pod.netns.path()).env("CNI_PATH", &self.path).env("CNI_ARGS", arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (what, config) = (|| format!("{verb} of {}", self.binary.display()), config.to_string());
        let begin = Instant::now();
        let mut child = command.spawn().with_context(what)?;
        child.stdin.take().with_context(what)?.write_all(config.as_bytes()).with_context(what)?;
        let output = child.wait_with_output().with_context(what)?;
        let took = begin.elapsed();
        if !output.status.success() {
            let [answer, words] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
            bail!("{}: {}: {answer} {words}", what(), output.status);
        }
        Ok((took, output.stdout))
    }
}
