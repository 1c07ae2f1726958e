//! What a client shall do, as tests build it and as the command line of `fairlead-harness probe` carries it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::protocol::Protocol;

/// What a client shall do.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Load {
    /// The transport protocol.
    #[arg(long)]
    pub protocol: Protocol,
    /// Whom to ask.
    #[arg(long)]
    pub target: SocketAddr,
    /// How many requests, of each of the parallel clients; without it, until standard input closes.
    #[arg(long)]
    pub count: Option<u32>,
    /// Ask everything over one connection or from one port, instead of a new one for each request.
    #[arg(long)]
    pub one_flow: bool,
    /// Send datagrams from a socket without a peer, so that each send names the target.
    #[arg(long)]
    pub unconnected: bool,
    /// Milliseconds between two requests.
    #[arg(long, default_value_t = 10)]
    pub interval_ms: u64,
    /// Milliseconds until a request counts as failed.
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
    /// The source address, which an interface must have.
    #[arg(long)]
    pub source: Option<IpAddr>,
    /// The source port.
    #[arg(long, default_value_t = 0)]
    pub source_port: u16,
    /// Bytes of each request, at least.
    #[arg(long, default_value_t = 0)]
    pub size: usize,
    /// Bytes that each answer shall have more.
    #[arg(long, default_value_t = 0)]
    pub answer_size: usize,
    /// How many clients do this at the same time.
    #[arg(long, default_value_t = 1)]
    pub parallel: u32,
}

impl Load {
    /// Requests without end, each over a new flow, ten milliseconds apart, given up after two seconds.
    pub fn new(protocol: Protocol, target: SocketAddr) -> Self {
        Self {
            protocol,
            target,
            count: None,
            one_flow: false,
            unconnected: false,
            interval_ms: 10,
            timeout_ms: 2000,
            source: None,
            source_port: 0,
            size: 0,
            answer_size: 0,
            parallel: 1,
        }
    }

    /// The same, ending after `count` requests.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self { count: Some(count), ..self }
    }

    /// The same over one flow. A TCP or SCTP server that says goodbye with its answer is left, and the next request
    /// opens a new flow; one that ends without a goodbye ends the load.
    #[must_use]
    pub fn over_one_flow(self) -> Self {
        Self { one_flow: true, ..self }
    }

    /// The same by UDP from a socket without a peer; an answer from another address than the target's is a failure.
    #[must_use]
    pub fn unconnected(self) -> Self {
        Self { unconnected: true, ..self }
    }

    /// The same with another pause between requests.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { interval_ms: millis(interval), ..self }
    }

    /// The same with another patience.
    #[must_use]
    pub fn giving_up_after(self, timeout: Duration) -> Self {
        Self { timeout_ms: millis(timeout), ..self }
    }

    /// The same from a source address, which an interface must have; also one that is not the client's to use.
    #[must_use]
    pub fn from_source(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// The same from a source port. A TCP port rests after a connection, so one that is opened for each request
    /// wants [`over_one_flow`](Self::over_one_flow) or one request.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        Self { source_port: port, ..self }
    }

    /// The same with requests of at least that many bytes.
    #[must_use]
    pub fn sized(self, bytes: usize) -> Self {
        Self { size: bytes, ..self }
    }

    /// The same with answers that are longer by that many bytes.
    #[must_use]
    pub fn answers_of(self, bytes: usize) -> Self {
        Self { answer_size: bytes, ..self }
    }

    /// The same by several clients at once, in one process; each makes as many requests.
    #[must_use]
    pub fn in_parallel(self, clients: u32) -> Self {
        Self { parallel: clients, ..self }
    }

    /// The command line of `fairlead-harness` that does this.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["probe".to_owned()];
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("--protocol", self.protocol.to_string());
        add("--target", self.target.to_string());
        add("--interval-ms", self.interval_ms.to_string());
        add("--timeout-ms", self.timeout_ms.to_string());
        add("--source-port", self.source_port.to_string());
        add("--size", self.size.to_string());
        add("--answer-size", self.answer_size.to_string());
        add("--parallel", self.parallel.to_string());
        if let Some(count) = self.count {
            add("--count", count.to_string());
        }
        if let Some(source) = self.source {
            add("--source", source.to_string());
        }
        if self.one_flow {
            arguments.push("--one-flow".to_owned());
        }
        if self.unconnected {
            arguments.push("--unconnected".to_owned());
        }
        arguments
    }

    /// How long a request may take.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    #[test]
    fn the_command_line_carries_all_of_a_load() {
        let target = "[fd00::1]:80".parse().unwrap();
        let load = Load::new(Protocol::Udp, target).times(3).over_one_flow().unconnected().from_port(9);
        let load = load.every(Duration::from_millis(1)).giving_up_after(Duration::from_millis(2));
        let load = load.from_source("fd00::2".parse().unwrap()).sized(5).answers_of(6).in_parallel(7);
        let command = Load::augment_args(clap::Command::new("probe").no_binary_name(false));
        let read = Load::from_arg_matches(&command.get_matches_from(load.arguments())).unwrap();
        assert_eq!(read, load);
    }
}
