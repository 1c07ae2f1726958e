//! The small server that stands for a pod's container: it answers every line (TCP) and every datagram
//! (UDP) with who it is and whom it sees.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

/// How long the server goes on accepting after it was told to stop: as long as it may take until every
/// node has heard that the pod is terminating. Real images do the same in a preStop hook.
const LAME_DUCK: Duration = Duration::from_secs(1);

/// What a server answers, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The pod that answers.
    pub pod: String,
    /// The address that the server saw the request come from.
    pub client: SocketAddr,
    /// How many requests this server has had, this one included.
    pub served: u64,
    /// The request itself.
    pub said: String,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A line over a connection.
    Tcp,
    /// A datagram.
    Udp,
}

impl Protocol {
    /// Both, in the order in which tables show them.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port to serve, written `8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

impl FromStr for Port {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => bail!("protocol {other:?} of port {text:?} is neither tcp nor udp"),
        };
        let number = number.parse().with_context(|| format!("port {text:?}"))?;
        Ok(Self { number, protocol })
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// Serves until SIGTERM, then finishes what is open; prints `ready` once every port is bound.
///
/// # Errors
/// When a port can't be bound.
pub fn run(pod: &str, ports: &[Port]) -> Result<()> {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    // Blocked before any thread starts, so that the signal reaches the wait below and nothing else.
    term.thread_block().context("block SIGTERM")?;
    let server = Server { pod: pod.to_owned(), served: AtomicU64::new(0), open: AtomicUsize::new(0) };
    let server = Arc::new(server);
    for &port in ports {
        // One socket takes both families: IPv4 arrives at it as mapped addresses.
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.number));
        let server = Arc::clone(&server);
        match port.protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(address).with_context(|| format!("listen on {port}"))?;
                thread::spawn(move || server.accept(&listener));
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(address).with_context(|| format!("bind {port}"))?;
                thread::spawn(move || server.datagrams(&socket));
            }
        }
    }
    println!("ready");
    term.wait().context("wait for SIGTERM")?;
    thread::sleep(LAME_DUCK);
    while server.open.load(Ordering::Relaxed) > 0 {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

struct Server {
    pod: String,
    served: AtomicU64,
    open: AtomicUsize,
}

impl Server {
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
            let mut answer = self.answer(client, &line?);
            answer.push(b'\n');
            let mut writer = stream;
            writer.write_all(&answer)?;
        }
        Ok(())
    }

    fn datagrams(&self, socket: &UdpSocket) {
        let mut buffer = [0; 2048];
        loop {
            // An error here is an ICMP message about an earlier answer: the next request does not care.
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            let said = String::from_utf8_lossy(&buffer[..length]);
            socket.send_to(&self.answer(client, &said), client).ok();
        }
    }

    fn answer(&self, client: SocketAddr, said: &str) -> Vec<u8> {
        let answer = Answer {
            pod: self.pod.clone(),
            client: SocketAddr::new(client.ip().to_canonical(), client.port()),
            served: self.served.fetch_add(1, Ordering::Relaxed) + 1,
            said: said.trim_end().to_owned(),
        };
        serde_json::to_vec(&answer).expect("an answer is plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_written_as_number_and_protocol() {
        let port: Port = "53/udp".parse().unwrap();
        assert_eq!(port, Port { number: 53, protocol: Protocol::Udp });
        assert_eq!(port.to_string(), "53/udp");
        assert!("70000/tcp".parse::<Port>().is_err());
        assert!("80/sctp".parse::<Port>().is_err());
    }
}
