//! Another CNI in place of Fairlead's: the reference plugins `bridge` and `host-local`, which the nodes' runtime then
//! calls with a configuration of ours.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, cni};
use nix::sys::signal::Signal;
use serde_json::json;

/// The bridge that the plugin makes with a node's first pod.
pub const BRIDGE: &str = "cni0";
/// Before Fairlead's in the order of names, by which runtimes choose.
const CONFLIST: &str = "05-bridge.conflist";

/// Has pods of every node wired by the reference plugins from now on, with the addresses of the node's podCIDRs.
/// Fairlead's node daemon is ended; the routes between nodes that it has made stay.
///
/// # Errors
/// When the plugins are not installed, or a file can't be written.
pub fn install(cluster: &mut Cluster) -> Result<()> {
    let plugins = cni::reference_plugins().context("the reference plugins are not installed")?;
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    for name in names {
        let node = cluster.node_mut(&name)?;
        node.stop_daemon(Signal::SIGTERM)?;
        let layout = node.layout();
        for plugin in ["bridge", "host-local"] {
            symlink(plugins.join(plugin), layout.cni_bin_dir().join(plugin))?;
        }
        let ranges: Vec<_> = layout.pod_cidrs.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let list = json!({
            "cniVersion": "1.0.0",
            "name": "bridged",
            "plugins": [{
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": layout.dir.join("host-local"),
                    "ranges": ranges,
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            }],
        });
        fs::write(layout.cni_conf_dir().join(CONFLIST), list.to_string())?;
    }
    Ok(())
}
