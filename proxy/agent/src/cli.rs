//! The command line of `fairlead-proxy`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::dataplane::links::Datapath;
use crate::dataplane::load::Sizes;
use crate::node::PortRange;

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
    /// Where the agent keeps what it must know after a restart.
    #[arg(long, value_name = "DIR", default_value = "/run/fairlead")]
    pub state_dir: PathBuf,
    /// Where the agent listens for the CNI plugin and the command line; by default agent.sock in --state-dir.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where /healthz and /livez are served.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,
    /// Where /metrics is served.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
    /// Ports that masqueraded flows leave with, a power of two of them; withheld from the host's own sockets.
    #[arg(long, value_name = "FIRST-LAST", default_value = "49152-65535")]
    pub snat_ports: PortRange,
    /// Room for so many frontends: address, port and protocol.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frontends: u32,
    /// Room for so many places of backends in Services.
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_slots: u32,
    /// Room for so many backends.
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_backends: u32,
    /// Room for so many pods of this node.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_endpoints: u32,
    /// Room for so many entries of translated flows, two for each connection.
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_flows: u32,
    /// How programs are attached to interfaces.
    #[arg(long, value_enum, default_value_t = Datapath::Auto)]
    pub datapath: Datapath,
}

impl Run {
    /// The sizes of maps that the options ask for.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            frontends: self.max_frontends,
            slots: self.max_slots,
            backends: self.max_backends,
            endpoints: self.max_endpoints,
            flows: self.max_flows,
        }
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

/// Options of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct Cleanup {
    /// Where maps and links are pinned.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
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

    #[test]
    fn uplinks_may_be_repeated_and_the_socket_follows_the_state_directory() {
        let line =
            "fairlead-proxy run --uplink eth0 --uplink eth1 --state-dir /run/x --snat-ports 50000-50015";
        let Command::Run(run) = Cli::try_parse_from(line.split(' ')).expect("parsed").command else {
            panic!("not run")
        };
        assert_eq!(run.uplink, ["eth0", "eth1"]);
        assert_eq!(run.socket(), PathBuf::from("/run/x/agent.sock"));
        assert_eq!(run.snat_ports, "50000-50015".parse().expect("a range"));
    }

    #[test]
    fn a_port_range_that_is_no_power_of_two_is_refused_at_the_command_line() {
        let line = "fairlead-proxy run --snat-ports 50000-50014";
        assert!(Cli::try_parse_from(line.split(' ')).is_err());
    }
}
