//! Clients: requests to a pod's server, each with its answer and latency or with how it failed.
//!
//! A client is a process of its own (`fairlead-harness probe`, started by [`crate::Place`]), because socket
//! hooks belong to control groups, and a control group has processes.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::answer::{Answer, request};
use crate::load::Load;
use crate::protocol::Protocol;
use crate::report::{Failure, FailureKind, Reply, Report};
use crate::sctp::Association;

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
    let (sender, outcomes) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..load.parallel.max(1) {
            let (sender, stop) = (sender.clone(), Arc::clone(&stop));
            scope.spawn(move || {
                for outcome in (Client { load, flow: None, stop, number: 0 }) {
                    sender.send(outcome).ok();
                }
            });
        }
    });
    drop(sender);
    let mut report = Report { outcomes: outcomes.into_iter().collect() };
    report.outcomes.sort_by_key(|outcome| outcome.as_ref().map_or_else(|f| f.at, |r| r.at));
    report
}

/// One client at work: an iterator over what comes of its requests.
struct Client<'a> {
    load: &'a Load,
    flow: Option<Flow>,
    stop: Arc<AtomicBool>,
    number: u32,
}

impl Iterator for Client<'_> {
    type Item = Result<Reply, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.number > 0 {
            thread::sleep(Duration::from_millis(self.load.interval_ms));
        }
        if self.stop.load(Ordering::Relaxed) || self.load.count.is_some_and(|count| self.number >= count) {
            return None;
        }
        let (at, begin) = (SystemTime::now(), Instant::now());
        let outcome = match self.ask() {
            Ok((answer, local)) => Ok(Reply { answer, local, at, latency: begin.elapsed() }),
            Err(error) => {
                let kind = FailureKind::of(&error);
                let from = self.flow.as_ref().and_then(|flow| flow.local().ok());
                let from = from.map(|from| format!(", from {from}")).unwrap_or_default();
                Err(Failure { kind, at, after: begin.elapsed(), text: format!("{error}{from}") })
            }
        };
        self.number += 1;
        let closing = outcome.as_ref().is_ok_and(|reply| reply.answer.closing);
        let is_connection = self.load.protocol != Protocol::Udp;
        if outcome.is_err() && self.load.one_flow && is_connection {
            self.stop.store(true, Ordering::Relaxed);
        }
        if !self.load.one_flow || (closing && is_connection) {
            self.flow = None;
        }
        Some(outcome)
    }
}

impl Client<'_> {
    fn ask(&mut self) -> io::Result<(Answer, SocketAddr)> {
        let flow = match &mut self.flow {
            Some(open) => open,
            none => none.insert(Flow::open(self.load)?),
        };
        let said = request(self.number, self.load.size, self.load.answer_size);
        let mut answer = flow.ask(self.load, &self.number.to_string(), &said)?;
        // Checked here and left out of the report, which would be larger than the traffic.
        let padding = std::mem::take(&mut answer.padding).len();
        if (answer.length, padding) != (said.len(), self.load.answer_size) {
            let text = format!("{} of {} bytes arrived, and {padding} came back", answer.length, said.len());
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        Ok((answer, flow.local()?))
    }
}

enum Flow {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
    Sctp(Association),
}

impl Flow {
    fn open(load: &Load) -> io::Result<Self> {
        match load.protocol {
            Protocol::Tcp => {
                let stream = match load.source.or((load.source_port > 0).then(|| unspecified(load.target))) {
                    Some(source) => connect_from(load, (source, load.source_port).into())?,
                    None => TcpStream::connect_timeout(&load.target, load.timeout())?,
                };
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(load.timeout()))?;
                stream.set_write_timeout(Some(load.timeout()))?;
                Ok(Self::Tcp(BufReader::new(stream)))
            }
            Protocol::Udp => {
                let source = load.source.unwrap_or_else(|| unspecified(load.target));
                let socket = UdpSocket::bind((source, load.source_port))?;
                if !load.unconnected {
                    socket.connect(load.target)?;
                }
                Ok(Self::Udp(socket))
            }
            Protocol::Sctp => {
                let source = load.source.map(|source| (source, load.source_port).into());
                let source = source.unwrap_or_else(|| (unspecified(load.target), load.source_port).into());
                Association::open(source, load.target, load.timeout()).map(Self::Sctp)
            }
        }
    }

    fn ask(&mut self, load: &Load, number: &str, said: &str) -> io::Result<Answer> {
        match self {
            Self::Tcp(stream) => {
                stream.get_mut().write_all(format!("{said}\n").as_bytes())?;
                let mut line = String::new();
                if stream.read_line(&mut line)? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                Ok(serde_json::from_str(&line)?)
            }
            Self::Udp(socket) => ask_by_datagram(socket, load, number, said),
            Self::Sctp(association) => {
                Ok(serde_json::from_slice(&association.ask(said.as_bytes(), load.timeout())?)?)
            }
        }
    }

    fn local(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.get_ref().local_addr(),
            Self::Udp(socket) => socket.local_addr(),
            Self::Sctp(association) => association.local(),
        }
    }
}

fn ask_by_datagram(socket: &UdpSocket, load: &Load, number: &str, said: &str) -> io::Result<Answer> {
    if load.unconnected {
        socket.send_to(said.as_bytes(), load.target)?;
    } else {
        socket.send(said.as_bytes())?;
    }
    let deadline = Instant::now() + load.timeout();
    let mut buffer = vec![0; 65_536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        if (from.ip().to_canonical(), from.port()) != (load.target.ip(), load.target.port()) {
            return Err(io::Error::new(ErrorKind::AddrNotAvailable, format!("answered by {from}")));
        }
        let answer: Answer = serde_json::from_slice(&buffer[..length])?;
        // An older one is the late answer to a request that was given up.
        if answer.said == number {
            return Ok(answer);
        }
    }
}

/// Connects from a chosen source, for which the standard library has no call.
fn connect_from(load: &Load, source: SocketAddr) -> io::Result<TcpStream> {
    let family = if load.target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let timeout = load.timeout();
    let timeout = TimeVal::new(timeout.as_secs().cast_signed(), timeout.subsec_micros().into());
    setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(load.target))?;
    Ok(TcpStream::from(socket))
}

fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Fetches a page over plain HTTP/1.1 in the calling thread's namespace: its status and its body.
///
/// # Errors
/// When there is no answer within two seconds, or it is not HTTP.
pub fn http_get(server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    http("GET", server, path, "")
}

/// Like [`http_get`], with another method and a body.
pub(crate) fn http(method: &str, server: SocketAddr, path: &str, body: &str) -> io::Result<(u16, String)> {
    let timeout = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    // HTTP/1.0 keeps the server from chunking its answer, and lets the end of the connection end the body.
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: {server}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes())?;
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
        for protocol in Protocol::SOCKETS {
            let load = Load::new(protocol, free).times(1);
            for load in [load.clone(), load.from_source([127, 0, 0, 2].into())] {
                let report = run(&load);
                assert_eq!(report.failures()[0].kind, FailureKind::Refused, "{report:?}");
            }
        }
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
    fn a_connection_that_is_torn_down_is_told_from_one_that_is_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        for (unread, kind) in [(true, FailureKind::Reset), (false, FailureKind::Closed)] {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    // Closing a socket whose input was not read resets the connection.
                    let mut byte = [0; 1];
                    let mut rest = [0; 64];
                    stream.read_exact(&mut byte).unwrap();
                    if !unread {
                        let _ = stream.read(&mut rest).unwrap();
                    }
                });
                let report = run(&Load::new(Protocol::Tcp, target).times(1).sized(20));
                assert_eq!(report.failures()[0].kind, kind, "{report:?}");
            });
        }
    }

    #[test]
    fn an_answer_from_another_address_is_a_strangers() {
        let (asked, other) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let load = Load::new(Protocol::Udp, asked.local_addr().unwrap()).times(1).unconnected();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (_, client) = asked.recv_from(&mut [0; 64]).unwrap();
                other.send_to(b"{}", client).unwrap();
            });
            let report = run(&load);
            assert_eq!(report.failures()[0].kind, FailureKind::Stranger, "{report:?}");
        });
    }
}
