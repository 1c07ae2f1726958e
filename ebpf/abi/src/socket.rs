//! Sockets whose peer the socket hooks translated.

use crate::{Address, Port, layout};

/// A socket and the backend it really talks to. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The backend's address.
    pub address: Address,
    /// The backend's port.
    pub port: Port,
    /// Zero.
    pub reserved: [u16; 3],
}
layout!(SocketKey, 32);

/// The frontend that the process dialled. 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketPeer {
    /// The frontend's address.
    pub address: Address,
    /// The frontend's port.
    pub port: Port,
    /// Zero.
    pub reserved: u16,
}
layout!(SocketPeer, 20);
