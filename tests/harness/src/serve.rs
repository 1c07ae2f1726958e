//! The small server that stands for a pod's container: it answers every line (TCP), datagram (UDP) and heartbeat
//! (SCTP) with who it is and whom it sees.
//!
//! It ends as a well-behaved container does: told to stop, it goes on accepting for a while, then takes leave of each
//! open connection with its next answer, and is gone when the last one is closed.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::answer::{Answer, understand};
use crate::protocol::{Port, Protocol};
use crate::sctp;

/// How long the server goes on accepting after it was told to stop, if its pod does not say: as long as it may take
/// until every node has heard that the pod is terminating. Real images do the same in a preStop hook.
pub const LINGER: Duration = Duration::from_secs(1);

/// Serves until SIGTERM and then for `linger`, finishes what is open and ends; prints `ready` once every port is bound.
///
/// # Errors
/// When a port can't be bound.
pub fn run(pod: &str, ports: &[Port], linger: Duration) -> Result<()> {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    // Blocked before any thread starts, so that the signal reaches the wait below and nothing else.
    term.thread_block().context("block SIGTERM")?;
    let server = Arc::new(Server::new(pod));
    for &port in ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
        // One socket takes both families: IPv4 arrives at it as mapped addresses.
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.number));
        let server = Arc::clone(&server);
        if port.protocol == Protocol::Tcp {
            let listener = TcpListener::bind(address).with_context(|| format!("listen on {port}"))?;
            thread::spawn(move || server.accept(&listener));
        } else {
            let socket = UdpSocket::bind(address).with_context(|| format!("bind {port}"))?;
            thread::spawn(move || server.datagrams(&socket));
        }
    }
    let sctp_ports = ports.iter().filter(|port| port.protocol == Protocol::Sctp).map(|port| port.number);
    let sctp_ports: Vec<u16> = sctp_ports.collect();
    if !sctp_ports.is_empty() {
        let server = Arc::clone(&server);
        let respond = move |client, said: &[u8], damaged| server.answer(client, said, damaged);
        sctp::serve(&sctp_ports, respond).context("open raw sockets for SCTP")?;
    }
    println!("ready");
    term.wait().context("wait for SIGTERM")?;
    thread::sleep(linger);
    server.closing.store(true, Ordering::Relaxed);
    while server.open.load(Ordering::Relaxed) > 0 {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

struct Server {
    pod: String,
    served: AtomicU64,
    open: AtomicUsize,
    closing: AtomicBool,
}

impl Server {
    fn new(pod: &str) -> Self {
        let (served, open) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self { pod: pod.to_owned(), served, open, closing: AtomicBool::new(false) }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let server = Arc::clone(self);
            server.open.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || {
                // A client that goes away in the middle of a line is its own business.
                server.lines(&stream).ok();
                server.open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    fn lines(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let client = stream.peer_addr()?;
        for line in BufReader::new(stream).lines() {
            let closing = self.closing.load(Ordering::Relaxed);
            let mut answer = self.answer(client, line?.as_bytes(), 0);
            answer.push(b'\n');
            let mut writer = stream;
            writer.write_all(&answer)?;
            if closing {
                break;
            }
        }
        Ok(())
    }

    fn datagrams(&self, socket: &UdpSocket) {
        let mut buffer = vec![0; 65_536];
        loop {
            // An error here is an ICMP message about an earlier answer: the next request does not care.
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            let answer = self.answer(client, &buffer[..length], 0);
            if let Err(error) = socket.send_to(&answer, client) {
                tracing::warn!(%client, bytes = answer.len(), %error, "answer a datagram");
            }
        }
    }

    fn answer(&self, client: SocketAddr, request: &[u8], damaged: u64) -> Vec<u8> {
        let text = String::from_utf8_lossy(request);
        let (said, padding) = understand(&text);
        let answer = Answer {
            pod: self.pod.clone(),
            client: SocketAddr::new(client.ip().to_canonical(), client.port()),
            served: self.served.fetch_add(1, Ordering::Relaxed) + 1,
            said: said.to_owned(),
            length: request.len(),
            closing: self.closing.load(Ordering::Relaxed),
            damaged,
            padding: "x".repeat(padding),
        };
        serde_json::to_vec(&answer).expect("an answer is plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Load;
    use crate::probe;

    #[test]
    fn a_server_that_closes_says_so_and_its_clients_lose_nothing() {
        let server = Arc::new(Server::new("a"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let load = Load::new(Protocol::Tcp, listener.local_addr().unwrap()).over_one_flow().times(3);
        let accepting = Arc::clone(&server);
        thread::spawn(move || accepting.accept(&listener));
        let report = probe::run(&load);
        report.all_answered().unwrap();
        let ports = |report: &crate::Report| report.replies().map(|r| r.local.port()).collect::<Vec<_>>();
        assert!(ports(&report).windows(2).all(|pair| pair[0] == pair[1]), "one flow: {report:?}");
        server.closing.store(true, Ordering::Relaxed);
        let report = probe::run(&load);
        report.all_answered().unwrap();
        assert!(ports(&report).windows(2).all(|pair| pair[0] != pair[1]), "a flow each: {report:?}");
        assert!(report.replies().all(|reply| reply.answer.closing));
    }

    #[test]
    fn large_requests_are_answered_at_the_length_asked_for() {
        let server = Arc::new(Server::new("a"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let targets =
            [(Protocol::Tcp, listener.local_addr().unwrap()), (Protocol::Udp, socket.local_addr().unwrap())];
        let (accepting, receiving) = (Arc::clone(&server), server);
        thread::spawn(move || accepting.accept(&listener));
        thread::spawn(move || receiving.datagrams(&socket));
        for (protocol, target) in targets {
            let report = probe::run(&Load::new(protocol, target).times(1).sized(20_000).answers_of(30_000));
            report.all_answered().unwrap();
            assert_eq!(report.replies().next().unwrap().answer.length, 20_000, "{protocol}");
        }
    }
}
