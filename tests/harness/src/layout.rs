//! Where everything of a cluster is: names, paths and addresses, all derived from a prefix and a directory.
//!
//! The layout is written to the directory before anything else is made, so that [`crate::down`] finds
//! everything again, also after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{cgroup, netns};

/// The subnet of the fabric on which everyone is who is put on no other.
pub const MAIN_SUBNET: u8 = 0;
/// The prefix lengths of every address on the fabric, IPv4 and IPv6.
pub const SUBNET_BITS: (u8, u8) = (24, 64);
/// All subnets of the fabric, IPv4 and IPv6.
pub const FABRIC: [&str; 2] = ["10.90.0.0/16", "fd00:90::/56"];
/// The Service networks, as the API server takes them.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The API server's host number on the fabric; on every subnet it is the router's.
pub const API_HOST: u8 = 1;
/// Where the API server listens on the fabric.
pub const API_PORT: u16 = 6443;

/// The authority's certificate, beside the kubeconfigs.
pub const AUTHORITY_FILE: &str = "authority.pem";
/// The agent's executable.
pub const PROXY: &str = "fairlead-proxy";
/// The plugin's and the node daemon's executable.
pub const CNI: &str = "fairlead-cni";
/// The daemons of a node, of which the API server can tell one from the other.
pub const DAEMONS: [&str; 2] = [PROXY, CNI];

/// The host number on the fabric before the first node's.
const FIRST_NODE: u8 = 10;
const FILE: &str = "cluster.json";

/// One cluster's names and places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// What the names of namespaces and control groups begin with; unique among live clusters.
    pub prefix: String,
    /// The directory for state, sockets and logs.
    pub dir: PathBuf,
    /// The control group above all others of the cluster.
    pub cgroup: PathBuf,
    /// How many nodes there are, those that have yet to join included.
    pub nodes: u8,
    /// The subnets of nodes that are not on [`MAIN_SUBNET`], by the nodes' names.
    #[serde(default)]
    pub subnets: BTreeMap<String, u8>,
    /// The process that takes the cluster down when it ends; none for a cluster that is kept.
    pub owner: Option<u32>,
}

impl Layout {
    /// The layout of a cluster of `nodes` nodes, all on one subnet.
    ///
    /// # Errors
    /// When no cgroup2 hierarchy is mounted.
    pub fn new(prefix: &str, dir: &Path, nodes: u8) -> Result<Self> {
        Ok(Self {
            prefix: prefix.to_owned(),
            dir: dir.to_owned(),
            cgroup: cgroup::root()?.join(prefix),
            nodes,
            subnets: BTreeMap::new(),
            owner: Some(std::process::id()),
        })
    }

    /// Reads the layout that a cluster left in its directory; none if it did not come so far.
    ///
    /// # Errors
    /// When it can't be read or understood.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join(FILE);
        match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("understand {}", file.display()))
                .map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Writes the layout into its directory, which is made.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let file = self.dir.join(FILE);
        fs::write(&file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", file.display()))
    }

    /// The kubeconfig for the user's shell: through the relay on a loopback port.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The kubeconfig for processes on the fabric.
    pub fn node_kubeconfig(&self) -> PathBuf {
        self.dir.join("node.kubeconfig")
    }

    /// The kubeconfig of that daemon of the nodes, which the API server can tell from others.
    pub fn kubeconfig_of(&self, daemon: &str) -> PathBuf {
        self.dir.join(format!("{daemon}.kubeconfig"))
    }

    /// The namespace that holds the fabric's bridge and the API server.
    pub fn fabric_netns(&self) -> String {
        format!("{}-fabric", self.prefix)
    }

    /// The namespace of the client outside the cluster.
    pub fn client_netns(&self) -> String {
        format!("{}-client", self.prefix)
    }

    /// The namespace of the router between the fabric and the far client.
    pub fn router_netns(&self) -> String {
        format!("{}-router", self.prefix)
    }

    /// The namespace of the client behind that router.
    pub fn far_netns(&self) -> String {
        format!("{}-far", self.prefix)
    }

    /// The namespace of a pod.
    pub fn pod_netns(&self, name: &str, uid: &str) -> String {
        // Two pods of one name may overlap, one being removed; the UID's beginning tells them apart.
        format!("{}-pod-{name}-{}", self.prefix, uid.get(..5).unwrap_or(uid))
    }

    /// The control group of what belongs to no node: API server, kubelet, relay, outside client.
    pub fn outside_cgroup(&self) -> PathBuf {
        self.cgroup.join("outside")
    }

    /// The file that a process logs to.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Where the API server is on the fabric.
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::new(fabric_address(MAIN_SUBNET, API_HOST).0, API_PORT)
    }

    /// The nodes, the first one `node1`.
    pub fn nodes(&self) -> impl Iterator<Item = NodeLayout> + '_ {
        (1..=self.nodes).map(|number| NodeLayout::new(self, number))
    }
}

/// The host's addresses on a subnet of the fabric, IPv4 and IPv6: 10.90.`subnet`.`host` and fd00:90:0:`subnet`::`host`.
pub fn fabric_address(subnet: u8, host: u8) -> (IpAddr, IpAddr) {
    // 10.90.0.11 and fd00:90::11 read alike: the decimal digits of the host, taken as hexadecimal ones.
    let digits = u16::from(host / 100) << 8 | u16::from(host / 10 % 10) << 4 | u16::from(host % 10);
    let v6 = Ipv6Addr::new(0xfd00, 0x90, 0, subnet.into(), 0, 0, 0, digits);
    (Ipv4Addr::new(10, 90, subnet, host).into(), v6.into())
}

/// One node's names and places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLayout {
    /// The Node object's name.
    pub name: String,
    /// Its number, from 1.
    pub number: u8,
    /// Its subnet of the fabric.
    pub subnet: u8,
    /// Name of its network namespace.
    pub netns: String,
    /// The control group above `host` and `pods`.
    pub cgroup: PathBuf,
    /// The directory for its state.
    pub dir: PathBuf,
    /// Its IPv4 address on the fabric.
    pub ipv4: IpAddr,
    /// Its IPv6 address on the fabric.
    pub ipv6: IpAddr,
    /// Its pods' networks, IPv4 and IPv6.
    pub pod_cidrs: [String; 2],
}

impl NodeLayout {
    fn new(layout: &Layout, number: u8) -> Self {
        let name = format!("node{number}");
        let subnet = layout.subnets.get(&name).copied().unwrap_or(MAIN_SUBNET);
        let (ipv4, ipv6) = fabric_address(subnet, FIRST_NODE + number);
        Self {
            netns: format!("{}-{name}", layout.prefix),
            cgroup: layout.cgroup.join(&name),
            dir: layout.dir.join(&name),
            ipv4,
            ipv6,
            pod_cidrs: [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")],
            name,
            number,
            subnet,
        }
    }

    /// Its host number on its subnet, and the number of its port of the fabric.
    pub fn fabric_host(&self) -> u8 {
        FIRST_NODE + self.number
    }

    /// The file that names the node's network namespace.
    pub fn netns_path(&self) -> PathBuf {
        netns::path(&self.netns)
    }

    /// The control group of the node's own processes.
    pub fn host_cgroup(&self) -> PathBuf {
        self.cgroup.join("host")
    }

    /// The control group of its pods.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.cgroup.join("pods")
    }

    /// The agent's bpffs directory.
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// The agent's state.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir().join("agent.sock")
    }

    /// Where CNI plugins are installed.
    pub fn cni_bin_dir(&self) -> PathBuf {
        self.dir.join("cni/bin")
    }

    /// Where CNI configuration is installed.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.dir.join("cni/net.d")
    }

    /// Where the plugin keeps its addresses.
    pub fn cni_data_dir(&self) -> PathBuf {
        self.dir.join("cni/data")
    }

    /// The boot id that the node's plugins see; the machine's own while there is no such file.
    pub fn boot_id_file(&self) -> PathBuf {
        self.dir.join("boot_id")
    }

    /// What `fairlead-cni node` tells the plugin about the node.
    pub fn node_file(&self) -> PathBuf {
        self.dir.join("cni/node.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_host_read_alike() {
        let (v4, v6) = fabric_address(MAIN_SUBNET, 11);
        assert_eq!((v4.to_string(), v6.to_string()), ("10.90.0.11".into(), "fd00:90::11".into()));
        let (v4, v6) = fabric_address(2, 100);
        assert_eq!((v4.to_string(), v6.to_string()), ("10.90.2.100".into(), "fd00:90:0:2::100".into()));
    }
}
