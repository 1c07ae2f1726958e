//! Sockets whose peer the socket hooks translated.
//!
//! A translated socket has two entries: from the backend to the frontend that the process dialled, so that
//! it sees the address that it expects, and from the frontend to the backend that was chosen, so that a
//! socket which sends datagrams one by one keeps its backend.

use crate::{Address, Port, layout};

/// A socket and one address of its peer. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The frontend's or the backend's address.
    pub address: Address,
    /// Its port.
    pub port: Port,
    /// Zero.
    pub reserved: [u16; 3],
}
layout!(SocketKey, 32 { cookie, address, port, reserved });

/// The other address of that peer. 28 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketPeer {
    /// The backend's address for a frontend's entry, and the other way round.
    #[cfg(not(feature = "next-layout"))]
    pub address: Address,
    /// Its port.
    pub port: Port,
    /// [`socket_flags`].
    pub flags: u16,
    /// The backend's id.
    pub backend: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
    /// The backend's address for a frontend's entry, and the other way round.
    #[cfg(feature = "next-layout")]
    pub address: Address,
}
layout!(SocketPeer, 28 { address, port, flags, backend, generation });

/// Bits of [`SocketPeer::flags`].
pub mod socket_flags {
    /// The socket is connected to the backend, so that no hook sees what it sends.
    pub const CONNECTED: u16 = 1;
}

/// A network namespace whose sockets are translated before any packet exists, and the addresses that its
/// processes are known by: the node's for the host's own, the pod's for a pod's. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketClient {
    /// Its IPv4 address, or `::`.
    pub v4: Address,
    /// Its IPv6 address, or `::`.
    pub v6: Address,
}
layout!(SocketClient, 32 { v4, v6 });
