//! What kube-proxy does for a few Services: the rules that it would write into a node's namespace, in each of its modes.
//!
//! The chains and their order are kube-proxy's (`pkg/proxy/iptables/proxier.go`, release 1.36), with shorter names, and some
//! of the kubelet's beside them. Its table in nftables mode has a module of its own.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use fairlead_harness::{Cluster, Place, Protocol};

use crate::kube_proxy_nft::{self, ServicePort};
use crate::{POD_PORT, SERVICE_PORT};

/// All pods, IPv4 and IPv6, as `--cluster-cidr` names them.
pub const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// The protocols that rules are written for.
pub const PROTOCOLS: [Protocol; 2] = Protocol::SOCKETS;

/// How kube-proxy writes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By iptables, over nftables where that is the system's.
    Iptables,
    /// By the iptables of before.
    Legacy,
    /// By nft.
    Nftables,
}

impl Mode {
    fn program(self, v4: bool) -> &'static str {
        match (self, v4) {
            (Self::Iptables, true) => "iptables-restore",
            (Self::Iptables, false) => "ip6tables-restore",
            (Self::Legacy, true) => "iptables-legacy-restore",
            (Self::Legacy, false) => "ip6tables-legacy-restore",
            (Self::Nftables, _) => "nft",
        }
    }

    /// Why such rules can't be had here; none if they can.
    pub fn missing(self) -> Option<String> {
        let absent = |name: &&str| Command::new(*name).arg("--version").output().is_err();
        let name = [true, false].map(|v4| self.program(v4)).into_iter().find(absent)?;
        Some(format!("there is no {name}: cargo xtask setup installs it"))
    }
}

/// Why rules of iptables can't be had here; none if they can.
pub fn missing() -> Option<String> {
    Mode::Iptables.missing()
}

/// Writes, in each of these places, the rules for Services that have ClusterIPs and NodePorts, each with its endpoints'
/// addresses; they replace those of before.
///
/// # Errors
/// When a Service is not in the API, or the command fails.
pub fn program(cluster: &Cluster, places: &[&Place], services: &[(&str, &[IpAddr])]) -> Result<()> {
    program_by(Mode::Iptables, cluster, places, services)
}

/// The same in that mode. In nftables mode NodePorts are served at the nodes' own addresses, in the order of the places.
///
/// # Errors
/// As [`program`].
pub fn program_by(
    mode: Mode,
    cluster: &Cluster,
    places: &[&Place],
    services: &[(&str, &[IpAddr])],
) -> Result<()> {
    for (v4, cluster_cidr) in [true, false].into_iter().zip(CLUSTER_CIDRS) {
        let mut rules = Rules::new();
        let mut ports = Vec::new();
        for &(name, endpoints) in services {
            let mut of_family = cluster.cluster_ips(name)?.into_iter().filter(|ip| ip.is_ipv4() == v4);
            let cluster_ip = of_family.next().with_context(|| format!("{name} has one family"))?;
            let endpoints: Vec<IpAddr> = endpoints.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
            for protocol in PROTOCOLS {
                let node_port = cluster.node_port(name, &protocol.to_string())?;
                rules.add(name, protocol, cluster_cidr, cluster_ip, node_port, &endpoints);
                let endpoints = endpoints.clone();
                ports.push(ServicePort { name, protocol, cluster_ip, node_port, endpoints, is_local: false });
            }
        }
        let text = rules.text(v4);
        for (node, place) in cluster.nodes().iter().zip(places) {
            let node = if v4 { node.layout().ipv4 } else { node.layout().ipv6 };
            match mode {
                Mode::Nftables => {
                    let text = kube_proxy_nft::table(v4, cluster_cidr, node, &ports);
                    restore(place, mode.program(v4), &["-f", "-"], &text)?;
                }
                _ => restore(place, mode.program(v4), &[], &text)?,
            }
        }
    }
    Ok(())
}

fn restore(place: &Place, program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut command = place.command(program)?;
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {program}"))?;
    child.stdin.take().context("its input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// The table `nat` under way.
struct Rules {
    chains: Vec<String>,
    rules: Vec<String>,
}

impl Rules {
    fn new() -> Self {
        let rules = [
            "PREROUTING -j KUBE-SERVICES",
            "OUTPUT -j KUBE-SERVICES",
            "POSTROUTING -j KUBE-POSTROUTING",
            "KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
            "KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
            "KUBE-POSTROUTING -j MASQUERADE --random-fully",
        ];
        let chains = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"];
        Self { chains: chains.map(str::to_owned).to_vec(), rules: rules.map(str::to_owned).to_vec() }
    }

    fn add(
        &mut self,
        name: &str,
        protocol: Protocol,
        cluster_cidr: &str,
        cluster_ip: IpAddr,
        node_port: u16,
        endpoints: &[IpAddr],
    ) {
        let (service, external) =
            (format!("KUBE-SVC-{name}-{protocol}"), format!("KUBE-EXT-{name}-{protocol}"));
        let to_ip = format!("-d {cluster_ip} -p {protocol} --dport {SERVICE_PORT}");
        self.rules.extend([
            format!("KUBE-SERVICES {to_ip} -j {service}"),
            format!("KUBE-NODEPORTS -p {protocol} --dport {node_port} -j {external}"),
            format!("{external} -j KUBE-MARK-MASQ"),
            format!("{external} -j {service}"),
            format!("{service} ! -s {cluster_cidr} {to_ip} -j KUBE-MARK-MASQ"),
        ]);
        for (number, &endpoint) in endpoints.iter().enumerate() {
            let chain = format!("KUBE-SEP-{name}-{protocol}{number}");
            let chance = match endpoints.len() - number {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {} ", 1.0 / left as f64),
            };
            let backend = SocketAddr::new(endpoint, POD_PORT);
            self.rules.extend([
                format!("{service} {chance}-j {chain}"),
                format!("{chain} -s {endpoint} -j KUBE-MARK-MASQ"),
                format!("{chain} -p {protocol} -j DNAT --to-destination {backend}"),
            ]);
            self.chains.push(chain);
        }
        self.chains.extend([service, external]);
    }

    fn text(self, v4: bool) -> String {
        let chains = self.chains.iter().map(|chain| format!(":{chain} - [0:0]\n"));
        let rules = self.rules.iter().map(|rule| format!("-A {rule}\n"));
        let last = "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n".to_owned();
        let body: String = chains.chain(rules).chain([last]).collect();
        let filter = if v4 { FILTER.concat() } else { FILTER[0].to_owned() };
        format!("*mangle\n{MANGLE}COMMIT\n*filter\n{filter}COMMIT\n*nat\n{body}COMMIT\n")
    }
}

/// Chains that tell kube-proxy and the kubelet whether their rules are still there.
const MANGLE: &str =
    ":KUBE-PROXY-CANARY - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\n";

/// The table `filter`: what kube-proxy has, and what the kubelet has for IPv4.
const FILTER: [&str; 2] = [
    ":KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
",
    ":KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
",
];
