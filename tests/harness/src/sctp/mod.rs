//! SCTP as far as the tests need it, over raw sockets: this kernel has no sockets for it.
//!
//! An association is opened by the usual four packets; a request is a heartbeat, and the answer is what the server
//! adds to its acknowledgement. Checksums are computed on sending and checked on receipt: a packet whose checksum is
//! wrong is counted and otherwise ignored. See RFC 9260.
//!
//! While a raw socket for the protocol is open in a namespace, its kernel does not answer "protocol unreachable".

mod client;
mod packet;
mod server;

pub(crate) use client::Association;
pub use packet::{Chunk, Malformed, Packet, crc32c};
pub(crate) use server::serve;

/// The protocol's number.
const NUMBER: u8 = 132;

/// Kinds of chunks, RFC 9260, section 3.2.
mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const HEARTBEAT: u8 = 4;
    pub(super) const HEARTBEAT_ACK: u8 = 5;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN: u8 = 7;
    pub(super) const SHUTDOWN_ACK: u8 = 8;
    pub(super) const COOKIE_ECHO: u8 = 10;
    pub(super) const COOKIE_ACK: u8 = 11;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
}

/// The parameter of an INIT ACK that holds its cookie.
const STATE_COOKIE: u16 = 7;
/// The parameter of a HEARTBEAT that its ACK returns.
const HEARTBEAT_INFO: u16 = 1;
/// The parameter of an INIT ACK and a HEARTBEAT ACK with the server's answer: of a type that its receiver, did it
/// not know it, would skip.
const ANSWER: u16 = 0xbfff;

/// What an INIT or INIT ACK says, without parameters: tag, window, streams out and in, first sequence number.
fn init(tag: u32) -> Vec<u8> {
    let mut value = tag.to_be_bytes().to_vec();
    value.extend(65_536u32.to_be_bytes());
    value.extend([0, 1, 0, 1]);
    value.extend(1u32.to_be_bytes());
    value
}

/// Bytes of an INIT before its parameters.
const INIT_LENGTH: usize = 16;

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::netns;
    use crate::report::FailureKind;

    const PATIENCE: Duration = Duration::from_millis(300);

    fn open(target: &str) -> std::io::Result<Association> {
        let target: SocketAddr = target.parse().unwrap();
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        Association::open(any.parse().unwrap(), target, PATIENCE)
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn a_client_and_a_server_associate_over_both_families() {
        let netns = netns::create(&format!("fl-sctp-{}", std::process::id())).unwrap();
        netns
            .run(|| {
                let respond = |client: SocketAddr, said: &[u8], damaged: u64| {
                    format!("{} {} {damaged}", client.ip(), String::from_utf8_lossy(said)).into_bytes()
                };
                serve(&[8080], respond).unwrap();
                for (target, own) in [("127.0.0.1:8080", "127.0.0.1"), ("[::1]:8080", "::1")] {
                    let mut association = open(target).unwrap();
                    for said in ["one", "two"] {
                        let answer = association.ask(said.as_bytes(), PATIENCE).unwrap();
                        assert_eq!(String::from_utf8(answer).unwrap(), format!("{own} {said} 0"));
                    }
                    assert!(String::from_utf8_lossy(association.greeting()).starts_with(own));
                }
                // Nobody serves this port, and the kernel says nothing either: the server's raw socket keeps it quiet.
                let error = open("127.0.0.1:8081").err().unwrap();
                assert_eq!(FailureKind::of(&error), FailureKind::TimedOut, "{error}");
            })
            .unwrap();
    }
}
