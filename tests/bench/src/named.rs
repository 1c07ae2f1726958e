//! A server that tells its name, and a client that connects until it meets a certain one: how the moment is found
//! at which a change of endpoints takes effect.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};

/// The port of the server that tells its name.
pub(crate) const PORT: u16 = 7005;

/// Longest search for a server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts the server on every address of this namespace.
pub(crate) fn serve(name: u8) -> io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)))?;
    thread::Builder::new().name("named".into()).spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The client resets its connections, which is none of the next one's business.
            let _ = stream.write_all(&[name]).and_then(|()| stream.read(&mut [0]));
        }
    })?;
    Ok(())
}

/// Connects to `target` without a pause until the server of that name answers, and returns when it did.
///
/// # Errors
/// When a connection fails, or other servers answer for ten seconds.
pub(crate) fn watch(target: SocketAddr, server: u8) -> io::Result<Duration> {
    let deadline = now()? + PATIENCE;
    loop {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut name = [0];
        stream.read_exact(&mut name)?;
        let now = now()?;
        if name == [server] {
            return Ok(now);
        }
        if now > deadline {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("server {} goes on answering", name[0])));
        }
        // No port is left in TIME_WAIT, of which there would soon be too many.
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
}

/// The monotonic clock, which is the same in all processes.
pub(crate) fn now() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_server_is_recognised_by_its_name_and_nobody_means_an_error() {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        assert_eq!(watch(target, 7).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        serve(7).unwrap();
        let before = now().unwrap();
        assert!(watch(target, 7).unwrap() >= before);
    }
}
