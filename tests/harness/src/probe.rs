//! Clients: requests to a pod's server, each with its answer and latency or with how it failed.
//!
//! A client is a process of its own (`fairlead-harness probe`, started by [`crate::Place`]), because socket
//! hooks belong to control groups, and a control group has processes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::serve::{Answer, Protocol};

/// What a client shall do.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Load {
    /// The transport protocol.
    #[arg(long)]
    pub protocol: Protocol,
    /// Whom to ask.
    #[arg(long)]
    pub target: SocketAddr,
    /// How many requests; without it, until standard input closes.
    #[arg(long)]
    pub count: Option<u32>,
    /// Ask everything over one connection or from one port, instead of a new one for each request.
    #[arg(long)]
    pub one_flow: bool,
    /// Milliseconds between two requests.
    #[arg(long, default_value_t = 10)]
    pub interval_ms: u64,
    /// Milliseconds until a request counts as failed.
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
    /// The source address to claim; UDP only.
    #[arg(long)]
    pub source: Option<IpAddr>,
}

impl Load {
    /// Requests without end, each over a new flow, ten milliseconds apart, given up after two seconds.
    pub fn new(protocol: Protocol, target: SocketAddr) -> Self {
        Self {
            protocol,
            target,
            count: None,
            one_flow: false,
            interval_ms: 10,
            timeout_ms: 2000,
            source: None,
        }
    }

    /// The same, ending after `count` requests.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self { count: Some(count), ..self }
    }

    /// The same over one flow.
    #[must_use]
    pub fn over_one_flow(self) -> Self {
        Self { one_flow: true, ..self }
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

    /// The same claiming a source address, which an interface must have.
    #[must_use]
    pub fn from_source(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// The command line of `fairlead-harness` that does this.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["probe".to_owned()];
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("--protocol", self.protocol.to_string());
        add("--target", self.target.to_string());
        add("--interval-ms", self.interval_ms.to_string());
        add("--timeout-ms", self.timeout_ms.to_string());
        if let Some(count) = self.count {
            add("--count", count.to_string());
        }
        if let Some(source) = self.source {
            add("--source", source.to_string());
        }
        if self.one_flow {
            arguments.push("--one-flow".to_owned());
        }
        arguments
    }
}

/// An answered request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// What the server said.
    pub answer: Answer,
    /// From before the connection was opened until the answer was there.
    pub latency: Duration,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Someone said that nobody listens.
    Refused,
    /// Nothing came back.
    TimedOut,
    /// Someone said that there is no way.
    Unreachable,
    /// The connection ended before the answer.
    Closed,
    /// Anything else.
    Other,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// How it failed.
    pub kind: FailureKind,
    /// After what time.
    pub after: Duration,
    /// What the system said.
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} after {:.1} ms: {}", self.kind, self.after.as_secs_f64() * 1000.0, self.text)
    }
}

/// The outcomes of a client's requests, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// One for each request.
    pub outcomes: Vec<Result<Reply, Failure>>,
}

impl Report {
    /// The answered requests.
    pub fn replies(&self) -> impl Iterator<Item = &Reply> {
        self.outcomes.iter().filter_map(|outcome| outcome.as_ref().ok())
    }

    /// The failed ones.
    pub fn failures(&self) -> Vec<&Failure> {
        self.outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect()
    }

    /// How many requests each pod answered.
    pub fn pods(&self) -> BTreeMap<&str, usize> {
        self.replies().fold(BTreeMap::new(), |mut counts, reply| {
            *counts.entry(reply.answer.pod.as_str()).or_default() += 1;
            counts
        })
    }

    /// The addresses that the servers saw.
    pub fn sources(&self) -> BTreeSet<IpAddr> {
        self.replies().map(|reply| reply.answer.client.ip()).collect()
    }

    /// The latency that half of the answered requests stayed below.
    pub fn median(&self) -> Option<Duration> {
        let mut latencies: Vec<Duration> = self.replies().map(|reply| reply.latency).collect();
        latencies.sort_unstable();
        latencies.get(latencies.len() / 2).copied()
    }
}

/// Does what `load` says, in the calling process.
pub fn run(load: &Load) -> Report {
    let stop = Arc::new(AtomicBool::new(false));
    if load.count.is_none() {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            // Only the end of the input matters, and an error is an end.
            io::copy(&mut io::stdin(), &mut io::sink()).ok();
            stop.store(true, Ordering::Relaxed);
        });
    }
    let mut report = Report::default();
    let mut flow = None;
    for number in 0..load.count.unwrap_or(u32::MAX) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if number > 0 {
            thread::sleep(Duration::from_millis(load.interval_ms));
        }
        let begin = Instant::now();
        let outcome = ask(load, &mut flow, number).map(|answer| Reply { answer, latency: begin.elapsed() });
        let outcome = outcome.map_err(|error| Failure {
            kind: kind_of(&error),
            after: begin.elapsed(),
            text: error.to_string(),
        });
        let lost = outcome.is_err() && load.one_flow && load.protocol == Protocol::Tcp;
        report.outcomes.push(outcome);
        if lost {
            break;
        }
        flow = flow.filter(|_| load.one_flow);
    }
    report
}

enum Flow {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

fn ask(load: &Load, flow: &mut Option<Flow>, number: u32) -> io::Result<Answer> {
    let flow = match flow {
        Some(open) => open,
        None => flow.insert(open(load)?),
    };
    let said = number.to_string();
    match flow {
        Flow::Tcp(stream) => {
            stream.get_mut().write_all(format!("{said}\n").as_bytes())?;
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            Ok(serde_json::from_str(&line)?)
        }
        Flow::Udp(socket) => {
            socket.send(said.as_bytes())?;
            let mut buffer = [0; 2048];
            loop {
                let length = socket.recv(&mut buffer)?;
                let answer: Answer = serde_json::from_slice(&buffer[..length])?;
                // An older one is the late answer to a request that was given up.
                if answer.said == said {
                    return Ok(answer);
                }
            }
        }
    }
}

fn open(load: &Load) -> io::Result<Flow> {
    let timeout = Duration::from_millis(load.timeout_ms);
    match load.protocol {
        Protocol::Tcp => {
            let stream = TcpStream::connect_timeout(&load.target, timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            Ok(Flow::Tcp(BufReader::new(stream)))
        }
        Protocol::Udp => {
            let any = match load.target {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((load.source.unwrap_or(any), 0))?;
            socket.connect(load.target)?;
            socket.set_read_timeout(Some(timeout))?;
            Ok(Flow::Udp(socket))
        }
    }
}

fn kind_of(error: &io::Error) -> FailureKind {
    match error.kind() {
        ErrorKind::ConnectionRefused => FailureKind::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => FailureKind::TimedOut,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => FailureKind::Unreachable,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => FailureKind::Closed,
        _ => FailureKind::Other,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Fetches a page over plain HTTP/1.1 in the calling thread's namespace: its status and its body.
///
/// # Errors
/// When there is no answer within two seconds, or it is not HTTP.
pub fn http_get(server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let timeout = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    // HTTP/1.0 keeps the server from chunking its answer, and lets the end of the connection end the body.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let malformed = || io::Error::new(ErrorKind::InvalidData, "not an HTTP answer");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_closed_port_refuses_at_once() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let report = run(&Load::new(Protocol::Tcp, free).times(1));
        assert_eq!(report.failures()[0].kind, FailureKind::Refused, "{report:?}");
        let report = run(&Load::new(Protocol::Udp, free).times(1));
        assert_eq!(report.failures()[0].kind, FailureKind::Refused, "{report:?}");
    }

    #[test]
    fn a_silent_peer_times_out_and_every_request_is_reported() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let load = Load::new(Protocol::Udp, silent.local_addr().unwrap());
        let report = run(&load.times(3).giving_up_after(Duration::from_millis(20)));
        let kinds: Vec<_> = report.failures().iter().map(|failure| failure.kind).collect();
        assert_eq!(kinds, [FailureKind::TimedOut; 3]);
    }

    #[test]
    fn the_median_and_the_pods_are_those_of_the_answered_requests() {
        let reply = |pod: &str, millis| {
            let client = "10.0.0.1:1000".parse().unwrap();
            let answer = Answer { pod: pod.into(), client, served: 1, said: String::new() };
            Ok(Reply { answer, latency: Duration::from_millis(millis) })
        };
        let lost =
            Failure { kind: FailureKind::TimedOut, after: Duration::from_secs(2), text: String::new() };
        let report = Report { outcomes: vec![reply("a", 3), Err(lost), reply("b", 1), reply("a", 2)] };
        assert_eq!(report.median(), Some(Duration::from_millis(2)));
        assert_eq!(report.pods(), BTreeMap::from([("a", 2), ("b", 1)]));
        assert_eq!(report.failures().len(), 1);
    }
}
