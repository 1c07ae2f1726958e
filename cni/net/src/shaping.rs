//! Limiting a rate: a token bucket (TBF) as the queue of an interface, with the figures of the reference
//! `bandwidth` plugin.
//!
//! The queue holds what the bucket has no tokens for, at most [`LATENCY`] of it; what finds no room is dropped. So a
//! sender that heeds loss, such as TCP, settles at the rate.

use std::fmt;
use std::time::Duration;

use rtnetlink::packet_core::{DefaultNla, Nla, NlasIterator};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

/// How long a packet waits at most before the queue drops.
pub const LATENCY: Duration = Duration::from_millis(25);

/// The smallest bucket that ever sends a packet of 1500 bytes and its Ethernet header. Larger packets are cut into
/// such by the kernel if they are to be segmented anyway.
const BURST_MIN: u64 = 1514;

/// The queue's name in the kernel.
const KIND: &str = "tbf";

/// The options of a TBF (`linux/pkt_sched.h`).
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;

/// The kind of link that needs no table of packet sizes (`TC_LINKLAYER_ETHERNET`).
const LINKLAYER_ETHERNET: u8 = 1;

/// A limit on what an interface sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In bits a second, at least 8.
    pub rate: u64,
    /// How much may go at once after a pause, in bits.
    pub burst: u64,
}

impl Limit {
    /// In bytes a second.
    fn byte_rate(self) -> u64 {
        self.rate / 8
    }

    /// The bucket's size in bytes.
    fn bucket(self) -> u32 {
        u32::try_from((self.burst / 8).max(BURST_MIN)).unwrap_or(u32::MAX)
    }

    /// How many bytes the queue holds: the bucket's, and what the rate sends within [`LATENCY`].
    fn queue(self) -> u32 {
        let waiting = u128::from(self.byte_rate()) * LATENCY.as_millis() / 1000;
        u32::try_from(waiting + u128::from(self.bucket())).unwrap_or(u32::MAX)
    }

    /// What the kernel says of a queue with this limit.
    #[must_use]
    pub fn token_bucket(self) -> TokenBucket {
        TokenBucket { rate: self.byte_rate(), queue: self.queue() }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bit/s in bursts of {} bits", self.rate, self.burst)
    }
}

/// A TBF as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// In bytes a second.
    rate: u64,
    /// How many bytes it holds.
    queue: u32,
}

impl fmt::Display for TokenBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bit/s and {} bytes", u128::from(self.rate) * 8, self.queue)
    }
}

/// The message that makes a TBF the root queue of the interface.
pub(crate) fn message(index: u32, limit: Limit) -> TcMessage {
    let rate = limit.byte_rate();
    let option = |kind, value: &[u8]| TcOption::Other(DefaultNla::new(kind, value.to_vec()));
    let mut options = vec![
        option(TCA_TBF_PARMS, &parameters(u32::try_from(rate).unwrap_or(u32::MAX), limit.queue())),
        option(TCA_TBF_BURST, &limit.bucket().to_ne_bytes()),
    ];
    if u32::try_from(rate).is_err() {
        options.push(option(TCA_TBF_RATE64, &rate.to_ne_bytes()));
    }
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes = vec![TcAttribute::Kind(KIND.into()), TcAttribute::Options(options)];
    message
}

/// `struct tc_tbf_qopt`: the rate, no peak rate, and the queue's length; the bucket comes by [`TCA_TBF_BURST`].
fn parameters(rate: u32, queue: u32) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[1] = LINKLAYER_ETHERNET;
    bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
    bytes[24..28].copy_from_slice(&queue.to_ne_bytes());
    bytes
}

/// The TBF that `message` tells of, if it does.
pub(crate) fn token_bucket(message: &TcMessage) -> Option<TokenBucket> {
    let is_tbf = message.attributes.contains(&TcAttribute::Kind(KIND.into()));
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) if is_tbf => options.first(),
        _ => None,
    })?;
    let mut bytes = vec![0; options.value_len()];
    options.emit_value(&mut bytes);
    let find = |kind| {
        let found = NlasIterator::new(bytes.as_slice()).flatten().find(|option| option.kind() == kind)?;
        Some(found.value().to_vec())
    };
    let parameters = find(TCA_TBF_PARMS)?;
    let word = |at: usize| Some(u32::from_ne_bytes(parameters.get(at..at + 4)?.try_into().ok()?));
    let long = find(TCA_TBF_RATE64).and_then(|value| Some(u64::from_ne_bytes(value.try_into().ok()?)));
    Some(TokenBucket { rate: long.unwrap_or(word(8)?.into()), queue: word(24)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_holds_a_burst_and_what_the_rate_sends_in_25_milliseconds() {
        let limit = Limit { rate: 8_000_000, burst: 800_000 };
        assert_eq!(limit.token_bucket(), TokenBucket { rate: 1_000_000, queue: 100_000 + 25_000 });
    }

    #[test]
    fn a_burst_smaller_than_a_packet_still_lets_one_through() {
        assert_eq!(Limit { rate: 8000, burst: 8 }.bucket(), 1514);
    }

    #[test]
    fn limits_beyond_what_the_kernel_can_count_are_its_largest() {
        let limit = Limit { rate: u64::MAX, burst: u64::MAX };
        assert_eq!((limit.bucket(), limit.queue()), (u32::MAX, u32::MAX));
    }
}
