//! What kube-proxy does in nftables mode, for one address family: the table that it would write.
//!
//! Table, chains, sets and maps have the names and order of kube-proxy's (`pkg/proxy/nftables`, release 1.36); what the
//! tests' Services do not use is left out.

use std::fmt::Write;
use std::net::IpAddr;

use fairlead_harness::Protocol;

use crate::{POD_PORT, SERVICE_PORT};

/// One Service port: its addresses and endpoints of the family.
pub(crate) struct ServicePort<'a> {
    pub(crate) name: &'a str,
    pub(crate) protocol: Protocol,
    pub(crate) cluster_ip: IpAddr,
    pub(crate) node_port: u16,
    pub(crate) endpoints: Vec<IpAddr>,
    /// externalTrafficPolicy: Local.
    pub(crate) is_local: bool,
}

/// The commands that replace the table by one for these, on a node with that address.
pub(crate) fn table(v4: bool, cluster_cidr: &str, node: IpAddr, ports: &[ServicePort<'_>]) -> String {
    let ip = if v4 { "ip" } else { "ip6" };
    let kind = if v4 { "ipv4_addr" } else { "ipv6_addr" };
    let listed = |items: Vec<String>| {
        if items.is_empty() { String::new() } else { format!("elements = {{ {} }};", items.join(", ")) }
    };
    let mut cluster_ips: Vec<String> = ports.iter().map(|port| port.cluster_ip.to_string()).collect();
    cluster_ips.sort();
    cluster_ips.dedup();
    let (mut ips, mut node_ports, mut hairpins, mut chains) = (vec![], vec![], vec![], String::new());
    for port in ports.iter().filter(|port| !port.endpoints.is_empty()) {
        let ServicePort { name, protocol, cluster_ip, node_port, endpoints, is_local } = port;
        let base = format!("{protocol}-{name}/default/{protocol}");
        ips.push(format!("{cluster_ip} . {protocol} . {SERVICE_PORT} : goto service-{base}"));
        node_ports.push(format!("{protocol} . {node_port} : goto external-{base}"));
        hairpins.extend(endpoints.iter().map(|ip| format!("{ip} . {ip} . {protocol} . {POD_PORT}")));
        let backends: Vec<String> =
            endpoints.iter().enumerate().map(|(at, ip)| format!("{at} : {ip} . {POD_PORT}")).collect();
        let mark = if *is_local { "" } else { "meta mark set meta mark | 0x4000;" };
        write!(
            chains,
            "chain external-{base} {{ {mark} goto service-{base}; }}
             chain service-{base} {{ meta l4proto {protocol} dnat {ip} addr . port to numgen random mod {} map {{ {} }}; }}\n",
            endpoints.len(),
            backends.join(", ")
        )
        .expect("a string takes all");
    }
    format!(
        "add table {ip} kube-proxy
delete table {ip} kube-proxy
table {ip} kube-proxy {{
    comment \"rules for kube-proxy\";
    set cluster-ips {{ type {kind}; {} }}
    set nodeport-ips {{ type {kind}; elements = {{ {node} }}; }}
    set hairpin-connections {{ type {kind} . {kind} . inet_proto . inet_service; {} }}
    map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; }}
    map service-ips {{ type {kind} . inet_proto . inet_service : verdict; {} }}
    map service-nodeports {{ type inet_proto . inet_service : verdict; {} }}
    chain filter-forward {{ type filter hook forward priority filter;
        ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
    chain filter-output {{ type filter hook output priority filter;
        ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
    chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
    chain cluster-ips-check {{ {ip} daddr @cluster-ips reject; }}
    chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
    chain masquerading {{
        meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random;
        ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random; }}
    chain services {{
        {ip} daddr @cluster-ips {ip} saddr != {cluster_cidr} meta mark set meta mark | 0x4000;
        {ip} daddr . meta l4proto . th dport vmap @service-ips;
        {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports; }}
    {chains}
}}
",
        listed(cluster_ips),
        listed(hairpins),
        listed(ips),
        listed(node_ports),
    )
}
