//! The cluster's network namespaces, processes started in one and in a control group, and raw sockets, which belong to
//! the namespace of the thread that opens them.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use fairlead_net::netns::{NAMED, NamedNetns, remove};
use nix::sys::socket::{SockaddrStorage, bind};

/// The file that names the namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// Makes a namespace without duplicate address detection, which would hold back every IPv6 address for a
/// second. It goes with the guard returned.
///
/// # Errors
/// When the name is taken or the system refuses.
pub fn create(name: &str) -> Result<NamedNetns> {
    let netns = NamedNetns::create(name)?;
    netns
        .run(|| {
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
            fs::write("/proc/sys/net/ipv6/conf/default/dad_transmits", "0")
        })?
        .with_context(|| format!("switch duplicate address detection off in {name}"))?;
    Ok(netns)
}

/// Removes the namespace's name, if there is one; its last process takes the rest along.
///
/// # Errors
/// When the system refuses.
pub fn delete(name: &str) -> Result<()> {
    Ok(remove(name)?)
}

/// Names of all namespaces that begin with `prefix`.
pub fn list(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(NAMED).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name.starts_with(prefix)).collect()
}

/// Makes the command's process start in a control group, so that socket hooks of the group see all it does.
///
/// # Errors
/// When the group does not exist.
pub fn join<'a>(command: &'a mut Command, cgroup: &Path) -> Result<&'a mut Command> {
    let procs = cgroup.join("cgroup.procs");
    let file = File::options().write(true).open(&procs);
    let file = file.with_context(|| format!("open {}", procs.display()))?;
    let enter = move || nix::unistd::write(&file, b"0").map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure only makes one write to a file that it keeps open.
    Ok(unsafe { command.pre_exec(enter) })
}

/// A raw socket that has neither address nor peer yet.
#[derive(Debug)]
pub(crate) struct RawSocket(OwnedFd);

/// Opens a raw socket for a protocol, of the family of `like`.
///
/// # Errors
/// Without the privilege.
pub(crate) fn raw_socket(protocol: u8, like: IpAddr) -> io::Result<RawSocket> {
    let family = if like.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: the call takes three numbers and no pointer.
    let descriptor = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was opened above, and nobody else has it.
    Ok(RawSocket(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

impl RawSocket {
    /// Gives it an address, which need not be the host's to use.
    ///
    /// # Errors
    /// When no interface has the address.
    pub(crate) fn bind(&self, address: IpAddr) -> io::Result<()> {
        Ok(bind(self.0.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0)))?)
    }

    /// The socket as one of the standard library's, whose calls for datagrams fit raw packets as well. Ports of
    /// addresses mean nothing.
    pub(crate) fn into_unconnected(self) -> UdpSocket {
        UdpSocket::from(self.0)
    }

    /// The same with a peer, so that ICMP errors about what it sends are its errors.
    ///
    /// # Errors
    /// When there is no route.
    pub(crate) fn into_connected(self, peer: IpAddr) -> io::Result<UdpSocket> {
        let socket = self.into_unconnected();
        socket.connect((peer, 0))?;
        Ok(socket)
    }
}

/// What a raw socket received, without the header that IPv4 ones are given along.
pub(crate) fn payload(packet: &[u8], is_ipv4: bool) -> &[u8] {
    let header = if is_ipv4 { packet.first().map_or(0, |first| usize::from(first & 15) * 4) } else { 0 };
    packet.get(header..).unwrap_or_default()
}
