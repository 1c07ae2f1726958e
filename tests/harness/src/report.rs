//! What came of a client's requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::answer::Answer;

/// An answered request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// What the server said.
    pub answer: Answer,
    /// The address and port that the client's socket had.
    pub local: SocketAddr,
    /// When the request began.
    pub at: SystemTime,
    /// From before the connection was opened until the answer was there.
    pub latency: Duration,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FailureKind {
    /// Someone said that nobody listens.
    Refused,
    /// Nothing came back.
    TimedOut,
    /// Someone said that there is no way.
    Unreachable,
    /// The connection was torn down before the answer: RST, or ABORT.
    Reset,
    /// The server ended the connection before the answer: FIN.
    Closed,
    /// The request is larger than the way allows.
    TooLarge,
    /// An answer came from another address than the one asked.
    Stranger,
    /// Anything else.
    Other,
}

impl FailureKind {
    /// What an error of a socket means.
    pub(crate) fn of(error: &io::Error) -> Self {
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::ConnectionRefused, _) => Self::Refused,
            // A connect that outlasts the socket's send timeout is "in progress".
            (ErrorKind::TimedOut | ErrorKind::WouldBlock, _) | (_, Some(libc::EINPROGRESS)) => Self::TimedOut,
            (ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable, _) => Self::Unreachable,
            (ErrorKind::ConnectionReset | ErrorKind::BrokenPipe, _) => Self::Reset,
            (ErrorKind::UnexpectedEof, _) => Self::Closed,
            (_, Some(libc::EMSGSIZE)) => Self::TooLarge,
            (ErrorKind::AddrNotAvailable, None) => Self::Stranger,
            _ => Self::Other,
        }
    }
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// How it failed.
    pub kind: FailureKind,
    /// When the request began.
    pub at: SystemTime,
    /// After what time it failed.
    pub after: Duration,
    /// What the system said.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} after {:.1} ms: {}", self.kind, self.after.as_secs_f64() * 1000.0, self.text)
    }
}

/// The outcomes of a client's requests, in the order in which they began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// One for each request.
    pub outcomes: Vec<Result<Reply, Failure>>,
}

impl Report {
    /// The answered requests.
    pub fn replies(&self) -> impl DoubleEndedIterator<Item = &Reply> {
        self.outcomes.iter().filter_map(|outcome| outcome.as_ref().ok())
    }

    /// The failed ones.
    pub fn failures(&self) -> Vec<&Failure> {
        self.outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect()
    }

    /// How many requests failed in which way.
    pub fn failure_kinds(&self) -> BTreeMap<FailureKind, usize> {
        count(self.failures().into_iter().map(|failure| failure.kind))
    }

    /// That there were requests and every one was answered.
    ///
    /// # Errors
    /// When not: how many failed in which way, and the first of them.
    pub fn all_answered(&self) -> Result<()> {
        match self.failures().first() {
            _ if self.outcomes.is_empty() => bail!("no request was made"),
            None => Ok(()),
            Some(first) => bail!(
                "{} of {} requests failed ({:?}), the first: {first}",
                self.failures().len(),
                self.outcomes.len(),
                self.failure_kinds()
            ),
        }
    }

    /// How many requests each pod answered.
    pub fn pods(&self) -> BTreeMap<&str, usize> {
        count(self.replies().map(|reply| reply.answer.pod.as_str()))
    }

    /// The addresses that the servers saw.
    pub fn sources(&self) -> BTreeSet<IpAddr> {
        self.replies().map(|reply| reply.answer.client.ip()).collect()
    }

    /// The latency that half of the answered requests stayed below.
    pub fn median(&self) -> Option<Duration> {
        let mut latencies: Vec<Duration> = self.replies().map(|reply| reply.latency).collect();
        latencies.sort_unstable();
        latencies.get(latencies.len() / 2).copied()
    }
}

fn count<T: Ord>(items: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    items.fold(BTreeMap::new(), |mut counts, item| {
        *counts.entry(item).or_default() += 1;
        counts
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_pods_are_those_of_the_answered_requests() {
        let client: SocketAddr = "10.0.0.1:1000".parse().unwrap();
        let at = SystemTime::UNIX_EPOCH;
        let reply = |pod: &str, millis| {
            let answer = Answer {
                pod: pod.into(),
                client,
                served: 1,
                said: String::new(),
                length: 0,
                closing: false,
                damaged: 0,
                padding: String::new(),
            };
            Ok(Reply { answer, local: client, at, latency: Duration::from_millis(millis) })
        };
        let lost =
            Failure { kind: FailureKind::TimedOut, at, after: Duration::from_secs(2), text: String::new() };
        let mut report = Report { outcomes: vec![reply("a", 3), Err(lost), reply("b", 1), reply("a", 2)] };
        assert_eq!(report.median(), Some(Duration::from_millis(2)));
        assert_eq!(report.pods(), BTreeMap::from([("a", 2), ("b", 1)]));
        assert_eq!(report.failure_kinds(), BTreeMap::from([(FailureKind::TimedOut, 1)]));
        assert!(report.all_answered().unwrap_err().to_string().starts_with("1 of 4 requests failed"));
        report.outcomes.retain(Result::is_ok);
        report.all_answered().unwrap();
        assert!(Report::default().all_answered().is_err(), "no request is no success");
    }
}
