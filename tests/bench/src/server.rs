//! The servers at the other end of every path: one process, one thread per kind of load.
//!
//! They are as plain as can be, since whatever they cost dilutes the difference between the paths: no
//! allocation and no lock per request. A server never closes first, so none of its sockets enters
//! TIME_WAIT, where they would distort connect rates.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::cell::{MESSAGE, Target};

/// More descriptors than the server can have open: [`crate::cell::IN_FLIGHT`] and those on their way out.
const DESCRIPTORS: usize = 4096;

/// Large enough that a read takes whatever the socket's buffer holds.
const SINK_BUFFER: usize = 1 << 20;

/// Binds the four servers on every address of this namespace and starts their threads, which inherit this
/// one's processor and end with the process.
pub(crate) fn start() -> io::Result<()> {
    let ports = Target::itself(Ipv6Addr::UNSPECIFIED.into());
    let listen = |port: u16| TcpListener::bind(SocketAddr::new(ports.address, port));
    let (many, single, sink) = (listen(ports.many)?, listen(ports.single)?, listen(ports.sink)?);
    let datagram = UdpSocket::bind(SocketAddr::new(ports.address, ports.datagram))?;
    many.set_nonblocking(true)?;
    thread::Builder::new().name("many".into()).spawn(move || answer_many(&many))?;
    thread::Builder::new().name("single".into()).spawn(move || one_by_one(&single, answer_one))?;
    thread::Builder::new().name("sink".into()).spawn(move || one_by_one(&sink, count))?;
    thread::Builder::new().name("datagram".into()).spawn(move || answer_datagrams(&datagram))?;
    Ok(())
}

/// Answers requests on any number of connections, as an event loop does.
fn answer_many(listener: &TcpListener) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let listening = listener.as_raw_fd() as u64;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, listening))?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    connections.resize_with(DESCRIPTORS, || None);
    let mut events = [EpollEvent::empty(); 64];
    let mut message = [0; MESSAGE];
    let gone = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            if event.data() == listening {
                while let Ok((stream, _)) = listener.accept() {
                    let fd = stream.as_raw_fd();
                    epoll.add(
                        &stream,
                        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, fd as u64),
                    )?;
                    connections[fd as usize] = Some(stream);
                }
                continue;
            }
            let connection = &mut connections[event.data() as usize];
            let served = match connection {
                Some(stream) if !event.events().intersects(gone) => answer(stream, &mut message),
                _ => Ok(false),
            };
            if !served.unwrap_or(false) {
                *connection = None;
            }
        }
    }
}

/// Reads a request and answers it; false when the client has closed.
fn answer(stream: &mut TcpStream, message: &mut [u8; MESSAGE]) -> io::Result<bool> {
    let read = stream.read(message)?;
    stream.write_all(&message[..read])?;
    Ok(read > 0)
}

/// Serves connections of which there is one at a time, blocking: the fewest system calls per request.
fn one_by_one(listener: &TcpListener, serve: fn(&mut TcpStream) -> io::Result<()>) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        // A connection that its client breaks off ends that connection only.
        let _ = serve(&mut stream);
    }
}

fn answer_one(stream: &mut TcpStream) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    while answer(stream, &mut message)? {}
    Ok(())
}

/// Counts bytes until the client has sent all, and tells it how many came.
fn count(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; SINK_BUFFER];
    let mut bytes = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => bytes += read as u64,
        }
    }
    stream.write_all(&bytes.to_be_bytes())
}

fn answer_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    loop {
        let (length, client) = socket.recv_from(&mut message)?;
        // An unreachable client is an error of some later call on the socket: the next datagram is another's.
        let _ = socket.send_to(&message[..length], client);
    }
}
