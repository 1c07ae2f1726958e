//! The command line of `fairlead-proxy`.

mod takeover;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::dataplane::links::Datapath;
use crate::dataplane::sizes::{self, Sizes};
use crate::node::PortRange;

pub use takeover::{HandOver, Takeover};
pub use values::{Listen, NodePortAddress};

/// An eBPF service proxy: what clients send to a Kubernetes Service reaches one of its endpoints.
#[derive(Debug, Parser)]
#[command(name = "fairlead-proxy", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `fairlead-proxy` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: watch the API and keep the node's maps programmed.
    Run(Box<Run>),
    /// Show the state of the running agent.
    Status(Ask),
    /// Show the Services that the running agent has programmed.
    Services(Ask),
    /// Show the policies, and which pods of this node each selects.
    Policies(Ask),
    /// Say what becomes of a packet, and by which objects and rules.
    Why(Why),
    /// Show packets that policies dropped.
    Flows(Flows),
    /// Remove the rules that kube-proxy has left on this node; connections that they have translated go on.
    Takeover(Takeover),
    /// Detach every program and remove every map of this node; connections through Services end.
    Cleanup(Cleanup),
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// How to reach the API server; without it, the pod's own service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// This node's name in the API; by default the host name.
    #[arg(long, value_name = "NODE", env = "NODE_NAME")]
    pub hostname_override: Option<String>,
    /// Where maps and links are pinned; a bpf filesystem is mounted there if it is not on one.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// The cgroup whose sockets are translated; by default the root of the cgroup2 hierarchy.
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Interfaces that lead to other nodes and outside; by default those that carry the Node's InternalIPs.
    #[arg(long, value_name = "INTERFACE")]
    pub uplink: Vec<String>,
    /// Interfaces behind which another CNI has its pods, such as the bridge cni0: to Services these pods are clients inside
    /// the cluster. An interface need not be there yet. Fairlead's own pods need none.
    #[arg(long, value_name = "INTERFACE", value_delimiter = ',')]
    pub pod_interface: Vec<String>,
    /// Where the kernel's settings are written: the node's own, mounted, where a container may not write /proc/sys.
    #[arg(long, value_name = "DIR", default_value = fairlead_net::sysctl::PROC_SYS)]
    pub proc_sys: PathBuf,
    /// Where the agent keeps what it must know after a restart.
    #[arg(long, value_name = "DIR", default_value = "/run/fairlead")]
    pub state_dir: PathBuf,
    /// Where the agent remembers the API servers' own addresses, since it may find their Service by nothing else than
    /// itself; by default api-servers.json in --state-dir, which does not outlive a reboot where that is in memory.
    #[arg(long, value_name = "FILE")]
    pub api_servers_file: Option<PathBuf>,
    /// Where the agent listens for the CNI plugin and the command line; by default agent.sock in --state-dir.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where /healthz and /livez are served; nowhere if empty.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: Listen,
    /// Where /metrics is served; nowhere if empty.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: Listen,
    /// Where NodePorts are served: at addresses of the node in these ranges, or at its primary ones.
    #[arg(long, value_name = "CIDR|primary", value_delimiter = ',', default_value = "primary")]
    pub nodeport_addresses: Vec<NodePortAddress>,
    /// Serve NodePorts also to the node's own processes at 127.0.0.1 and ::1.
    #[arg(long)]
    pub nodeport_loopback: bool,
    /// Where ClusterIPs are allocated, in place of what the API's ServiceCIDR objects say.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = values::range)]
    pub service_cidr: Vec<IpNet>,
    /// Where pods are: what pods send there leaves with their own address, as with --non-masquerade-cidr. Pods are told
    /// from other clients by where their packets come in, and the podCIDRs of Nodes need not be named.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = values::range)]
    pub cluster_cidr: Vec<IpNet>,
    /// What leaves with the node's address: what pods send to the outside of the cluster, or nothing.
    #[arg(long, value_enum, default_value_t = Masquerade::Outside)]
    pub masquerade: Masquerade,
    /// Where else pods' packets go with their own address, beside the podCIDRs and addresses of Nodes.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = values::range)]
    pub non_masquerade_cidr: Vec<IpNet>,
    /// Whose sockets are connected to a backend before a packet exists. Packets that no socket translated are
    /// translated on their way all the same; a Pod is left to that by the annotation fairlead.io/socket-lb: "off".
    #[arg(long, value_enum, default_value_t = SocketLb::Host)]
    pub socket_lb: SocketLb,
    /// How clients outside the cluster get a backend; those inside always get one at random.
    #[arg(long, value_enum, default_value_t = BackendChoice::Random)]
    pub backend_choice: BackendChoice,
    /// How many entries a Service's Maglev table has, a prime: some hundred times its backends spread evenly.
    #[arg(long, value_name = "PRIME", default_value_t = 1021, value_parser = values::table_size)]
    pub maglev_table_size: u32,
    /// Ports that masqueraded flows leave with, a power of two of them; withheld from the host's own sockets.
    #[arg(long, value_name = "FIRST-LAST", default_value = "49152-65535")]
    pub snat_ports: PortRange,
    /// Room for so many frontends: address, port and protocol.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frontends: u32,
    /// Room for so many places of backends in Services; by default 262144, and with Maglev 2048 tables more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_slots: Option<u32>,
    /// Room for so many backends.
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_backends: u32,
    /// Room for so many pods of this node.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_endpoints: u32,
    /// Room for so many entries of translated flows, two for each connection, rounded down to a power of two; by
    /// default what a two-hundredth of the memory holds, from 65536 to 2097152.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_flows: Option<u32>,
    /// Room for so many clients with an affinity; who was silent longest is forgotten first.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_affinities: u32,
    /// Room for so many loadBalancerSourceRanges, each counted for each port of its Service.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_source_ranges: u32,
    /// What becomes of flows that policies admitted when the policies change: judged again, or kept. To keep them, every
    /// flow of a pod needs a place in the flow table.
    #[arg(long, value_enum, default_value_t = Established::Recheck)]
    pub policy_established: Established,
    /// Room for so many compiled policies: different sets of policies that pods of this node are under, each direction
    /// by itself.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_policies: u32,
    /// Room for so many pairs of a compiled policy and an identity that it says something special to.
    #[arg(long, value_name = "N", default_value_t = 524_288, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_policy_cells: u32,
    /// Room for so many ranges of ports in policies.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_policy_ports: u32,
    /// Room for so many addresses and ranges that policies name.
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_peers: u32,
    /// How programs are attached to interfaces.
    #[arg(long, value_enum, default_value_t = Datapath::Auto)]
    pub datapath: Datapath,
    /// Do what the cleanup command does, and end.
    #[arg(long)]
    pub cleanup: bool,
}

/// Whose sockets are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SocketLb {
    /// Those of the host's own processes.
    Host,
    /// Those of pods too.
    All,
}

/// What of the pods' packets leaves with the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Masquerade {
    /// What goes to the outside of the cluster.
    Outside,
    /// Nothing: the network knows the way to pods.
    Off,
}

/// What becomes of flows when policies change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Established {
    /// Their next packet is judged again.
    Recheck,
    /// They go on.
    Keep,
}

/// How clients outside the cluster get a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// At random.
    Random,
    /// By consistent hashing: the same on every node, and little changed when backends change.
    Maglev,
}

impl Run {
    /// The sizes of maps that the options ask for, on a machine of so much memory, in bytes.
    pub fn sizes(&self, memory: u64) -> Sizes {
        let Self { max_frontends, max_slots, max_backends, max_endpoints, .. } = self;
        let places = self.max_flows.map(sizes::places_for);
        Sizes {
            frontends: *max_frontends,
            slots: max_slots.unwrap_or_else(|| sizes::default_slots(self.maglev())),
            backends: *max_backends,
            endpoints: *max_endpoints,
            places: places.unwrap_or_else(|| sizes::places_of_memory(memory)),
            affinities: self.max_affinities,
            source_ranges: self.max_source_ranges,
            policies: self.max_policies,
            cells: self.max_policy_cells,
            rows: self.max_policy_ports,
            peers: self.max_peers,
        }
    }

    /// The size of Maglev tables, if they are asked for.
    pub fn maglev(&self) -> Option<u32> {
        (self.backend_choice == BackendChoice::Maglev).then_some(self.maglev_table_size)
    }

    /// The ranges that NodePorts are served in; none for the node's primary addresses.
    ///
    /// # Errors
    /// When both are asked for.
    pub fn nodeport_ranges(&self) -> Result<Option<Vec<IpNet>>, String> {
        let ranges: Vec<IpNet> = self
            .nodeport_addresses
            .iter()
            .filter_map(|value| match value {
                NodePortAddress::In(range) => Some(*range),
                NodePortAddress::Primary => None,
            })
            .collect();
        match ranges.len() {
            0 => Ok(None),
            count if count == self.nodeport_addresses.len() => Ok(Some(ranges)),
            _ => Err("--nodeport-addresses: \"primary\" stands alone, without ranges".to_owned()),
        }
    }

    /// The path of the file that remembers the API servers.
    pub fn api_servers(&self) -> PathBuf {
        self.api_servers_file.clone().unwrap_or_else(|| self.state_dir.join("api-servers.json"))
    }

    /// The ranges that pods' packets go to with their own address, beside what Nodes say; none if they always do.
    pub fn kept_sources(&self) -> Option<Vec<IpNet>> {
        let named = self.cluster_cidr.iter().chain(&self.non_masquerade_cidr).copied().collect();
        (self.masquerade == Masquerade::Outside).then_some(named)
    }

    /// The path of the agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state_dir.join("agent.sock"))
    }
}

/// Options of the commands that ask the running agent.
#[derive(Clone, Debug, Args)]
pub struct Ask {
    /// Where the agent listens.
    #[arg(long, value_name = "PATH", default_value = fairlead_net::agent::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Options of `why`.
#[derive(Clone, Debug, Args)]
pub struct Why {
    /// Who sends: a pod as namespace/name, or an address.
    #[arg(long, value_name = "NAMESPACE/POD|ADDRESS")]
    pub from: String,
    /// Whom it is sent to: a pod or a Service as namespace/name, or an address; pod: or service: before a name that
    /// both have.
    #[arg(long, value_name = "NAMESPACE/NAME|ADDRESS")]
    pub to: String,
    /// What is dialled, as in tcp/80; icmp has no port.
    #[arg(long, value_name = "PROTOCOL/PORT", value_parser = values::protocol_and_port)]
    pub port: (String, u16),
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

/// Options of `flows`.
#[derive(Clone, Debug, Args)]
pub struct Flows {
    /// Those that policies dropped: the last thousand of which the programs told, at most ten a second for each pod.
    #[arg(long, required = true)]
    pub drops: bool,
    /// Go on with those to come.
    #[arg(short, long)]
    pub follow: bool,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

/// Options of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct Cleanup {
    /// Where maps and links are pinned.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// The way back to kube-proxy.
    #[command(flatten)]
    pub hand_over: HandOver,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

const DEFAULT_BPFFS: &str = "/sys/fs/bpf/fairlead";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Run {
        let arguments = ["fairlead-proxy", "run"].into_iter().chain(line.split_whitespace());
        let Command::Run(run) = Cli::try_parse_from(arguments).expect("parsed").command else {
            panic!("not run")
        };
        *run
    }

    #[test]
    fn uplinks_may_be_repeated_and_the_socket_follows_the_state_directory() {
        let run = parse("--uplink eth0 --uplink eth1 --state-dir /run/x --snat-ports 50000-50015");
        assert_eq!(run.uplink, ["eth0", "eth1"]);
        assert_eq!(run.socket(), PathBuf::from("/run/x/agent.sock"));
        assert_eq!(run.snat_ports, "50000-50015".parse().expect("a range"));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_at_the_command_line() {
        for option in [
            "--snat-ports=50000-50014",
            "--maglev-table-size=1000",
            "--service-cidr=10.96.0.1/16",
            "--nodeport-addresses=eth0",
            "--healthz-bind-address=localhost",
            "--backend-choice=best",
        ] {
            assert!(Cli::try_parse_from(["fairlead-proxy", "run", option]).is_err(), "{option}");
        }
    }

    #[test]
    fn ranges_may_be_listed_with_commas_or_by_repeating_the_option() {
        let run = parse("--service-cidr 10.96.0.0/16,fd00::/112 --nodeport-addresses 192.0.2.0/24");
        assert_eq!(run.service_cidr.len(), 2);
        assert_eq!(run.nodeport_ranges().expect("valid").map(|ranges| ranges.len()), Some(1));
        let run = parse("--nodeport-addresses 192.0.2.0/24 --nodeport-addresses fd00::/64");
        assert_eq!(run.nodeport_ranges().expect("valid").map(|ranges| ranges.len()), Some(2));
        assert_eq!(parse("").nodeport_ranges(), Ok(None));
        let mixed = parse("--nodeport-addresses primary,192.0.2.0/24").nodeport_ranges();
        assert!(mixed.expect_err("refused").contains("stands alone"));
    }

    #[test]
    fn the_flow_table_is_sized_by_the_option_or_by_the_memory() {
        assert_eq!(parse("--max-flows 65536").sizes(0).places, 32_768);
        assert_eq!(parse("").sizes(24 << 30).places, 131_072);
    }

    #[test]
    fn maglev_tables_get_their_slots_only_where_they_are_asked_for() {
        assert_eq!(parse("").sizes(0).slots, 262_144);
        assert!(parse("--backend-choice maglev").sizes(0).slots > 2_000_000);
        assert_eq!(parse("--backend-choice maglev --max-slots 4096").sizes(0).slots, 4096);
    }
}
