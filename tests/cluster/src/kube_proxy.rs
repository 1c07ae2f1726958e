//! What kube-proxy does in iptables mode, for one Service: the rules that it would write into a node's namespace.
//!
//! The chains and their order are kube-proxy's (`pkg/proxy/iptables/proxier.go`, release 1.31), with shorter names.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use fairlead_harness::{Cluster, Place, Protocol};

use crate::{POD_PORT, SERVICE_PORT};

/// All pods, IPv4 and IPv6, as `--cluster-cidr` names them.
const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// The protocols that rules are written for.
pub const PROTOCOLS: [Protocol; 2] = Protocol::SOCKETS;

/// Why these rules can't be had here; none if they can.
pub fn missing() -> Option<String> {
    let absent = |name: &&str| Command::new(*name).arg("--version").output().is_err();
    let name = ["iptables-restore", "ip6tables-restore"].into_iter().find(absent)?;
    Some(format!("there is no {name}: cargo xtask setup installs it"))
}

/// Writes, in each of these places, the rules for Services that have ClusterIPs and NodePorts, each with its endpoints'
/// addresses; they replace those of before.
///
/// # Errors
/// When a Service is not in the API, or the command fails.
pub fn program(cluster: &Cluster, places: &[&Place], services: &[(&str, &[IpAddr])]) -> Result<()> {
    for (v4, cluster_cidr) in [true, false].into_iter().zip(CLUSTER_CIDRS) {
        let mut rules = Rules::new();
        for &(name, endpoints) in services {
            let mut of_family = cluster.cluster_ips(name)?.into_iter().filter(|ip| ip.is_ipv4() == v4);
            let cluster_ip = of_family.next().with_context(|| format!("{name} has one family"))?;
            let endpoints: Vec<IpAddr> = endpoints.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
            for protocol in PROTOCOLS {
                let node_port = cluster.node_port(name, &protocol.to_string())?;
                rules.add(name, protocol, cluster_cidr, cluster_ip, node_port, &endpoints);
            }
        }
        let (text, program) = (rules.text(), if v4 { "iptables-restore" } else { "ip6tables-restore" });
        places.iter().try_for_each(|place| restore(place, program, &text))?;
    }
    Ok(())
}

fn restore(place: &Place, program: &str, text: &str) -> Result<()> {
    let mut command = place.command(program)?;
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

    fn text(self) -> String {
        let chains = self.chains.iter().map(|chain| format!(":{chain} - [0:0]\n"));
        let rules = self.rules.iter().map(|rule| format!("-A {rule}\n"));
        let last = "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n".to_owned();
        let body: String = chains.chain(rules).chain([last]).collect();
        format!("*nat\n{body}COMMIT\n")
    }
}
