//! Messages of nfnetlink, the kernel's way to connection tracking and nftables: built, sent and taken apart.
//!
//! Attributes are `nlattr`s (include/uapi/linux/netlink.h), numbers in them in network byte order unless the caller says
//! otherwise. Needs CAP_NET_ADMIN in the network namespace, and no module that the rules in question do not need
//! themselves.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

/// `NFNL_SUBSYS_CTNETLINK` of linux/netfilter/nfnetlink.h.
pub const CONNTRACK: u16 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
pub const NFTABLES: u16 = 10;

/// `NLM_F_REQUEST` of linux/netlink.h.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const ACK: u16 = 4;
/// `NLM_F_DUMP`.
const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;
/// `NLA_F_NESTED`, and `NLA_F_NET_BYTEORDER`, which is in nobody's way.
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Length of a `nlmsghdr` and of a `nfgenmsg`.
const HEADER: usize = 16;
const FAMILY: usize = 4;
/// How much one read takes: the kernel fills at most 32 KiB at a time.
const LARGEST_READ: usize = 64 * 1024;
/// How long the kernel may take to answer.
const PATIENCE: TimeVal = TimeVal::new(30, 0);
/// What the kernel may hold of events until they are read, in bytes.
const EVENT_BUFFER: usize = 8 << 20;

/// What attributes can be added to.
pub trait Attributed: Sized {
    /// Where they stand, one behind the other.
    fn bytes_mut(&mut self) -> &mut Vec<u8>;

    /// The same with one more attribute.
    #[must_use]
    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        put(self.bytes_mut(), kind, value);
        self
    }

    /// The same with a name, which ends with a zero.
    #[must_use]
    fn named(self, kind: u16, name: &str) -> Self {
        self.with(kind, &[name.as_bytes(), &[0]].concat())
    }

    /// The same with attributes inside of one.
    #[must_use]
    fn nest(self, kind: u16, inside: &Nest) -> Self {
        self.with(kind | NESTED, &inside.0)
    }
}

/// A message under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Attributed for Message {
    fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Message {
    /// A message of that number of the subsystem, about an address family (`NFPROTO_*`).
    pub fn new(subsystem: u16, number: u16, family: u8, flags: u16) -> Self {
        Self::of_kind(subsystem << 8 | number, family, flags, 0)
    }

    fn of_kind(kind: u16, family: u8, flags: u16, resource: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self(bytes)
    }

    fn finished(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let mut bytes = self.0.clone();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

/// Attributes inside of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nest(Vec<u8>);

impl Attributed for Nest {
    fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

#[cfg(test)]
impl Nest {
    /// The attributes, as they would be read.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes in these bytes, each with its number; what is cut short ends them.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute of that number.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A number of two bytes in network byte order.
pub fn half(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_be_bytes)
}

/// A number of four bytes in network byte order.
pub fn word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A name, which ends with a zero.
pub fn name(value: &[u8]) -> Option<&str> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok()
}

/// A message that the kernel sent.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Subsystem and number.
    pub kind: u16,
    /// `NLM_F_*`; of an event, `NLM_F_CREATE` among them says that it is of something new.
    pub flags: u16,
    /// `NFPROTO_*`.
    pub family: u8,
    /// The attributes.
    pub attributes: &'a [u8],
}

/// What came with one read.
enum Part<'a> {
    Message(Received<'a>),
    /// An acknowledgement, or the number of an error.
    Answer(i32),
    Done,
}

fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        match kind {
            DONE => Some(Part::Done),
            ERROR => body.get(..4)?.try_into().ok().map(|code| Part::Answer(i32::from_ne_bytes(code))),
            _ => Some(Part::Message(Received {
                kind,
                flags,
                family: *body.first()?,
                attributes: body.get(FAMILY..).unwrap_or_default(),
            })),
        }
    })
}

/// A socket to the kernel, in the network namespace of the thread that opened it.
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// For requests.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink.
    pub fn open() -> io::Result<Self> {
        Self::listening(0, PATIENCE)
    }

    /// That hears of these groups of events, a bit each (`NFNLGRP_*`), and waits so long for one.
    ///
    /// # Errors
    /// When the kernel refuses: it wants CAP_NET_ADMIN for this.
    pub fn subscribed(groups: u32, wait: TimeVal) -> io::Result<Self> {
        let socket = Self::listening(groups, wait)?;
        // More than what an unprivileged process may have.
        setsockopt(&socket.fd, sockopt::RcvBufForce, &EVENT_BUFFER)?;
        Ok(socket)
    }

    fn listening(groups: u32, wait: TimeVal) -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait)?;
        Ok(Self { fd, buffer: vec![0; LARGEST_READ] })
    }

    /// Has the kernel do something.
    ///
    /// # Errors
    /// When it refuses.
    pub fn request(&mut self, message: &Message) -> io::Result<()> {
        self.send(&message.finished(ACK, 1))?;
        self.answer()
    }

    /// Has the kernel do all of this, or nothing.
    ///
    /// # Errors
    /// When it refuses.
    pub fn transact(&mut self, subsystem: u16, messages: &[Message]) -> io::Result<()> {
        let Some((last, others)) = messages.split_last() else { return Ok(()) };
        let mut bytes = Message::of_kind(BATCH_BEGIN, 0, 0, subsystem).finished(0, 1);
        for message in others {
            bytes.extend(message.finished(0, 2));
        }
        // What fails is answered anyway; of the rest, one answer is enough.
        bytes.extend(last.finished(ACK, 3));
        bytes.extend(Message::of_kind(BATCH_END, 0, 0, subsystem).finished(0, 4));
        setsockopt(&self.fd, sockopt::SndBuf, &bytes.len().max(LARGEST_READ))?;
        setsockopt(&self.fd, sockopt::SndBufForce, &(2 * bytes.len()).max(LARGEST_READ))?;
        self.send(&bytes)?;
        self.answer()
    }

    /// Passes on every message of a dump.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn dump(&mut self, message: &Message, mut take: impl FnMut(Received<'_>)) -> io::Result<()> {
        self.send(&message.finished(DUMP, 1))?;
        loop {
            let length = self.receive()?;
            for part in parts(&self.buffer[..length]) {
                match part {
                    Part::Message(message) => take(message),
                    Part::Answer(0) | Part::Done => return Ok(()),
                    Part::Answer(code) => return Err(io::Error::from_raw_os_error(-code)),
                }
            }
        }
    }

    /// Passes on the next events; none come if there are none for as long as the socket waits.
    ///
    /// # Errors
    /// When some were lost (`ENOBUFS`), or the kernel refuses.
    pub fn events(&mut self, mut take: impl FnMut(Received<'_>)) -> io::Result<()> {
        let length = match self.receive() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
        for part in parts(&self.buffer[..length]) {
            if let Part::Message(message) = part {
                take(message);
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<()> {
        loop {
            let length = self.receive()?;
            let codes = parts(&self.buffer[..length]).filter_map(|part| match part {
                Part::Answer(code) => Some(code),
                Part::Message(_) | Part::Done => None,
            });
            let codes: Vec<i32> = codes.collect();
            if let Some(code) = codes.iter().find(|code| **code != 0) {
                return Err(io::Error::from_raw_os_error(-code));
            }
            if !codes.is_empty() {
                return Ok(());
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map(drop).map_err(io::Error::from)
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inside = Nest::default().with(1, &[7]).named(2, "odd");
        let message = Message::new(NFTABLES, 3, 2, CREATE).named(1, "table").nest(4, &inside);
        let bytes = message.finished(ACK, 9);
        let Some(Part::Message(read)) = parts(&bytes).next() else { panic!("no message") };
        assert_eq!((read.kind, read.family), (NFTABLES << 8 | 3, 2));
        assert_eq!(attribute(read.attributes, 1).and_then(name), Some("table"));
        let inside = attribute(read.attributes, 4).expect("the nest");
        assert_eq!(attribute(inside, 1), Some(&[7][..]));
        assert_eq!(attribute(inside, 2).and_then(name), Some("odd"));
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let nest = Nest::default().with(1, &[1, 2, 3, 4]).with(2, &[5, 6, 7, 8]);
        let bytes = nest.bytes();
        assert_eq!(attributes(&bytes[..bytes.len() - 1]).count(), 1);
        assert_eq!(attributes(&[4, 0, 1]).count(), 0);
    }
}
