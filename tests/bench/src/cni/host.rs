//! The nodes on which pods are added: one of a cluster, and namespaces that play one without an agent.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, binary};
use fairlead_net::netns::NamedNetns;
use fairlead_net::node;
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cni::plugin::Plugin;

/// MTU of the pods' interfaces.
const MTU: u32 = 1500;

/// The plugin as the daemon of the cluster's node has installed and configured it, with that many Pods in the API, which
/// are of no node so that nobody else runs them.
///
/// # Errors
/// When the API refuses, or the configuration is not there.
pub(super) fn with_agent(cluster: &Cluster, pods: usize) -> Result<Plugin> {
    let node = cluster.nodes().first().context("a node")?;
    let (directory, api) = (node.layout().cni_bin_dir(), cluster.api());
    let pod = |number: usize| {
        serde_json::from_value(json!({
            "metadata": { "name": format!("cni-{number}"), "namespace": "default", "labels": { "app": "cni" } },
            "spec": { "nodeName": "nowhere", "containers": [{ "name": "bench", "image": "bench" }] },
        }))
    };
    api.create_all(&(0..pods).map(pod).collect::<Result<Vec<v1::Pod>, _>>()?)?;
    let names = (0..pods).map(|number| {
        let name = format!("cni-{number}");
        let pod: v1::Pod = api.get(&name)?.with_context(|| format!("Pod {name}"))?;
        Ok((name, pod.metadata.uid.context("a Pod without UID")?))
    });
    Ok(Plugin {
        binary: directory.join("fairlead-cni"),
        path: directory,
        config: installed(&node.layout().cni_conf_dir())?,
        node: node.place().netns().clone(),
        names: names.collect::<Result<_>>()?,
    })
}

/// The first plugin's configuration of the list that is installed, as a runtime passes it on.
fn installed(directory: &Path) -> Result<Value> {
    let lists = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let paths = lists.flatten().map(|entry| entry.path());
    let path = paths.filter(|path| path.extension().is_some_and(|end| end == "conflist")).min();
    let path = path.with_context(|| format!("no conflist in {}", directory.display()))?;
    let list: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let mut config = list["plugins"][0].clone();
    config["name"] = list["name"].clone();
    config["cniVersion"] = list["cniVersion"].clone();
    Ok(config)
}

/// A namespace that plays a node, with no agent.
pub(super) struct Alone {
    netns: NamedNetns,
    directory: TempDir,
}

impl Alone {
    /// Such a namespace of that name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new(name: &str) -> Result<Self> {
        let netns = NamedNetns::create(name)?;
        netns.run(node::enable_forwarding)?.context("enable forwarding")?;
        Ok(Self { netns, directory: tempfile::tempdir().context("make a directory")? })
    }

    /// Fairlead's plugin here, for both families.
    ///
    /// # Errors
    /// When its files can't be written.
    pub(super) fn fairlead(&self, pods: usize) -> Result<Plugin> {
        let file = self.directory.path().join("node.json");
        let node = json!({ "podCIDRs": ["10.208.0.0/24", "fd00:10:208::/64"], "mtu": MTU });
        fs::write(&file, node.to_string()).with_context(|| format!("write {}", file.display()))?;
        let config = json!({
            "cniVersion": "1.0.0", "name": "alone", "type": "fairlead-cni",
            "nodeFile": file, "dataDir": self.data(), "agentSocket": "",
        });
        self.plugin(binary("fairlead-cni")?, config, pods)
    }

    /// The reference plugin for routed pods, for IPv4.
    ///
    /// # Errors
    /// Never, unless `directory` is none.
    pub(super) fn reference(&self, directory: &Path, pods: usize) -> Result<Plugin> {
        let config = json!({
            "cniVersion": "1.0.0", "name": "reference", "type": "ptp", "mtu": MTU,
            "ipam": {
                "type": "host-local", "dataDir": self.data(),
                "ranges": [[{ "subnet": "10.209.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        self.plugin(directory.join("ptp"), config, pods)
    }

    fn plugin(&self, binary: PathBuf, config: Value, pods: usize) -> Result<Plugin> {
        let path = binary.parent().context("a plugin lies in a directory")?.to_owned();
        let names = (0..pods).map(|number| (format!("cni-{number}"), format!("uid-{number}"))).collect();
        Ok(Plugin { binary, path, config, node: self.netns.netns().clone(), names })
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }
}
