//! The container runtime's side of CNI: the node's real configuration list and real plugin executables.
//!
//! See the CNI specification 1.1.0, section 3. The list's last ADD result is kept for DEL, as it demands.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::boot;
use crate::layout::NodeLayout;
use crate::place::Place;

/// The interface's name inside a pod.
pub const IFNAME: &str = "eth0";

/// Where Debian's package and the project's own archive put the reference plugins.
const REFERENCE_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The directory of the reference plugins (`ptp`, `host-local`, `portmap`, …); none where they are not installed.
pub fn reference_plugins() -> Option<PathBuf> {
    REFERENCE_DIRS.iter().map(PathBuf::from).find(|dir| dir.join("host-local").is_file())
}

/// A pod's sandbox, as the plugins get to know it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_NETNS.
    pub netns: PathBuf,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// What the runtime says of it to plugins that have the capability: `portMappings`.
    pub capabilities: Map<String, Value>,
}

/// A node's plugins.
#[derive(Clone, Debug)]
pub struct Runtime {
    bin_dir: PathBuf,
    conf_dir: PathBuf,
    results: PathBuf,
    boot_id: PathBuf,
    host: Place,
}

impl Runtime {
    /// The runtime of a node whose own processes run at `host`.
    pub fn new(node: &NodeLayout, host: Place) -> Self {
        Self {
            bin_dir: node.cni_bin_dir(),
            conf_dir: node.cni_conf_dir(),
            results: node.dir.join("cni/results"),
            boot_id: node.boot_id_file(),
            host,
        }
    }

    /// Whether a configuration list has been installed.
    pub fn is_configured(&self) -> bool {
        self.list_file().is_some()
    }

    /// Attaches the sandbox; returns its addresses.
    ///
    /// # Errors
    /// When a plugin fails; the plugins that had succeeded are undone.
    pub fn add(&self, sandbox: &Sandbox) -> Result<Vec<IpAddr>> {
        let (list, plugins) = self.list()?;
        let mut result = Value::Null;
        for plugin in &plugins {
            match self.run("ADD", sandbox, &list, plugin, &result) {
                Ok(value) => result = value,
                Err(error) => {
                    self.del(sandbox).ok();
                    return Err(error);
                }
            }
        }
        fs::create_dir_all(&self.results)?;
        fs::write(self.result_file(sandbox), serde_json::to_vec(&result)?)
            .context("keep the result of ADD")?;
        addresses(&result)
    }

    /// Detaches the sandbox.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn del(&self, sandbox: &Sandbox) -> Result<()> {
        let (list, plugins) = self.list()?;
        let kept = fs::read(self.result_file(sandbox)).ok();
        let result = kept.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        for plugin in plugins.iter().rev() {
            self.run("DEL", sandbox, &list, plugin, &result)?;
        }
        fs::remove_file(self.result_file(sandbox)).ok();
        Ok(())
    }

    fn result_file(&self, sandbox: &Sandbox) -> PathBuf {
        self.results.join(&sandbox.container_id)
    }

    /// The first list by name, as runtimes choose it.
    fn list_file(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.conf_dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "conflist"))
            .min()
    }

    fn list(&self) -> Result<(Value, Vec<Value>)> {
        let file = self.list_file().with_context(|| format!("no conflist in {}", self.conf_dir.display()))?;
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let list: Value =
            serde_json::from_slice(&text).with_context(|| format!("understand {}", file.display()))?;
        let plugins = list["plugins"].as_array().cloned();
        let plugins = plugins.with_context(|| format!("{} has no plugins", file.display()))?;
        Ok((list, plugins))
    }

    fn run(
        &self,
        verb: &str,
        sandbox: &Sandbox,
        list: &Value,
        plugin: &Value,
        previous: &Value,
    ) -> Result<Value> {
        let kind = plugin["type"].as_str().context("a plugin without type")?;
        let mut config = plugin.clone();
        config["name"] = list["name"].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let Sandbox { container_id, netns, namespace, name, uid, capabilities } = sandbox;
        let has = |capability: &str| plugin["capabilities"][capability] == true;
        let told: Map<_, _> = capabilities.clone().into_iter().filter(|(name, _)| has(name)).collect();
        if !told.is_empty() {
            config["runtimeConfig"] = told.into();
        }
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID={uid}"
        );
        let mut command = self.host.command(self.bin_dir.join(kind))?;
        boot::enter(&mut command, &self.boot_id)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container_id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", &self.bin_dir)
            .env("CNI_ARGS", arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let what = || format!("{verb} of {kind} for pod {namespace}/{name}");
        let mut child = command.spawn().with_context(what)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&serde_json::to_vec(&config)?).with_context(what)?;
        }
        answer(&child.wait_with_output().with_context(what)?).with_context(what)
    }
}

/// The address lists of a result: its `ips`, in the order that the plugins gave them.
fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("the result has no ips")?;
    ips.iter()
        .map(|ip| {
            let text = ip["address"].as_str().unwrap_or_default();
            let address = text.split('/').next().unwrap_or_default();
            address.parse().with_context(|| format!("address {text:?} in the result"))
        })
        .collect()
}

fn answer(output: &Output) -> Result<Value> {
    let answer = match output.stdout.as_slice() {
        [] => json!(null),
        text => serde_json::from_slice(text).context("understand the plugin's answer")?,
    };
    if !output.status.success() {
        bail!(
            "{}: {} {} {}",
            output.status,
            answer["msg"].as_str().unwrap_or_default(),
            answer["details"].as_str().unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_a_result_come_without_prefix_length() {
        let result = json!({"ips": [{"address": "10.244.1.2/32"}, {"address": "fd00::2/128"}]});
        let texts: Vec<String> = addresses(&result).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.244.1.2", "fd00::2"]);
        assert!(addresses(&json!({"ips": [{"address": "nonsense"}]})).is_err());
    }
}
