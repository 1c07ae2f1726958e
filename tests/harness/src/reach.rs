//! Whether somebody is reached: many short tries at the same time, all of them by one process, for tables of who
//! reaches whom.
//!
//! A try is a single request to a pod's server, or a single echo (RFC 792, RFC 4443). The process
//! (`fairlead-harness reach`, started by [`crate::Place`]) is given the tries on its standard input.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::echo::{self, EchoId};
use crate::load::Load;
use crate::probe;
use crate::protocol::Protocol;
use crate::report::FailureKind;

/// How somebody is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// A request over a new flow.
    Request(Protocol, SocketAddr),
    /// An echo.
    Echo(IpAddr),
}

impl Way {
    /// The address that is tried.
    pub fn address(self) -> IpAddr {
        match self {
            Self::Request(_, target) => target.ip(),
            Self::Echo(address) => address,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(protocol, target) => write!(f, "{protocol} to {target}"),
            Self::Echo(address) => write!(f, "echo to {address}"),
        }
    }
}

/// One try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// How, and whom.
    pub way: Way,
    /// From which address; the system's choice if none.
    pub source: Option<IpAddr>,
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was answered.
    Reached,
    /// Somebody said that nobody listens.
    Refused,
    /// Nothing came back.
    Silent,
    /// Anything else, as the system words it.
    Failed(String),
}

impl Outcome {
    fn of(result: Result<(), (FailureKind, String)>) -> Self {
        match result {
            Ok(()) => Self::Reached,
            Err((FailureKind::Refused, _)) => Self::Refused,
            Err((FailureKind::TimedOut, _)) => Self::Silent,
            Err((_, text)) => Self::Failed(text),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached => f.write_str("reached"),
            Self::Refused => f.write_str("refused"),
            Self::Silent => f.write_str("silent"),
            Self::Failed(text) => f.write_str(text),
        }
    }
}

/// Does all tries at the same time, in the calling process and namespace; the outcomes come in their order.
pub fn run(tries: &[Try], patience: Duration) -> Vec<Outcome> {
    thread::scope(|scope| {
        let begun: Vec<_> = tries.iter().map(|one| scope.spawn(move || attempt(one, patience))).collect();
        let panicked = |_| Outcome::Failed("the thread panicked".to_owned());
        begun.into_iter().map(|one| one.join().unwrap_or_else(panicked)).collect()
    })
}

fn attempt(one: &Try, patience: Duration) -> Outcome {
    match one.way {
        Way::Request(protocol, target) => {
            let load = Load::new(protocol, target).times(1).giving_up_after(patience);
            let load = one.source.into_iter().fold(load, Load::from_source);
            let failure = probe::run(&load).outcomes.pop().and_then(Result::err);
            Outcome::of(failure.map_or(Ok(()), |failure| Err((failure.kind, failure.text))))
        }
        Way::Echo(target) => {
            let echoed = echo::send(EchoId::random(), one.source, target, 0, patience);
            Outcome::of(echoed.map_err(|error| (FailureKind::of(&error), error.to_string())))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::time::Instant;

    use super::*;
    use crate::netns;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn request(protocol: Protocol, target: SocketAddr) -> Try {
        Try { way: Way::Request(protocol, target), source: None }
    }

    #[test]
    fn a_silent_peer_is_told_from_one_that_refuses() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tries = [
            request(Protocol::Tcp, closed),
            request(Protocol::Udp, closed),
            request(Protocol::Udp, silent.local_addr().unwrap()),
        ];
        let begin = Instant::now();
        assert_eq!(run(&tries, PATIENCE), [Outcome::Refused, Outcome::Refused, Outcome::Silent]);
        assert!(begin.elapsed() < 2 * PATIENCE, "they are done at the same time");
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn an_echo_is_answered_in_both_families_from_the_source_that_is_asked_for() {
        let netns = netns::create(&format!("fl-echo-{}", std::process::id())).unwrap();
        let echo = |target: &str, source: Option<&str>| Try {
            way: Way::Echo(target.parse().unwrap()),
            source: source.map(|source| source.parse().unwrap()),
        };
        let tries = [
            echo("127.0.0.1", None),
            echo("127.0.0.1", Some("127.0.0.9")),
            echo("::1", None),
            echo("192.0.2.1", None),
        ];
        let outcomes = netns.run(|| run(&tries, PATIENCE)).unwrap();
        assert_eq!(outcomes[..3], [Outcome::Reached, Outcome::Reached, Outcome::Reached]);
        assert!(matches!(outcomes[3], Outcome::Failed(_)), "there is no way: {:?}", outcomes[3]);
    }
}
